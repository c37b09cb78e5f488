"""Reads and writes MRC (MRC2014 and the older variants SerialEM, IMOD, Leginon and FEI write).

The header is read leniently (wrong machine stamps, foreign extended headers, missing "MAP "), the length of
the data strictly: a file that is shorter than its header says is never padded.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE, get_ext_header_dtype

from daemon import __version__
from daemon.errors import MicrographError
from daemon.formats.container import (
    DamagedError,
    Extent,
    check_pixels,
    check_plane,
    pick_section,
    sum_frames,
    tail_remark,
)
from daemon.formats.units import convert, pixel_size
from daemon.micrograph import UNKNOWN, Acquisition, Image, Micrograph, Pixels, PixelSize

HEADER_BYTES = 1024
SUFFIXES = (".mrc", ".mrcs", ".map", ".st", ".rec", ".ali", ".preali")
_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_REFUSED = {
    3: "complex numbers (a Fourier transform)",
    4: "complex numbers (a Fourier transform)",
    16: "RGB colour",
    101: "packed 4-bit values (a raw SerialEM movie; unpack it with IMOD's newstack)",
}
_MOST = 1 << 20
_IMOD_STAMP = 1146047817
_VERSION = 20140


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """What an MRC header says. Lengths in bytes."""

    header: Any
    shape: tuple[int, int, int]
    mode: int
    dtype: np.dtype[Any]
    data: int

    @property
    def extent(self) -> Extent:
        """Where the pixel data lie."""
        frames, height, width = self.shape
        row = width * self.dtype.itemsize
        return Extent(self.data, self.data + frames * height * row, row)


def recognised(head: bytes, suffix: str) -> bool:
    """True if the first 1024 bytes are an MRC header; files without "MAP " must also have an MRC suffix."""
    return head[208:211] == b"MAP" or (suffix.lower() in SUFFIXES and _header(head) is not None)


def parse(head: bytes) -> Layout:
    """Understand the first 1024 bytes. Raises DamagedError."""
    if len(head) < HEADER_BYTES:
        raise DamagedError("the MRC header is cut off", cut=True)
    header = _header(head)
    if header is None:
        raise DamagedError("the MRC header is not written yet, or damaged (sizes or mode make no sense)")
    mode = int(header["mode"])
    order = header.dtype["nx"].byteorder
    dtype = np.dtype(_MODES.get(mode, "u1")).newbyteorder(order)
    # IMOD and old SerialEM write unsigned bytes as mode 0 and say so in a flag of their own (bytes 152-159).
    stamp, flags = np.frombuffer(head, np.dtype("i4").newbyteorder(order), 2, 152)
    if mode == 0 and stamp == _IMOD_STAMP and not flags & 1:
        dtype = np.dtype("u1")
    shape = (int(header["nz"]), int(header["ny"]), int(header["nx"]))
    return Layout(header, shape, mode, dtype, HEADER_BYTES + int(header["nsymbt"]))


def read(stream: BinaryIO, path: Path, size: int, max_pixels: int, section: int | None = None) -> Micrograph:
    """Read the micrograph in an open MRC of `size` bytes. Raises MicrographError, DamagedError, OSError.

    `section`: only that one of a stack, counted from 0. The stack may be growing: what is whole of it counts.
    """
    stream.seek(0)
    layout = parse(stream.read(HEADER_BYTES))
    header = layout.header
    stored, height, width = layout.shape
    if layout.mode in _REFUSED:
        raise MicrographError(f"{path}: holds {_REFUSED[layout.mode]}, not one intensity per pixel; it was left alone")
    if int(header["ispg"]) > 1:
        raise MicrographError(
            f"{path}: is a three-dimensional map (space group {int(header['ispg'])}), "
            "not a micrograph; it was left alone"
        )
    check_plane(path, height, width)
    check_pixels(path, height, width, stored, max_pixels)
    missing = layout.extent.end - size
    if missing > 0 and section is not None:
        stored = max(0, size - layout.data) // (height * width * layout.dtype.itemsize)
    elif missing > 0:
        whole = max(0, size - layout.data) // (height * width * layout.dtype.itemsize)
        which = f": frame {whole + 1} of {stored} is not whole" if stored > 1 else ""
        raise DamagedError(f"{missing} of {layout.extent.end} bytes are missing at the end{which}", cut=True)
    warnings: list[str] = []
    dtype = layout.dtype
    if layout.mode == 1 and float(header["dmax"]) > np.iinfo(np.int16).max:
        dtype = np.dtype("u2").newbyteorder(header.dtype["nx"].byteorder)
        warnings.append("labelled as signed 16 bit, but its header gives a maximum above 32767: read as unsigned")
    chosen = range(stored) if section is None else pick_section(path, section, stored)
    frames = len(chosen)
    pixels, remarks = sum_frames(_frames(stream, layout, dtype, chosen), chosen, stored, dtype)
    pixels = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))
    warnings += remarks
    if missing < 0:
        warnings.append(f"{-missing} bytes after the image data were ignored")
    warnings += [text for text in [tail_remark(pixels)] if text]
    metadata: dict[str, Any] = {"frames": frames, "dtype": dtype.newbyteorder("=").name}
    if section is not None:
        metadata |= {"section": section + 1, "sections": stored}
    labels = [bytes(label).decode("latin-1").strip("\0 ") for label in header["label"][: max(0, int(header["nlabl"]))]]
    if any(labels):
        metadata["labels"] = [label for label in labels if label]
    y, x = (_side(header, axis, count) for axis, count in (("y", "my"), ("x", "mx")))
    found = pixel_size(y, x, "angstrom")
    if found is not None:
        metadata["pixel_size_from"] = "MRC header"
    taken = _acquisition(stream, header, chosen.start, found)
    if frames > 1:
        taken = replace(taken, electrons_per_pixel=None)  # it is that of one section, or of all: nobody says which
    return Micrograph(pixels, path, "mrc", found, metadata, tuple(warnings), taken)


def write(path: Path, pixels: Image, like: Micrograph, description: Mapping[str, Any]) -> None:
    """Write float32 (H, W) as MRC2014, mode 2, with the voxel size (0, meaning unknown, where there is none).

    Extended headers are not copied: they describe another file. `description` becomes labels. Raises OSError.
    """
    height, width = pixels.shape
    header = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
    header["nx"], header["ny"], header["nz"], header["mode"] = width, height, 1, 2
    header["mx"], header["my"], header["mz"] = width, height, 1
    size = convert(like.pixel_size, "angstrom") if like.pixel_size else None
    if size is not None:
        header["cella"] = (width * size.x, height * size.y, size.x)
    header["cellb"] = (90, 90, 90)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    mean = float(pixels.mean(dtype=np.float64))
    header["dmin"], header["dmax"], header["dmean"] = pixels.min(), pixels.max(), mean
    header["rms"] = np.sqrt(np.mean(np.square(pixels - np.float32(mean)), dtype=np.float64))
    header["nversion"], header["map"], header["machst"] = _VERSION, b"MAP ", (0x44, 0x44, 0, 0)
    labels = [f"emdenoised {__version__}", *(f"{key}: {value}" for key, value in description.items())][:10]
    header["nlabl"] = len(labels)
    for index, label in enumerate(labels):
        header["label"][index] = label.encode("ascii", "replace")[:80]
    with path.open("wb") as stream:
        stream.write(header.tobytes())
        stream.write(np.ascontiguousarray(pixels, "<f4").data)


def _header(head: bytes) -> Any:
    """The header in whichever byte order makes sense of it (machine stamps are often wrong), or None."""
    if len(head) < HEADER_BYTES:
        return None
    for order in "<>":
        header = np.frombuffer(head, HEADER_DTYPE.newbyteorder(order), 1)[0]
        sizes = [int(header[name]) for name in ("nx", "ny", "nz")]
        if (
            all(0 < side <= _MOST for side in sizes)
            and int(header["nsymbt"]) >= 0
            and (int(header["mode"]) in _MODES or int(header["mode"]) in _REFUSED)
        ):
            return header
    return None


def _frames(stream: BinaryIO, layout: Layout, dtype: np.dtype[Any], chosen: range) -> Iterator[Pixels]:
    _, height, width = layout.shape
    stream.seek(layout.data + chosen.start * height * width * dtype.itemsize)
    for _ in chosen:
        data = bytearray(height * width * dtype.itemsize)
        if stream.readinto(data) < len(data):  # type: ignore[attr-defined]
            raise DamagedError("the file became shorter while it was read", cut=True)
        yield np.frombuffer(data, dtype).reshape(height, width)


def _acquisition(stream: BinaryIO, header: Any, section: int, size: PixelSize | None) -> Acquisition:
    """What Thermo Fisher's or SerialEM's extended header says of a section; all unknown without one."""
    if bytes(header["exttyp"]) == b"SERI":
        return _of_serialem(stream, header, section, size)
    form = get_ext_header_dtype(bytes(header["exttyp"]), header.dtype["nx"].byteorder)
    if form is None:
        return UNKNOWN
    stream.seek(HEADER_BYTES + section * form.itemsize)
    data = stream.read(form.itemsize)
    if len(data) < form.itemsize or int(header["nsymbt"]) < (section + 1) * form.itemsize:
        return UNKNOWN
    told = np.frombuffer(data, form)[0]

    def text(*names: str) -> str | None:
        words = (bytes(told[name]).split(b"\0")[0].decode("latin-1").strip() for name in names)
        return next((word for word in words if word), None)

    area = None if size is None else convert(size, "m")
    return Acquisition.stated(
        voltage_kv=float(told["HT"]) * 1e-3,
        magnification=float(told["Magnification"]),
        exposure_seconds=float(told["Integration time"]) or float(told["Dwell time"]),
        microscope=text("Microscope type"),
        detector=text("Camera name", "STEM Detector name"),
        electrons_per_pixel=None if area is None else float(told["Dose"]) * area.x * area.y,
    )


def _of_serialem(stream: BinaryIO, header: Any, section: int, size: PixelSize | None) -> Acquisition:
    """Of a section's short numbers, which flags say are there (IMOD's description of the MRC format)."""
    order = header.dtype["nx"].byteorder
    length, flags = np.frombuffer(bytes(header["extra2"]), np.dtype("i2").newbyteorder(order), 2, 16)
    if length <= 0 or int(header["nsymbt"]) < (section + 1) * int(length):
        return UNKNOWN
    stream.seek(HEADER_BYTES + section * int(length))
    numbers = np.frombuffer(stream.read(int(length) // 2 * 2), np.dtype("i2").newbyteorder(order))
    found: dict[int, list[int]] = {}
    at = 0
    for flag, words in ((1, 1), (2, 3), (4, 2), (8, 1), (16, 1), (32, 2)):
        if int(flags) & flag and at + words <= len(numbers):
            found[flag] = [int(number) for number in numbers[at : at + words]]
            at += words
    area = None if size is None else convert(size, "angstrom")
    dose = None
    if 32 in found:  # electrons per square angstrom: 24 bits and a power of two, in two short numbers
        first, second = found[32]
        value = abs(first) * 256 + abs(second) % 256
        dose = (-value if first < 0 else value) * 2.0 ** (-(abs(second) // 256) if second < 0 else second // 256)
    return Acquisition.stated(
        magnification=found[8][0] * 100 if 8 in found else None,
        electrons_per_pixel=None if area is None or dose is None else dose * area.x * area.y,
    )


def _side(header: Any, axis: str, count: str) -> float:
    """Side of a voxel in angstrom; 0 where the header does not say."""
    return float(header["cella"][axis]) / int(header[count]) if int(header[count]) > 0 else 0.0
