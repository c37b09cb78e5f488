"""Fourier ring correlation (Saxton and Baumeister, J. Microsc. 127, 127, 1982): up to which detail two images agree."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.intp]
Real = NDArray[np.float64]

RINGS = 32
"""Rings of equal width between zero frequency and half a cycle per pixel."""


@lru_cache(maxsize=4)
def terms(shape: tuple[int, ...]) -> tuple[Indices, Real]:
    """Ring of each term of a half spectrum, flat (RINGS: beyond the last), and for how many of the whole it stands."""
    height, width = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    ring = np.minimum((frequency * 2 * RINGS).astype(np.intp), RINGS)
    twice = np.full(ring.shape, 2.0)  # the half that is left out mirrors all but these columns
    twice[:, 0] = 1
    if width % 2 == 0:
        twice[:, -1] = 1
    return ring.ravel(), twice.ravel()


def frc(first: NDArray[np.floating], second: NDArray[np.floating]) -> Real:
    """Fourier ring correlation (RINGS,) of two images (H, W), Hann-windowed, without their means; 0 without signal."""
    ring, stands_for = terms(first.shape)
    window = np.outer(*(np.hanning(side + 2)[1:-1] for side in first.shape))
    one, two = (np.fft.rfft2((image - image.mean(dtype=np.float64)) * window).ravel() for image in (first, second))
    common, power, other = (
        np.bincount(ring, stands_for * values, RINGS + 1)[:RINGS]
        for values in ((one * two.conj()).real, np.square(np.abs(one)), np.square(np.abs(two)))
    )
    scale = np.sqrt(power * other)
    return np.asarray(np.divide(common, scale, out=np.zeros(RINGS), where=scale > 0))


def free_terms(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """How many terms of a real image's half spectrum lie in each ring: (RINGS,)."""
    ring, _ = terms(shape)
    return np.bincount(ring, minlength=RINGS + 1)[:RINGS]


def all_terms(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """How many terms of the whole spectrum lie in each ring: (RINGS,)."""
    ring, stands_for = terms(shape)
    return np.bincount(ring, stands_for, RINGS + 1)[:RINGS].astype(np.int64)
