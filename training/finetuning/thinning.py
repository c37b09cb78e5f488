"""One noisy image of counts → two independent ones of the same scene, and whether that is allowed.

Binomial thinning: let every count of a Poisson image of mean λ fall into the first part with probability p, else into
the second. The parts are independent Poisson images of means pλ and (1 - p) λ, so one may serve as input and the
other as target. For other noise they are not independent: their covariance is p (1 - p) (variance - mean), and a
network would learn to keep what they share. So values that are not plain counts are refused, with what was measured.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daemon.dose import PATCH, starts
from daemon.micrograph import Image, Pixels

SHARES = (0.5, 0.9)
"""Range of p in training: an input near the dose the network will serve, a target with enough counts of its own."""

WHOLE = 1e-3
"""A value counts as whole within this; gain and offset are known to no more digits."""
MOST_CORRELATED = 0.05
"""Largest correlation of the noise of neighbouring pixels."""
GAIN_TOLERANCE = 0.12
"""Noise variance over mean may miss 1 by so much; the parts then share at most 3 % of the noise."""
ERRORS = 3.0
"""What is measured may miss by so many of its standard errors besides."""
SCALED_8_BIT = 250
MOST_EMPTY = 0.1
"""Share of grey levels, in the middle of a well-filled histogram, that nothing but stretching leaves empty."""
PILE = 3
"""Saturation piles up in the highest value: it has this many times the pixels of the value below."""
LEAST_PILE = 16
LARGEST_ERROR = 0.2
"""Relative error of the noise variance beyond which nothing is known: images below about 100 × 100 pixels."""
SIDE = 64
"""Side of the patches whose spectra are looked at, pixels."""
FINEST, MIDDLE = 0.35, (0.15, 0.30)
"""Bands of spatial frequency along an axis, cycles per pixel."""
QUANTILE = 0.25
"""Of the noise's spectral power: below the few terms in which a lattice or a sharp edge shows."""
SAMPLE = 1 << 22


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was measured of an image, and why it cannot be thinned; no `reasons`: it can."""

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


def examine(counts: Pixels, stored: str) -> Evidence:
    """Measure whether `counts` (H, W), finite, are plain counts. `stored`: the dtype they had in the file ("uint8")."""
    sample = counts.reshape(-1)[:: max(1, counts.size // SAMPLE)].astype(np.float64)
    dose, lowest, highest = float(counts.mean(dtype=np.float64)), float(counts.min()), float(counts.max())
    not_whole = float((np.abs(sample - np.rint(sample)) > WHOLE).mean())
    reasons: list[str] = []
    if lowest == highest:
        reasons.append(f"the image is constant (every pixel is {lowest:g})")
        return Evidence(dose, lowest, highest, not_whole, float("nan"), float("nan"), tuple(reasons))
    if lowest < -WHOLE:
        share = float((sample < -WHOLE).mean())
        reasons.append(
            f"{share:.2%} of the values are negative, down to {lowest:.4g}, and counts cannot be: something was "
            "subtracted; state the value at zero counts with --offset if you know it"
        )
    if not_whole:
        reasons.append(
            f"{not_whole:.2%} of the values are not whole numbers: the image was averaged, flattened, resampled or "
            "aligned after counting; state --gain and --offset if the file stores scaled counts"
        )
    if stored in ("uint8", "int8") and highest >= SCALED_8_BIT:
        reasons.append(f"the file is 8-bit and its values reach {highest:g}: scaled for display, or clipped")
    if not not_whole:
        reasons += histogram_reasons(np.rint(sample).astype(np.int64))
    spectra = noise_spectra(counts)
    if spectra is None:
        reasons.append("the image holds no counts that noise could be told from")
        return Evidence(dose, lowest, highest, not_whole, float("nan"), float("nan"), tuple(reasons))
    ratio, correlation = spectra.ratio(), spectra.correlation()
    if ratio.error > LARGEST_ERROR * ratio.value:
        reasons.append(f"{counts.shape[1]} × {counts.shape[0]} pixels are too few to tell whether they are counts")
    if abs(correlation.value) > max(MOST_CORRELATED, ERRORS * correlation.error):
        reasons.append(
            f"the noise of neighbouring pixels is correlated ({correlation.value:+.2f}, where counts have 0): the "
            "detector spreads each electron, or the image was interpolated or filtered"
        )
    for part in spectra.by_brightness():
        found = part.ratio()
        if abs(found.value - 1) > GAIN_TOLERANCE + ERRORS * found.error:
            where = "" if part is spectra else f" where the mean is {part.mean.mean():.3g} ({ratio.value:.3g} overall)"
            reasons.append(
                f"the noise variance is {found.value:.3g} times the mean{where}, and counts have 1: the values are "
                "scaled, or on a pedestal; state --gain and --offset"
            )
            break
    return Evidence(dose, lowest, highest, not_whole, ratio.value, correlation.value, tuple(reasons))


def histogram_reasons(values: NDArray[np.int64]) -> list[str]:
    """What the histogram of whole numbers says of saturation and of stretching."""
    reasons = []
    bottom = int(values.min())
    if int(values.max()) - bottom >= SAMPLE:
        return [f"the values span {int(values.max()) - bottom:d} levels, more than any camera counts"]
    number = np.bincount(values - bottom)
    top = int(number[-1])
    below = int(number[-2]) if len(number) > 1 else 0
    if top >= LEAST_PILE and top > PILE * below:
        reasons.append(
            f"{top / values.size:.2%} of the pixels share the highest value, {int(values.max())}, and only "
            f"{below / values.size:.2%} the one below: the camera or the file is saturated"
        )
    low, high = (int(level) for level in np.percentile(values - bottom, (5, 95)))
    middle = number[low : high + 1]
    if len(middle) >= 8 and values.size > 100 * len(middle) and (empty := float((middle == 0).mean())) > MOST_EMPTY:
        reasons.append(f"{empty:.0%} of the grey levels in the middle of the histogram are empty: it was stretched")
    return reasons


@dataclass(frozen=True, slots=True)
class Measured:
    """A value and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, slots=True, eq=False)
class Spectra:
    """Power of the finest detail of patches, over what independent counts of the same mean have on average.

    `corner` (patches, terms): fine along both axes. `edges` two of (patches, terms): fine along one, coarser along the
    other. `mean` (patches,): mean counts per pixel.
    """

    corner: NDArray[np.float64]
    edges: tuple[NDArray[np.float64], NDArray[np.float64]]
    mean: NDArray[np.float64]

    def ratio(self) -> Measured:
        """Noise variance over mean."""
        return level(self.corner)

    def correlation(self) -> Measured:
        """Of the noise of neighbouring pixels, along the axis where it is larger.

        A correlation r of neighbours makes the spectrum 1 + 2 r cos(2 π f) along that axis: about 1 - 1.9 r in the
        finest band, and 1 in the middle one.
        """
        found = []
        finest = 2 * float(np.cos(2 * np.pi * np.linspace(FINEST, 0.5, 50)).mean())
        middle = 2 * float(np.cos(2 * np.pi * np.linspace(*MIDDLE, 50)).mean())
        corner = level(self.corner)
        for edge in map(level, self.edges):
            quotient = corner.value / edge.value
            error = quotient * float(np.hypot(corner.error / max(corner.value, 1e-9), edge.error / edge.value))
            slope = quotient * middle - finest
            found.append(Measured((1 - quotient) / slope, error / slope))
        return max(found, key=lambda one: abs(one.value))

    def by_brightness(self) -> tuple["Spectra", ...]:
        """The whole, its darker and its brighter half; only the whole if there are few patches."""
        if len(self.mean) < 8:
            return (self,)
        order = np.argsort(self.mean)
        halves = (order[: len(order) // 2], order[len(order) // 2 :])
        return (self, *(Spectra(self.corner[h], (self.edges[0][h], self.edges[1][h]), self.mean[h]) for h in halves))


def level(power: NDArray[np.float64]) -> Measured:
    """Mean of exponentially distributed spectral power from its lower quartile, which the specimen hardly reaches."""
    low = -float(np.log1p(-QUANTILE))
    window = 2.25  # so many neighbouring terms say the same under a Hann window
    relative = (QUANTILE * (1 - QUANTILE) * window / power.size) ** 0.5 / ((1 - QUANTILE) * low)
    value = float(np.quantile(power, QUANTILE)) / low
    return Measured(value, value * relative)


def noise_spectra(counts: Pixels) -> Spectra | None:
    """Spectra of 64 × 64 patches spread over counts (H, W); None where no patch holds both counts and noise.

    The sum of white noise's squares under a window is the same at every frequency, whatever the specimen's brightness
    does: the sum of the counts themselves. A lattice shows in a few terms only.
    """
    height, width = (min(SIDE, extent) for extent in counts.shape)
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[None, 1:-1]
    y, x = np.abs(np.fft.fftfreq(height))[:, None], np.fft.rfftfreq(width)[None, :]
    inside = (x > 0) & (x < 0.5)  # the others come in pairs, or have but one real number
    low, high = MIDDLE
    corner = (y > FINEST) & (x > FINEST) & inside
    edges = ((y > low) & (y < high) & (x > FINEST) & inside, (y > FINEST) & (x > low) & (x < high))
    found: list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]] = []
    for top in starts(counts.shape[0]):
        for left in starts(counts.shape[1]):
            patch = counts[top : top + PATCH, left : left + PATCH].astype(np.float64)
            for row in range(0, patch.shape[0] - height + 1, height):
                for column in range(0, patch.shape[1] - width + 1, width):
                    part = patch[row : row + height, column : column + width]
                    expected = float((part * window**2).sum())
                    power = np.square(np.abs(np.fft.rfft2((part - part.mean()) * window)))
                    if expected > 0 and power[corner].any():
                        power /= expected
                        found.append((power[corner], power[edges[0]], power[edges[1]], float(part.mean())))
    if not found:
        return None
    first, second, third, mean = (np.array(column) for column in zip(*found, strict=True))
    return Spectra(first, (second, third), mean)
