"""Reads parts of a result's pixels from its file, so that a large one is never in memory as a whole.

The file is not mapped into memory: a share that becomes unavailable would end the process.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from daemon import formats
from daemon.errors import TransientError
from daemon.formats import mrc, tiff_layout, turned
from daemon.formats.reading import explained_reading
from daemon.micrograph import Image

_FLOAT, _UNCOMPRESSED, _MRC_FLOAT = 3, 1, 2


@dataclass(frozen=True, slots=True)
class ResultFile:
    """Float32 pixels (H, W) stored row by row in a file, indexed like an array."""

    path: Path
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    """With the file's byte order."""
    offset: int
    """Bytes before the first pixel."""
    flipped: bool = False
    """Whether the file stores the last row first."""
    nbytes: ClassVar[int] = 0
    """Bytes in memory."""

    def __getitem__(self, part: tuple[slice, slice]) -> Image:
        """Rows and columns without steps, at least one of each.

        Raises MicrographError or TransientError if they cannot be read.
        """
        height, width = self.shape
        (top, bottom, _), (left, right, _) = part[0].indices(height), part[1].indices(width)
        if self.flipped:
            top, bottom = height - bottom, height - top
        length = (bottom - top) * width * self.dtype.itemsize
        with explained_reading(self.path), formats.RawFile(self.path).open() as stream:
            stream.seek(self.offset + top * width * self.dtype.itemsize)
            data = stream.read(length)
        if len(data) != length:
            raise TransientError(f"{self.path}: is shorter than it was; was it replaced?")
        rows = np.frombuffer(data, self.dtype).reshape(-1, width)
        rows = rows[::-1] if self.flipped else rows
        return rows[:, left:right].astype(np.float32, copy=False)


def open_result(path: Path, shape: tuple[int, int], turns: Sequence[int] = ()) -> ResultFile | None:
    """A result as `writing.write_outputs` writes it, of this shape; None for one that is not plain float32.

    `turns`: those between the micrograph and its file; returns None for any other than a flip.

    Raises MicrographError or TransientError if it cannot be read.
    """
    if list(turns) not in ([], [turned.FLIP]):
        return None
    height, width = shape
    flipped = bool(turns)
    with explained_reading(path), formats.RawFile(path).open() as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(mrc.HEADER_BYTES)
        if mrc.recognised(head, path.suffix):
            layout = mrc.parse(head)
            plain = layout.shape == (1, height, width) and layout.mode == _MRC_FLOAT
            return ResultFile(path, shape, layout.dtype, layout.data, flipped) if plain else None
        tiff = tiff_layout.parse(stream, size)
    page = tiff.pages[0]
    ends = page.offsets + page.lengths
    plain = (
        (page.height, page.width, page.samples, page.bits) == (height, width, 1, 32)
        and (page.sample_format, page.compression, page.segment_width) == (_FLOAT, _UNCOMPRESSED, width)
        and bool((ends[:-1] == page.offsets[1:]).all())
        and int(page.lengths.sum()) == 4 * height * width
    )
    return ResultFile(path, shape, np.dtype(f"{tiff.byteorder}f4"), int(page.offsets[0]), flipped) if plain else None
