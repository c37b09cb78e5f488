"""Reads the directory of TIA's SER files: the places of a series' images, and whether all are complete and alike.

RosettaSciIO assumes that all images are like the first; this module names a damaged one.
"""

import struct
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np

from daemon.formats import stack
from daemon.formats.reading import DamagedError
from daemon.formats.stack import Stack

_IMAGES = 0x4122
_TIME_STAMP = 8
_BEFORE_PIXELS = 50
_BYTES = {1: 1, 2: 2, 3: 4, 4: 1, 5: 2, 6: 4, 7: 4, 8: 8, 9: 8, 10: 16}
"""Bytes of one pixel, by SER's number of its type."""
_MOST = 1 << 20


def end(head: bytes, size: int) -> int:
    """The end of the last image's time stamp, which ends a complete file; `head`: its first kilobyte.

    If the table of images exceeds the head, the end of that table. Raises DamagedError without an image.
    """
    wide, total, valid, table = _table(head)
    last = table + (total + valid - 1) * wide
    if last + wide > len(head):
        return min(table + 2 * wide * total, size)
    return int.from_bytes(head[last : last + wide], "little") + _TIME_STAMP


def check(stream: BinaryIO, size: int) -> None:
    """Raises DamagedError naming the first image that is incomplete or unlike the first; spectra are not checked."""
    stream.seek(0)
    head = stream.read(34)
    wide, _, valid, table = _table(head)
    if int.from_bytes(head[6:10], "little") != _IMAGES:
        return
    if valid > _MOST or table + valid * wide > size:
        raise DamagedError(f"the SER file claims {valid} images, its table of them is cut off", cut=True)
    stream.seek(table)
    offsets = struct.unpack(f"<{valid}{'Q' if wide == 8 else 'I'}", stream.read(valid * wide))
    first = None
    for number, offset in enumerate(offsets, 1):
        which = f"frame {number} of {valid}" if valid > 1 else "its image"
        if offset + _BEFORE_PIXELS > size:
            raise DamagedError(f"{which} is placed behind the end of the file", cut=True)
        stream.seek(offset + 40)
        kind = struct.unpack("<HII", stream.read(10))
        first = first or kind
        if kind != first:
            raise DamagedError(f"{which} is unlike the first (damaged, or never written)")
        if offset + _BEFORE_PIXELS + kind[1] * kind[2] * _BYTES.get(kind[0], 1) > size:
            raise DamagedError(f"{which} is cut off", cut=True)


def nature(header: Mapping[str, Any], exposure: float | None = None) -> Stack | None:
    """The kind of a series by its description and the tags of its images, in RosettaSciIO's header of the file.

    `exposure`: seconds of each image, if known.
    """
    described = header.get("Dim-1_Description", b"")
    name = bytes(described).decode("latin-1") if isinstance(described, bytes) else ""
    x, y, times = (np.ravel(header.get(key, ())) for key in ("PositionX", "PositionY", "Time"))
    places = zip(x.tolist(), y.tolist(), strict=False)
    in_time = stack.of_times("SER tags", [later - earlier for earlier, later in pairwise(times.tolist())], exposure)
    return stack.weighed(
        (
            stack.of_axis(name, "", "SER header"),
            stack.of_stage(places, "SER tags"),
            in_time if in_time.are != "frames" else None,
        )
    )


def _table(head: bytes) -> tuple[int, int, int, int]:
    """Bytes of an offset, number of images announced and written, and offset of their table."""
    wide = 8 if int.from_bytes(head[4:6], "little") >= 0x0220 else 4
    total, valid = (int.from_bytes(head[at : at + 4], "little") for at in (14, 18))
    if len(head) < 34 or not 0 < valid <= total:
        raise DamagedError("the SER file holds no image yet")
    return wide, total, valid, int.from_bytes(head[22 : 22 + wide], "little")
