"""Units of length as microscope files spell them, and spellings that are no length."""

import html
import re
from math import isclose, isfinite

from daemon.micrograph import PixelSize

METRES = {"m": 1.0, "cm": 1e-2, "mm": 1e-3, "um": 1e-6, "nm": 1e-9, "angstrom": 1e-10, "pm": 1e-12}
"""Length in metres of each unit that this project writes."""

_SPELLINGS = {
    "m": ("m", "meter", "metre", "meters", "metres"),
    "cm": ("cm", "centimeter", "centimetre"),
    "mm": ("mm", "millimeter", "millimetre"),
    "um": ("um", "µm", "âµm", "micron", "microns", "micrometer", "micrometre", "micrometers", "micrometres"),
    "nm": ("nm", "nanometer", "nanometre", "nanometers", "nanometres"),
    "angstrom": ("å", "a", "ang", "angstrom", "angstroms", "ångström", "ångstrom"),
    "pm": ("pm", "picometer", "picometre"),
}
_CANONICAL = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings}
_RECIPROCAL = re.compile(
    r"^(1|cycles?|lines?)?\s*/|^(inverse|reciprocal)\b|[-\u2212]\s*[1-9]\s*[)}\]]*\$?$|\u207b[\u00b9\u00b2]$"
    r"|^(m|\u00b5|u|n)?rad(ian)?s?$"
)


def _plain(text: str) -> str:
    """Undo the escapes of ImageJ (\\u00B5) and XML (&#181;), the Greek mu and the letter case."""
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), html.unescape(text))
    return " ".join(text.strip("\0").split()).replace("\u03bc", "\u00b5").replace("\u212b", "\u00c5").lower()


def _canonical(text: str) -> str | None:
    """A unit as a file spells it → this project's spelling, None if it is no length that is known."""
    return _CANONICAL.get(_plain(text))


def metres(length: float, unit: str) -> float | None:
    """A length in metres; None if its unit is not known."""
    name = _canonical(unit)
    return None if name is None else length * METRES[name]


def reciprocal(text: str) -> bool:
    """True for 1/nm, nm^-1, mrad and the like: the axes of a diffraction pattern."""
    return bool(_RECIPROCAL.search(_plain(text)))


def pixel_size(y: float, x: float, unit: str, unit_y: str = "") -> PixelSize | None:
    """A pixel size as a file states it, or None if the numbers or units mean "unknown".

    `unit_y`: that of `y`, if the file has one for each axis; empty for the same. The result is in that of `x`.
    """
    name, other = _canonical(unit), _canonical(unit_y or unit)
    if name is None or other is None or not (isfinite(x) and isfinite(y) and x > 0 and y > 0):
        return None
    if other != name:
        y *= METRES[other] / METRES[name]
    return PixelSize(y=float(y), x=float(x), unit=name)


def convert(size: PixelSize, unit: str) -> PixelSize | None:
    """The same size in another unit of length; None if its own unit is not a known length."""
    if size.unit not in METRES:
        return None
    factor = METRES[size.unit] / METRES[unit]
    return PixelSize(y=size.y * factor, x=size.x * factor, unit=unit)


def readable(size: PixelSize) -> PixelSize:
    """The same size in nm, um or mm where its own unit would need many zeros (2.4e-11 m → 0.024 nm)."""
    if size.unit in ("nm", "um", "angstrom") or size.unit not in METRES:
        return size
    metres = size.x * METRES[size.unit]
    converted = convert(size, "nm" if metres < 1e-6 else "um" if metres < 1e-3 else "mm")
    return converted or size


_ALIKE = 0.02
"""Largest relative difference of one pixel size stated twice: magnifications are recalibrated."""


def contradiction(taken: PixelSize, by: str, other: PixelSize | None, other_by: str) -> str:
    """A remark with both pixel sizes, if the second source states another one than the first; else empty."""
    in_unit = None if other is None else convert(other, taken.unit)
    if in_unit is None or all(
        isclose(ours, theirs, rel_tol=_ALIKE) for ours, theirs in ((taken.y, in_unit.y), (taken.x, in_unit.x))
    ):
        return ""
    return (
        f"the pixel size is {_words(taken)} by {by}, but {_words(in_unit)} by {other_by}: the first was "
        "taken; if it is wrong, so is the scale bar"
    )


def _words(size: PixelSize) -> str:
    sides = f"{size.x:.4g}" if isclose(size.x, size.y, rel_tol=1e-3) else f"{size.x:.4g} x {size.y:.4g}"
    return f"{sides} {size.unit}"
