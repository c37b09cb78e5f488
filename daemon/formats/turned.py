"""Turns images between the row orders of file formats and TIFF's Orientation, reversibly.

The first row of an MRC file is shown at the bottom (IMOD, RELION, MotionCor2), that of all other formats at the top. So
a TIFF that becomes an MRC file, or an MRC file that becomes a TIFF, has its rows in the other order, as `tif2mrc` and
`mrc2tif` of IMOD write them.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.micrograph import Micrograph, PixelSize

FLIP = 4
"""TIFF's number for rows from the bottom to the top."""
_INVERSE = {6: 8, 8: 6}
_SWAPPED = 5
"""From this number on rows become columns."""


def turns(like: Micrograph, kind: str) -> list[int]:
    """The turns of a micrograph's pixels for a file of `kind`: TIFF's orientations, one after the other."""
    if (like.kind == "mrc") == (kind == "mrc"):
        return []
    orientation = like.metadata.get("orientation")  # an MRC file has no such tag
    return [FLIP] if orientation is None or kind != "mrc" else [int(orientation), FLIP]


def turned(plane: Any, orientations: Iterable[int]) -> Any:
    """A plane (H, W) in TIFF's orientations, made upright, one orientation after the other."""
    for number in orientations:
        plane = plane.T if number >= _SWAPPED else plane
        plane = plane[::-1] if number in (3, 4, 7, 8) else plane
        plane = plane[:, ::-1] if number in (2, 3, 6, 7) else plane
    return plane


def undone(plane: Any, orientations: Iterable[int]) -> Any:
    """A plane (H, W) as before `turned`."""
    return turned(plane, [_INVERSE.get(number, number) for number in reversed(list(orientations))])


def places(
    rows: NDArray[np.intp], columns: NDArray[np.intp], shape: tuple[int, ...], number: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns (n,), after a turn by `number`, of pixels of a plane of `shape` (H, W)."""
    height, width = shape
    if number >= _SWAPPED:
        rows, columns, height, width = columns, rows, width, height
    rows = height - 1 - rows if number in (3, 4, 7, 8) else rows
    columns = width - 1 - columns if number in (2, 3, 6, 7) else columns
    return rows, columns


def turned_size(size: PixelSize | None, orientations: Iterable[int]) -> PixelSize | None:
    """The pixel size after `turned`."""
    swapped = sum(number >= _SWAPPED for number in orientations) % 2
    return PixelSize(size.x, size.y, size.unit) if size is not None and swapped else size
