"""Reads and writes MRC (MRC2014 and the older variants of SerialEM, IMOD, Leginon and FEI).

The header is read leniently (wrong machine stamps, foreign extended headers, missing "MAP "), the length of
the data strictly: a file that is shorter than its header states is never padded.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import isclose, isfinite, nan, sqrt
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from daemon import __version__
from daemon.errors import MicrographError
from daemon.formats import mrc_extended, mrc_numbers, stack
from daemon.formats.bands import bands
from daemon.formats.reading import (
    DamagedError,
    Extent,
    check_pixels,
    check_plane,
    frame_facts,
    pick_section,
    refuse_packed,
    sum_frames,
    tail_remarks,
)
from daemon.formats.stack import Are, Stack
from daemon.formats.units import contradiction, convert, pixel_size
from daemon.micrograph import Image, Micrograph, Pixels, PixelSize

HEADER_BYTES = mrc_extended.HEADER_BYTES
SUFFIXES = (".mrc", ".mrcs", ".map", ".st", ".rec", ".ali", ".preali")
_OF_IMOD: Mapping[str, Are] = {".ali": "tilts", ".preali": "tilts", ".rec": "slices"}
"""What IMOD's endings state of the sections."""
_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_REFUSED = {
    3: "complex numbers (a Fourier transform)",
    4: "complex numbers (a Fourier transform)",
    5: "numbers of mode 5, which is not in the MRC standard (save it as 16-bit integers or 32-bit floats)",
    7: "32-bit integers (mode 7, which is not in the MRC standard; save it as 32-bit floats)",
    16: "RGB colour",
    101: "packed 4-bit values (a raw SerialEM movie; unpack it with IMOD's newstack)",
}
_PACKED = 101
_COMPRESSED = 1000
"""MRCZ adds a multiple of this for each of its codecs."""
_MOST = 1 << 20
_VERSION = 20140
_STAMPS = {"<": b"\x44", ">": b"\x11"}
"""First byte of the machine stamp of each byte order."""
_FIRST = ("nxstart", "nystart", "nzstart")
_AXES = (1, 2, 3)
"""Columns along x, rows along y, sections along z."""
_ROUNDED = 1e-6
"""Of a 32-bit number: 1 Å converted from another unit."""
PLACEHOLDER = "its header states pixels of exactly 1 Å, a common placeholder: the pixel size is taken as unknown"


@dataclass(frozen=True, slots=True, eq=False)
class MrcLayout:
    """The content of an MRC header. Lengths in bytes."""

    header: Any
    shape: tuple[int, int, int]
    mode: int
    dtype: np.dtype[Any]
    data: int

    @property
    def extent(self) -> Extent:
        """The extent of the pixel data."""
        frames, height, width = self.shape
        row = width * self.dtype.itemsize
        if int(self.header["mode"]) == _PACKED:  # here IMOD states the width in bytes
            row = (width + 1) // 2
        if self.mode >= _COMPRESSED:  # of unknown length, shorter than its pixels
            return Extent(0, HEADER_BYTES, HEADER_BYTES)
        return Extent(self.data, self.data + frames * height * row, row)


def recognised(head: bytes, suffix: str) -> bool:
    """True if the first 1024 bytes are an MRC header; files without "MAP " must also have an MRC suffix."""
    return head[208:211] == b"MAP" or (suffix.lower() in SUFFIXES and _header(head) is not None)


def parse(head: bytes) -> MrcLayout:
    """The layout by the first 1024 bytes. Raises DamagedError."""
    if len(head) < HEADER_BYTES:
        raise DamagedError("the MRC header is cut off", cut=True)
    header = _header(head)
    if header is None:
        raise DamagedError("the MRC header is not written yet, or damaged (sizes or mode make no sense)")
    mode = int(header["mode"])
    flags = mrc_numbers.imod_flags(header)
    if mode == 0 and flags is not None and flags & mrc_numbers.PACKED:
        mode = _PACKED  # IMOD's second way to state it
    dtype = np.dtype(_MODES.get(mode, "u1")).newbyteorder(header.dtype["nx"].byteorder)
    shape = (int(header["nz"]), int(header["ny"]), int(header["nx"]))
    return MrcLayout(header, shape, mode, dtype, HEADER_BYTES + int(header["nsymbt"]))


def read(stream: BinaryIO, path: Path, size: int, max_pixels: int, section: int | None = None) -> Micrograph:
    """Read the micrograph in an open MRC of `size` bytes. Raises MicrographError, DamagedError, OSError.

    `section`: only that one of a stack, counted from 0; the stack may be growing.
    """
    stream.seek(0)
    layout = parse(stream.read(HEADER_BYTES))
    header = layout.header
    _refuse(path, layout, max_pixels)
    stored = _stored(layout, size, growing=section is not None)
    end = min(size, layout.extent.end)
    dtype, warnings = mrc_numbers.in_order(stream, header, layout.dtype, layout.data, end)
    if dtype.kind in "iu":
        dtype, more = mrc_numbers.signed_or_not(stream, header, layout.mode, layout.data, end, dtype.byteorder)
        warnings += more
    chosen = range(stored) if section is None else pick_section(path, section, stored)
    pixels, remarks = sum_frames(_frames(stream, layout, dtype, chosen), chosen, stored)
    labels = _labels(header)
    if layout.mode == 0:
        packed = mrc_numbers.packed(header, pixels, len(chosen))
        refuse_packed(path, "\n".join(labels), "label or header", pixels, len(chosen), stated=packed)
    found, source, other = _size(stream, header)
    warnings += remarks
    if size > end:
        warnings.append(f"{size - end} bytes after the image data were ignored")
    warnings += tail_remarks(pixels)
    warnings += other
    metadata: dict[str, Any] = {
        **frame_facts(chosen, stored, dtype, section),
        **({"labels": labels} if labels else {}),
        **({"axes": list(_axes(header))} if _axes(header) != _AXES else {}),
        **({} if found is None else {"pixel_size_from": source}),
        **_origin(header),
    }
    if stored > 1:
        metadata = stack.merged(metadata, _nature(stream, header, stored, labels, path.suffix.lower()))
    taken = mrc_extended.acquisition(stream, header, chosen.start, found)
    if len(chosen) > 1:
        taken = replace(taken, electrons_per_pixel=None)  # whether it is of one section or of all is not stated
    return Micrograph(pixels, path, "mrc", found, metadata, tuple(warnings), taken)


def _refuse(path: Path, layout: MrcLayout, max_pixels: int) -> None:
    """Raises MicrographError unless it is a stack of planes, one intensity per pixel, within `max_pixels`."""
    stored, height, width = layout.shape
    if layout.mode >= _COMPRESSED:
        raise MicrographError(f"{path}: is a compressed MRC (MRCZ), which is not read: save it without compression")
    if layout.mode in _REFUSED:
        raise MicrographError(f"{path}: holds {_REFUSED[layout.mode]}, not one intensity per pixel; it was left alone")
    if (group := int(layout.header["ispg"])) > 1:
        raise MicrographError(
            f"{path}: is a three-dimensional map (space group {group}), not a micrograph; it was left alone"
        )
    check_plane(path, height, width)
    check_pixels(path, height, width, stored, max_pixels)


def _stored(layout: MrcLayout, size: int, *, growing: bool) -> int:
    """Number of sections, in a growing stack of complete ones. Raises DamagedError for missing bytes."""
    stored, height, width = layout.shape
    missing = layout.extent.end - size
    if missing <= 0:
        return stored
    whole = max(0, size - layout.data) // (height * width * layout.dtype.itemsize)
    if growing and stored > 1:
        return whole
    which = f": frame {whole + 1} of {stored} is incomplete" if stored > 1 else ""
    raise DamagedError(f"{missing} of {layout.extent.end} bytes are missing at the end{which}", cut=True)


def write(path: Path, pixels: Image, like: Micrograph, description: Mapping[str, Any]) -> int:
    """Write float32 (H, W) as MRC2014, mode 2, with the voxel size (0, meaning unknown, where there is none).

    The first row of `pixels` becomes the first of the file, which programs show at the bottom; the axes of columns and
    rows, and the origin, are those of `like`. Extended headers are not copied: they describe another file.
    `description` becomes labels. Minimum, maximum, mean and deviation are those of the finite pixels. Returns
    where the pixels begin, bytes. Raises OSError.
    """
    height, width = pixels.shape
    axes = tuple(like.metadata.get("axes", _AXES))
    header = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
    header["nx"], header["ny"], header["nz"], header["mode"] = width, height, 1, 2
    size = convert(like.pixel_size, "angstrom") if like.pixel_size else None
    sides = (width, height, 1), (0, 0, 0) if size is None else (width * size.x, height * size.y, size.x)
    for axis, number, length in zip(axes, *sides, strict=True):
        header["mxmymz"[2 * axis - 2 : 2 * axis]], header["cella"]["xyz"[axis - 1]] = number, length
    if origin := like.metadata.get("origin"):
        for name, number in zip(_FIRST, origin["first"], strict=True):
            header[name] = number
        header["origin"] = tuple(origin["angstrom"])
    header["cellb"] = (90, 90, 90)
    header["mapc"], header["mapr"], header["maps"] = axes
    header["dmin"], header["dmax"], header["dmean"], header["rms"] = _statistics(pixels)
    header["nversion"], header["map"], header["machst"] = _VERSION, b"MAP ", (0x44, 0x44, 0, 0)
    labels = [f"emdenoised {__version__}", *(f"{key}: {value}" for key, value in description.items())][:10]
    header["nlabl"] = len(labels)
    for index, label in enumerate(labels):
        header["label"][index] = label.encode("ascii", "replace")[:80]
    with path.open("wb") as stream:
        stream.write(header.tobytes())
        stream.write(np.ascontiguousarray(pixels, "<f4").data)
    return HEADER_BYTES


def _statistics(pixels: Image) -> tuple[float, float, float, float]:
    """Minimum, maximum, mean and deviation of the finite pixels (H, W)."""
    with np.errstate(over="ignore", invalid="ignore"):  # where the sum is no number, each pixel is tested
        parts = [band if np.isfinite(band.sum()) else band[np.isfinite(band)] for band in bands(pixels)]
    parts = [part for part in parts if part.size]
    if not parts:
        return nan, nan, nan, nan
    number = sum(part.size for part in parts)
    mean = sum(float(part.sum(dtype=np.float64)) for part in parts) / number
    squares = sum(float(np.square(part - np.float32(mean), dtype=np.float64).sum()) for part in parts)
    low, high = min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)
    return low, high, mean, sqrt(squares / number)


def _header(head: bytes) -> Any:
    """The header in the byte order that gives valid values (machine stamps are often wrong), or None.

    Where both do, which sizes of whole multiples of 256 allow in mode 0, the axes decide, and then the stamp.
    """
    if len(head) < HEADER_BYTES:
        return None
    valid = []
    for order in "<>":
        header = np.frombuffer(head, HEADER_DTYPE.newbyteorder(order), 1)[0]
        sizes = [int(header[name]) for name in ("nx", "ny", "nz")]
        if all(0 < side <= _MOST for side in sizes) and int(header["nsymbt"]) >= 0 and _known(int(header["mode"])):
            valid.append((_stated_axes(header) is not None, head[212:213] == _STAMPS[order], header))
    return max(valid, key=lambda one: one[:2], default=(None,))[-1]


def _known(mode: int) -> bool:
    plain = mode % _COMPRESSED if 0 < mode < 10 * _COMPRESSED else mode
    return plain in _MODES or plain in _REFUSED


def _frames(stream: BinaryIO, layout: MrcLayout, dtype: np.dtype[Any], chosen: range) -> Iterator[Pixels]:
    _, height, width = layout.shape
    stream.seek(layout.data + chosen.start * height * width * dtype.itemsize)
    for _ in chosen:
        data = bytearray(height * width * dtype.itemsize)
        if stream.readinto(data) < len(data):  # type: ignore[attr-defined]
            raise DamagedError("the file became shorter while it was read", cut=True)
        yield np.frombuffer(data, dtype).reshape(height, width)


def _labels(header: Any) -> list[str]:
    labels = header["label"][: max(0, int(header["nlabl"]))]
    return [text for label in labels if (text := bytes(label).decode("latin-1").strip("\0 "))]


def _nature(stream: BinaryIO, header: Any, stored: int, labels: list[str], suffix: str) -> Stack | None:
    """The kind of the sections; None if the file does not state it."""
    volume = int(header["ispg"]) == 1 and int(header["mz"]) == stored
    return stack.weighed(
        (
            mrc_extended.nature(stream, header, stored),
            stack.of_words("\n".join(labels), "MRC label"),
            Stack("slices", "MRC space group 1", sure=False) if volume else None,
            Stack(_OF_IMOD[suffix], f"ending {suffix} of IMOD") if suffix in _OF_IMOD else None,
        )
    )


def _axes(header: Any) -> tuple[int, ...]:
    """Axes (1, 2, 3: x, y, z) of columns, rows and sections; the usual ones if the header's are invalid."""
    return _stated_axes(header) or _AXES


def _stated_axes(header: Any) -> tuple[int, ...] | None:
    axes = tuple(abs(int(header[name])) for name in ("mapc", "mapr", "maps"))
    return axes if sorted(axes) == list(_AXES) else None


def _origin(header: Any) -> dict[str, Any]:
    """For a micrograph's metadata: where its first pixel lies, by which programs place models and other images."""
    first = [int(header[name]) for name in _FIRST]
    origin = [float(header["origin"][axis]) for axis in "xyz"]
    if bytes(header["map"])[:3] != b"MAP" or not (any(first) or any(origin)) or not all(map(isfinite, origin)):
        return {}
    return {"origin": {"first": first, "angstrom": origin}}


def _size(stream: BinaryIO, header: Any) -> tuple[PixelSize | None, str, list[str]]:
    """The pixel size, its source, and a remark if another is stated, or one that is none."""
    across, down, _ = _axes(header)
    (x, columns), (y, rows) = (
        (float(header["cella"]["xyz"[axis - 1]]), int(header["mxmymz"[2 * axis - 2 : 2 * axis]]))
        for axis in (across, down)
    )
    ours = None if min(columns, rows) < 1 else pixel_size(y / rows, x / columns, "angstrom")
    placeholder = (x, y) == (1.0, 1.0) or (isclose(x, columns, rel_tol=_ROUNDED) and isclose(y, rows, rel_tol=_ROUNDED))
    theirs = mrc_extended.stated_size(stream, header)
    if ours is not None and not placeholder:
        remark = contradiction(ours, "the MRC header", theirs, "its extended header")
        return ours, "MRC header", [remark] if remark else []
    if theirs is not None:
        return theirs, "MRC extended header", []
    return None, "", [PLACEHOLDER] if ours is not None else []
