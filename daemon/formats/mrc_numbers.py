"""Decides whether the numbers of an MRC file are signed or packed if header, IMOD's flags and data disagree.

MRC2014 calls mode 0 signed; IMOD, SerialEM and older programs write unsigned bytes into it, and mode 1 is at times
filled with unsigned numbers. All evidence is weighted: IMOD's flags (bytes 152-159 of the header, as IMOD's description
of the format has them), minimum, maximum and mean of the header, and the pixels, where the wrong reading makes jumps.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Any, BinaryIO

import numpy as np

from daemon.formats.reading import LARGEST_PACKED
from daemon.formats.signs import FAR_FEWER, FEWER, differences
from daemon.micrograph import Pixels

PACKED = 16
"""IMOD's flag for two 4-bit values in a byte."""
_SIGNED = 1
_STAMP = 1146047817
_SAMPLE = 1 << 23
"""Bytes, from the first, that are evaluated."""
_FIRST = 1 << 20
"""The same, for the byte order."""
_FILLED = 0.01
"""Smallest share of the header's range that numbers in the other byte order fill."""
_KINDS = {0: ("i1", "u1"), 1: ("i2", "u2"), 6: ("i2", "u2")}
"""By mode: the signed and the unsigned reading."""
_STANDARD, _DECLARED, _FIT, _SMOOTH, _WRAPPED, _BEYOND = 1, 3, 2, 2, 4, 6
"""Weights of the evidence, chosen so that no sum is 0: the standard for mode 0; a flag or mode; minimum, maximum and
mean that fit the pixels; fewer jumps, and far fewer; a value in the header above any signed number."""
_LEAST_PACKED, _FAR_ABOVE = 8, 8
"""At least: the largest 4-bit count of an image; and the mean of bytes of two counts, in means of the header."""


@dataclass(frozen=True, slots=True)
class _Vote:
    """Weight above 0 for unsigned, below for signed, and its reason."""

    weight: int
    why: str


def imod_flags(header: Any) -> int | None:
    """IMOD's flags, or None for a file without its stamp, which may be in either byte order."""
    for order in "<>":
        stamp, flags = np.frombuffer(bytes(header["extra2"]), f"{order}i4", 2, 40)
        if stamp == _STAMP:
            return int(flags)
    return None


def in_order(
    stream: BinaryIO, header: Any, dtype: np.dtype[Any], start: int, end: int
) -> tuple[np.dtype[Any], list[str]]:
    """The dtype in the byte order of the numbers in bytes `start` to `end`, and remarks. Raises OSError.

    That is the header's, unless minimum and maximum of the header fit the other order only.
    """
    stated = _statistics(header)
    if stated is None or dtype.itemsize < 2:
        return dtype, []
    stream.seek(start)
    data = stream.read(max(0, min(end - start, _FIRST)))
    values = np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)
    swapped = values.view(dtype.newbyteorder())
    if not values.size or _inside(values, stated, 0) is not False or not _inside(swapped, stated, _FILLED):
        return dtype, []
    remark = (
        f"read in the other byte order than its header's ({_words(swapped)}), because minimum and maximum of its "
        f"header ({stated[0]:g}, {stated[1]:g}) indicate it"
    )
    return swapped.dtype, [remark]


def _inside(values: Pixels, stated: tuple[float, float, float], filled: float) -> bool | None:
    """Whether numbers, whole ones with or without a sign, lie within the header's extremes; None if all are not finite.

    False also for numbers that fill less than the share `filled` of that range.
    """
    low, high, _ = stated
    slack = 1e-3 * (high - low)
    kinds = [values]
    if values.dtype.kind in "iu":
        kinds = [values.view(values.dtype.str.replace(*pair)) for pair in (("i", "u"), ("u", "i"))]
    kinds = [kind[np.isfinite(kind)] for kind in kinds]
    if not kinds[0].size:
        return None
    ends = [(float(kind.min()), float(kind.max())) for kind in kinds]
    return any(
        low - slack <= least and most <= high + slack and most - least >= filled * (high - low) for least, most in ends
    )


def signed_or_not(
    stream: BinaryIO, header: Any, mode: int, start: int, end: int, order: Any
) -> tuple[np.dtype[Any], list[str]]:
    """The dtype of whole numbers of mode 0, 1 or 6 in bytes `start` to `end`, of this byte order, and remarks.

    If some evidence contradicts it, the remark states both readings. Raises OSError.
    """
    signed, unsigned = (np.dtype(name).newbyteorder(order) for name in _KINDS[mode])
    stream.seek(start)
    length = max(0, min(end - start, _SAMPLE)) // signed.itemsize * signed.itemsize
    data = stream.read(length)
    whole = start + len(data) >= end
    data = data[: len(data) // signed.itemsize * signed.itemsize]
    one, other = np.frombuffer(data, signed), np.frombuffer(data, unsigned)
    declared = _declared(header, mode)
    beyond = _beyond(header, signed)
    if not (one < 0).any() and beyond is None:
        return (unsigned if declared.weight > 0 else signed), []  # both readings agree
    others = beyond, _fit(header, one, other, whole), _jumps(header, one, other)
    votes = [declared, *(vote for vote in others if vote is not None)]
    total = sum(vote.weight for vote in votes)
    against = [vote.why for vote in votes if vote.weight * total < 0]
    if total == -_STANDARD and not against:
        against = ["many programs write them"]
    if not against:
        return (unsigned if total > 0 else signed), []
    read, not_read = (("unsigned", other), ("signed", one)) if total > 0 else (("signed", one), ("unsigned", other))
    why = " and ".join(vote.why for vote in votes if vote.weight * total > 0)
    remark = (
        f"read as {read[0]} numbers ({_words(read[1])}), because {why}; {not_read[0]} they would be "
        f"{_words(not_read[1])}, as {' and '.join(against)}"
    )
    return (unsigned if total > 0 else signed), [remark]


def packed(header: Any, pixels: Pixels, frames: int) -> bool:
    """Whether the header's statistics are those of 4-bit counts, of which the sum (H, W) of `frames` has two in a byte.

    Such bytes have 17 times the mean of the counts; in a header that is older than its pixels, the means are alike.
    """
    low, most, mean = (float(header[name]) for name in ("dmin", "dmax", "dmean"))
    of_counts = low >= 0 and _LEAST_PACKED <= most <= LARGEST_PACKED and low < mean < most
    return of_counts and float(pixels.mean(dtype=np.float64)) > _FAR_ABOVE * mean * frames


def _declared(header: Any, mode: int) -> _Vote:
    flags = imod_flags(header)
    if mode == 0 and flags is None:
        return _Vote(-_STANDARD, "the MRC standard has it")
    signed = bool((flags or 0) & _SIGNED) if mode == 0 else mode == 1
    by = f"its IMOD flags state ({'' if signed else 'un'}signed bytes)" if mode == 0 else f"its mode ({mode}) states"
    return _Vote(-_DECLARED if signed else _DECLARED, by)


def _statistics(header: Any) -> tuple[float, float, float] | None:
    """Minimum, maximum and mean, where the header states them."""
    low, high, mean = (float(header[name]) for name in ("dmin", "dmax", "dmean"))
    return (low, high, mean) if all(map(isfinite, (low, high, mean))) and low <= mean <= high and low < high else None


def _beyond(header: Any, signed: np.dtype[Any]) -> _Vote | None:
    """A maximum or mean above every signed number of that width."""
    largest = 2.0 ** (8 * signed.itemsize)
    stated = [value for value in (float(header["dmax"]), float(header["dmean"])) if largest / 2 <= value < largest]
    return _Vote(_BEYOND, f"its header states a value of {max(stated):g}") if stated else None


def _fit(header: Any, one: Pixels, other: Pixels, whole: bool) -> _Vote | None:
    """The reading whose pixels lie between minimum and maximum, and have the mean if the file is complete."""
    stated = _statistics(header)
    if stated is None:
        return None
    low, high, mean = stated
    slack = 1e-3 * (high - low)

    def fits(values: Pixels) -> bool:
        inside = low - slack <= float(values.min()) and float(values.max()) <= high + slack
        return inside and (not whole or abs(float(values.mean(dtype=np.float64)) - mean) <= 10 * slack)

    signed, unsigned = fits(one), fits(other)
    if signed == unsigned:
        return None
    why = f"minimum, maximum and mean of its header indicate ({low:g}, {high:g}, {mean:g})"
    return _Vote(_FIT if unsigned else -_FIT, why)


def _jumps(header: Any, one: Pixels, other: Pixels) -> _Vote | None:
    """Which reading has decidedly less difference between neighbours in a row, in pairs where the readings differ."""
    width = int(header["nx"])
    rows = len(one) // width
    planes = (values[: rows * width].reshape(rows, width) for values in (one, other))
    signed, unsigned = differences(*planes)
    if max(signed, unsigned) <= FEWER * min(signed, unsigned):
        return None
    why = "the differences between neighbouring pixels indicate"
    weight = _WRAPPED if max(signed, unsigned) > FAR_FEWER * min(signed, unsigned) else _SMOOTH
    return _Vote(weight if unsigned < signed else -weight, why)


def _words(values: Pixels) -> str:
    return f"{values.min():g} to {values.max():g}, mean {values.mean(dtype=np.float64):.4g}"
