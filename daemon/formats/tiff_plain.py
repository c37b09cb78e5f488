"""Reads uncompressed pixels of a TIFF at the places in its directory."""

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from daemon.formats.reading import DamagedError
from daemon.formats.tiff_layout import PageLayout, TiffLayout
from daemon.micrograph import Pixels


def contiguous(stream: BinaryIO, layout: TiffLayout, dtype: np.dtype[Any], chosen: range) -> Iterator[Pixels]:
    """The frames (H, W) of a stack with one directory and contiguous data. Raises OSError."""
    page = layout.pages[0]
    stored = dtype.newbyteorder(layout.byteorder)  # type: ignore[arg-type]
    for frame in chosen:
        stream.seek(int(page.offsets[0]) + frame * page.height * page.width * stored.itemsize)
        data = stream.read(page.height * page.width * stored.itemsize)
        yield np.frombuffer(data, stored).reshape(page.height, page.width)


def plane(stream: BinaryIO, layout: TiffLayout, page: PageLayout, dtype: np.dtype[Any]) -> Pixels:
    """The pixels (H, W) of a page whose directory libraries cannot read. Raises DamagedError, OSError."""
    stored = dtype.newbyteorder(layout.byteorder)  # type: ignore[arg-type]
    if page.depth != 1 or page.samples != 1 or page.bits != 8 * stored.itemsize or page.reversed_bits:
        raise DamagedError("strips or tiles declare fewer bytes than their rows need")
    pixels = np.empty((page.height, page.width), stored)
    across = -(-page.width // page.segment_width)
    for number, (offset, length) in enumerate(zip(page.offsets, page.lengths, strict=True)):
        top, left = (number // across) * page.segment_height, (number % across) * page.segment_width
        stream.seek(int(offset))
        data = stream.read(int(length))
        if len(data) < int(length):
            raise DamagedError("the file became shorter while it was read", cut=True)
        part = np.frombuffer(data, stored).reshape(-1, page.segment_width)
        wanted = pixels[top : top + page.segment_height, left : left + page.segment_width]
        wanted[...] = part[: wanted.shape[0], : wanted.shape[1]]
    return pixels
