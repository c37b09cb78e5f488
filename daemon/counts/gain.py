"""Estimates an image's gain (units per count) and offset (value at zero counts) from its own noise.

Counts have a variance equal to their mean, so values of gain g and offset o have one of g (value - o), and a camera's
read-out noise adds the same everywhere, as if the offset were lower. So the slope of the variance against the
brightness is the gain. An image of almost one brightness shows no slope: then gain and offset cannot be separated,
and only the noise of an average pixel, all that denoising needs, is right.
"""

from dataclasses import dataclass
from math import hypot, inf, isfinite, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from daemon.counts.noise import MOST_CORRELATED, MOST_MISSING, TINY, Estimate, Spectra, patch_spectra, without_border
from daemon.counts.point_spread import Smear, smear
from daemon.counts.scaling import Noise
from daemon.errors import MicrographError
from daemon.micrograph import Pixels

Values = NDArray[np.float64]

SMALLEST = 16
"""Shortest side of an image that is measured, pixels."""
NO_COUNTS = "the pixel values are not plain counts"
_ADVICE = "state gain and offset in a profile if you know them"
_COUNTS_LIKE = 0.12
"""Largest difference of gain and slope (beyond its error) from 1 for integers to be counts."""
ERRORS, _SLACK = 2.5, 0.03
"""Allowed difference from a value: so many standard errors plus such a share of it."""
SIGNIFICANT = 5.0
"""Standard errors by which a slope must differ from 0 before a pedestal is estimated from it."""
_CREDIBLE_DOSE = (0.05, 5000.0)
"""Range of mean counts per pixel outside which values are not proportional to counts."""
PEDESTAL_DOSE = 1000.0
"""Counts per pixel assumed where the zero of counts is unknown: the noise is then nearly even."""
NEGATIVE = 1e-3
"""Largest share of negative values for values proportional to counts."""
STRUCTURE = 0.005
"""Share of the noise's variance that fine structure may add in bright parts only."""
_DETERMINED, _UNDETERMINED = 0.05, 1.0
"""Relative error of the gain up to which the image determines it (two such errors are 10 %), and of one that
it does not determine."""


@dataclass(frozen=True, slots=True)
class Line:
    """Variance against mean, in units² and units. `error`: of `slope`, by chance and by structure; inf: no slope."""

    centre: float
    height: Estimate
    slope: float
    error: float

    @classmethod
    def through(cls, mean: Values, variance: Values, error: float) -> "Line":
        """A line through patches (n,), each variance of relative `error`; patches with fine structure count less."""
        number = len(mean)
        groups = np.array_split(np.argsort(mean), int(np.clip(number // 8, 1, 12)))
        x = np.array([np.median(mean[group]) for group in groups])
        y = np.array([np.median(variance[group]) for group in groups])
        if len(groups) < 4 or np.ptp(x) == 0:
            height = float(np.median(variance))
            return cls(float(mean.mean()), Estimate(height, 1.25 * height * error / sqrt(number)), 0.0, inf)
        centre, height, slope, spread = _least_squares(x, y, np.maximum(y, 1e-3 * y.max()))
        scatter, kept = error, number
        for _ in range(6):
            expected = np.maximum(height + slope * (mean - centre), 0.01 * height)
            residual = variance / expected - 1
            width = max(error, min(1.48 * float(np.median(np.abs(residual))), 3 * error))
            near = (residual < 2.5 * width) & (residual > -3.5 * width)  # structure only ever adds variance
            if near.sum() < max(8, 0.2 * number):
                break
            kept = int(near.sum())
            scatter = max(error, sqrt(float(np.square(residual[near]).sum()) / (kept - 2)))
            centre, height, slope, spread = _least_squares(mean[near], variance[near], expected[near])
        if spread <= 0:
            return cls(centre, Estimate(height, height * scatter / sqrt(kept)), 0.0, inf)
        wrong = hypot(scatter / sqrt(spread), STRUCTURE * height / float(mean.std()))
        return cls(centre, Estimate(height, height * scatter / sqrt(kept)), slope, wrong)

    def at(self, mean: float) -> float:
        """The variance at a mean, units²."""
        return self.height.value if self.error == inf else self.height.value + self.slope * (mean - self.centre)

    def fits(self, gain: float, slack: float = _SLACK) -> bool:
        """Whether the slope may be `gain`."""
        return abs(self.slope - gain) <= ERRORS * self.error + slack * gain


def _least_squares(x: Values, y: Values, scale: Values) -> tuple[float, float, float, float]:
    """Centre of a line, height there, slope, and weighted spread of x; `scale`: the errors of y, up to a factor."""
    weight = 1 / np.square(scale)
    centre, height = float(np.average(x, weights=weight)), float(np.average(y, weights=weight))
    spread = float((weight * np.square(x - centre)).sum())
    slope = float((weight * (x - centre) * (y - height)).sum()) / spread if spread > 0 else 0.0
    return centre, height, slope, spread


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of an image's counts, in its own units; `remark`: for the user."""

    gain: float
    """Units per count, at frequency zero: that of the mean."""
    offset: float
    """Value at zero counts."""
    remark: str | None
    dose_known: bool
    """False if the image only shows the size of its noise; gain and offset are then stand-ins."""
    error: float
    """Relative standard error of the gain without any assumption: 1 where the image shows no slope."""
    mean: float
    """Of the patches evaluated."""
    darkest: float
    """Their 1 % quantile: the value at zero counts is not above it."""
    line: Line
    """Of single pixels' variance: its slope is the effective gain."""
    correlation: float
    """Of the noise of neighbouring pixels; blurred structure of the specimen counts as such."""
    negative: float
    """Share of the pixels below 0."""
    saturated: float
    """Share of the pixels that pile up in the highest value."""
    smear: Smear | None = None
    """The point spread over which counts are smeared, where it is clear."""

    @property
    def psf(self) -> float:
        """Standard deviation of the point spread, pixels; 0 where none is clear."""
        return 0.0 if self.smear is None else self.smear.psf.value

    @property
    def readout(self) -> Estimate:
        """Variance of the read-out noise, units²; 0 where it cannot be separated from an offset."""
        return Estimate(0.0, 0.0) if self.smear is None else self.smear.readout

    @property
    def unexplained(self) -> float:
        """Correlation of the noise of neighbouring pixels that no point spread explains."""
        return self.correlation if self.smear is None else 0.0

    @property
    def noise(self) -> Noise:
        """The camera, for `scaling`."""
        return Noise(self.gain, self.offset, sqrt(self.readout.value) / self.gain, self.psf)

    @property
    def variance(self) -> float:
        """Of the noise of an average pixel, units²."""
        return self.line.at(self.mean)

    @property
    def determines_gain(self) -> bool:
        """Whether the image alone determines the gain within about 10 %."""
        return self.error <= _DETERMINED

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types; null: unknown."""
        noise, seen = self.noise, self.smear
        known = seen is not None and self.dose_known and seen.readout.value > 0
        return {
            "gain": self.gain if self.dose_known else None,
            "offset": self.offset if self.dose_known else None,
            "gain_error": self.error if isfinite(self.error) else None,
            "effective_gain": noise.effective_gain,
            "effective_offset": noise.effective_offset,
            "psf": None if seen is None else seen.psf.value,
            "psf_error": None if seen is None else seen.psf.error,
            "readout": noise.readout if known else None,
            "noise": sqrt(max(self.variance, 0.0)),
            "correlation": self.correlation,
            "negative": self.negative,
            "saturated": self.saturated,
        }


def measure(pixels: Pixels, whole: bool | None = None) -> Measured:
    """Measure gain and offset of an image (H, W) of any real dtype; the noise of an average pixel is always right.

    How the noise's variance grows with the mean decides, the simplest explanation first: plain counts; proportional
    to counts; counts on a pedestal; or, if it does not grow with the signal, even noise and an unknown dose. At most
    a million pixels are evaluated. `whole`: whether the file holds integers; None: as the dtype. Raises
    MicrographError for an image without noise, too small or without numbers.
    """
    if min(pixels.shape) < SMALLEST:
        raise MicrographError(f"the image {pixels.shape} is too small to measure its counts; crop it less")
    with np.errstate(all="ignore"):  # values too large or too small to be squared count as without noise
        inner = without_border(pixels)
        spectra = patch_spectra(inner)
        if not len(spectra):
            raise MicrographError(_why_nothing(pixels, spectra.saturated))
        line, correlation, seen = _line(spectra)
    average, darkest = float(spectra.mean.mean()), float(np.quantile(spectra.mean, 0.01))
    if not (isfinite(line.at(average)) and line.at(average) > TINY):
        raise MicrographError(_why_nothing(pixels, spectra.saturated))
    whole = np.issubdtype(pixels.dtype, np.integer) if whole is None else whole
    reading = _counts(line, average, whole, seen) if average > 0 and spectra.negative <= NEGATIVE else None
    reading = reading or _on_pedestal(line, average, darkest, seen)
    if reading is not None and reading.offset and inner is not pixels and finite_mean(pixels) <= reading.offset:
        reading = None  # an empty border far below the pedestal: the whole image has no counts to scale by
    sigma = sqrt(line.at(average))
    if reading is None:
        floor, share, _ = _terms(seen)
        gain = sigma / sqrt(PEDESTAL_DOSE)  # the effective one
        even = f"even noise of {sigma:.3g} units was measured and used; the dose is not known"
        remark = f"{NO_COUNTS}, nor does their noise grow as that of counts: {even}; {_ADVICE}"
        reading = _Reading(gain / share, finite_mean(pixels) - (line.at(average) - floor) / gain, inf, remark)
    if seen is None and correlation > MOST_CORRELATED:
        remark = (
            f"{NO_COUNTS}: neighbouring pixels are alike ({correlation:+.2f}), as after interpolation, filtering "
            f"or compression; noise of {sigma:.3g} units was found and used; the dose is not known; {_ADVICE}"
        )
        reading = _Reading(reading.gain, reading.offset, inf, remark)
    return Measured(
        reading.gain,
        reading.offset,
        reading.remark,
        dose_known=isfinite(reading.error),
        error=reading.error,
        mean=average,
        darkest=darkest,
        line=line,
        correlation=correlation,
        negative=spectra.negative,
        saturated=spectra.saturated,
        smear=seen,
    )


def _line(spectra: Spectra) -> tuple[Line, float, Smear | None]:
    """Variance of single pixels against the mean, correlation of neighbours, and the point spread if it is clear."""
    seen = smear(spectra)
    if seen is not None and seen.clear:
        line = Line.through(seen.mean, seen.variance, seen.scatter)
        if line.at(float(spectra.mean.mean())) > seen.readout.value:
            return line, seen.correlation, seen
    noise = spectra.noise()
    line = Line.through(spectra.mean, noise.variance, noise.error)
    average = float(spectra.mean.mean())
    if not line.at(average) > 0:  # the line is no good
        height = float(np.median(noise.variance))
        line = Line(average, Estimate(height, height * noise.error), 0.0, inf)
    return line, noise.correlation, None


class _Reading(NamedTuple):
    """A reading of the values. `error`: relative standard error of the gain; inf: gain and offset are stand-ins."""

    gain: float
    offset: float
    error: float
    remark: str | None


def _counts(line: Line, average: float, whole: bool, seen: Smear | None) -> _Reading | None:
    """Values proportional to counts, if the line allows it. `whole`: the pixels are integers."""
    floor, share, vague = _terms(seen)
    ratio = (line.at(average) - floor) / average
    gain = ratio / share
    if not _CREDIBLE_DOSE[0] <= average / gain <= _CREDIBLE_DOSE[1]:
        return None
    error = min(hypot(line.error, line.height.error / average) / ratio, _UNDETERMINED)
    if seen is None and whole and abs(ratio - 1) < _COUNTS_LIKE and line.fits(1.0, _COUNTS_LIKE):
        return _Reading(1.0, 0.0, error, None)
    if not line.fits(ratio, _SLACK + vague):
        return None
    error = min(hypot(error, vague), _UNDETERMINED)
    doubt = "" if error <= _DETERMINED else " if the value 0 is no count (the brightness varies too little to tell)"
    remark = (
        f"{NO_COUNTS}: their noise fits {gain:.3g} units per count{_smeared(seen)}{doubt}, which was used; {_ADVICE}"
    )
    return _Reading(gain, 0.0, error, remark)


def _on_pedestal(line: Line, average: float, darkest: float, seen: Smear | None) -> _Reading | None:
    """Counts on a pedestal, if the noise grows with the brightness significantly."""
    if line.slope <= SIGNIFICANT * line.error:
        return None
    floor, share, vague = _terms(seen)
    error = hypot(line.error / line.slope, vague)
    offset = average - (line.at(average) - floor) / line.slope
    # An offset above the darkest value makes negative counts; vacuum may have no counts at all.
    if offset > darkest + ERRORS * error * (average - offset):
        return None
    offset = min(offset, darkest)
    gain = (line.at(average) - floor) / (average - offset) / share
    if not _CREDIBLE_DOSE[0] <= (average - offset) / gain <= _CREDIBLE_DOSE[1]:
        return None
    fit = f"{gain:.3g} units per count{_smeared(seen)} and {offset:.3g} units at zero counts"
    remark = f"{NO_COUNTS}: their noise fits {fit}, which were used; {_ADVICE}"
    return _Reading(gain, offset, error, remark)


def _terms(seen: Smear | None) -> tuple[float, float, float]:
    """Variance of read-out, units², share of the counts' variance left in single pixels, and its relative error."""
    if seen is None:
        return 0.0, 1.0, 0.0
    return seen.readout.value, seen.sharing, seen.counted.error / seen.counted.value


def _smeared(seen: Smear | None) -> str:
    return "" if seen is None else f" (each smeared by a Gaussian of {seen.psf.value:.2f} pixels)"


def _why_nothing(pixels: Pixels, saturated: float) -> str:
    gaps = 1 - float(np.isfinite(pixels).mean())
    if gaps > MOST_MISSING:
        return f"{gaps:.0%} of the image are NaN or Inf, so its counts cannot be measured; export it again"
    if saturated > 0:
        return (
            f"the image is saturated: {saturated:.0%} of its pixels share the highest value, all over it, so its "
            "counts cannot be measured; expose less, or export it without clipping"
        )
    return (
        "the image shows no noise from pixel to pixel (it is constant, blank, enlarged or synthetic), so its counts "
        "cannot be measured; state gain and offset in the profile to process it"
    )


def finite_mean(pixels: Pixels) -> float:
    """Mean of the finite pixels, in the image's units, without a copy of the whole image."""
    total, number = 0.0, 0
    for top in range(0, pixels.shape[0], 128):
        rows = pixels[top : top + 128].astype(np.float64)
        good = np.isfinite(rows)
        total += float(rows[good].sum())
        number += int(good.sum())
    if not number:
        raise MicrographError("no pixel of the image is a finite number; export it again from the camera's software")
    return total / number
