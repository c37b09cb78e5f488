"""Writes TIA's SER files."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_PLACED, _TIMED = 0x4142, 0x4152
_UNSIGNED_16_BIT = 2


def write_ser(
    path: Path,
    frames: np.ndarray[Any, Any],
    *,
    described: bytes = b"Number",
    unit: bytes = b"",
    places: Sequence[tuple[float, float]] = (),
    seconds: float = 1,
) -> Path:
    """A series (N, H, W) of unsigned numbers, the lowest row first, with `seconds` and stage `places` (metres)."""
    number, height, width = frames.shape
    tag = _PLACED if places else _TIMED
    dimension = struct.pack("<IddII", number, 0, 1, 0, len(described)) + described
    dimension += struct.pack("<I", len(unit)) + unit
    head = struct.pack("<HHHIIII", 0x4949, 0x0197, 0x0210, 0x4122, tag, number, number)
    table = len(head) + 8 + len(dimension)
    head += struct.pack("<II", table, 1) + dimension
    starts, tags, data = [], [], b""
    for index, frame in enumerate(frames):
        starts.append(table + 8 * number + len(data))
        data += struct.pack("<ddIddIHII", 0, 2e-10, 0, 0, 2e-10, 0, _UNSIGNED_16_BIT, width, height)
        data += frame.astype("<u2").tobytes()
        tags.append(table + 8 * number + len(data))
        data += struct.pack("<HHI", tag, 0, 1_700_000_000 + round(index * seconds))
        data += struct.pack("<dd", *places[index]) if places else b""
    path.write_bytes(head + struct.pack(f"<{2 * number}I", *starts, *tags) + data)
    return path
