"""Kinds of stacks as files state them: frames of one exposure, or separate images."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median
from typing import Any, Literal

import numpy as np

Are = Literal["frames", "tilts", "pieces", "places", "exposures", "slices", "channels"]
"""Points of a time series are exposures."""

WORDS: Mapping[str, str] = {
    "frames": "frames",
    "tilts": "tilts of a tilt series",
    "pieces": "pieces of a montage",
    "places": "images of different places",
    "exposures": "exposures of their own",
    "slices": "slices of a volume",
    "channels": "channels",
}
NEVER_SUMMED = ("tilts", "pieces", "channels")
"""Kinds that cannot be summed to one exposure."""
_TILT_STEP = 0.05
"""Degrees: readings of one angle vary by less."""
_DOSE_FRACTIONS = re.compile(r"\bdose[ _-]?frac", re.IGNORECASE)
_SUMS = re.compile(r"\balignframes: summed frames", re.IGNORECASE)
"""IMOD's label: each section is the sum of a movie's frames."""
_TIME = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("us", "µs", "usec", "microsecond", "microseconds"), 1e-6),
    **dict.fromkeys(("ns", "nanosecond", "nanoseconds"), 1e-9),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
}
"""Seconds."""
_LONGEST = 10.0
"""Seconds from one frame to the next: more is a time series, whose points are exposures of their own."""
_PAUSE = 3.0
"""The same of most frames, in their exposure times."""
_DRIFT = 1e-7
"""Metres between positions of the stage: its drift from the first exposure to the last is smaller."""
_NONDESCRIPT = {
    *("i", "n", "q", "no", "nr", "num", "index", "number", "image", "images", "section", "sections", "stack", "page"),
    *("pages", "axis", "dim", "signal", "nav", "navigation", "sequence", "series", "position", "undefined", "unknown"),
    *("none", "element"),
}
"""Words for an axis that do not state what it is."""
_COUNTED = re.compile(
    r"(?<=\d)e[-+]?\d+|(?<![^\W\d_])([ap]m|(mon|tues?|wed(nes)?|thu(rs)?|fri|sat(ur)?|sun)(day)?"
    r"|jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sep(t|tember)?|oct(ober)?|nov(ember)?"
    r"|dec(ember)?)(?![^\W\d_])|[\W\d_]+"
)
"""Numbers, and words of dates and times, in the name of a section: they count sections."""
_ANGLE = ("deg", "°", "degree", "degrees", "rad", "mrad")
_SERIES = ("ev", "kev", "v", "kv", "k", "°c")
"""Units of what is changed from one exposure to the next: energy, voltage, temperature."""
_LENGTH = ("m", "mm", "um", "µm", "nm", "å", "a", "angstrom", "pm", "micron")


@dataclass(frozen=True, slots=True)
class Stack:
    """The kind of the sections, and its source."""

    are: Are
    by: str
    sure: bool = True
    """False for a statement that many programs write by default: a file name outweighs it."""

    def as_json(self) -> dict[str, Any]:
        """For a micrograph's metadata."""
        return {"are": self.are, "by": self.by, "sure": self.sure}


def weighed(found: Iterable[Stack | None]) -> Stack | None:
    """The decisive statement: sure ones before unsure ones, then those against frames, then the first."""
    stated = [one for one in found if one is not None]
    return min(stated, key=lambda one: (not one.sure, one.are == "frames"), default=None)


def merged(metadata: Mapping[str, Any], other: Stack | None) -> dict[str, Any]:
    """Metadata of a micrograph, with a further statement on its stack considered."""
    own = metadata.get("stack")
    counting = weighed([None if own is None else Stack(**own), other])
    return dict(metadata) if counting is None else {**metadata, "stack": counting.as_json()}


def of_words(text: str, by: str) -> Stack | None:
    """SerialEM's camera plug-in calls its frames dose fractions, in the label or description of the file.

    The label may outlive the frames: IMOD's alignframes adds its own.
    """
    if _SUMS.search(text):
        return Stack("exposures", by)
    return Stack("frames", by) if _DOSE_FRACTIONS.search(text) else None


def of_axis(name: str, unit: str, by: str, step: float | None = None) -> Stack | None:
    """The kind of sections along an axis, by its name or else its unit; None if neither is known.

    `step`: from one section to the next, in that unit.
    """
    words = set(re.findall(r"[a-z]+", name.lower()))
    unit = _plain(unit)
    known = None if step is None else seconds(step, unit)
    in_time = of_times(by, [] if known is None else [known])
    if words & {"tilt", "tilts", "angle", "alpha", "beta"} or unit in _ANGLE:
        return Stack("tilts", by)
    if words & {"tile", "tiles", "mosaic", "montage"}:
        return Stack("pieces", by)
    if unit in _SERIES:
        return Stack("exposures", by)
    if words & {"time", "t", "frame", "frames", "movie", "dose"}:
        return in_time
    if words & {"z", "depth", "slice", "slices"} and unit not in _TIME:
        return Stack("slices", by)
    if words & {"c", "channel", "channels", "detector", "detectors"}:
        return Stack("channels", by)
    if unit in _TIME:
        return in_time
    if words - _NONDESCRIPT:  # energy, defocus, magnetic field, ...: each has its own
        return Stack("exposures", by)
    return Stack("slices", by) if unit in _LENGTH else None


def of_times(by: str, steps: Sequence[float], exposure: float | None = None) -> Stack:
    """Frames, or points of a time series, by the known steps from one to the next and the exposure time, in seconds.

    The clock of a computer that stores frames may jump, so a single long step is no pause after each exposure.
    """
    apart = [abs(step) for step in steps]
    if apart and (max(apart) > _LONGEST or (exposure is not None and median(apart) > _PAUSE * exposure)):
        return Stack("exposures", f"{by}, a time series")
    return Stack("frames", by)


def seconds(number: float, unit: str) -> float | None:
    """A time in seconds; None if its unit is not known."""
    factor = _TIME.get(_plain(unit))
    return None if factor is None else number * factor


def _plain(unit: str) -> str:
    return unit.strip().lower().replace("μ", "µ")  # the Greek letter for the micro sign


def of_names(names: Iterable[str], by: str) -> Stack | None:
    """Exposures of their own, where the sections have names that differ by more than numbers, dates and times."""
    known = [" ".join(_COUNTED.sub(" ", name.lower()).split()) for name in names]
    return Stack("exposures", by) if len(known) > 1 and all(known) and len(set(known)) > 1 else None


def of_tilts(angles: Iterable[float], by: str) -> Stack | None:
    """A tilt series, where the angles of its sections (degrees) differ."""
    known = [angle for angle in angles if abs(angle) <= 180]
    return Stack("tilts", by) if len(known) > 1 and max(known) - min(known) > _TILT_STEP else None


def of_signals(names: Iterable[str], by: str) -> Stack | None:
    """Channels, where the sections name different detectors or signals; those without a name do not count."""
    known = {" ".join(name.lower().split()) for name in names if name.strip()}
    return Stack("channels", by) if len(known) > 1 else None


def of_places(places: Iterable[tuple[Any, ...]], are: Are, by: str) -> Stack | None:
    """Sections of that kind, where their coordinates or optics differ."""
    return Stack(are, by) if len(set(places)) > 1 else None


def of_stage(places: Iterable[tuple[float, float]], by: str) -> Stack | None:
    """Sections of several places, where positions of the stage (metres) differ by more than its drift."""
    known = np.array([place for place in places if all(map(isfinite, place))], np.float64)
    return Stack("places", by) if len(known) > 1 and np.ptp(known, axis=0).max() > _DRIFT else None
