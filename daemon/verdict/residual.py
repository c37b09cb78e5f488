"""Estimates the quality of a denoised image from its difference to the micrograph, without the truth.

Patches spread over the image are compared in Fourier space, each over the noise that its own mean should have
(Poisson), so that counting noise has the power 1 at every frequency. In means each patch has the weight of its noise,
so that they describe the whole image and dark patches, whose noise is small, count little. Patches without counts are
left out. Three quantities are estimated:

- the **noise of the detector**, N(f), from the raw patches alone: a low quantile of the power in each ring of spatial
  frequency, which lattices and edges hardly reach, and a line through its logarithm over f², the form that a Gaussian
  point spread gives white noise. It depends neither on the gain nor on the network.
- the **share of the noise in the result**, a(f): the share of the raw image's amplitude that is in it.
- the **squared error** of the result, by Stein's estimate: the power removed, less the noise, plus twice the noise
  that was kept. C. M. Stein, Ann. Statist. 9, 1135 (1981); for a linear filter in Fourier space it is exact on average.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.counts.noise import WINDOW
from daemon.counts.plane import Spikes
from daemon.counts.profiles import Choice
from daemon.counts.scaling import Scaling
from daemon.micrograph import Image, Pixels

SIDE, _SMALL_SIDE = 64, 32
"""Of a patch, pixels; the smaller one where the image is not larger."""
MOST = 16
"""At most 16 x 16 patches: a million pixels suffice for any image."""
RINGS = (0.025, 0.10, 0.17, 0.24, 0.31, 0.38, 0.44, 0.50)
"""Edges of the rings in which the noise is measured, cycles per pixel."""
_FITTED = slice(2, 6)
"""The rings that determine its spectrum: above most of the specimen's power, below the corner."""
_QUANTILE = 0.25
FLATTEST = 0.6
"""Share of the patches in which the noise is measured: those whose result has the least structure."""
_LEAST_PATCHES = 8
DARKEST = 1e-2
"""Share of the dose below which a patch is left out: the border of a drift-corrected image, a stop, an aperture."""
MOST_MISSING = 0.1
"""Share of a patch's pixels that may be spikes, NaN or Inf."""
_NOISELESS = 1e-3
"""Noise over that expected, below which the image shows none and cannot be judged."""
ALONE, ENOUGH, _LIT = 1.3, 0.05, 0.25
"""Limits for noise alone: power of a term over that of the noise, at most; share of such terms in a patch, at least;
the patch's counts over their mean, at least, because the edge of the light shows everywhere in the spectrum."""
_STRONG = 10.0
"""Power of the result over that of the noise from which on a term is structure."""
TINY = 1e-20
_AROUND = 9
"""Terms in each sum of `_around`."""
FEW = 8
"""Patches transformed at a time: they stay in the cache, which takes half the time."""
GAUSSIANS = (1.0, 1.5, 2.0, 3.0)
"""Standard deviations, pixels, of the blurs that a result is compared with."""
CERTAIN = 5.0
"""Standard errors beyond which removed structure is significant."""

Terms = NDArray[np.float32]
Amplitudes = NDArray[np.complex64]
_ONE = np.ones(1)


@dataclass(frozen=True, slots=True)
class Residual:
    """Figures over all patches and frequencies; variances are divided by the noise expected from the counts."""

    noise: float
    """Variance of the raw image's own noise: 1 if gain and offset are right."""
    removed: float
    """Mean square of the removed part, over all pixels."""
    kept: float
    """Share of the noise that is still in the result; structure that resembles noise counts as noise."""
    kept_alone: float
    """That share where the raw image shows only noise."""
    kept_most: float
    """The largest of any patch."""
    error_ratio: float
    """Estimated squared error of the result over that of the raw image: above 1 it is worse than the raw image."""
    detector_correlation: float
    """Of the noise of neighbouring pixels, as the raw image shows it: 0 for counts."""
    residual_correlation: float
    """Correlation of neighbouring pixels of the removed part; below 0 where broad structure was rightly kept."""
    structure_removed: float
    """Amplitude of the result's strong structure in the removed part, over that in the result: 0 if none is lost."""
    line_removed: float
    """Power of the strongest single spatial frequency in the removed part, in standard errors above its ring."""
    line_share: float
    """Missing share of that frequency's amplitude."""
    line_spacing: float
    """Spacing of that frequency, pixels."""
    contrast: float
    """Standard deviation of the result over its mean counts, on scales above a few pixels."""
    over_gaussian: float = -1.0
    """Estimated squared error of the result less that of the best Gaussian, over the raw image's: above 0 that blur is
    better."""
    gaussian: float = 0.0
    """Standard deviation of that Gaussian, pixels."""
    invented: float = 0.0
    """Power of structure in the result but not in the raw image, over the noise: 0 if not significant."""


def examine(
    pixels: Pixels, denoised: Image, spikes: Spikes, choice: Choice, scaling: Scaling, removed: float
) -> Residual | None:
    """Compare (H, W) raw pixels, any real dtype, with their denoised image (H, W) float32, both in the file's units.

    `removed`: mean square of their difference over all pixels but spikes, over the noise that the dose should have.
    None where the image shows no noise, so that nothing can be estimated. The time is the same for all large images.
    """
    raw, result, blank = _patches(pixels, denoised, spikes, scaling)
    plan = _Plan.of(raw.shape[-1])
    # The mean of the counts under the window's square is the variance of their noise under the window.
    level = np.einsum("nij,ij->n", raw, np.square(plan.window))
    gain, dose = choice.noise.effective_gain, choice.effective_counts(scaling.zero)
    counts = level * scaling.unit / gain + dose
    if not choice.dose_known:  # gain and offset are stand-ins: the noise is taken as even
        counts = np.full_like(counts, dose)
    usable = ~blank & (counts > DARKEST * dose)
    if not usable.any():
        return None
    if not usable.all():
        raw, result, level, counts = raw[usable], result[usable], level[usable], counts[usable]
    # The noise variance of each patch, from its mean counts, in the scaling's units squared.
    strength = (scaling.unit / gain / np.sqrt(counts)).astype(np.float32)
    seen, left = plan.transform(raw, level, strength), plan.transform(result, level, strength)
    lost = seen - left
    power, shown, gone = (_product(one, one) for one in (seen, left, lost))
    noise = plan.noise(power, shown)
    if noise is None:
        return None
    weights = counts / counts.sum()
    common, recorded = _around(_product(left, seen)), _around(power)
    share = np.clip(common / np.maximum(recorded, TINY), 0, 1)
    kept = float((_average(share, weights) * noise * plan.weight).sum())
    alone, most = plan.alone(common, recorded, noise, weights)
    shared = _product(lost, left)
    variance = plan.mean(noise[None])
    line, missing, spacing = plan.line(gone, power, weights)
    width, blurred = plan.blurred(power, noise, weights)
    return Residual(
        noise=variance,
        removed=removed,
        kept=kept / variance,
        kept_alone=alone,
        kept_most=most,
        error_ratio=max(0.0, (removed - variance + 2 * kept) / variance),
        detector_correlation=plan.neighbours(noise[None]),
        residual_correlation=plan.neighbours(gone, weights),
        structure_removed=plan.shared(shared, shown, noise, weights),
        line_removed=line,
        line_share=missing,
        line_spacing=spacing,
        contrast=sqrt(plan.broad(shown, weights) / float(counts.mean())),
        over_gaussian=(plan.mean(gone, weights) + 2 * kept - blurred) / variance,
        gaussian=width,
        invented=plan.invented(shared, shown, recorded, noise, weights) / variance,
    )


def _patches(
    pixels: Pixels, denoised: Image, spikes: Spikes, scaling: Scaling
) -> tuple[Terms, Terms, NDArray[np.bool_]]:
    """Raw and denoised patches (n, side, side) in the scaling's units, without spikes; mask (n,) of blank ones."""
    side = SIDE if min(pixels.shape) >= SIDE else _SMALL_SIDE
    tops, lefts = (
        np.unique(np.linspace(0, extent - side, min(MOST, extent // side)).astype(int)) for extent in pixels.shape
    )
    shape = len(tops), len(lefts), side, side
    raw, result = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for image, patches in ((pixels, raw), (denoised, result)):
        every = np.lib.stride_tricks.sliding_window_view(image, (side, side))
        for i, top in enumerate(tops):
            patches[i] = scaling.to_units(every[top, lefts])
    row = np.searchsorted(tops, spikes.rows, "right") - 1
    column = np.searchsorted(lefts, spikes.columns, "right") - 1
    y, x = spikes.rows - tops[row], spikes.columns - lefts[column]
    inside = (y < side) & (x < side)
    at = row[inside], column[inside], y[inside], x[inside]
    raw[at] = result[at]
    missing = np.zeros(shape[:2])
    np.add.at(missing, at[:2], 1 / side**2)
    blank = (missing > MOST_MISSING) | (raw.max(axis=(2, 3)) == raw.min(axis=(2, 3)))
    return raw.reshape(-1, side, side), result.reshape(-1, side, side), blank.ravel()


def _product(one: Amplitudes, other: Amplitudes) -> Terms:
    """Real part of amplitudes (n, side, side // 2 + 1) times the conjugate of others; of the same, their power."""
    product = np.empty(one.shape, np.float32)
    for first in range(0, len(one), FEW):
        few = slice(first, first + FEW)
        np.multiply(one[few].real, other[few].real, out=product[few])
        product[few] += one[few].imag * other[few].imag
    return product


def _average(terms: NDArray[np.floating[Any]], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of (n, side, side // 2 + 1) over n patches whose weights (n,) add up to 1."""
    # Not by a matrix product: BLAS wakes a thread on every core for it, which takes fifty times the processor time.
    return np.asarray(np.einsum("n,nij->ij", weights.astype(terms.dtype), terms), np.float64)


def _quantile(terms: Terms) -> float:
    """The _QUANTILE of all `terms`, between the two values beside it, as numpy.quantile, in a fifth of its time."""
    place = _QUANTILE * (terms.size - 1)
    before = int(place)
    ordered = np.partition(terms, before, axis=None)
    low, high = float(ordered[before]), float(ordered[before + 1 :].min(initial=np.inf))
    return low + (place - before) * (high - low) if place > before else low


def _around(terms: Terms) -> Terms:
    """Sums over each term of half spectra (n, side, side // 2 + 1) and its eight neighbours.

    The amplitude of a single term may be almost 0 by chance, and shares of it are then meaningless.
    """
    down = terms.copy()
    down[:, 1:] += terms[:, :-1]
    down[:, :-1] += terms[:, 1:]
    down[:, 0] += terms[:, -1]
    down[:, -1] += terms[:, 0]
    across = down.copy()
    across[..., 1:] += down[..., :-1]
    across[..., :-1] += down[..., 1:]
    return across


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """Frequencies, weights and rings of the half spectra (side, side // 2 + 1) of patches."""

    window: Terms
    frequency: NDArray[np.float64]
    """Cycles per pixel."""
    weight: NDArray[np.float64]
    """Of each term in a mean over the whole spectrum; they add up to 1."""
    cosine: NDArray[np.float64]
    """Of the phase to the neighbouring pixel, mean of both axes."""
    rings: tuple[NDArray[np.intp], ...]
    """Flat places of the terms in each ring, without those that have one real number only."""

    @classmethod
    @cache
    def of(cls, side: int) -> "_Plan":
        taper = np.hanning(side + 2)[1:-1]
        window = np.outer(taper, taper)
        y, x = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
        frequency = np.hypot(y, x)
        weight = np.full(frequency.shape, 2.0)
        weight[:, [0, -1]] = 1
        proper = np.broadcast_to((x > 0) & (x < 0.5), frequency.shape)
        rings = tuple(np.flatnonzero(proper & (low <= frequency) & (frequency < high)) for low, high in pairwise(RINGS))
        cosine = (np.cos(2 * np.pi * y) + np.cos(2 * np.pi * x)) / 2
        normed = (window / np.sqrt(np.square(window).sum())).astype(np.float32)
        return cls(normed, frequency, weight / weight.sum(), cosine, rings)

    def transform(self, patches: Terms, level: Terms, strength: Terms) -> Amplitudes:
        """Half spectra of patches (n, side, side) less their `level` (n,), times `strength` (n,), under the window."""
        spectra = np.empty((len(patches), *self.frequency.shape), np.complex64)
        for first in range(0, len(patches), FEW):
            few = slice(first, first + FEW)
            counted = (patches[few] - level[few, None, None]) * strength[few, None, None]
            counted *= self.window
            spectra[few] = np.fft.fft(np.fft.rfft(counted, axis=2), axis=1)  # as rfft2, without its preliminaries
        return spectra

    def mean(self, terms: NDArray[np.floating[Any]], weights: NDArray[np.float64] = _ONE) -> float:
        """Mean over patches (n,) of these weights and the whole spectrum: a variance, if `terms` are power."""
        return float((_average(terms, weights) * self.weight).sum())

    def neighbours(self, power: NDArray[np.floating[Any]], weights: NDArray[np.float64] = _ONE) -> float:
        """Correlation of neighbouring pixels of a signal with this power."""
        terms = _average(power, weights) * self.weight
        return float((terms * self.cosine).sum() / max(terms.sum(), 1e-30))

    def noise(self, power: Terms, structure: Terms) -> NDArray[np.float64] | None:
        """Spectrum of the raw noise (side, side // 2 + 1), or None if there is none."""
        busy = np.einsum("nij,ij->n", structure, self.weight * (self.frequency > RINGS[0]))
        flat = np.argsort(busy)[: max(_LEAST_PATCHES, int(FLATTEST * len(busy)))]
        terms = power.reshape(len(power), -1)[flat]
        level = np.array([_quantile(terms[:, ring]) for ring in self.rings]) / -log(1 - _QUANTILE)
        fitted = level[_FITTED]
        if fitted[0] < _NOISELESS:
            return None
        centres = (np.array(RINGS[1:]) + np.array(RINGS[:-1])) / 2
        slope, height = np.polyfit(centres[_FITTED] ** 2, np.log(np.maximum(fitted, _NOISELESS**2)), 1)
        if slope > 0:  # sharpened, or chance: no detector's noise grows towards fine detail
            slope, height = 0.0, log(float(np.median(fitted)))
        # Broad structure adds to the first ring, so its level is an upper limit.
        spectrum: NDArray[np.float64] = np.minimum(
            np.exp(height + slope * self.frequency**2), max(level[0], _NOISELESS)
        )
        return spectrum

    def alone(
        self, common: Terms, recorded: Terms, noise: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> tuple[float, float]:
        """Share of the noise that was kept in terms with noise alone, and the largest of any patch.

        Sums of `_around`: `common`, of the product of result and raw image; `recorded`, of the raw image's power.
        """
        chosen = (recorded < (ALONE * _AROUND * noise).astype(np.float32)) & (self.frequency > RINGS[1])
        chance = np.einsum("nij,ij->n", chosen, self.weight)
        sound = (chance > ENOUGH) & (weights > _LIT * weights.mean())
        kept, seen = (np.where(chosen, terms, np.float32(0)) for terms in (common, recorded))
        kept, seen = (
            np.einsum("nij,ij->n", terms, self.weight) * np.where(sound, weights, 0) for terms in (kept, seen)
        )
        if not seen.any():
            return 0.0, 0.0
        return float(kept.sum() / seen.sum()), float((kept[seen > 0] / seen[seen > 0]).max())

    def shared(self, product: Terms, power: Terms, noise: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
        """Share of the result's strong structure in the removed part; 0 if not significant.

        `product`: of the amplitudes of both; `power`: of the result's.
        """
        limit = np.where(self.frequency > RINGS[0], _STRONG * noise, np.inf).astype(np.float32)
        strong = power > limit
        held = np.where(strong, power, np.float32(0))
        common = self.mean(np.where(strong, product, np.float32(0)), weights)
        chance = sqrt(WINDOW / 2 * float(self._chances(held, noise, weights).sum()))
        return common / self.mean(held, weights) if abs(common) > CERTAIN * chance else 0.0

    def blurred(self, power: Terms, noise: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float, float]:
        """Standard deviation, pixels, of the best Gaussian blur; its squared error by Stein's estimate plus noise."""
        raw = _average(power, weights)
        found = []
        for width in GAUSSIANS:
            passed = np.exp(-2 * (np.pi * width * self.frequency) ** 2)
            terms = np.square(1 - passed) * raw + 2 * passed * noise
            found.append((float((terms * self.weight).sum()), width))
        least, width = min(found)
        return width, least

    def invented(
        self,
        product: Terms,
        power: Terms,
        recorded: Terms,
        noise: NDArray[np.float64],
        weights: NDArray[np.float64],
    ) -> float:
        """Power of structure in the result that is not in the raw image.

        With a right estimate, the removed part shares only noise that was kept, which adds to `product` of both
        amplitudes. So in a ring with a significantly negative `product` the result holds structure that is not in the
        raw image. Terms in which both are strong are left out (in the raw image half of _STRONG suffices, on average
        over a term and its neighbours): structure that is a few percent stronger in the result is not invented.
        `power`: of the result; `recorded`: sums of `_around`, of the raw image's power.
        """
        strong = (_STRONG * noise).astype(np.float32)
        both = (power > strong) & (recorded > strong * (_AROUND / 2))
        product, power = np.where(both, 0, product), np.where(both, 0, power)
        products, chances = _average(product, weights) * self.weight, self._chances(power, noise, weights)
        total = 0.0
        for low, high in pairwise(RINGS):
            ring = (self.frequency > low) & (self.frequency <= high)
            common = float(products[ring].sum())
            if common < -CERTAIN * sqrt(WINDOW / 2 * float(chances[ring].sum())):
                total -= common
        return total

    def _chances(self, power: Terms, noise: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of each term, but for a constant: the variance that noise gives the mean of its products."""
        return _average(power, np.square(weights)) * noise * np.square(self.weight)

    def line(self, gone: Terms, seen: Terms, weights: NDArray[np.float64]) -> tuple[float, float, float]:
        """The single frequency of the removed part that exceeds its ring most.

        Excess in standard errors; share of the raw image's amplitude there above noise, 0 if not significant; spacing,
        pixels.
        """
        removed, raw = (_average(power, weights).ravel() for power in (gone, seen))
        patches = 1 / np.square(weights).sum()  # of equal weight with the same error
        best = 0.0, 0.0, 0.0
        for ring in self.rings:
            usual = max(float(np.median(removed[ring])), 1e-30)
            at = int(ring[np.argmax(removed[ring])])
            excess = float(removed[at] / usual - 1) * sqrt(patches)
            if excess > best[0]:
                lost = sqrt((removed[at] - usual) / max(raw[at] - usual, removed[at] - usual))
                best = excess, lost if excess > 2 * CERTAIN else 0.0, float(1 / self.frequency.ravel()[at])
        return best

    def broad(self, power: Terms, weights: NDArray[np.float64]) -> float:
        """Power of the result on scales above a few pixels, without that at frequency zero."""
        return self.mean(power * ((self.frequency > 0) & (self.frequency < RINGS[1])), weights)
