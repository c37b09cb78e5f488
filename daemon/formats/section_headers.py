"""Headers that each section of a stack has of its own: detector, signal, optics, stage and time state what they are."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from math import nan

from daemon.formats import stack
from daemon.formats.reading import number
from daemon.formats.stack import Stack
from daemon.micrograph import UNKNOWN, Acquisition

_TIMES = (
    "%Y:%m:%d %H:%M:%S",  # TIFF
    "%m/%d/%Y %I:%M:%S %p",  # FEI
    "%d/%m/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M:%S",
    "%d.%m.%Y %H:%M:%S",
    "%d %b %Y %H:%M:%S",  # Zeiss
    "%Y-%m-%d %H:%M:%S",  # Tescan
    "%Y/%m/%d %H:%M:%S",
    "%Y-%m-%d %H:%M:%S %z",  # Micro-Manager
    "%H:%M:%S",
)
"""Date and time as vendors write them; a form must fit all sections."""
_ZEISS = re.compile(r"\b(?:date|time)\s*:", re.IGNORECASE)
_FIRST, _LAST = 3e8, 8e9
"""Seconds since 1970 that may be a time of acquisition."""


@dataclass(frozen=True, slots=True)
class SectionHeader:
    """What the header of one section states."""

    number: int
    """Of the section, from 0."""
    taken: Acquisition = UNKNOWN
    signal: str = ""
    """What the detector recorded, such as SE or BSE."""
    stage: tuple[float, float] = (nan, nan)
    """Metres."""
    tilt: float = nan
    """Degrees."""
    name: str = ""
    place: tuple[str, ...] = ()
    """Within a larger picture, in any unit; empty texts are not stated."""
    form: tuple[str, ...] = ()
    """Pixel size, orientation and calibration of values as the file has them: frames of one exposure share them."""


def nature(found: Sequence[SectionHeader], by: str) -> Stack | None:
    """The kind of a stack by the headers of some or all of its sections, in their order; None if all are alike."""
    in_time = stack.of_times(by, _steps(found))
    return stack.weighed(
        (
            stack.of_signals((one.taken.detector or "" for one in found), by),
            stack.of_signals((one.signal for one in found), by),
            stack.of_places(((one.taken.voltage_kv, one.taken.magnification) for one in found), "exposures", by),
            stack.of_tilts((one.tilt for one in found), by),
            stack.of_stage((one.stage for one in found), by),
            *(stack.of_places(stated, "pieces", by) for stated in _columns([one.place for one in found])),
            *(stack.of_places(stated, "exposures", by) for stated in _columns([one.form for one in found])),
            stack.of_names((one.name for one in found), by),
            in_time if in_time.are != "frames" else None,
        )
    )


def _columns(rows: Sequence[tuple[str, ...]]) -> list[list[tuple[str]]]:
    """Each of several facts as the sections state it, without those that do not."""
    return [[(value,) for value in column if value] for column in zip(*rows, strict=False)]


def _steps(found: Sequence[SectionHeader]) -> list[float]:
    """Seconds from one section to the next, as a mean where some between are not known."""
    times = moments([one.taken.recorded or "" for one in found])
    known = zip(times, (one.number for one in found), strict=False)
    return [(later - earlier) / (last - first) for (earlier, first), (later, last) in pairwise(known)]


def moments(texts: Sequence[str]) -> list[float]:
    """Dates and times in seconds; empty unless all of them are of one known form."""
    plain = [" ".join(_ZEISS.sub(" ", text).split()) for text in texts]
    if not all(plain):
        return []
    numbers = [value for text in plain if (value := number(text)) is not None]
    if len(numbers) == len(plain):
        return numbers if all(_FIRST < value < _LAST for value in numbers) else []
    for form in ("ISO 8601", *_TIMES):
        try:
            return [_moment(text, form) for text in plain]
        except ValueError:
            continue
    return []


def _moment(text: str, form: str) -> float:
    found = datetime.fromisoformat(text) if form == "ISO 8601" else datetime.strptime(text, form)  # noqa: DTZ007
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
