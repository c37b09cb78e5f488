"""The noise of an image from the spectra of small patches of it, where specimens show least: in the finest detail.

Optics blur: a specimen's spectrum falls off towards fine detail, while that of the noise of a camera that counts is
flat. What there is of the specimen in fine detail shows in few terms if it is a lattice, and in few patches if it is
an edge. So the quantiles of many terms tell the noise where averages would not.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import hypot, log1p, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from daemon.micrograph import Pixels

SIDE, ACROSS = 64, 16
"""At most 16 × 16 patches of 64 × 64 pixels: a million pixels say enough."""
FINEST, MIDDLE = 0.35, (0.15, 0.30)
"""Bands of spatial frequency along an axis, cycles per pixel."""
WINDOW = 2.25
"""So many neighbouring terms say the same under a Hann window."""
RINGS = (0.71, 0.58, 0.5, 0.44, 0.38, 0.32, 0.26, 0.2, 0.14)
"""Edges of rings of spatial frequency, cycles per pixel, from the finest detail inwards."""
STRUCTURE = 0.02
"""Share by which a ring may exceed the finer ones, beyond its error, before it is taken to show the specimen."""
HIT = 12.0
"""A pixel so many standard deviations from its patch's mean is an X-ray hit or dead, and left out."""
MOST_MISSING = 0.01
"""Share of a patch's pixels that may be no numbers."""
PILE, LEAST_PILE = 3, 16
"""Saturation piles up in the highest value: it has this many times the pixels of the next one, and no fewer."""

Values = NDArray[np.float64]


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, slots=True, eq=False)
class Spectra:
    """Of n patches of an image, those without noise left out.

    `power` (n, h, w // 2 + 1): what each term says of the noise's variance, units². White noise says the same in
    each, whatever the brightness does within the patch: the mean of its variance under the window. `mean` (n,): of
    the pixels under the same window, units; so a variance that is a linear function of the brightness is the same
    function of `mean`. `negative` and `saturated`: shares of all pixels looked at.
    """

    power: Values
    mean: Values
    side: tuple[int, int]
    negative: float
    saturated: float
    """Share of the pixels in the highest value, if they pile up there; their patches are left out."""

    def __len__(self) -> int:
        return len(self.mean)

    def where(self, chosen: NDArray[np.bool_]) -> "Spectra":
        """Of some of the patches: `chosen` (n,)."""
        return replace(self, power=self.power[chosen], mean=self.mean[chosen])

    def corner(self) -> Values:
        """(n, terms): fine along both axes."""
        y, x, inside = self._frequencies()
        return self.power[:, (y > FINEST) & (x > FINEST) & inside]

    def edges(self) -> tuple[Values, Values]:
        """Two of (n, terms): fine along one axis, coarser along the other."""
        y, x, inside = self._frequencies()
        low, high = MIDDLE
        columns = (y > low) & (y < high) & (x > FINEST) & inside
        rows = (y > FINEST) & (x > low) & (x < high)
        return self.power[:, columns], self.power[:, rows]

    def quiet(self) -> tuple[Values, float]:
        """Noise variance of each patch (n,), units², and its relative error.

        From the finest ring inwards, as far as the rings agree: all of them where there is little to see.
        """
        rings = self._rings()
        variance, number = rings[0]
        for ring, terms in rings[1:]:
            quotient = float(np.median(ring / variance))
            error = 1.25 * hypot(relative_error(number, 0.5), relative_error(terms, 0.5)) / sqrt(len(self))
            if quotient > 1 + STRUCTURE + 2 * error:
                break
            variance = (variance * number + ring * terms) / (number + terms)
            number += terms
        return variance, relative_error(number, 0.5)

    def correlation(self, scale: Values) -> Estimate:
        """Of the noise of neighbouring pixels, along the axis where it is larger; `scale` (n,): what to divide by.

        A correlation r of neighbours makes the spectrum 1 + 2 r cos(2 π f) along that axis: about 1 - 1.9 r in the
        finest band, and 1 in the middle one. Blurred structure of the specimen counts as such, too.
        """
        found = []
        finest = 2 * float(np.cos(2 * np.pi * np.linspace(FINEST, 0.5, 50)).mean())
        middle = 2 * float(np.cos(2 * np.pi * np.linspace(*MIDDLE, 50)).mean())
        corner = level(self.corner() / scale[:, None])
        for edge in (level(one / scale[:, None]) for one in self.edges()):
            quotient = corner.value / edge.value
            error = quotient * hypot(corner.error / max(corner.value, 1e-9), edge.error / edge.value)
            slope = quotient * middle - finest
            found.append(Estimate((1 - quotient) / slope, error / slope))
        return max(found, key=lambda one: abs(one.value))

    def _frequencies(self) -> tuple[Values, Values, NDArray[np.bool_]]:
        """Along y (h, 1) and x (1, w // 2 + 1), cycles per pixel; and which terms have no twin, and two numbers."""
        height, width = self.side
        y = np.abs(np.fft.fftfreq(height)).astype(np.float64)[:, None]
        x = np.fft.rfftfreq(width).astype(np.float64)[None, :]
        return y, x, np.broadcast_to((x > 0) & (x < 0.5), (height, width // 2 + 1))

    def _rings(self) -> list[tuple[Values, int]]:
        """Level of each patch (n,) in each ring, and the ring's number of terms; edges along an axis are left out."""
        y, x, inside = self._frequencies()
        radius = np.hypot(y, x)
        inside = inside & (x > 2.5 / self.side[1]) & (y > 2.5 / self.side[0])
        rings = []
        for high, low in pairwise(RINGS):
            terms = self.power[:, inside & (radius <= high) & (radius > low)]
            if number := terms.shape[1]:
                middle = np.partition(terms, number // 2, axis=1)[:, number // 2]
                rings.append((middle / -log1p(-(number // 2 + 0.5) / number), number))
        return rings


def level(power: Values, quantile: float = 0.25) -> Estimate:
    """Mean of exponentially distributed spectral power from its lower quartile, which the specimen hardly reaches."""
    value = float(np.quantile(power, quantile)) / -log1p(-quantile)
    return Estimate(value, value * relative_error(power.size, quantile))


def relative_error(terms: int, quantile: float) -> float:
    """Of a level told from a quantile of so many terms."""
    return sqrt(quantile * (1 - quantile) * WINDOW / terms) / ((1 - quantile) * -log1p(-quantile))


def look(pixels: Pixels) -> Spectra:
    """Spectra of patches spread over an image (H, W) of any real dtype, of at most a million pixels; perhaps none."""
    height, width = side = min(SIDE, pixels.shape[0]), min(SIDE, pixels.shape[1])
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[None, 1:-1]
    weight = np.square(window) / np.square(window).sum()
    tops, lefts = _starts(pixels.shape[0], height), _starts(pixels.shape[1], width)
    raw = np.array([pixels[top : top + height, left : left + width] for top in tops for left in lefts])
    negative = float((raw < 0).mean()) if raw.dtype.kind in "if" else 0.0
    full = _saturated(raw)
    patches = raw[~full.any((1, 2))].astype(np.float64)
    if raw.dtype.kind == "f":
        patches = _without_gaps(patches)
    mean = patches.mean((1, 2))
    patches -= mean[:, None, None]
    _cut_hits(patches)
    mean += np.einsum("ijk,jk->i", patches, weight)
    patches *= window / np.sqrt(np.square(window).sum())
    terms = np.fft.rfft2(patches)
    power = np.square(terms.real) + np.square(terms.imag)
    # A patch of one value has the rounding errors of its mean.
    noisy = power[:, 1:, 1:].max((1, 2), initial=0) > 1e-20 * np.square(mean)
    return Spectra(power[noisy], mean[noisy], side, negative, float(full.mean()))


def _starts(size: int, side: int) -> list[int]:
    """Where patches begin along one axis: side by side, or overlapping by at most half in small images."""
    number = min(ACROSS, 2 * (size - side) // side + 1)
    return sorted({int(start) for start in np.linspace(0, size - side, number)})


def _saturated(patches: Pixels) -> NDArray[np.bool_]:
    """Which pixels are in the highest value, if they pile up there."""
    top = np.nanmax(patches, initial=-np.inf) if patches.dtype.kind == "f" else patches.max()
    full: NDArray[np.bool_] = patches == top
    number = int(full.sum())
    if number >= LEAST_PILE and number < full.size:
        below = patches[patches < top]
        if len(below) and number > PILE * int((below == below.max()).sum()):
            return full
    return np.zeros_like(full)


def _without_gaps(patches: Values) -> Values:
    """Patches with NaN and Inf replaced by the patch's mean; those with many are left out."""
    good = np.isfinite(patches)
    if good.all():
        return patches
    kept = good.mean((1, 2)) >= 1 - MOST_MISSING
    patches, good = patches[kept], good[kept]
    filled = np.where(good, patches, 0.0)
    mean = filled.sum((1, 2)) / good.sum((1, 2))
    return np.where(good, filled, mean[:, None, None])


def _cut_hits(patches: Values) -> None:
    """Set X-ray hits and dead pixels of patches of mean 0 to it, in place."""
    deviation = np.sqrt(np.einsum("ijk,ijk->i", patches, patches) / patches[0].size) if len(patches) else np.empty(0)
    for _ in range(4):  # a hit hides a fainter one
        limit = HIT * deviation
        worst = np.flatnonzero((patches.max((1, 2), initial=0) > limit) | (patches.min((1, 2), initial=0) < -limit))
        if not len(worst):
            break
        part = patches[worst]
        part[np.abs(part) > limit[worst, None, None]] = 0
        patches[worst] = part
        deviation[worst] = part.std((1, 2))
