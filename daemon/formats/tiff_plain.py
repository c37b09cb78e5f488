"""Reads uncompressed pixels of a TIFF at the places in its directory."""

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from daemon.formats.reading import DamagedError
from daemon.formats.tiff_layout import PageLayout, TiffLayout
from daemon.micrograph import Pixels

_KINDS = {1: "u", 2: "i", 3: "f"}
_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1)[:, 0]
"""Each byte with its bits in the other order."""


def kind(page: PageLayout) -> np.dtype[Any] | None:
    """The dtype of whole bytes of a page, by its directory; None for others."""
    letter, size = _KINDS.get(page.sample_format), page.bits // 8
    if letter is None or page.bits % 8 or size not in (1, 2, 4, 8) or (letter, size) == ("f", 1):
        return None
    return np.dtype(f"{letter}{size}")


def contiguous(stream: BinaryIO, layout: TiffLayout, dtype: np.dtype[Any], chosen: range) -> Iterator[Pixels]:
    """The frames (H, W) of a stack with one directory and contiguous data. Raises OSError."""
    page = layout.pages[0]
    stored = dtype.newbyteorder(layout.byteorder)  # type: ignore[arg-type]
    for frame in chosen:
        stream.seek(int(page.offsets[0]) + frame * page.height * page.width * stored.itemsize)
        data = stream.read(page.height * page.width * stored.itemsize)
        yield np.frombuffer(_in_order(data, page), stored).reshape(page.height, page.width)


def plane(stream: BinaryIO, layout: TiffLayout, page: PageLayout, dtype: np.dtype[Any]) -> Pixels:
    """The pixels (H, W) of a page whose directory libraries cannot read. Raises DamagedError, OSError."""
    stored = dtype.newbyteorder(layout.byteorder)  # type: ignore[arg-type]
    if page.depth != 1 or page.samples != 1 or page.bits != 8 * stored.itemsize:
        raise DamagedError(f"{page.remark}; volumes, and pixels that are no whole bytes, are not read with this error")
    pixels = np.empty((page.height, page.width), stored)
    across = -(-page.width // page.segment_width)
    for number, (offset, length) in enumerate(zip(page.offsets, page.lengths, strict=True)):
        top, left = (number // across) * page.segment_height, (number % across) * page.segment_width
        stream.seek(int(offset))
        data = stream.read(int(length))
        if len(data) < int(length):
            raise DamagedError("the file became shorter while it was read", cut=True)
        part = np.frombuffer(_in_order(data, page), stored).reshape(-1, page.segment_width)
        wanted = pixels[top : top + page.segment_height, left : left + page.segment_width]
        wanted[...] = part[: wanted.shape[0], : wanted.shape[1]]
    return pixels


def _in_order(data: bytes, page: PageLayout) -> bytes:
    """The bytes with the highest bit first."""
    return _REVERSED[np.frombuffer(data, np.uint8)].tobytes() if page.reversed_bits else data
