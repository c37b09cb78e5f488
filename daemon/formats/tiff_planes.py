"""The planes of a TIFF's pages, by tifffile where they are compressed, after our own checks of the directory."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from daemon.errors import MicrographError
from daemon.formats import tiff_copies, tiff_jpeg, tiff_plain, tiff_stack
from daemon.formats.reading import DamagedError
from daemon.formats.tiff_layout import PageLayout, TiffLayout
from daemon.formats.tiff_stack import EER
from daemon.micrograph import Pixels

PALETTE = 3
"""TIFF's number of pixels that are places in a table of colours."""
_FLOAT = 3
_DISPUTED = 24
"""Bits."""
_JPEG = 7


def kind(path: Path, page: tifffile.TiffPage, like: PageLayout) -> np.dtype[Any]:
    """The dtype of a page. Raises MicrographError for one that is no intensity."""
    if like.bits == _DISPUTED and like.sample_format != _FLOAT:
        raise MicrographError(
            f"{path}: has whole numbers of 24 bits, about whose bytes programs disagree; export it as 16 or 32 bit "
            "greyscale"
        )
    dtype = np.dtype(np.uint8) if like.compression in EER else tiff_plain.kind(like) if like.remark else page.dtype
    if dtype is None or dtype.kind not in "iuf":
        raise MicrographError(
            f"{path}: has pixels of an unusual kind ({like.bits} bits, sample format "
            f"{like.sample_format}); export it as 8, 16 or 32 bit greyscale"
        )
    return dtype


def page_of(file: tifffile.TiffFile, index: int, layout: TiffLayout, size: int) -> tifffile.TiffPage:
    """A page as tifffile reads it. Raises DamagedError unless it has our sizes, which are within the limits."""
    page = file.pages[index]
    if not isinstance(page, tifffile.TiffPage):
        raise DamagedError(f"page {index} of the TIFF cannot be read")
    ours = layout.pages[index]
    if ours.remark:  # its strips are read by ourselves
        return page
    sizes = page.imagewidth, page.imagelength, page.imagedepth, page.samplesperpixel, page.bitspersample
    tile = (page.tilewidth, page.tilelength) if page.is_tiled else (ours.segment_width, ours.segment_height)
    if (
        sizes != (ours.width, ours.height, ours.depth, ours.samples, ours.bits)
        or tile != (ours.segment_width, ours.segment_height)
        or page.compression != ours.compression
        or page.size != ours.width * ours.height * ours.depth * ours.samples
        or max(page.databytecounts, default=0) > size
        or min(len(page.dataoffsets), len(page.databytecounts)) < len(ours.offsets)
    ):
        raise DamagedError(
            "the TIFF directory contradicts itself (a tag is given twice, or in a form that is not TIFF)"
        )
    return page


def planes(
    stream: BinaryIO, file: tifffile.TiffFile, index: int, layout: TiffLayout, size: int, dtype: np.dtype[Any]
) -> Iterator[Pixels]:
    """The planes (H, W) of a page, one or those of a volume. Raises DamagedError."""
    like = layout.pages[index]
    if like.remark:
        yield tiff_plain.plane(stream, layout, like, dtype)
        return
    page = page_of(file, index, layout, size)
    if like.compression == _JPEG:
        tiff_jpeg.require_whole(stream, page, like)
    array = page.asarray(maxworkers=1)  # one image at a time: the other cores are denoising
    if like.compression in EER:
        array = array.view(np.uint8)  # one electron or none
    yield from array.reshape(like.depth, like.height, like.width)


def require_copies(
    stream: BinaryIO,
    file: tifffile.TiffFile,
    path: Path,
    layout: TiffLayout,
    main: int,
    doubtful: Sequence[int],
    size: int,
) -> None:
    """Raises MicrographError unless these pages show what the page `main` shows."""
    micrograph = _bright(stream, file, path, layout, main, size)
    for index in doubtful:
        if not tiff_copies.is_copy(_bright(stream, file, path, layout, index, size), micrograph):
            raise tiff_stack.unclear(path, (layout.pages[main], layout.pages[index]))


def _bright(stream: BinaryIO, file: tifffile.TiffFile, path: Path, layout: TiffLayout, index: int, size: int) -> Pixels:
    """The first plane of a page, of which larger numbers are shown brighter."""
    page, like = page_of(file, index, layout, size), layout.pages[index]
    plane = next(planes(stream, file, index, layout, size, kind(path, page, like)))
    if like.photometric == PALETTE and page.colormap is not None:
        shown: Pixels = page.colormap.mean(axis=0)[plane]
        return shown
    return -plane.astype(np.float64) if like.photometric == 0 else plane
