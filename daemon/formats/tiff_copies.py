"""Whether a page of a TIFF shows what the micrograph shows: a copy for display, or a thumbnail.

A Fourier transform may be deeper and larger than the micrograph it was made from; its pixels are in another order.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from daemon.micrograph import Pixels

_SIDE = 256
"""Pixels along each axis that are compared, at most."""
_PAIRS = 1 << 16
_FEW = 64
"""Fewer pairs of different pixels are those of a blank page, which is no micrograph."""
_SAME, _REDUCED = 0.8, 0.4
"""Least agreement on which of two pixels is brighter (1: always, 0: chance), at the same size and of a smaller copy."""
_OBLONG = 0.03
"""Largest relative difference of the ratio of sides."""


def is_copy(page: Pixels, micrograph: Pixels) -> bool:
    """Whether a page (h, w) orders its pixels by brightness as the micrograph (H, W) does."""
    (height, width), (tall, wide) = page.shape, micrograph.shape
    if abs(height * wide / (width * tall) - 1) > _OBLONG:
        return False
    if page.shape == micrograph.shape:
        step = max(1, -(-max(page.shape) // _SIDE))
        return _agreement(page[::step, ::step], micrograph[::step, ::step]) >= _SAME
    small, large = (page, micrograph) if page.size < micrograph.size else (micrograph, page)
    return max(_agreement(some, others) for some, others in _matched(small, large)) >= _REDUCED


def _matched(small: Pixels, large: Pixels) -> Iterator[tuple[Pixels, Pixels]]:
    """Pixels of both at the same places: of the larger one single pixels, then means of all that are there."""
    step = max(1, -(-max(small.shape) // _SIDE))
    edges = [np.arange(side + 1) * full // side for side, full in zip(small.shape, large.shape, strict=True)]
    rows, columns = (((first[:-1] + first[1:]) // 2)[::step] for first in edges)
    some = small[::step, ::step]
    yield some, large[np.ix_(rows, columns)]
    means = [large[first:last].mean(axis=0, dtype=np.float64) for first, last in list(pairwise(edges[0]))[::step]]
    sums = np.add.reduceat(np.stack(means), edges[1][:-1], axis=1)
    yield some, (sums / np.diff(edges[1]))[:, ::step]


def _agreement(one: Pixels, other: Pixels) -> float:
    """Of random pairs of pixels that differ in both: how many more are in the same order than not, as a share."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, one.size, (2, _PAIRS))

    def order(pixels: Pixels) -> NDArray[np.float64]:
        flat = pixels.reshape(-1).astype(np.float64)
        signs: NDArray[np.float64] = np.sign(flat[first] - flat[second])
        return signs

    with np.errstate(invalid="ignore"):
        alike = np.nan_to_num(order(one) * order(other))
    differing = int(np.count_nonzero(alike))
    return 1.0 if differing < _FEW else float(alike.sum()) / differing
