"""Reads and writes TIFF: plain, BigTIFF, ImageJ, OME, and what FEI, Gatan, Zeiss, Olympus and TVIPS put into it."""

import json
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from daemon import __version__
from daemon.errors import MicrographError
from daemon.formats import tiff_layout
from daemon.formats.container import (
    CodecNeededError,
    DamagedError,
    check_pixels,
    check_plane,
    pick_section,
    sum_frames,
    sum_remark,
    tail_remark,
)
from daemon.formats.tiff_layout import Layout, Page
from daemon.formats.units import convert, pixel_size, readable, reciprocal
from daemon.micrograph import Image, Micrograph, Pixels, PixelSize

_COLOURED = {
    2: "RGB colour",
    5: "CMYK colour",
    6: "YCbCr colour",
    8: "Lab colour",
    9: "Lab colour",
    32803: "a colour mosaic",
}
_PALETTE, _MASK = 3, 4
_REDUCED, _TRANSPARENCY = 1, 4
_FINEST_PRINT = 1e-6
"""No printer has pixels below 1 um; a resolution finer than that (metres) is a microscope's."""
_CLASSIC_LIMIT = 1 << 31
_MAX_TAG_BYTES = 1 << 24
_CODECS = (1, 5, 7, 8, 32773, 32946, 34925, 50000)
"""No compression, LZW, JPEG, deflate, PackBits, LZMA, Zstandard: those whose output the directory bounds."""
_OME_UNITS = {"nm": "nm", "um": "µm", "angstrom": "Å", "pm": "pm", "mm": "mm", "cm": "cm", "m": "m"}


def read(
    stream: BinaryIO, path: Path, size: int, max_pixels: int, section: int | None = None, *, decode: bool = True
) -> Micrograph:
    """Read the micrograph in an open TIFF of `size` bytes.

    Raises MicrographError, DamagedError, OSError or one of PARSER_ERRORS, which `explained` puts into words, and
    CodecNeededError if it is compressed and not to be decoded. `section`: only that one of a stack, counted from 0.
    """
    layout = tiff_layout.parse(stream, size)
    pages = _choose(path, layout)
    first = layout.pages[pages[0]]
    _refuse_channels(path, layout)
    stored = len(pages) * first.depth * layout.contiguous_frames
    if first.compression not in _CODECS:
        raise MicrographError(
            f"{path}: is compressed in a way that is not read (TIFF compression {first.compression}); "
            "export it without compression, or with LZW or deflate"
        )
    check_plane(path, first.height, first.width)
    check_pixels(path, first.height, first.width, stored, max_pixels)
    others = len(layout.pages) - len(pages)
    chosen = range(stored) if section is None else pick_section(path, section, stored)
    frames = len(chosen)
    if section is not None and layout.contiguous_frames == 1:
        pages = pages[section // first.depth :][:1]
        chosen = range(section % first.depth, section % first.depth + 1)
    for index in pages:
        one = layout.pages[index]
        check_pixels(path, one.segment_height, one.segment_width, 1, 4 * max_pixels)
        check_pixels(path, one.height, one.width * one.depth, 1, 4 * max_pixels)
        if one.compression != 1 and not decode:
            raise CodecNeededError
    stream.seek(0)  # tifffile takes where the stream stands for the start of the file
    with _remarks() as said, tifffile.TiffFile(stream) as file:
        page = _page(file, pages[0], layout, size)
        if first.photometric == _PALETTE and not _grey_palette(page):
            raise MicrographError(
                f"{path}: its values are indices into a colour palette, not intensities; export it as greyscale"
            )
        if page.dtype is None or page.dtype.kind not in "iuf":
            raise MicrographError(
                f"{path}: has pixels of an unusual kind ({first.bits} bits, sample format "
                f"{first.sample_format}); export it as 8, 16 or 32 bit greyscale"
            )
        tags = {tag.code: tag.value for tag in page.tags if tag.valuebytecount <= _MAX_TAG_BYTES}
        found = _pixel_size(path, tags, layout.description)
        dtype = page.dtype
        if layout.contiguous_frames > 1:
            planes = _contiguous(stream, layout, dtype, chosen)
        else:
            every = (plane for index in pages for plane in _planes(_page(file, index, layout, size), first))
            planes = islice(every, chosen.start, chosen.stop)
        pixels = sum_frames(planes, frames, dtype)
    pixels = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))
    warnings = [f"the TIFF is unusual: {text}" for text in said[:3]]
    if frames > 1:
        warnings.append(sum_remark(frames))
    if others:
        warnings.append(f"{others} other page{'s' * (others > 1)} of the file (thumbnail, colour) left out")
    warnings += [text for text in [tail_remark(pixels)] if text]
    metadata: dict[str, Any] = {"frames": frames, "dtype": dtype.name, "ome": "<OME" in layout.description[:2000]}
    if section is not None:
        metadata |= {"section": section + 1, "sections": stored}
    if found is not None:
        metadata["pixel_size_from"] = found[1]
    for code, key in ((305, "software"), (306, "datetime")):
        if isinstance(tags.get(code), str) and tags[code].strip():
            metadata[key] = tags[code].strip()[:200]
    return Micrograph(pixels, path, "tiff", found[0] if found else None, metadata, tuple(warnings))


def write(path: Path, pixels: Image, like: Micrograph, description: Mapping[str, Any]) -> None:
    """Write float32 (H, W) as an ImageJ TIFF, or as OME-TIFF where the source was one or 2 GiB are exceeded.

    `description` (plain JSON types) goes where Fiji shows it with Image > Show Info. Raises OSError.
    """
    size = readable(like.pixel_size) if like.pixel_size else None
    text = json.dumps(description, sort_keys=True)
    common: dict[str, Any] = {"photometric": "minisblack", "software": f"emdenoised {__version__}"}
    # The writers of tifffile are strict about their metadata, so each container gets its own words.
    if pixels.nbytes >= _CLASSIC_LIMIT or like.metadata.get("ome"):
        metadata: dict[str, Any] = {"axes": "YX", "Description": text}
        if size is not None and size.unit in _OME_UNITS:
            unit = _OME_UNITS[size.unit]
            metadata |= {
                "PhysicalSizeX": size.x,
                "PhysicalSizeXUnit": unit,
                "PhysicalSizeY": size.y,
                "PhysicalSizeYUnit": unit,
            }
        tifffile.imwrite(path, pixels, ome=True, bigtiff=pixels.nbytes >= _CLASSIC_LIMIT, metadata=metadata, **common)
        return
    metadata = {"axes": "YX", "Info": text}
    if size is not None:
        metadata["unit"] = "".join(c if c.isascii() else f"\\u{ord(c):04x}" for c in size.unit)  # as ImageJ writes it
        common["resolution"] = (1 / size.x, 1 / size.y)
    tifffile.imwrite(path, pixels, imagej=True, metadata=metadata, **common)


def _choose(path: Path, layout: Layout) -> list[int]:
    """Indices of the pages that are the micrograph: the largest greyscale ones, all of one shape and type."""
    refusals = [_refusal(page) for page in layout.pages]
    grey = [index for index, refusal in enumerate(refusals) if refusal is None]
    full = [index for index in grey if not layout.pages[index].subfile & _REDUCED] or grey
    if not full:
        raise MicrographError(
            f"{path}: holds {refusals[0]}, not one intensity per pixel; export it as greyscale, 8, 16 or 32 bit"
        )
    kinds = [(page.height, page.width, page.depth, page.bits, page.sample_format) for page in layout.pages]
    main = kinds[max(full, key=lambda index: layout.pages[index].height * layout.pages[index].width)]
    return [index for index in full if kinds[index] == main]


def _refusal(page: Page) -> str | None:
    """Why a page is no micrograph, or None."""
    if page.photometric in _COLOURED:
        return _COLOURED[page.photometric]
    if page.samples > 1:
        return f"{page.samples} values per pixel"
    if page.bits == 1:
        return "a black-and-white drawing (1 bit)"
    if page.sample_format in (5, 6):
        return "complex numbers (a Fourier transform or a wave)"
    if page.photometric == _MASK or page.subfile & _TRANSPARENCY:
        return "a transparency mask"
    return None


def _refuse_channels(path: Path, layout: Layout) -> None:
    text = layout.description
    found = (
        re.search(r"^channels=(\d+)", text, re.MULTILINE)
        if text.startswith("ImageJ=")
        else (re.search(r'\bSizeC="(\d+)"', text) if "<OME" in text[:2000] else None)
    )
    channels = int(found[1][:9]) if found else 1
    if channels > 1 or "C" in str(tiff_layout.shaped(text).get("axes", "")):
        raise MicrographError(f"{path}: holds several channels; save each channel as a file of its own")


def _grey_palette(page: tifffile.TiffPage) -> bool:
    """True if the palette is a grey ramp, as SEM software writes it (every ninth entry may be an overlay colour)."""
    colormap = page.colormap
    return colormap is None or bool((colormap == colormap[:1]).all(axis=0).mean() > 0.8)


def _page(file: tifffile.TiffFile, index: int, layout: Layout, size: int) -> tifffile.TiffPage:
    """A page as tifffile sees it, which must be as we do: it is our reading of the sizes that was held to limits."""
    page = file.pages[index]
    if not isinstance(page, tifffile.TiffPage):
        raise DamagedError(f"page {index} of the TIFF cannot be read")
    ours = layout.pages[index]
    sizes = page.imagewidth, page.imagelength, page.imagedepth, page.samplesperpixel, page.bitspersample
    tile = (page.tilewidth, page.tilelength) if page.is_tiled else (ours.segment_width, ours.segment_height)
    if (
        sizes != (ours.width, ours.height, ours.depth, ours.samples, ours.bits)
        or tile != (ours.segment_width, ours.segment_height)
        or page.compression != ours.compression
        or page.size != ours.width * ours.height * ours.depth * ours.samples
        or max(page.databytecounts, default=0) > size
    ):
        raise DamagedError(
            "the TIFF directory contradicts itself (a tag is given twice, or in a form that is not TIFF)"
        )
    return page


def _planes(page: tifffile.TiffPage, like: Page) -> Iterator[Pixels]:
    array = page.asarray(maxworkers=1)  # one image at a time: the other cores are denoising
    yield from array.reshape(like.depth, like.height, like.width)


def _contiguous(stream: BinaryIO, layout: Layout, dtype: np.dtype[Any], chosen: range) -> Iterator[Pixels]:
    """The frames of a stack that has one directory and all data behind each other."""
    page = layout.pages[0]
    stored = dtype.newbyteorder(layout.byteorder)  # type: ignore[arg-type]
    for frame in chosen:
        stream.seek(int(page.offsets[0]) + frame * page.height * page.width * stored.itemsize)
        data = stream.read(page.height * page.width * stored.itemsize)
        yield np.frombuffer(data, stored).reshape(page.height, page.width)


def _pixel_size(path: Path, tags: Mapping[int, Any], description: str) -> tuple[PixelSize, str] | None:
    """What the file says its pixel size is, and who says so. Raises MicrographError for reciprocal units."""
    for source, stated in (
        ("Gatan tags", _gatan(tags)),
        ("FEI tags", _fei(tags)),
        ("Olympus SIS tags", _sis(tags)),
        ("Zeiss tags", _zeiss(tags)),
        ("TVIPS tags", _tvips(tags)),
        ("OME", _ome(description)),
        ("ImageJ", _imagej(tags, description)),
        ("TIFF resolution", _resolution(tags)),
    ):
        if stated is None:
            continue
        if reciprocal(stated[2]):
            raise MicrographError(
                f"{path}: is a diffraction pattern (its pixels are measured in {stated[2]}); "
                "it was left alone, because this denoiser is for images: move it to another folder"
            )
        size = pixel_size(*stated)
        if size is not None:
            return size, source
    return None


_Stated = tuple[float, float, str]
"""Pixel size y, x and the unit as the file spells it."""


def _gatan(tags: Mapping[int, Any]) -> _Stated | None:
    return _stated(tags, 65010, 65009, tags[65003]) if isinstance(tags.get(65003), str) else None


def _fei(tags: Mapping[int, Any]) -> _Stated | None:
    header = tags.get(34682, tags.get(34680))
    return _stated(header.get("Scan"), "PixelHeight", "PixelWidth", "m") if isinstance(header, dict) else None


def _sis(tags: Mapping[int, Any]) -> _Stated | None:
    return _stated(tags.get(33560), "pixelsizey", "pixelsizex", "m")


def _tvips(tags: Mapping[int, Any]) -> _Stated | None:
    return _stated(tags.get(37706), "PixelSizeY", "PixelSizeX", "nm")


def _stated(header: Any, y: int | str, x: int | str, unit: str) -> _Stated | None:
    """Two numbers from a vendor's header; None where it has none."""
    if not (isinstance(header, Mapping) and isinstance(header.get(x), int | float)):
        return None
    return float(header[y] if y in header else header[x]), float(header[x]), unit


def _zeiss(tags: Mapping[int, Any]) -> _Stated | None:
    header = tags.get(34118)
    if not isinstance(header, dict):
        return None
    # "Image Pixel Size" is the stored image's; the older "Pixel Size" is that of an image 1024 pixels wide.
    for key, factor in (("ap_image_pixel_size", 1.0), ("ap_pixel_size", 1024 / int(tags[256]))):
        match header.get(key):
            case (_, float(side) | int(side), str(unit)):
                return side * factor, side * factor, unit
    return None


def _ome(description: str) -> _Stated | None:
    if "<OME" not in description[:2000]:
        return None
    found = {
        name: match[1]
        for name in ("SizeX", "SizeY", "SizeXUnit", "SizeYUnit")
        if (match := re.search(rf'\bPhysical{name}="([^"]*)"', description))
    }
    if "SizeX" not in found:
        return None
    across, unit = float(found["SizeX"]), found.get("SizeXUnit", "um")
    return float(found["SizeY"]) if "SizeY" in found else across, across, unit


def _imagej(tags: Mapping[int, Any], description: str) -> _Stated | None:
    match = re.search(r"^unit=(.*)$", description, re.MULTILINE) if description.startswith("ImageJ=") else None
    sides = _sides(tags)
    if match is None or sides is None or match[1].strip() in ("inch", "cm"):
        return None  # inch and cm are what ImageJ says of a print resolution; _resolution judges those
    return *sides, match[1]


def _resolution(tags: Mapping[int, Any]) -> _Stated | None:
    """The plain TIFF resolution, where it is too fine to be a printer's."""
    sides, metres = _sides(tags), {2: 0.0254, 3: 0.01}.get(int(tags.get(296, 2)))
    if sides is None or metres is None or max(sides) * metres >= _FINEST_PRINT:
        return None
    size = convert(PixelSize(sides[0] * metres, sides[1] * metres, "m"), "nm")
    return (size.y, size.x, "nm") if size else None


def _sides(tags: Mapping[int, Any]) -> tuple[float, float] | None:
    """Height and width of a pixel in the file's unit, from the two resolution tags (pixels per unit, a fraction)."""
    match tags.get(282), tags.get(283, tags.get(282)):
        case (int(across), int(per_x)), (int(down), int(per_y)) if across > 0 and down > 0:
            return per_y / down, per_x / across
    return None


class _Collector(logging.Handler):
    """Keeps what tifffile logs while a file is read on this thread, away from the daemon's own log."""

    local = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        said: list[str] | None = getattr(self.local, "said", None)
        if said is not None:
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
