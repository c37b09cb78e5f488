"""Recognises masks and images of labels, which show no specimen, and a scale bar that is drawn into a micrograph."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.micrograph import Pixels

_PATCHED = 0.85
"""Smallest share of labelled pixels that equal their neighbour; counts, and any noise, have far less."""
_LABELLED, _STEPPED = 0.01, 0.2
"""Smallest share of labelled pixels; and of borders whose values differ by more than 1, unlike a smooth image's."""
_NARROWEST, _SHARE, _FLATTEST, _LOWEST = 16, 0.03, 4, 2
"""A scale bar: least width in pixels and as a share of the image's, width over height, and height."""
_CLEAR = 0.1
"""Smallest difference from the rows above and below, as a share of the image's range."""
_RARE = 0.05
"""Largest share of the bar's value in the image."""


def is_mask(pixels: Pixels) -> bool:
    """Whether there are only two values, in few pieces: electron counts of 0 and 1 are scattered."""
    if len(np.unique(pixels[:: max(1, pixels.shape[0] // 8)])) > 2:
        return False  # as in almost every image; the test is fast
    other = pixels != pixels.flat[0]
    share = float(other.mean())
    values = pixels[other]
    if not 0 < share < 1 or (values != values[0]).any():
        return False
    changes = float((other[:, 1:] != other[:, :-1]).mean())
    return changes < share * (1 - share)  # half of the value for random pixels


def is_labels(pixels: Pixels) -> bool:
    """Whether whole numbers (H, W) form patches of one value each on a background of the most frequent one."""
    if pixels.dtype.kind == "f" and not np.array_equal(sample := pixels[:: max(1, len(pixels) // 8)], np.rint(sample)):
        return False
    few = pixels[:: max(1, len(pixels) // 64)]
    same = few[:, 1:] == few[:, :-1]
    if float(same.mean()) < _PATCHED / 2:
        return False  # as in almost every image; the test is fast
    values, numbers = np.unique(few, return_counts=True)
    of = few[:, :-1] != values[numbers.argmax()]
    if of.any() and float(same[of].mean()) < _PATCHED / 2:
        return False  # as in images of few counts
    right = pixels[:, 1:] == pixels[:, :-1]
    if float(right.mean()) < _PATCHED:
        return False
    if _enlarged(np.flatnonzero(~right.all(axis=0))):
        return False
    values, numbers = np.unique(pixels, return_counts=True)
    labelled = pixels != values[numbers.argmax()]
    if float(labelled.mean()) < _LABELLED:
        return False
    down = pixels[1:] == pixels[:-1]
    for same, of in ((right, labelled[:, :-1]), (down, labelled[:-1])):
        if not of.any() or float(same[of].mean()) < _PATCHED:
            return False
    steps = np.abs(np.diff(pixels.astype(np.float64), axis=1))
    return bool((steps > 1).sum() >= _STEPPED * max(1, int((steps > 0).sum())))


def _enlarged(edges: NDArray[np.intp]) -> bool:
    """Whether the columns with edges are those of an image enlarged without interpolation: nearly every nth."""
    step = int(np.gcd.reduce(np.diff(edges))) if len(edges) > 1 else 1
    return step > 1 and len(edges) > 0.9 * ((edges[-1] - edges[0]) // step + 1)


def scale_bar(pixels: Pixels) -> dict[str, Any]:
    """For a micrograph's metadata: a rectangle of the largest or least value that looks like a scale bar, if any."""
    height, width = pixels.shape
    least = max(_NARROWEST, int(_SHARE * width))
    coarse = np.ascontiguousarray(pixels[::_LOWEST, :: least // 4])  # every bar has three neighbours in it
    for extreme in (np.fmax.reduce, np.fmin.reduce):
        at = coarse == extreme(coarse, axis=None)
        if float(at.mean()) > 2 * _RARE or not (at[:, 2:] & at[:, 1:-1] & at[:, :-2]).any():
            continue  # as in almost every image; the test is fast
        value = extreme(pixels, axis=None)
        same = pixels == value
        rows = np.flatnonzero(same.sum(axis=1) >= least)
        if not len(rows) or float(same.mean()) > _RARE:
            continue
        clear = _CLEAR * (float(np.fmax.reduce(pixels, axis=None)) - float(np.fmin.reduce(pixels, axis=None)))
        runs = {int(row): _longest(same[row]) for row in rows}
        for row in runs:
            first, last = runs[row]
            if last - first + 1 < least or last - first + 1 > 0.9 * width or runs.get(row - 1) == (first, last):
                continue
            end = row
            while runs.get(end + 1) == (first, last):
                end += 1
            beside = [pixels[at, first : last + 1] for at in (row - 1, end + 1) if 0 <= at < height]
            apart = all(abs(float(np.median(near)) - float(value)) > clear for near in beside)
            if end - row + 1 >= _LOWEST and last - first + 1 >= _FLATTEST * (end - row + 1) and apart:
                return {"scale_bar": {"rows": [row, end], "columns": [first, last]}}
    return {}


def _longest(same: NDArray[np.bool_]) -> tuple[int, int]:
    """First and last place of the longest run in a row (W,)."""
    edges = np.flatnonzero(np.diff(np.r_[False, same, False]))
    firsts, ends = edges[::2], edges[1::2]
    best = int((ends - firsts).argmax())
    return int(firsts[best]), int(ends[best]) - 1
