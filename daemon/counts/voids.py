"""Regions without numbers: parts of the image that were never recorded, as at the border after drift correction.

Single pixels without a number are defects and are filled in (`daemon.counts.spikes`); a region is left as it is in the
result, because nothing was measured there.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.counts.plane import NOWHERE, Prepared
from daemon.micrograph import Image, Pixels

Indices = NDArray[np.intp]

_RADIUS = 4
_CROWD = 25
"""A pixel belongs to a region if so many of the 9 x 9 pixels around it, itself one of them, have no number: the corner
of a region has 25."""


def find(missing: Indices, shape: tuple[int, int]) -> Indices:
    """Those of the flat places (n,), ascending, of pixels without a number that lie in regions.

    Rows or columns at the edge of the image without any number are regions however thin.
    """
    height, width = shape
    if len(missing) < min(_CROWD, height, width):
        return NOWHERE
    mask = np.zeros(shape, np.bool_)
    mask.reshape(-1)[missing] = True
    rows, columns = np.divmod(missing, width)
    crowded = _around(mask)[rows, columns] >= _CROWD
    border = _border(np.all(mask, axis=1))[rows] | _border(np.all(mask, axis=0))[columns]
    return missing[crowded | border]


def restored(image: Image, prepared: Prepared) -> Image:
    """The result (H, W) with `prepared.void` as in the micrograph; a copy if there are such pixels."""
    if not len(prepared.void):
        return image
    image = image.copy()
    image.reshape(-1)[prepared.void] = prepared.pixels.reshape(-1)[prepared.void]
    return image


def as_json(void: Indices, pixels: Pixels) -> dict[str, Any]:
    """For the record: number of pixels, and first and last of their rows and columns."""
    if not len(void):
        return {"pixels": 0}
    rows, columns = np.divmod(void, pixels.shape[1])
    return {
        "pixels": len(void),
        "rows": [int(rows.min()), int(rows.max())],
        "columns": [int(columns.min()), int(columns.max())],
    }


def _around(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number of marked pixels within `_RADIUS` of each pixel."""
    side = 2 * _RADIUS + 1
    sums = np.pad(mask, ((_RADIUS + 1, _RADIUS), (_RADIUS + 1, _RADIUS))).astype(np.int32).cumsum(0).cumsum(1)
    return np.asarray(sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side])


def _border(whole: Any) -> NDArray[np.bool_]:
    """Marks the lines (n,) in a run of marked ones that begins at either end."""
    return np.logical_and.accumulate(whole) | np.logical_and.accumulate(whole[::-1])[::-1]
