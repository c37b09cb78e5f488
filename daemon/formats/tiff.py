"""Reads and writes TIFF: plain, BigTIFF, ImageJ, OME, and files of FEI, Gatan, Zeiss, Olympus and TVIPS."""

import json
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from daemon import __version__
from daemon.errors import MicrographError
from daemon.formats import (
    data_bar,
    ome,
    references,
    stack,
    tiff_layout,
    tiff_pages,
    tiff_plain,
    tiff_planes,
    tiff_stack,
    tiff_tags,
    tiff_values,
)
from daemon.formats.bands import bands
from daemon.formats.contrast import window
from daemon.formats.reading import (
    CodecNeededError,
    check_pixels,
    check_plane,
    frame_facts,
    pick_section,
    refuse_packed,
    sum_frames,
    tail_remarks,
)
from daemon.formats.tiff_layout import PageLayout, TiffLayout
from daemon.formats.tiff_stack import EER
from daemon.formats.units import convert, readable
from daemon.micrograph import Image, Micrograph, Pixels, PixelSize

_OUTDATED = "its description declares frames that the file does not contain"
_OTHERS = "thumbnail, colour, a copy for display"
_CLASSIC_LIMIT = 1 << 31
_LARGEST_RATIONAL = (1 << 32) - 1
_MANY_SEGMENTS = 1 << 16
"""Strips or tiles, which are read one by one: more of them take seconds."""
_CODECS = (1, 5, 7, 8, 32773, 32946, 34925, 50000, *EER)
"""No compression, LZW, JPEG, deflate, PackBits, LZMA, Zstandard, Thermo Fisher's electron events: whose output
has the size that the directory states."""
_OME_UNITS = {"nm": "nm", "um": "µm", "angstrom": "Å", "pm": "pm", "mm": "mm", "cm": "cm", "m": "m"}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Planes to sum: `numbers` among all `stored` planes of a file, `within` among those of `pages`; all from 0."""

    pages: list[int]
    stored: int
    numbers: range
    within: range


def read(
    stream: BinaryIO, path: Path, size: int, max_pixels: int, section: int | None = None, *, decode: bool = True
) -> Micrograph:
    """Read the micrograph in an open TIFF of `size` bytes.

    Raises MicrographError, DamagedError, OSError or one of PARSER_ERRORS, which `explained_reading` converts, and
    CodecNeededError if it is compressed and `decode` is false. `section`: only that one of a stack, counted from 0.
    """
    layout = tiff_layout.parse(stream, size)
    pages = tiff_stack.choose(path, layout)
    first = layout.pages[pages[0]]
    tiff_stack.refuse_channels(path, layout.description, first, len(pages) * first.depth * layout.contiguous_frames)
    values = tiff_values.meaning(path, first, layout.description)
    wanted = _wanted(path, layout, pages, section, max_pixels)
    doubtful = tiff_stack.doubtful(path, layout, pages)
    for needed in ([layout.pages[index] for index in wanted.pages], *([layout.pages[index]] for index in doubtful)):
        _check_segments(path, needed, max_pixels, decode=decode)
    stream.seek(0)  # tifffile takes the position of the stream for the start of the file
    with _remarks() as said, tifffile.TiffFile(stream) as file:
        page = tiff_planes.page_of(file, wanted.pages[0], layout, size)
        tags = tiff_tags.of_page(page)
        curve = tiff_values.response(path, tags)
        if first.photometric == tiff_planes.PALETTE:
            values = tiff_values.of_palette(path, first, page.colormap)
            curve = tiff_values.curved(page.colormap)
        dtype = tiff_planes.kind(path, page, first)
        found = tiff_tags.pixel_size_of(path, tags, layout.description, (first.height, first.width))
        taken = tiff_tags.acquisition(tags, layout.description)
        if doubtful:
            tiff_planes.require_copies(stream, file, path, layout, pages[0], doubtful, size)
        apart = tiff_pages.nature(file, layout, pages)
        planes = _wanted_planes(stream, file, layout, wanted, size, dtype)
        fill = tiff_values.fill_value(tags, values)
        declared = next(iter(ome.images(layout.description, (first.height, first.width))), {}).get("Type", "")
        understood = tiff_values.Understood(path, planes, first, values, declared)
        if several := len(wanted.numbers) > 1:
            understood.refused = fill.get("fill") or None  # zeros add nothing
        pixels, remarks = sum_frames(understood, wanted.numbers, wanted.stored)
    if first.bits == 8:
        refuse_packed(path, layout.description, "description", pixels, len(wanted.numbers))
    if first.compression in EER and len(wanted.numbers) < wanted.stored:  # stated for the whole movie
        taken = replace(taken, electrons_per_pixel=None, exposure_seconds=None)
    metadata: dict[str, Any] = {
        **frame_facts(wanted.numbers, wanted.stored, understood.dtype or dtype, section),
        "ome": ome.is_ome(layout.description),
        **({} if found is None else {"pixel_size_from": found[1]}),
        **({"values": values.as_json()} if values.changes else {}),
        **tiff_values.handed_on(tags, values, len(wanted.numbers)),
        **tiff_tags.origin(tags),
        **({"title": title} if references.stated(title := layout.description[:200]) else {}),
        **({"title": first.name} if references.is_transform(first.name) else {}),
        **({} if several else fill),
        **data_bar.of_tags(tags, first.height),
    }
    if wanted.stored > 1:
        metadata = stack.merged(metadata, stack.weighed((tiff_stack.nature(layout, pages, tags), apart)))
    others = len(layout.pages) - len(pages)
    warnings = (
        *_odd(*said[:3], first.remark, understood.remark, curve, _OUTDATED if layout.outdated else ""),
        *remarks,
        *([found[2]] if found and found[2] else []),
        *([f"{values.by} was applied: {values}"] if values.changes else []),
        *([f"{others} other page{'s' * (others > 1)} of the file ({_OTHERS}) left out"] if others else []),
        *tail_remarks(pixels),
    )
    return Micrograph(pixels, path, "tiff", found[0] if found else None, metadata, warnings, taken)


def _wanted(path: Path, layout: TiffLayout, pages: list[int], section: int | None, max_pixels: int) -> _Wanted:
    """The planes to read. Raises MicrographError for planes that are no image, too large, or missing."""
    first = layout.pages[pages[0]]
    stored = len(pages) * first.depth * layout.contiguous_frames
    check_plane(path, first.height, first.width)
    check_pixels(path, first.height, first.width, stored, max_pixels)
    numbers = range(stored) if section is None else pick_section(path, section, stored)
    if section is None or layout.contiguous_frames > 1:
        return _Wanted(pages, stored, numbers, numbers)
    alone = pages[section // first.depth :][:1]
    return _Wanted(alone, stored, numbers, range(section % first.depth, section % first.depth + 1))


def _odd(*remarks: str) -> Iterator[str]:
    """Warnings from remarks on a directory; empty remarks are skipped."""
    return (f"the TIFF is unusual: {text}" for text in remarks if text)


def count(stream: BinaryIO, path: Path, size: int) -> int:
    """Number of sections of the micrograph in an open TIFF of `size` bytes. Raises as `read` does."""
    layout = tiff_layout.parse(stream, size)
    pages = tiff_stack.choose(path, layout)
    return len(pages) * layout.pages[pages[0]].depth * layout.contiguous_frames


def _check_segments(path: Path, pages: list[PageLayout], max_pixels: int, *, decode: bool) -> None:
    """Raises MicrographError for pages that cannot be read, CodecNeededError for those that need another process."""
    if pages[0].compression not in _CODECS:
        raise MicrographError(
            f"{path}: is compressed in a way that is not read (TIFF compression {pages[0].compression}); "
            "export it without compression, or with LZW or deflate"
        )
    for one in pages:
        check_pixels(path, one.segment_height, one.segment_width, 1, 4 * max_pixels)
        check_pixels(path, one.height, one.width * one.depth, 1, 4 * max_pixels)
        if one.compression != 1 and not decode:
            raise CodecNeededError
    if not decode and sum(len(one.offsets) for one in pages) > _MANY_SEGMENTS:
        raise CodecNeededError  # no codec, but only a child's time and memory are limited


def write(path: Path, pixels: Image, like: Micrograph, description: Mapping[str, Any]) -> int:
    """Write float32 (H, W) as an ImageJ TIFF, or as OME-TIFF where the source was one or 2 GiB are exceeded.

    Fiji shows `description` (plain JSON types) with Image > Show Info. Tags for orientation and calibration of values
    are those of `like`; programs show the finite pixels outside of its data bar in full contrast. Returns where the
    pixels begin, bytes. Raises OSError.
    """
    size = readable(like.pixel_size) if like.pixel_size else None
    text = json.dumps(description, sort_keys=True)
    known, ends = _finite(pixels)
    # The writers of tifffile are strict about their metadata, so each container gets its own form.
    if pixels.nbytes >= _CLASSIC_LIMIT or like.metadata.get("ome"):
        size = convert(size, "nm") if size and size.unit == "angstrom" else size  # napari takes OME's Å for µm
        form = _as_ome(size, text) | {"bigtiff": pixels.nbytes >= _CLASSIC_LIMIT}
    else:
        picture = known
        if like.bar or like.side_bar:
            picture = _finite(np.delete(np.delete(pixels, like.bar, axis=0), like.side_bar, axis=1))[0]
        form = _as_imagej(size, text, window(picture) if picture.size else None)
    tags = _for_hyperspy(size) + _for_imod(ends) + tiff_values.extra_tags(like.metadata)
    place = tifffile.imwrite(
        path, shape=pixels.shape, dtype="<f4", byteorder="<", photometric="minisblack", extratags=tags,
        software=f"emdenoised {__version__}", returnoffset=True, **form
    )  # fmt: skip
    assert place is not None  # as where pixels are compressed
    with path.open("r+b", buffering=0) as stream:  # tifffile would hold Python's lock for a part of the time
        stream.seek(place[0])
        left = np.ascontiguousarray(pixels, "<f4").data.cast("B")
        while left:
            left = left[stream.write(left) :]
    return int(place[0])


def _as_ome(size: PixelSize | None, text: str) -> dict[str, Any]:
    """Arguments for tifffile. ImageJ's own reader and IMOD know no OME: for them the resolution is in centimetres."""
    metadata: dict[str, Any] = {"axes": "YX", "Description": text}
    form: dict[str, Any] = {"ome": True, "metadata": metadata}
    if size is not None and size.unit in _OME_UNITS:
        unit = _OME_UNITS[size.unit]
        metadata |= {"PhysicalSizeX": size.x, "PhysicalSizeXUnit": unit}
        metadata |= {"PhysicalSizeY": size.y, "PhysicalSizeYUnit": unit}
    side = convert(size, "cm") if size else None
    if side is not None and max(1 / side.x, 1 / side.y) < _LARGEST_RATIONAL:
        form |= {"resolution": (1 / side.x, 1 / side.y), "resolutionunit": "CENTIMETER"}
    return form


def _as_imagej(size: PixelSize | None, text: str, contrast: tuple[float, float] | None) -> dict[str, Any]:
    """Arguments for tifffile, as ImageJ writes its files."""
    metadata: dict[str, Any] = {"axes": "YX", "Info": text}
    form: dict[str, Any] = {"imagej": True, "metadata": metadata}
    if contrast is not None:
        metadata |= {"min": contrast[0], "max": contrast[1]}
    if size is not None:
        metadata["unit"] = "".join(c if c.isascii() else f"\\u{ord(c):04x}" for c in size.unit)
        form["resolution"] = (1 / size.x, 1 / size.y)
    return form


def _for_imod(ends: Image) -> list[tuple[int, str, int, Any, bool]]:
    """SMinSampleValue and SMaxSampleValue: without them 3dmod shows 0 to 255."""
    return [(code, "f", 1, float(end), True) for code, end in zip((340, 341), ends, strict=False)]


def _finite(pixels: Image) -> tuple[Image, Image]:
    """The finite pixels, in any shape; the least and the largest of them (2,), (0,) without any."""
    lows, highs = np.array([(band.min(), band.max()) for band in bands(pixels)]).T
    ends = np.array([lows.min(), highs.max()])
    if np.isfinite(ends).all():  # as no NaN or Inf leaves them
        return pixels, ends
    known = pixels[np.isfinite(pixels)]
    return known, np.array([known.min(), known.max()]) if known.size else known


def _for_hyperspy(size: PixelSize | None) -> list[tuple[int, str, int, Any, bool]]:
    """DigitalMicrograph's tags: HyperSpy reads no unit from OME, and of ImageJ's only the micron."""
    units = {"nm": "nm", "mm": "mm", "cm": "cm", "m": "m", "um": "\xb5m", "angstrom": "\xc5"}
    if size is None or size.unit not in units:
        return []
    unit = units[size.unit].encode("latin-1")
    return [(65003, "s", 0, unit, True), (65004, "s", 0, unit, True),
            (65009, "d", 1, size.x, True), (65010, "d", 1, size.y, True)]  # fmt: skip


def _wanted_planes(
    stream: BinaryIO, file: tifffile.TiffFile, layout: TiffLayout, wanted: _Wanted, size: int, dtype: np.dtype[Any]
) -> Iterator[Pixels]:
    """The wanted planes (H, W), one after the other."""
    if layout.contiguous_frames > 1:
        return tiff_plain.contiguous(stream, layout, dtype, wanted.within)
    every = (plane for index in wanted.pages for plane in tiff_planes.planes(stream, file, index, layout, size, dtype))
    return islice(every, wanted.within.start, wanted.within.stop)


class _Collector(logging.Handler):
    """Keeps what tifffile logs while a file is read on this thread, away from the daemon's own log."""

    local = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        said: list[str] | None = getattr(self.local, "said", None)
        if said is not None and "GDAL_NODATA" not in record.getMessage():  # which is read by `tiff_values`
            said.append(re.sub(r"<.*?>\s*", "", record.getMessage())[:200])


_LOGGER = logging.getLogger("tifffile")
_LOGGER.addHandler(_Collector())
_LOGGER.propagate = False


@contextmanager
def _remarks() -> Iterator[list[str]]:
    said: list[str] = []
    _Collector.local.said = said
    try:
        yield said
    finally:
        _Collector.local.said = None
