"""What the network sees where pixels are missing: means of good ones around them, or, in a void, of the nearest."""

import numpy as np
from numpy.typing import NDArray

from daemon.micrograph import Pixels

Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]
Values = NDArray[np.float64]

BAND, CHUNK = 128, 1 << 18
"""Rows, and pixels, worked on at a time: memory does not grow with the image."""
COARSE = 8


def stand_ins(pixels: Pixels, missing: Mask, rows: Indices, columns: Indices) -> NDArray[np.float32]:
    """What the network sees in place of `missing` pixels (n,): means of good ones around them, in the image's units."""
    values = np.empty(len(rows), dtype=np.float32)
    if not len(rows):
        return values
    # A pass over the whole image, only worth it for voids: to fill them, or not to search large ones for neighbours.
    sums, numbers = _coarse(pixels, missing) if len(rows) > CHUNK else ([], [])
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        y, x = rows[part], columns[part]
        worth = numbers[0][y // COARSE, x // COARSE] > 0 if numbers else np.ones(len(y), dtype=np.bool_)
        total, number = _near(pixels, missing, y, x, worth)
        if not numbers and not number.all():
            sums, numbers = _coarse(pixels, missing)
        for level, (coarse_sum, coarse_number) in enumerate(zip(sums, numbers, strict=True)):
            empty = np.flatnonzero(number == 0)
            if not len(empty):
                break
            where = y[empty] // (COARSE << level), x[empty] // (COARSE << level)
            total[empty], number[empty] = coarse_sum[where], coarse_number[where]
        values[part] = total / number
    return values


def _near(pixels: Pixels, missing: Mask, rows: Indices, columns: Indices, worth: Mask) -> tuple[Values, Values]:
    """Sum and number of the good pixels in the 5 x 5 around each pixel, where `worth` is set; others count as none."""
    height, width = missing.shape
    total, number = np.zeros((2, len(rows)))
    chosen = np.flatnonzero(worth)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            y, x = rows[chosen] + dy, columns[chosen] + dx
            good = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            good[good] = ~missing[y[good], x[good]]
            total[chosen[good]] += pixels[y[good], x[good]]
            number[chosen[good]] += 1
    return total, number


def _coarse(pixels: Pixels, missing: Mask) -> tuple[list[Values], list[Values]]:
    """Sums and numbers of good pixels in blocks of 8, 16, 32, ... pixels up to the whole image."""
    sum_bands, number_bands = [], []
    for top in range(0, len(missing), BAND):
        good = ~missing[top : top + BAND]
        sum_bands.append(_blocks(np.where(good, pixels[top : top + BAND], 0.0), COARSE))
        number_bands.append(_blocks(good.astype(np.float64), COARSE))
    sums, numbers = [np.concatenate(sum_bands)], [np.concatenate(number_bands)]
    while numbers[-1].size > 1:
        sums.append(_blocks(sums[-1], 2))
        numbers.append(_blocks(numbers[-1], 2))
    return sums, numbers


def _blocks(values: Values, side: int) -> Values:
    height, width = values.shape
    across = np.add.reduceat(values, np.arange(0, width, side), axis=1)
    return np.asarray(np.add.reduceat(across, np.arange(0, height, side), axis=0))
