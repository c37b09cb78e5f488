"""Micrograph files: tests whether they are complete, reads and writes them. TIFF, MRC and vendors' formats.

In: a path. Out: a `Micrograph`, or an error with the reason; raw files are only ever opened for reading.
Front door: `probe`, `read`, `count`, `write`, `RawFile`; `decoder.Reader` runs codecs in a child process.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from daemon.errors import MicrographError
from daemon.formats import data_bar, drawings, fill, mrc, rosettasciio, sidecars, stack, tiff, tiff_layout, turned
from daemon.formats.raw_file import RawFile
from daemon.formats.reading import (
    PARSER_ERRORS,
    CodecNeededError,
    DamagedError,
    Extent,
    explained_reading,
    first_line,
)
from daemon.formats.references import is_reference, is_transform
from daemon.formats.units import convert
from daemon.micrograph import Image, Micrograph

__all__ = [
    "SUFFIXES",
    "CodecNeededError",
    "Completeness",
    "FileKind",
    "RawFile",
    "count",
    "in_the_way_of",
    "probe",
    "read",
    "require_one_exposure",
    "write",
]  # fmt: skip

FileKind = Literal["tiff", "mrc"]

SUFFIXES: dict[FileKind, tuple[str, ...]] = {"tiff": (".tif", ".tiff"), "mrc": mrc.SUFFIXES}
"""File name endings of each kind, lower case; the first is the one to write."""

_HEAD = mrc.HEADER_BYTES
_BLOCK = 1 << 20
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_EMI = b"JK\x00\x02"
_FOREIGN = (
    (b"\x89HDF", "an HDF5 file that does not end in .emd or .hspy"),
    (b"IMGBLO", "a block file of diffraction patterns"),
    (b"\x00\x01\x00\x00\x01\x00\x00\x00", "a TVIPS recording (.tvips)"),
    (b"\x00\x01\x00\x00\x02\x00\x00\x00", "a TVIPS recording (.tvips)"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ\0", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard"),
    (b"\x04\x22\x4d\x18", "compressed with LZ4"),
    (b"\x1f\x9d", "compressed with compress"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF document"),
)


@dataclass(frozen=True, slots=True)
class Completeness:
    """Whether a file that has stopped changing is complete.

    `state`: "complete"; "incomplete" (the header does not parse yet, or data are missing: wait); "suspicious" (the
    length is right but the data end in zeros, as in a preallocated copy: wait longer).
    `proven`: the header proves that data are missing from the file as it is now.
    `reason`: the finding, for the user; empty if complete.
    """

    state: Literal["complete", "incomplete", "suspicious"]
    proven: bool = False
    reason: str = ""


def probe(file: Path | RawFile) -> Completeness:
    """Test a file by its headers and the end of its data, without loading the image.

    A file of another kind counts as complete, so that `read` can report what it is.
    Raises TransientError if the file cannot be opened now, MicrographError if it never can.
    """
    raw = RawFile.of(file)
    path = raw.path
    with explained_reading(path), raw.open() as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(_HEAD)
        if not head.strip(b"\0"):
            return Completeness("incomplete", False, "the file is empty" if size == 0 else "it starts with zeros")
        try:
            kind = _container(head, path)
            form = rosettasciio.recognised(head, path.suffix)
            if kind == "tiff":
                extent = tiff_layout.parse(stream, size).extent()
            elif kind == "mrc":
                extent = mrc.parse(head).extent
            elif form is not None:
                extent = rosettasciio.extent(head, form, size)
            elif _foreign(head) or head.startswith(_EMI):
                return Completeness("complete")
            else:
                return Completeness("incomplete", False, "it has neither a TIFF nor an MRC header")
        except DamagedError as error:
            return Completeness("incomplete", error.cut, str(error))
        except PARSER_ERRORS as error:
            return Completeness("incomplete", False, f"its header makes no sense (yet): {first_line(error)}")
        if extent.end > size:
            return Completeness("incomplete", True, f"{extent.end - size} of {extent.end} bytes are missing at the end")
        return _tail(stream, extent)


def read(
    file: Path | RawFile,
    max_pixels: int,
    section: int | None = None,
    *,
    decode: bool = True,
    references: bool = False,
) -> Micrograph:
    """Read one micrograph: a greyscale plane, or a stack of them summed; with `section` only that one, from 0.

    The caller decides whether the sum of a stack is an image: `metadata["stack"]` has the file's statements on it.

    `pixels` is (H, W), native byte order, the file's own integers or floats (sums are widened). A plane of more
    than `max_pixels` is refused before memory is allocated. Raises MicrographError (damaged, not a micrograph, or of
    an unknown kind) or TransientError (locked, share gone); both name file, cause and remedy. Without `decode`, raises
    CodecNeededError for compressed pixels, which `decoder` decodes in another process. With `references` it also
    reads a camera's gain and dark references.
    """
    raw = RawFile.of(file)
    path = raw.path
    with explained_reading(path), raw.open() as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(_HEAD)
        kind = _container(head, path)
        if kind == "tiff":
            micrograph = tiff.read(stream, path, size, max_pixels, section, decode=decode)
        elif kind == "mrc":
            micrograph = mrc.read(stream, path, size, max_pixels, section)
        elif (form := rosettasciio.recognised(head, path.suffix)) is not None:
            micrograph = rosettasciio.read(stream, raw, form, max_pixels, section, decode=decode)
        else:
            raise MicrographError(_unknown(path, head))
    micrograph.pixels.setflags(write=False)
    micrograph = fill.marked(micrograph)
    if not references:
        _refuse_no_picture(path, micrograph)
    micrograph = sidecars.with_lists(sidecars.with_mdoc(_with_credible_size(micrograph), raw), raw)
    if micrograph.pixel_size is not None:  # the .mdoc may state it
        kept = tuple(text for text in micrograph.warnings if text != mrc.PLACEHOLDER)
        micrograph = replace(micrograph, warnings=kept)
    if not references:
        micrograph = data_bar.located(micrograph, raw)
    expected = {name for names in SUFFIXES.values() for name in names if kind and name not in SUFFIXES[kind]}
    if path.suffix.lower() in expected:
        remark = f"its name ends in {path.suffix}, but it is {'a TIFF' if kind == 'tiff' else 'an MRC'} file"
        micrograph = replace(micrograph, warnings=(*micrograph.warnings, remark))
    return micrograph


def count(file: Path | RawFile) -> int | None:
    """Number of sections of a TIFF or MRC file by its header; None for other formats. Raises as `read` does."""
    raw = RawFile.of(file)
    path = raw.path
    with explained_reading(path), raw.open() as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(_HEAD)
        kind = _container(head, path)
        if kind == "tiff":
            return tiff.count(stream, path, size)
        return mrc.parse(head).shape[0] if kind == "mrc" else None


def write(path: Path, kind: FileKind, pixels: Image, like: Micrograph, description: Mapping[str, Any]) -> int:
    """Write float32 (H, W) with the pixel size of `like` and a small JSON-able `description`; replaces `path`.

    Returns the place in the file, bytes, from which on it holds the pixels: in one piece, little-endian, the rows in
    the given order (see `in_the_way_of`). Raises OSError (disk full, share gone); the caller removes incomplete files.
    """
    return tiff.write(path, pixels, like, description) if kind == "tiff" else mrc.write(path, pixels, like, description)


def in_the_way_of(kind: FileKind, pixels: Image, like: Micrograph) -> tuple[Image, Micrograph, list[int]]:
    """Turn pixels (H, W) and the micrograph `like` as a file of `kind` stores them; returns both and the turns.

    Programs then show the result in the orientation of the micrograph (`daemon.formats.turned`).
    """
    turns = turned.turns(like, kind)
    size = turned.turned_size(like.pixel_size, turns)
    return np.ascontiguousarray(turned.turned(pixels, turns)), replace(like, pixel_size=size), turns


def _container(head: bytes, path: Path) -> FileKind | None:
    if head[:4] in _TIFF_MAGIC:
        return "tiff"
    return "mrc" if mrc.recognised(head, path.suffix) else None


def _foreign(head: bytes) -> str | None:
    return next((name for magic, name in _FOREIGN if head.startswith(magic)), None)


def _unknown(path: Path, head: bytes) -> str:
    if not head:
        return f"{path}: is empty; copy it again"
    if not head.strip(b"\0"):
        return f"{path}: starts with zeros, as an unfinished copy does; copy it again"
    if head.startswith(_EMI):
        return (
            f"{path}: is the description of a TIA recording (.emi); no action is needed: it is read with the images, "
            "which are in the .ser files beside it"
        )
    what = _foreign(head)
    if what:
        return f"{path}: is {what}, which is not read: export or unpack it"
    return (
        f"{path}: is no kind of micrograph that is known (its header is damaged or foreign); export it as TIFF or MRC"
    )


_SIDES = (1e-13, 1e-3)
"""Metres: no electron microscope has smaller or larger pixels."""


def _refuse_no_picture(path: Path, micrograph: Micrograph) -> None:
    """Raises MicrographError for a plane of numbers that is no picture of a specimen."""
    if is_reference(path.name, micrograph.metadata, micrograph.pixels):
        raise MicrographError(
            f"{path}: is a camera's gain or dark reference by its name or label; it was left alone: rename it if "
            "it is a picture of a specimen"
        )
    if is_transform(str(micrograph.metadata.get("title", ""))):
        raise MicrographError(
            f"{path}: is a Fourier transform or power spectrum by its title; it was left alone: change the title if "
            "it is a picture of a specimen"
        )
    if drawings.is_mask(micrograph.pixels):
        raise MicrographError(f"{path}: has two values only, in patches, as a mask or a drawing has; it was left alone")
    if drawings.is_labels(micrograph.pixels):
        raise MicrographError(
            f"{path}: has patches of one whole number each, as an image of labels (a segmentation) has; it was left "
            "alone: save the micrograph as a separate file"
        )


def require_one_exposure(micrograph: Micrograph) -> None:
    """Raises MicrographError for a sum whose file states with certainty that its sections are no frames."""
    stated = micrograph.metadata.get("stack")
    if micrograph.metadata["frames"] > 1 and stated is not None and stated["sure"] and stated["are"] != "frames":
        raise MicrographError(
            f"{micrograph.source}: its sections are {stack.WORDS[stated['are']]} ({stated['by']}) and not frames of "
            "one exposure; save the wanted one as a separate file"
        )


def _with_credible_size(micrograph: Micrograph) -> Micrograph:
    """The micrograph, without a pixel size that no electron microscope has (its unit is wrong)."""
    size = micrograph.pixel_size
    metres = None if size is None else convert(size, "m")
    if size is None or metres is None or all(_SIDES[0] <= side <= _SIDES[1] for side in (metres.y, metres.x)):
        return micrograph
    remark = (
        f"its file states pixels of {size.x:.3g} {size.unit}, which no electron microscope has: the pixel size is "
        "taken as unknown"
    )
    metadata = {key: value for key, value in micrograph.metadata.items() if key != "pixel_size_from"}
    return replace(micrograph, pixel_size=None, metadata=metadata, warnings=(*micrograph.warnings, remark))


def _tail(stream: BinaryIO, extent: Extent) -> Completeness:
    """Judge the end of data whose length is right.

    A hole in the file proves nothing: some copying programs and filesystems store no zeros.
    """
    tail = min(extent.tail, extent.end - extent.start, _BLOCK)
    stream.seek(extent.end - tail)
    if stream.read(tail).strip(b"\0"):
        return Completeness("complete")
    return Completeness("suspicious", False, "the image ends in zeros: a dark border, or a copy not finished yet")
