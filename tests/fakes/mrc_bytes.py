"""Writes MRC files of which every header field can be set, right or wrong."""

import struct
from pathlib import Path
from typing import Any

import numpy as np

IMOD = 1146047817
_MODES = {"int8": 0, "uint8": 0, "int16": 1, "uint16": 6, "float32": 2}


def write_mrc(
    path: Path,
    data: np.ndarray[Any, Any],
    *,
    mode: int | None = None,
    cell: tuple[float, float, float] | None = None,
    axes: tuple[int, int, int] = (1, 2, 3),
    extended: bytes = b"",
    named: bytes = b"",
    shorts: tuple[int, int] = (0, 0),
    flags: int | None = None,
    stated: tuple[float, float, float] | None = None,
    group: int = 0,
    label: bytes = b"",
) -> Path:
    """(H, W) or (N, H, W) as little-endian MRC. `shorts`: bytes 128-131; `flags`: IMOD's, with its stamp; `stated`:
    minimum, maximum, mean."""
    planes = data if data.ndim == 3 else data[None]
    number, height, width = planes.shape
    header = bytearray(1024)
    struct.pack_into("<4i", header, 0, width, height, number, _MODES[data.dtype.name] if mode is None else mode)
    struct.pack_into("<3i", header, 28, width, height, number)
    if cell is not None:
        struct.pack_into("<3f", header, 40, *cell)
    struct.pack_into("<3f3i", header, 52, 90, 90, 90, *axes)
    struct.pack_into("<3f", header, 76, *(stated or (planes.min(), planes.max(), planes.mean())))
    struct.pack_into("<2i", header, 88, group, len(extended))
    header[104:108] = named.ljust(4, b"\0")
    struct.pack_into("<i16x2h", header, 108, 20140, *shorts)
    if flags is not None:
        struct.pack_into("<2i", header, 152, IMOD, flags)
    header[208:216] = b"MAP DD\0\0"
    struct.pack_into("<i", header, 220, int(bool(label)))
    header[224 : 224 + len(label)] = label
    path.write_bytes(bytes(header) + extended + planes.astype(data.dtype.newbyteorder("<")).tobytes())
    return path
