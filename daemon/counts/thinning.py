"""Divides a noisy image of counts into two independent ones, and tests whether its values are counts.

Binomial thinning: every count of a Poisson image of mean λ goes into the first part with probability p, otherwise
into the second. The parts are independent Poisson images of means pλ and (1 - p) λ, so one may serve as input and the
other as target. For other noise they are not independent: their covariance is p (1 - p) (variance - mean), and a
network would learn to keep what they share. So an image whose values are not plain counts is refused; the reasons give
the measurements.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daemon.counts.noise import LEAST_PILE, PILE, Estimate, level, patch_spectra, without_border
from daemon.micrograph import Image, Pixels

WHOLE = 1e-3
"""A value counts as whole within this; gain and offset are known to no more digits."""
MOST_CORRELATED = 0.05
"""Largest correlation of the noise of neighbouring pixels."""
_GAIN_TOLERANCE = 0.12
"""Largest difference of noise variance over mean from 1; the parts then share at most 3 % of the noise."""
ERRORS = 3.0
"""Standard errors that are allowed on top of each limit."""
_SCALED_8_BIT = 250
"""Highest value from which on an 8-bit image was scaled or clipped."""
_MOST_EMPTY = 0.1
"""Share of empty grey levels in the middle of a well-filled histogram from which on it was stretched."""
_LARGEST_ERROR = 0.2
"""Largest relative error of the noise variance; images below about 100 × 100 pixels exceed it."""
_SAMPLE = 1 << 22
"""Pixels tested, at most."""


@dataclass(frozen=True, slots=True)
class CountsTest:
    """Measurements of an image, and the `reasons` why it cannot be thinned, if any."""

    dose: float
    """Mean counts per pixel."""
    lowest: float
    highest: float
    not_whole: float
    """Share of values that are not whole numbers."""
    variance_over_mean: float
    """Noise variance over mean: 1 for counts, the gain for values proportional to them. NaN: there is no noise."""
    correlation: float
    """Of the noise of neighbouring pixels: 0 for counts. NaN: there is no noise."""
    reasons: tuple[str, ...]


def thin(rng: np.random.Generator, counts: Image, share: float) -> tuple[Image, Image]:
    """Counts (H, W), whole numbers → two independent parts (H, W) float32 with `share` and 1 - `share` of the dose."""
    whole = np.rint(counts).astype(np.int64)
    part = rng.binomial(whole, share)
    return part.astype(np.float32), (whole - part).astype(np.float32)


def examine(counts: Pixels, stored: str) -> CountsTest:
    """Measure whether `counts` (H, W), finite, are plain counts. `stored`: the dtype they had in the file ("uint8")."""
    sample = counts.reshape(-1)[:: max(1, counts.size // _SAMPLE)].astype(np.float64)
    dose, lowest, highest = float(counts.mean(dtype=np.float64)), float(counts.min()), float(counts.max())
    not_whole = float((np.abs(sample - np.rint(sample)) > WHOLE).mean())
    reasons: list[str] = []
    if lowest == highest:
        reasons.append(f"the image is constant (every pixel is {lowest:g})")
        return CountsTest(dose, lowest, highest, not_whole, float("nan"), float("nan"), tuple(reasons))
    if lowest < -WHOLE:
        share = float((sample < -WHOLE).mean())
        reasons.append(
            f"{share:.2%} of the values are negative, down to {lowest:.4g}, and counts cannot be: something was "
            "subtracted; state the value at zero counts (`offset`) if you know it"
        )
    if not_whole:
        reasons.append(
            f"{not_whole:.2%} of the values are not whole numbers: the image was averaged, flattened, resampled or "
            "aligned after counting; state gain and offset if the file stores scaled counts"
        )
    if stored in ("uint8", "int8") and highest >= _SCALED_8_BIT:
        reasons.append(f"the file is 8-bit and its values reach {highest:g}: scaled for display, or clipped")
    if not not_whole:
        reasons += _histogram_reasons(np.rint(sample).astype(np.int64))
    spectra = patch_spectra(without_border(counts))
    spectra = spectra.where(spectra.mean > 0)
    if not len(spectra):
        reasons.append("the image shows no noise of counts")
        return CountsTest(dose, lowest, highest, not_whole, float("nan"), float("nan"), tuple(reasons))
    mean = spectra.mean
    power = spectra.corner() / mean[:, None]
    ratio, correlation = level(power), max(spectra.correlations(mean), key=lambda one: abs(one.value))
    if ratio.error > _LARGEST_ERROR * ratio.value:
        reasons.append(f"{counts.shape[1]} × {counts.shape[0]} pixels are too few to tell whether they are counts")
    if abs(correlation.value) > max(MOST_CORRELATED, ERRORS * correlation.error):
        reasons.append(
            f"the noise of neighbouring pixels is correlated ({correlation.value:+.2f}, where counts have 0): the "
            "detector spreads each electron, or the image was interpolated or filtered"
        )
    for found, brightness in ((ratio, None), *_by_brightness(power, mean)):
        if abs(found.value - 1) > _GAIN_TOLERANCE + ERRORS * found.error:
            where = "" if brightness is None else f" where the mean is {brightness:.3g} ({ratio.value:.3g} overall)"
            reasons.append(
                f"the noise variance is {found.value:.3g} times the mean{where}, and counts have 1: the values are "
                "scaled, or on a pedestal; state gain and offset"
            )
            break
    return CountsTest(dose, lowest, highest, not_whole, ratio.value, correlation.value, tuple(reasons))


def _histogram_reasons(values: NDArray[np.int64]) -> list[str]:
    """Reasons from the histogram of whole numbers: saturation and stretching."""
    reasons = []
    bottom = int(values.min())
    if int(values.max()) - bottom >= _SAMPLE:
        return [f"the values span {int(values.max()) - bottom:d} levels, more than any camera counts"]
    number = np.bincount(values - bottom)
    top = int(number[-1])
    below = int(number[-2]) if len(number) > 1 else 0
    if top >= LEAST_PILE and top > PILE * below:
        reasons.append(
            f"{top / values.size:.2%} of the pixels share the highest value, {int(values.max())}, and only "
            f"{below / values.size:.2%} the one below: the camera or the file is saturated"
        )
    # Values above the lowest only: that one may fill the border of a drift-corrected image, or be vacuum.
    share = np.cumsum(number[1:]) / max(1, values.size - int(number[0]))
    low, high = (int(level) for level in np.searchsorted(share, (0.05, 0.95)))
    middle = number[1 + low : 2 + high]
    if len(middle) >= 8 and values.size > 100 * len(middle) and (empty := float((middle == 0).mean())) > _MOST_EMPTY:
        reasons.append(f"{empty:.0%} of the grey levels in the middle of the histogram are empty: it was stretched")
    return reasons


def _by_brightness(power: NDArray[np.float64], mean: NDArray[np.float64]) -> list[tuple[Estimate, float]]:
    """Variance over mean, and mean, for the darker and the brighter half of patches; empty for few patches.

    `power` (n, terms): spectral power over the mean; `mean` (n,): counts per pixel.
    """
    if len(mean) < 8:
        return []
    order = np.argsort(mean)
    halves = (order[: len(order) // 2], order[len(order) // 2 :])
    return [(level(power[half]), float(mean[half].mean())) for half in halves]
