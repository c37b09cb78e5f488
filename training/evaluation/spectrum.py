"""Has the noise that a denoiser leaves on a flat field any structure? Spots and rings in its power spectrum."""

from math import sqrt
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from scipy.stats import gamma

from daemon.micrograph import Image

Real = NDArray[np.float64]

FALSE_ALARM = 1e-3
"""Chance that spectra without any spot are said to have one, over all flat fields together."""

_UNSEEN = 1e-4
"""Power, over that of the input's noise, below which a spectrum is not looked at: 1 % of the noise in amplitude."""

COARSEST = 32
"""Longest period in pixels of a peak that is searched; what noise is left is always mottled on a coarser scale."""


def periodogram(image: Image) -> Real:
    """Power (H, W) at every frequency of a Hann-windowed image without its mean; white noise gives its variance."""
    height, width = image.shape
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[None, 1:-1]
    spectrum = np.fft.fft2((image - image.mean(dtype=np.float64)) * window)
    power: Real = np.square(np.abs(spectrum)) / np.square(window).sum()
    return power


def radius(side: int) -> Real:
    """Frequency of every term of a Fourier transform of (side, side), cycles per image."""
    f = np.fft.fftfreq(side) * side
    distance: Real = np.hypot(f[:, None], f[None, :])
    return distance


def _ring_medians(power: Real, seeds: int) -> Real:
    """Mean power of every ring of one cycle per image, from its median, so that a few spots do not move it.

    Only up to the last ring of 64 frequencies: in the corners, a spot would be most of its ring.
    """
    ring = np.rint(radius(len(power))).astype(int).ravel()
    order = np.argsort(ring, kind="stable")
    rings = np.split(power.ravel()[order], np.flatnonzero(np.diff(ring[order])) + 1)
    last = max(number for number, values in enumerate(rings) if len(values) >= 64)
    return np.array([np.median(values) for values in rings[: last + 1]]) * _median_factor(seeds)


def _median_factor(seeds: int) -> float:
    """Mean over median of the average of `seeds` powers of noise, each exponentially distributed."""
    return float(seeds / gamma.median(seeds))


def spot(power: Real, seeds: int) -> dict[str, Any]:
    """The frequency that stands out most from the trend, which is the larger of three at every frequency.

    The ring's median, interpolated between rings; the median of the frequencies around it, but for the nearest; and
    `_UNSEEN`. `power` (side, side) is in units of the input's noise.
    """
    side = len(power)
    r = radius(side)
    profile = np.log(np.maximum(_ring_medians(power, seeds), 1e-30))
    around = np.ones((11, 11), bool)
    around[4:7, 4:7] = False  # a windowed line is three terms wide
    local = median_filter(power, footprint=around, mode="wrap") * _median_factor(seeds)
    trend = np.maximum(np.maximum(np.exp(np.interp(r, np.arange(len(profile)), profile)), local), _UNSEEN)
    over = np.where(r >= side / COARSEST, power / trend, 0.0)
    row, column = np.unravel_index(int(np.argmax(over)), over.shape)
    frequency = np.fft.fftfreq(side)
    # A line of amplitude A has the power A² / 4 × (sum of the window)² / sum of its squares: side² / 2.25 in Hann's.
    amplitude = sqrt(4 * 2.25 * float(power[row, column])) / side
    return {
        "over_trend": short(over[row, column]),
        "frequency_per_px": [round(float(frequency[row]), 4), round(float(frequency[column]), 4)],
        "power_over_noise": short(power[row, column]),
        "amplitude_over_noise": short(amplitude),
        "spots": int((over > spot_threshold(seeds, side, 1)).sum() // 2),
    }


def spot_threshold(seeds: int, side: int, fields: int) -> float:
    """The power over trend that white or coloured noise without a spot passes with chance `FALSE_ALARM`.

    The mean of `seeds` independent powers follows a gamma distribution; half of the frequencies are free. Bonferroni's
    bound over frequencies and fields.
    """
    searched = fields * side**2 / 2
    return float(gamma.isf(FALSE_ALARM / searched, seeds) / seeds)


def bump(power: Real, seeds: int) -> dict[str, Any]:
    """The ring (four cycles per image wide) that rises most above the lowest of those inside it."""
    side = len(power)
    first = side // COARSEST
    profile = _ring_medians(power, seeds)[first : side // 2]
    profile = profile[: len(profile) // 4 * 4].reshape(-1, 4).mean(1)
    profile = np.maximum(profile, _UNSEEN)
    over = profile / np.minimum.accumulate(profile)
    worst = int(np.argmax(over))
    return {
        "over_valley": short(over[worst]),
        "frequency_per_px": round((first + 4 * worst + 1.5) / side, 4),
        "power_over_noise": short(profile[worst]),
    }


def short(value: SupportsFloat) -> float:
    """Four figures, for reports."""
    return float(f"{float(value):.4g}")
