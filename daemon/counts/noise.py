"""Measures the noise of an image in the finest detail of small patches, where specimens show least.

Optics blur: a specimen's spectrum falls off towards fine detail, while that of the noise of a camera that counts is
flat. In fine detail a lattice shows in few terms and an edge in few patches. So quantiles over many terms estimate the
noise better than averages.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import hypot, log1p, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from daemon.micrograph import Pixels

SIDE, _ACROSS = 64, 14
"""At most 14 × 14 patches of 64 × 64 pixels: 800,000 pixels suffice."""
FINEST, _MIDDLE = 0.35, (0.15, 0.30)
"""Bands of spatial frequency along an axis, cycles per pixel."""
WINDOW = 2.25
"""Number of neighbouring terms that are not independent under a Hann window."""
CORRELATED, MOST_CORRELATED = 0.08, 0.3
"""Correlation of neighbouring pixels that counts as present, and beyond which the finest detail holds too little of
the noise to estimate the rest."""
RINGS = (0.71, 0.58, 0.5, 0.44, 0.38, 0.32, 0.26, 0.2, 0.14)
"""Edges of rings of spatial frequency, cycles per pixel, from the finest detail inwards."""
STRUCTURE = 0.01
"""Share by which a ring may exceed the finer ones, beyond its error, before it is taken to show the specimen."""
_BLURRED = (0.17, 0.24, 0.31, 0.38, 0.44)
COARSE = (0.03, 0.10, 0.17)
"""Edges of rings of spatial frequency, cycles per pixel: those that show a blur, and those that a specimen reaches."""
FLATTEST, FEWEST = 0.6, 8
"""Share of the patches in which a blur is measured, and the fewest: those with the least coarse detail."""
WIDEST = 1.2
"""Standard deviation, pixels, of the widest blur of noise that is believed, and on which the network was trained."""
_NOISE_ALONE = (0.6, 1.25)
"""Range of the coarse rings' power over that of blurred noise, in which they show noise alone."""
FEW = 14
"""Patches transformed at a time: they stay in the cache."""
TINY = 1e-300
"""Units²: no noise."""
_HIT = 12.0
"""A pixel so many standard deviations from its patch's mean is an X-ray hit or dead, and left out."""
MOST_MISSING = 0.01
"""Largest share of a patch's pixels that are not finite, or saturated."""
PILE, LEAST_PILE = 3, 16
"""Saturation: the highest value has more than this many times the pixels of the next one, and at least so many."""

Values = NDArray[np.float64]


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, slots=True, eq=False)
class Spectra:
    """Spectra of n patches of an image; patches without noise are left out.

    `power` (n, h, w // 2 + 1): each term's estimate of the noise variance, units². For white noise all terms have the
    same expectation, however the brightness varies in the patch: the mean variance under the window. `mean` (n,): of
    the pixels under the same window, units; so a variance that is a linear function of the brightness is the same
    function of `mean`. `negative` and `saturated`: shares of all pixels evaluated.
    """

    power: Values
    mean: Values
    side: tuple[int, int]
    negative: float
    saturated: float
    """Share of the pixels in the highest value, if they pile up there; patches full of them are left out."""

    def __len__(self) -> int:
        return len(self.mean)

    def where(self, chosen: NDArray[np.bool_]) -> "Spectra":
        """The spectra of the `chosen` (n,) patches."""
        return replace(self, power=self.power[chosen], mean=self.mean[chosen])

    def corner(self) -> Values:
        """Power (n, terms) of detail that is fine along both axes."""
        y, x, inside = self._frequencies()
        return self.power[:, (y > FINEST) & (x > FINEST) & inside]

    def edges(self) -> tuple[Values, Values]:
        """Power of detail that is fine along x and coarser along y, and the reverse; each (n, terms)."""
        y, x, inside = self._frequencies()
        low, high = _MIDDLE
        columns = (y > low) & (y < high) & (x > FINEST) & inside
        rows = (y > FINEST) & (x > low) & (x < high)
        return self.power[:, columns], self.power[:, rows]

    def noise(self) -> "PatchNoise":
        """The noise of single pixels, from the finest ring inwards as far as the rings agree.

        If the noise of neighbours is correlated, a ring holds more or less than its share, and is corrected. If the
        finest rings hold almost nothing, all rings are used, and the result is only part of the noise, unless the
        coarse ones show that it is noise blurred by a Gaussian.
        """
        radius = np.hypot(*self._frequencies()[:2])
        inside = self._off_axis()
        rings = [inside & (radius <= high) & (radius > low) for high, low in pairwise(RINGS)]
        rings = [ring for ring in rings if ring.any()]
        used = rings[0]
        variance = np.maximum(_median_level(self.power[:, used]), TINY)
        for chosen in rings[1:]:
            ring = _median_level(self.power[:, chosen])
            quotient = float(np.median(ring / variance))
            terms, more = int(used.sum()), int(chosen.sum())
            error = 1.25 * hypot(relative_error(terms, 0.5), relative_error(more, 0.5)) / sqrt(len(self))
            if quotient > 1 + STRUCTURE + error:
                break
            variance, used = (variance * terms + ring * more) / (terms + more), used | chosen
        found = self.correlations(variance)
        most = max((one.value for one in found), key=abs)
        if most > MOST_CORRELATED:
            used = np.logical_or.reduce(rings)
            variance = _median_level(self.power[:, used])
            error = relative_error(int(used.sum()), 0.5)
            return PatchNoise(variance * self._blurred(variance), error, most)
        y, x, _ = self._frequencies()
        share = np.ones_like(radius)
        for frequency, one in zip((y, x), found, strict=True):
            if abs(one.value) > max(CORRELATED, 3 * one.error):
                share = share * (1 + 2 * one.value * np.cos(2 * np.pi * frequency))
        return PatchNoise(variance / float(share[used].mean()), relative_error(int(used.sum()), 0.5), most)

    def correlations(self, scale: Values) -> tuple[Estimate, Estimate]:
        """Correlation of the noise of neighbouring pixels along y and x; `scale` (n,) divides the power.

        A correlation r of neighbours makes the spectrum 1 + 2 r cos(2 π f) along that axis: about 1 - 1.9 r in the
        finest band, and 1 in the middle one.
        """
        finest = 2 * float(np.cos(2 * np.pi * np.linspace(FINEST, 0.5, 50)).mean())
        middle = 2 * float(np.cos(2 * np.pi * np.linspace(*_MIDDLE, 50)).mean())
        corner, columns, rows = (level(one / scale[:, None]) for one in (self.corner(), *self.edges()))

        def along(edge: Estimate) -> Estimate:
            quotient = corner.value / max(edge.value, 1e-9)
            error = quotient * hypot(corner.error / max(corner.value, 1e-9), edge.error / edge.value)
            slope = quotient * middle - finest
            return Estimate((1 - quotient) / slope, error / slope)

        return along(columns), along(rows)

    def _blurred(self, scale: Values) -> float:
        """Variance of single pixels over `scale` (n,), where noise blurred by a Gaussian explains all rings; else 1.

        Interpolation, filters and downsampling leave such noise. A specimen's texture may fall off towards fine detail
        like it, but rises above it in coarse detail.
        """
        y, x, _ = self._frequencies()
        radius, inside = np.hypot(y, x), self._off_axis()
        power = self.power / np.maximum(scale, TINY)[:, None, None]
        coarse = power[:, inside & (radius < COARSE[-1])].mean(axis=1)
        power = power[np.argsort(coarse)[: max(FEWEST, int(FLATTEST * len(power)))]]

        def ring(low: float, high: float) -> tuple[float, float]:
            chosen = inside & (radius > low) & (radius <= high)
            terms = power[:, chosen]
            return float(np.square(radius[chosen]).mean()), level(terms).value if terms.size else 0.0

        squares, levels = np.array([ring(*edges) for edges in pairwise(_BLURRED)]).T
        if not (levels > 0).all():
            return 1.0
        slope, height = np.polyfit(squares, np.log(levels), 1)
        if not -np.square(2 * np.pi * WIDEST) < slope < 0:
            return 1.0
        for square, found in (ring(*edges) for edges in pairwise(COARSE)):
            if not _NOISE_ALONE[0] < found / np.exp(height + slope * square) < _NOISE_ALONE[1]:
                return 1.0
        weight = np.where((x > 0) & (x < 0.5), 2.0, 1.0) * np.ones_like(y)
        return max(1.0, float(np.average(np.exp(height + slope * np.square(radius)), weights=weight)))

    def _frequencies(self) -> tuple[Values, Values, NDArray[np.bool_]]:
        """Along y (h, 1) and x (1, w // 2 + 1), cycles per pixel; and a mask of complex terms stored once."""
        height, width = self.side
        y = np.abs(np.fft.fftfreq(height)).astype(np.float64)[:, None]
        x = np.fft.rfftfreq(width).astype(np.float64)[None, :]
        return y, x, np.broadcast_to((x > 0) & (x < 0.5), (height, width // 2 + 1))

    def _off_axis(self) -> NDArray[np.bool_]:
        """Mask of the terms that edges and scan lines along an axis hardly reach."""
        y, x, inside = self._frequencies()
        return inside & (x > 2.5 / self.side[1]) & (y > 2.5 / self.side[0])


class PatchNoise(NamedTuple):
    """Noise of n patches: `variance` (n,), units², each of relative `error`; `correlation` of neighbouring pixels."""

    variance: Values
    error: float
    correlation: float
    """Along the axis with the larger one."""


def _median_level(power: Values) -> Values:
    """Mean (n,) of exponentially distributed power (n, terms), from the median of each row."""
    terms = power.shape[1]
    middle: Values = np.partition(power, terms // 2, axis=1)[:, terms // 2]
    return middle / -log1p(-(terms // 2 + 0.5) / terms)


def level(power: Values, quantile: float = 0.25) -> Estimate:
    """Mean of exponentially distributed spectral power from its lower quartile, which the specimen hardly reaches."""
    value = float(np.quantile(power, quantile)) / -log1p(-quantile)
    return Estimate(value, value * relative_error(power.size, quantile))


def relative_error(terms: int, quantile: float) -> float:
    """Relative error of a level estimated from a quantile of so many terms."""
    return sqrt(quantile * (1 - quantile) * WINDOW / terms) / ((1 - quantile) * -log1p(-quantile))


def without_border(pixels: Pixels) -> Pixels:
    """An image (H, W) without the constant rows and columns that a drift correction leaves along its edges.

    A view; the image itself if nothing would be left.
    """
    inner = pixels
    for _ in range(2):  # rows, then columns
        while inner.size and inner[0].min() == inner[0].max():
            inner = inner[1:]
        while inner.size and inner[-1].min() == inner[-1].max():
            inner = inner[:-1]
        inner = inner.T
    return inner if min(inner.shape) >= SIDE else pixels


def patch_spectra(pixels: Pixels) -> Spectra:
    """Spectra of patches spread over an image (H, W) of any real dtype, at most a million pixels; there may be none."""
    height, width = side = min(SIDE, pixels.shape[0]), min(SIDE, pixels.shape[1])
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[None, 1:-1]
    window /= np.sqrt(np.square(window).sum())
    tops, lefts = _starts(pixels.shape[0], height), _starts(pixels.shape[1], width)
    patches = np.array([pixels[top : top + height, left : left + width] for top in tops for left in lefts])
    negative = float((patches < 0).mean()) if patches.dtype.kind in "if" else 0.0
    full = _saturated(patches)
    patches = patches[full.mean((1, 2)) <= MOST_MISSING]
    found = [_power(part, window) for part in np.array_split(patches, max(1, len(patches) // FEW))]
    power, mean = (np.concatenate(column) for column in zip(*found, strict=True))
    spectra = Spectra(power, mean, side, negative, float(full.mean()))
    # A patch without noise has the rounding errors of its mean.
    return spectra.where(spectra.corner().max(1, initial=0) > 1e-20 * np.square(mean))


def _power(raw: Pixels, window: Values) -> tuple[Values, Values]:
    """Power and mean, as in `Spectra`, of patches (n, h, w); patches with many gaps are left out."""
    patches = raw.astype(np.float64)
    if raw.dtype.kind == "f":
        patches = _without_gaps(patches)
    mean: Values = patches.mean((1, 2))
    patches -= mean[:, None, None]
    _cut_hits(patches, mean)
    mean += np.einsum("ijk,jk->i", patches, np.square(window))
    patches *= window
    terms = np.fft.fft(np.fft.rfft(patches, axis=2), axis=1)  # as rfft2, without its preliminaries
    return np.square(terms.real) + np.square(terms.imag), mean


def _starts(size: int, side: int) -> list[int]:
    """First pixels of patches along one axis: side by side, or overlapping by at most half in small images."""
    number = min(_ACROSS, 2 * (size - side) // side + 1)
    return sorted({int(start) for start in np.linspace(0, size - side, number)})


def _saturated(patches: Pixels) -> NDArray[np.bool_]:
    """Mask of the pixels with the highest value, if they pile up there."""
    top = patches.max()
    if not np.isfinite(top):
        top = patches.max(initial=-np.inf, where=np.isfinite(patches))
    full: NDArray[np.bool_] = patches == top
    number = int(full.sum())
    if number >= LEAST_PILE and number < full.size:
        below = patches[patches < top]
        if len(below) and number > PILE * int((below == below.max()).sum()):
            return full
    return np.zeros_like(full)


def _without_gaps(patches: Values) -> Values:
    """Patches with NaN and Inf replaced by the patch's mean; patches with many are left out."""
    good = np.isfinite(patches)
    if good.all():
        return patches
    kept = good.mean((1, 2)) >= 1 - MOST_MISSING
    patches, good = patches[kept], good[kept]
    filled = np.where(good, patches, 0.0)
    mean = filled.sum((1, 2)) / good.sum((1, 2))
    return np.where(good, filled, mean[:, None, None])


def _cut_hits(patches: Values, mean: Values) -> None:
    """Remove X-ray hits and dead pixels from patches of mean 0, and their share from `mean` (n,), in place."""
    deviation = np.sqrt(np.einsum("ijk,ijk->i", patches, patches) / patches[0].size) if len(patches) else np.empty(0)
    for _ in range(4):  # a hit hides a fainter one
        limit = _HIT * deviation
        worst = np.flatnonzero((patches.max((1, 2), initial=0) > limit) | (patches.min((1, 2), initial=0) < -limit))
        if not len(worst):
            break
        part = patches[worst]
        kept = np.abs(part) <= limit[worst, None, None]
        shift = np.where(kept, part, 0).sum((1, 2)) / kept.sum((1, 2))
        part = np.where(kept, part - shift[:, None, None], 0)
        patches[worst], deviation[worst] = part, part.std((1, 2))
        mean[worst] += shift
