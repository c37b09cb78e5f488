"""Whether the JPEG data of a TIFF are whole: the codec fills what is missing with grey and reports no error."""

from typing import BinaryIO

import numpy as np
import tifffile

from daemon.formats.reading import DamagedError
from daemon.formats.tiff_layout import PageLayout

_SCAN, _END = b"\xff\xda", b"\xff\xd9"
"""The markers that begin and end the data."""
_NUMBERS = np.random.default_rng(0).integers(1, 255, 256, np.uint8)
_MORE = _NUMBERS.tobytes(), np.invert(_NUMBERS).tobytes()
"""Further data of no meaning and the same with each bit inverted; neither has a marker in it."""


def require_whole(stream: BinaryIO, page: tifffile.TiffPage, like: PageLayout) -> None:
    """Raises DamagedError for a strip or tile whose data end too early, with or without a marker of their end."""
    for index, (offset, length) in enumerate(zip(like.offsets, like.lengths, strict=True)):
        stream.seek(int(offset))
        data = stream.read(int(length) + len(_END))  # some writers do not count the marker
        end = data.find(_END, max(0, data.find(_SCAN)))
        if end < 0 or _goes_on(page, index, data[:end].rstrip(b"\xff")):  # bytes that may fill up before a marker
            raise DamagedError(f"strip or tile {index + 1} is cut off within its JPEG data")


def _goes_on(page: tifffile.TiffPage, index: int, data: bytes) -> bool:
    """Whether the codec makes use of data that follow: it does so only while pixels are missing."""
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
    alone, *followed = (page.decode(data + more + _END, index, **tables)[0] for more in (b"", *_MORE))
    return alone is None or any(one is None or not np.array_equal(alone, one) for one in followed)
