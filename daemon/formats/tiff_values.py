"""Applies what a TIFF states of its numbers (reversed, calibrated), and keeps tags on their display.

Tags that change values are applied on reading and recorded; tags that only concern the display go to the result.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.errors import MicrographError
from daemon.formats import signs, tiff_tags
from daemon.formats.reading import number
from daemon.formats.tiff_layout import PageLayout
from daemon.micrograph import Pixels

_WHITE_IS_ZERO = 0
_ORIENTATION = 274
_UNITS, _ORIGIN, _SCALE = 65022, 65024, 65025
"""DigitalMicrograph's calibration of intensity, in its TIFF tags."""
_UNIT = 40
"""Longest name of a unit."""
_GDAL = 42112
"""GDAL's XML, with a calibration of values."""
_CURVES = {291: "GrayResponseCurve", 301: "TransferFunction"}
_SCANNER, _ROOTS = 33445, 2
"""The kind of numbers of Molecular Dynamics' scanners (GEL)."""
_NODATA = 42113
"""GDAL's tag: the value of pixels that were not recorded, as text."""
_LINEAR, _NONE = 0, 20
"""ImageJ's numbers of functions: a straight line, none."""
_CALIBRATED_BITS = (8, 16)
"""ImageJ calibrates these only."""
_GREY_SHARE = 0.8
_STRAIGHT = 0.02
"""Largest difference of a palette's grey from a straight line, as a share of white."""
_REVERSED_SHARE = 0.05
"""Largest share of steps of a ramp of grey in the other direction: entries kept for an overlay's black and white."""
_CROWDED, _SEVERAL, _BELOW_0 = 2, 8, 1e-3
"""The part of the range of signed numbers, the fewest different ones below 0, and their least share, of pixels without
a sign: saturated pixels, from which a dark reference was subtracted, are large as well, but few."""
_SAMPLE = 1 << 22
"""Pixels, from the first row on, in which jumps are searched."""
_PLAUSIBLE = (1e-6, 1e9)
"""Range of intensities saved as floating-point numbers."""


@dataclass(frozen=True, slots=True)
class StoredMeaning:
    """Meaning of a stored number, zero + slope × stored, and its source."""

    zero: float = 0.0
    slope: float = 1.0
    by: str = ""

    @property
    def changes(self) -> bool:
        """Whether stored numbers differ from the values."""
        return (self.zero, self.slope) != (0.0, 1.0)

    def dtype(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        """The narrowest type that holds every value: whole numbers where all of them are."""
        if stored.kind in "iu" and self.zero.is_integer() and self.slope.is_integer() and stored.itemsize <= 4:
            limits = np.iinfo(stored)
            ends = sorted(int(self.zero) + int(self.slope) * int(end) for end in (limits.min, limits.max))
            for name in ("u1", "i1", "u2", "i2", "u4", "i4", "i8"):
                kind = np.iinfo(name)
                if kind.min <= ends[0] and ends[1] <= kind.max:
                    return np.dtype(name)
        return np.dtype(np.float32 if stored.itemsize <= 2 or stored == np.float32 else np.float64)

    def applied(self, plane: Pixels) -> Pixels:
        """The values of a plane (H, W) of stored numbers."""
        wanted = self.dtype(plane.dtype)
        if wanted.kind in "iu":
            whole = plane.astype(np.int64) * int(self.slope) + int(self.zero)
            return whole.astype(wanted)
        return (plane.astype(np.float64) * self.slope + self.zero).astype(wanted)

    def as_json(self) -> dict[str, Any]:
        """For a micrograph's metadata."""
        return {"zero": self.zero, "slope": self.slope, "by": self.by}

    def __str__(self) -> str:
        return f"value = {self.zero:g} {'-' if self.slope < 0 else '+'} {abs(self.slope):g} × stored"


def meaning(path: Path, page: PageLayout, description: str) -> StoredMeaning:
    """Meaning of the numbers of a greyscale page. Raises MicrographError for a curve that is no straight line."""
    found = _calibrated(path, page, description)
    if page.photometric != _WHITE_IS_ZERO:
        return found
    # TIFF 6.0: 0 is white and the largest number black; where there is no largest one, only the order is known.
    top = float(2**page.bits - 1) if page.sample_format == 1 else 0.0
    by = "WhiteIsZero" + (f" and {found.by}" if found.by else "")
    return StoredMeaning(found.zero + found.slope * top, -found.slope, by)


def of_palette(path: Path, page: PageLayout, colours: NDArray[np.uint16] | None) -> StoredMeaning:
    """Meaning of indices into a palette (3, N) if it is a ramp of grey, as SEM software writes it.

    Every ninth entry may be an overlay's colour. Raises MicrographError for any other palette.
    """
    if colours is None:
        return StoredMeaning()
    grey = (colours == colours[:1]).all(axis=0)
    if grey.mean() <= _GREY_SHARE:
        raise MicrographError(
            f"{path}: its values are indices into a colour palette, not intensities; export it as greyscale"
        )
    steps = np.sign(np.diff(colours[0][grey].astype(np.int64)))
    up, down = int((steps > 0).sum()), int((steps < 0).sum())
    if min(up, down) > _REVERSED_SHARE * len(steps):
        raise MicrographError(
            f"{path}: its values are indices into a palette of greys in no order, not intensities; export it as "
            "greyscale"
        )
    if down > up:
        return StoredMeaning(float(2**page.bits - 1), -1.0, "A palette from white to black")
    return StoredMeaning()


def curved(colours: NDArray[np.uint16] | None) -> str:
    """A remark on a palette (3, N) of grey that is no straight line; empty for others."""
    if colours is None or colours.shape[1] < 2:
        return ""
    grey = (colours == colours[:1]).all(axis=0)
    line = np.linspace(0.0, 1.0, colours.shape[1])
    ramp = colours[0] / max(1, int(colours[0].max()))
    ramp = ramp if ramp[grey][0] <= ramp[grey][-1] else ramp[::-1]
    if (np.abs(ramp - line) <= _STRAIGHT).mean() > _GREY_SHARE:
        return ""
    return "its palette of greys is a curve for display, which was not applied: the stored numbers were taken"


def response(path: Path, tags: Mapping[int, Any]) -> str:
    """A remark on curves of grey that were made for display; empty without one.

    Raises MicrographError for numbers that are square roots, as scanners of imaging plates store intensities.
    """
    if tags.get(_SCANNER) == _ROOTS:
        raise MicrographError(
            f"{path}: its values are square roots of intensities (tag {_SCANNER}, of Molecular Dynamics), and not "
            "proportional to counts; export it with linear values"
        )
    image = tiff_tags.header(tags, *tiff_tags.FEI).get("Image")
    gamma = image.get("DigitalGamma") if isinstance(image, Mapping) else None
    if isinstance(gamma, int | float) and gamma not in (0, 1):
        return (
            f"a gamma of {gamma:g} was applied by the microscope (FEI tags): its values are not proportional to counts"
        )
    stated = ", ".join(name for code, name in _CURVES.items() if code in tags and not _straight(tags[code]))
    return f"its curve of greys ({stated}) was not applied: the stored numbers were taken" if stated else ""


def _straight(curve: Any) -> bool:
    """Whether a curve of greys is a straight line, within one step of its values."""
    values = np.ravel(np.asarray(curve, np.float64))
    return len(values) < 2 or bool(np.abs(values - np.linspace(values[0], values[-1], len(values))).max() <= 1)


def _calibrated(path: Path, page: PageLayout, description: str) -> StoredMeaning:
    """ImageJ's calibration of values: a function's number (cf) and its coefficients (c0, c1)."""
    if not description.startswith("ImageJ=") or page.bits not in _CALIBRATED_BITS:
        return StoredMeaning()
    stated = dict(re.findall(r"^(cf|c0|c1)=([-+.\deE]{1,40})\s*$", description, re.MULTILINE))
    if "cf" not in stated:
        return StoredMeaning()
    function, zero, slope = number(stated["cf"]), number(stated.get("c0", "0")), number(stated.get("c1", "1"))
    if function == _NONE:
        return StoredMeaning()
    if function != _LINEAR or zero is None or slope is None or slope == 0:
        raise MicrographError(
            f"{path}: its values are calibrated by a curve (ImageJ function {stated['cf']}), such as an optical "
            "density, and not proportional to counts; remove the calibration (Analyze > Calibrate) and save it again"
        )
    return StoredMeaning(zero, slope, "ImageJ calibration")


def handed_on(tags: Mapping[int, Any], values: StoredMeaning, frames: int) -> dict[str, Any]:
    """For a micrograph's metadata: its orientation, and calibrations of its values that are recorded, not applied.

    The calibrations are those of the values as read, summed over `frames`.
    """
    found: dict[str, Any] = {}
    orientation = tags.get(_ORIENTATION)
    if isinstance(orientation, int) and 2 <= orientation <= 8:
        found["orientation"] = int(orientation)
    origin, scale, units = tags.get(_ORIGIN, 0.0), tags.get(_SCALE, 1.0), tags.get(_UNITS, "")
    known = isinstance(origin, int | float) and isinstance(scale, int | float)
    if known and {_ORIGIN, _SCALE, _UNITS} & set(tags):
        origin, scale = values.zero + values.slope * origin, scale / values.slope
        found |= brightness(origin, scale, units if isinstance(units, str) else "", frames)
    return found | _gdal(tags, values, frames)


def _gdal(tags: Mapping[int, Any], values: StoredMeaning, frames: int) -> dict[str, Any]:
    """GDAL's calibration of stored values, offset + scale × stored, for the values as read."""
    text = tags.get(_GDAL)
    items = re.findall(r"<Item\b([^<>]*)>([^<]*)</Item>", text) if isinstance(text, str) else []
    of_first = [(item, value) for item, value in items if 'sample="0"' in item or "sample=" not in item]
    stated = {role[1]: value.strip() for item, value in of_first if (role := re.search(r'\brole="(\w+)"', item))}
    scale, offset = number(stated.get("scale", "1")), number(stated.get("offset", "0"))
    if scale is None or offset is None or scale == 0 or (scale, offset) == (1.0, 0.0):
        return {}
    offset = frames * (offset - scale * values.zero / values.slope)
    return {"gdal": {"offset": offset, "scale": scale / values.slope, "units": stated.get("unittype", "")[:_UNIT]}}


def fill_value(tags: Mapping[int, Any], values: StoredMeaning) -> dict[str, float]:
    """For a micrograph's metadata: the value, as it is read, of pixels that the file marks as not recorded."""
    stored = tags.get(_NODATA)
    known = number(stored.strip("\0 ")) if isinstance(stored, str) else None
    return {} if known is None else {"fill": values.zero + values.slope * known}


def brightness(origin: float, scale: float, units: str, frames: int) -> dict[str, Any]:
    """DigitalMicrograph's calibration of intensity, (value - origin) × scale, for the metadata of a sum of frames.

    `origin` is that of one frame.
    """
    units = units.strip("\0 ")
    if not (isfinite(origin) and isfinite(scale) and scale) or ((origin, scale) == (0.0, 1.0) and not units):
        return {}
    return {"brightness": {"origin": frames * origin, "scale": scale, "units": units}}


def extra_tags(metadata: Mapping[str, Any]) -> list[tuple[int, str, int, Any, bool]]:
    """Tags of a result, for tifffile, so that programs show it like the micrograph."""
    tags: list[tuple[int, str, int, Any, bool]] = []
    if "orientation" in metadata:
        tags.append((_ORIENTATION, "H", 1, metadata["orientation"], True))
    if stated := metadata.get("brightness"):
        if stated["units"]:
            tags.append((_UNITS, "s", 0, stated["units"].encode("latin-1", "replace"), True))
        tags += [(_ORIGIN, "d", 1, stated["origin"], True), (_SCALE, "d", 1, stated["scale"], True)]
    if stated := metadata.get("gdal"):
        rows = (("OFFSET", "offset"), ("SCALE", "scale"), ("UNITTYPE", "units"))
        items = "".join(
            f'  <Item name="{name}" sample="0" role="{name.lower()}">{escape(str(stated[key]))}</Item>\n'
            for name, key in rows
            if stated[key] != ""
        )
        tags.append((_GDAL, "s", 0, f"<GDALMetadata>\n{items}</GDALMetadata>".encode("ascii", "replace"), True))
    if "fill" in metadata:
        with np.errstate(over="ignore"):
            held = float(np.float32(metadata["fill"]))  # by the result, of which readers compare each digit
        tags.append((_NODATA, "s", 0, f"{held:.17g}", True))
    return tags


class Understood:
    """Converts stored planes (H, W) to values, one after the other.

    TIFF's default is whole numbers without a sign, but some programs omit the tag for others. If the first plane
    contradicts the default, or a sign is missing, `dtype` and `remark` state how all planes were read. `declared`: the
    kind of numbers that the description states in OME's words, such as int16.
    """

    def __init__(
        self, path: Path, planes: Iterable[Pixels], page: PageLayout, values: StoredMeaning, declared: str = ""
    ) -> None:
        self._path, self._planes, self._page, self._values = path, planes, page, values
        self._declared = declared
        self.refused: float | None = None
        """A fill value; MicrographError is raised for a plane that has it."""
        self.dtype: np.dtype[Any] | None = None
        self.remark = ""

    def __iter__(self) -> Iterator[Pixels]:
        for index, stored in enumerate(self._planes):
            if index == 0:
                self._doubt(stored)
            plane = stored if self.dtype is None else np.ascontiguousarray(stored).view(self.dtype)
            plane = self._values.applied(plane) if self._values.changes else plane
            if self.refused is not None and (plane == self.refused).any():
                raise MicrographError(
                    f"{self._path}: its frames have pixels of the fill value {self.refused:g}, which the file states, "
                    "and a sum would take them for counts; name it in arrival.sections, so that each is denoised alone"
                )
            yield plane

    def _doubt(self, plane: Pixels) -> None:
        if self._values.changes:
            return
        if plane.dtype.kind == "i" and plane.dtype.itemsize == 2:
            self._doubt_sign(plane)
        if plane.dtype.kind != "u":
            return
        states = "states numbers without a sign" if self._page.kind_stated else "does not state the kind of its numbers"
        if not self._page.kind_stated and plane.dtype.itemsize in (4, 8):
            other = _as_kind(plane, "f")
            if _plausible(other):
                self._take(
                    other, plane, f"its directory {states}: read as floating-point", "as whole ones, the default"
                )
                return
        if plane.dtype.itemsize in (2, 4) and _wrapped(other := _as_kind(plane, "i")):
            why = "those below 0 would wrap around to the largest"
            self._take(other, plane, f"its directory {states}, but {why}: read as signed", "without a sign")
        elif self._declared == f"int{8 * plane.dtype.itemsize}":
            self._doubt_declared(plane, states)

    def _doubt_declared(self, plane: Pixels, states: str) -> None:
        """OME declares signed numbers, and the directory states others, or none."""
        other = _as_kind(plane, "i")
        if not self._page.kind_stated:
            self._take(other, plane, f"its directory {states}, OME {self._declared}: read as signed", "without a sign")
            return
        self.remark = (
            f"its directory {states}, but OME declares {self._declared}: read without a sign ({plane.min():g} to "
            f"{plane.max():g}); signed they would be {other.min():g} to {other.max():g}"
        )

    def _doubt_sign(self, plane: Pixels) -> None:
        few = plane[: max(1, _SAMPLE // plane.shape[1])]
        half = (np.iinfo(plane.dtype).max + 1) // 2
        if not (int(few.min()) < -half and int(few.max()) >= half):
            return  # as in almost every image; the test is fast
        if len(np.unique(few[few < 0])) < _SEVERAL:
            return  # a fill value or dead pixels
        signed, unsigned = signs.differences(few, _as_kind(few, "u"))
        other = _as_kind(plane, "u")
        if signed > signs.FAR_FEWER * unsigned:
            states = "its directory states signed numbers, but neighbouring pixels would jump over the whole range"
            self._take(other, plane, f"{states}: read without a sign", "signed")
        elif signed > signs.FEWER * unsigned:
            self.remark = (
                f"read as signed numbers ({plane.min():g} to {plane.max():g}), as its directory states; the "
                "differences between neighbouring pixels indicate numbers without a sign, which would be "
                f"{other.min():g} to {other.max():g}"
            )

    def _take(self, other: Pixels, plane: Pixels, read: str, not_read: str) -> None:
        self.dtype = other.dtype
        self.remark = (
            f"{read} ({other.min():g} to {other.max():g}); {not_read} they would be {plane.min():g} to {plane.max():g}"
        )


def _as_kind(plane: Pixels, kind: str) -> Pixels:
    """The bytes of a plane as numbers of another kind ("f", "i", "u") of the same length and byte order."""
    return np.ascontiguousarray(plane).view(plane.dtype.str.replace(plane.dtype.kind, kind))


def _wrapped(signed: Pixels) -> bool:
    """Whether signed numbers crowd around 0, on both sides: without a sign those below 0 would be the largest."""
    most = (np.iinfo(signed.dtype).max + 1) // _CROWDED
    if not -most <= int(signed.min()) < 0 or not 0 <= int(signed.max()) <= most:
        return False  # as in almost every image, mostly by the minimum alone
    below = signed[signed < 0]
    return below.size >= _BELOW_0 * signed.size and len(np.unique(below)) >= _SEVERAL


def _plausible(plane: Pixels) -> bool:
    """Whether all numbers are plausible intensities, unlike whole numbers read as floating-point ones."""
    if not np.isfinite(plane).all():
        return False
    sizes = np.abs(plane[plane != 0])
    return bool(sizes.size) and bool(((sizes > _PLAUSIBLE[0]) & (sizes < _PLAUSIBLE[1])).all())
