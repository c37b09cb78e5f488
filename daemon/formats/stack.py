"""Kinds of stacks as files state them: frames of one exposure, or separate images."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Are = Literal["frames", "tilts", "pieces", "places", "exposures", "slices", "channels"]

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
_TIME = ("s", "sec", "second", "seconds", "ms", "us", "µs", "min", "h")
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
    """SerialEM's camera plug-in calls its frames dose fractions, in the label or description of the file."""
    return Stack("frames", by) if _DOSE_FRACTIONS.search(text) else None


def of_axis(name: str, unit: str, by: str) -> Stack | None:
    """The kind of sections along an axis, by its name or else its unit; None if neither is known."""
    words = set(re.findall(r"[a-z]+", name.lower()))
    unit = unit.strip().lower()
    if words & {"tilt", "tilts", "angle", "alpha", "beta"} or unit in _ANGLE:
        return Stack("tilts", by)
    if words & {"energy", "voltage", "temperature", "focus", "defocus", "wavelength"} or unit in _SERIES:
        return Stack("exposures", by)
    if words & {"time", "t", "frame", "frames"}:
        return Stack("frames", by)
    if words & {"z", "depth", "slice", "slices"}:
        return Stack("slices", by) if unit not in _TIME else Stack("frames", by)
    if words & {"c", "channel", "channels"}:
        return Stack("channels", by)
    if unit in _TIME:
        return Stack("frames", by)
    return Stack("slices", by) if unit in _LENGTH else None


def of_tilts(angles: Iterable[float], by: str) -> Stack | None:
    """A tilt series, where the angles of its sections (degrees) differ."""
    known = [angle for angle in angles if abs(angle) <= 180]
    return Stack("tilts", by) if len(known) > 1 and max(known) - min(known) > _TILT_STEP else None


def of_places(places: Iterable[tuple[Any, ...]], are: Literal["pieces", "places"], by: str) -> Stack | None:
    """Pieces or places, where the coordinates of the sections differ."""
    return Stack(are, by) if len(set(places)) > 1 else None
