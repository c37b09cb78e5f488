"""Fits the noise spectrum of a camera that smears its counts: the transfer of a Gaussian, above white read-out.

Where a count reaches several pixels, coarse detail holds more of the noise than fine detail does, and no band alone
shows its strength. The whole spectrum does: ``N T(f) + R``, with the power N of the counts at frequency zero, the
transfer T of a Gaussian point spread, and read-out R. A specimen adds power, mostly to coarse detail and to some
patches. So the fit uses flat patches, frequencies from the finest inwards as far as needed, and a term for the power
that structure leaks into fine detail.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import exp, hypot, log, sqrt

import numpy as np
from numpy.typing import NDArray

from daemon.counts.noise import TINY, Estimate, Spectra
from daemon.counts.scaling import neighbours, sharing
from daemon.counts.spectrum_model import LEAST, WIDEST, Cells, Fit, Spectrum, fitted, model
from daemon.errors import MicrographError

Values = NDArray[np.float64]

RINGS = (0.36, 0.28, 0.22, 0.18, 0.14)
"""Inner edges of the frequencies used, cycles per pixel, tried in turn."""
_BROAD = 0.14
"""Cycles per pixel; coarser detail selects the flat patches, and is not fitted."""
GROUP, _FLAT, FEWEST = 24, 0.5, 8
"""Fewest patches of like brightness in a group; the share of them that counts as flat, and the fewest."""
ENOUGH, _VAGUE = 0.04, 0.3
"""Relative error of N at which no further ring is added, and beyond which a fit cannot forecast the next."""
_EXCESS, _SURE = 0.01, 1.5
"""Share plus number of standard errors by which a ring must exceed the forecast to show the specimen."""
_MISFIT = 1.6
"""Mean square deviation of the cells, in standard errors, up to which the model describes the spectrum."""
_DISTINCT = 2.0
"""Standard errors by which read-out, or a leak of structure, must differ from 0 to be kept."""
_GUESSES = (0.3, 0.45, 0.6, 0.75, 0.9, 1.05, 1.25, 1.5)
"""Point spreads, pixels, from which a fit may start."""
_WHITE = 1.6
"""Mean square deviation of the cells from one level, in standard errors, up to which the noise counts as white."""
_LEAST_SPREAD, _LEAST_SHARE = 0.33, 0.2
"""Point spread, pixels, below which pixels hardly share counts; smallest share of the counts in the noise."""
_CLEAR, _GROWS = 4.0, 0.15
"""Standard errors by which a point spread must differ from 0; largest share of the growth in white noise."""
_LIFTED = 1.056
"""Mean level of a cell of white noise over its power: the bias of a median of few, correlated terms."""
_NARROW = 0.003
"""Share of the counts' variance that a point spread must take from pixels to count as one."""
CERTAIN = 0.15
"""Largest relative error of the noise of single pixels."""


@cache
def _guesses(side: tuple[int, int]) -> tuple[NDArray[np.bool_], Values]:
    """The cells of fine detail (cells,), and the mean transfer in each of them of each of _GUESSES (guesses, c)."""
    cells = Cells.of(side)
    used = cells.radius > RINGS[1]
    return used, np.array([cells.transfer(psf**2, used)[0].mean(axis=1) for psf in _GUESSES])


def _start(seen: Spectrum) -> Values | None:
    """Start of the fit: the guess whose scaled transfer plus white noise fits best; None for white noise alone."""
    used, transfers = _guesses(seen.cells.side)
    level, error = seen.level[used], np.maximum(seen.error[used], TINY)
    flat = float(np.average(level, weights=1 / level))
    if float(np.square((level / flat - 1) / error).mean()) < _WHITE:
        return None
    counted, white = transfers / level, 1 / level
    ones = np.ones_like(level)
    products = [np.square(counted).sum(axis=1), counted @ white, white @ white, counted.sum(axis=1), white.sum()]
    both, cross, own, left, right = products
    least = np.maximum(both * own - np.square(cross), TINY)
    size, floor = (left * own - right * cross) / least, (right * both - left * cross) / least
    size = np.where(floor < 0, left / both, size)
    floor = np.maximum(floor, 0)
    off = np.square(size[:, None] * counted + floor[:, None] * white - ones).sum(axis=1)
    best = int(np.argmin(np.where(size > 0, off, np.inf)))
    share = sharing(_GUESSES[best]) * float(size[best])
    if not share > _LEAST_SHARE / 2 * (share + float(floor[best])):
        return None
    return np.array([log(float(size[best])), _GUESSES[best] ** 2, float(floor[best]), 0.0])


def _searched(seen: Spectrum) -> Fit | None:
    """The fit over as many rings, from the finest inwards, as are needed and show no specimen."""
    best, start = None, _start(seen)
    if start is None:
        return None
    for edge in RINGS:
        used = seen.cells.radius > edge
        if used.sum() < FEWEST:
            continue
        forecasts = best is not None and best.vagueness < _VAGUE
        if best is not None and forecasts and _exceeds(seen, best, used & ~best.used):
            break
        fit = fitted(seen, used, best.parameters if best is not None and forecasts else start)
        if best is not None and fit.misfit > _MISFIT and best.vagueness < 1:
            break
        best = fit
        if fit.vagueness < ENOUGH:
            break
    return best


def _exceeds(seen: Spectrum, fit: Fit, new: NDArray[np.bool_]) -> bool:
    """Whether the `new` cells hold more than a fit to the finer ones forecasts."""
    if not new.any():
        return False
    expected, derivative = model(seen.cells, fit.parameters, new)
    weight = 1 / np.square(seen.error[new])
    weight /= weight.sum()
    pull = weight @ (derivative / expected[:, None])
    error = sqrt(float(np.square(weight * seen.error[new]).sum() + pull @ fit.covariance @ pull))
    return float(weight @ (seen.level[new] / expected - 1)) > _EXCESS + _SURE * error


@dataclass(frozen=True, slots=True, eq=False)
class Smear:
    """A camera's noise as ``N T(f) + R``, of an average flat patch. Powers are the variance of white noise, units²."""

    psf: Estimate
    """Standard deviation of the point spread, pixels."""
    counted: Estimate
    """N: power of the counts' noise at frequency zero."""
    readout: Estimate
    """R: power of white read-out noise; 0 where it is not distinct."""
    misfit: float
    """Mean square deviation from this form, in standard errors."""
    mean: Values
    """(n,): of flat patches, units."""
    variance: Values
    """(n,): of single pixels in them, units²."""
    scatter: float
    """Relative standard error of each of these."""
    error: float
    """Relative standard error of all of them together."""
    growth: Estimate
    """Growth of the white part from darker to brighter patches, over that of the counts' noise."""

    @property
    def sharing(self) -> float:
        """Share of the variance of the counts left in single pixels."""
        return sharing(self.psf.value)

    @property
    def correlation(self) -> float:
        """Of the noise of neighbouring pixels."""
        counted = self.sharing * self.counted.value
        return neighbours(self.psf.value) * counted / (counted + self.readout.value)

    @property
    def clear(self) -> bool:
        """Whether the point spread is significant, and the form describes the noise.

        A specimen's texture above white noise has the same form; but that noise grows with the brightness, as read-out
        does not, and makes nearly all of the variance of single pixels.
        """
        counted = self.sharing * self.counted.value
        return (
            self.psf.value > max(_LEAST_SPREAD, _CLEAR * self.psf.error)
            and self.psf.value < WIDEST - 0.01
            and self.misfit < _MISFIT
            and counted > _LEAST_SHARE * (counted + self.readout.value)
            and self.counted.error < self.counted.value
            and self.error < CERTAIN
            and not self.growth.value > max(_GROWS, 3 * self.growth.error)
        )


def smear(spectra: Spectra) -> Smear | None:
    """Fit ``N T(f) + R`` to the spectra of patches; None for too few patches or terms, or for white noise."""
    cells = Cells.of(spectra.side)
    if len(spectra) < FEWEST or (cells.radius > RINGS[0]).sum() < FEWEST:
        return None
    levels = cells.levels(spectra.power)
    groups = _flat(levels[:, cells.radius < _BROAD].mean(axis=1), spectra.mean)
    seen = _spectrum(cells, levels, groups)
    if not (seen.level > 0).all():
        return None
    free = _searched(seen)
    if free is None:
        return None
    fit, vagueness = _simplest(seen, free)
    return _smear(spectra, levels, groups, fit, vagueness)


def _simplest(seen: Spectrum, free: Fit) -> tuple[Fit, float]:
    """The fit without read-out and leaking structure where these are not distinct, and the relative error of N.

    The error includes the change of N by leaving them out.
    """
    error = np.sqrt(np.diag(free.covariance))
    kept = free.parameters > _DISTINCT * error
    if kept[2:].all():
        return free, free.vagueness
    terms = bool(kept[2]), bool(kept[3])
    fit = fitted(seen, free.used, np.where(kept | (np.arange(4) < 2), free.parameters, 0), *terms)
    if fit.cost - free.cost > _DISTINCT**2:
        return free, free.vagueness
    apart = abs(float(fit.parameters[0] - free.parameters[0]))
    return fit, hypot(fit.vagueness, min(free.vagueness, apart))


def _flat(broad: Values, mean: Values) -> list[NDArray[np.intp]]:
    """Groups of patches, dark to bright: in each those with the least power in coarse detail, `broad` (n,)."""
    groups = np.array_split(np.argsort(mean), int(np.clip(len(mean) // GROUP, 1, 4)))
    return [group[np.argsort(broad[group])[: max(FEWEST, int(len(group) * _FLAT))]] for group in groups]


def _spectrum(cells: Cells, levels: Values, groups: list[NDArray[np.intp]]) -> Spectrum:
    """Mean of the groups' median levels: N T + R is linear in N, so averages keep the form."""
    middle = np.array([np.median(levels[group], axis=0) for group in groups])
    number = np.array([[len(group)] for group in groups])
    spread = np.sqrt((np.square(middle) / number).sum(axis=0)) / np.maximum(middle.sum(axis=0), TINY)
    return Spectrum(cells, middle.mean(axis=0), 1.25 * cells.error * spread)


def _smear(spectra: Spectra, levels: Values, groups: list[NDArray[np.intp]], fit: Fit, vagueness: float) -> Smear:
    cells = Cells.of(spectra.side)
    size, floor, leak = exp(fit.parameters[0]), float(fit.parameters[2]), float(fit.parameters[3])
    psf = sqrt(max(float(fit.parameters[1]), 0.0))
    share = sharing(psf)
    expected, derivative = model(cells, fit.parameters, fit.used)
    white = derivative[:, 2]
    signal = derivative[:, 0] / size + leak / size * derivative[:, 3]
    ratio = signal * size / np.maximum(floor * white, TINY)
    best = ratio >= min(0.5, np.sort(ratio)[-min(FEWEST, len(ratio))])  # cells that show the counts' noise
    flat = np.concatenate(groups)
    counted = np.median((levels[flat][:, fit.used][:, best] - floor * white[best]) / signal[best], axis=1)
    spread = 1.25 * cells.error * sqrt(float(np.square(expected[best] / signal[best]).mean()) / int(best.sum()))
    step = 1e-3
    pull = np.array([share * size, size * (sharing(psf + step) - share) / step / (2 * max(psf, 0.1)), 1.0, 0.0])
    total = share * size + floor
    return Smear(
        psf=Estimate(psf, sqrt(fit.covariance[1, 1]) / (2 * max(psf, 0.1))),
        counted=Estimate(size, size * vagueness),
        readout=Estimate(floor, sqrt(fit.covariance[2, 2])),
        misfit=fit.misfit,
        mean=spectra.mean[flat],
        variance=share * counted + floor,
        scatter=share * spread / total,
        error=sqrt(max(float(pull @ fit.covariance @ pull), 0.0)) / total,
        growth=_growth(cells, levels, groups, fit, signal, white),
    )


def _growth(
    cells: Cells, levels: Values, groups: list[NDArray[np.intp]], fit: Fit, signal: Values, white: Values
) -> Estimate:
    """Difference of R between brighter and darker groups over that of N: about 0 for read-out noise."""
    if len(groups) < 2:
        return Estimate(0.0, np.inf)
    found = []
    for part in (groups[: len(groups) // 2], groups[len(groups) // 2 :]):
        seen = _spectrum(cells, levels, part)
        scale = seen.error[fit.used] * seen.level[fit.used] + LEAST * float(seen.level.mean())
        terms = np.stack([signal, white], axis=1) / scale[:, None]
        inverse = np.linalg.pinv(terms.T @ terms)
        found.append((inverse @ (terms.T @ (seen.level[fit.used] / scale)), np.sqrt(np.diag(inverse))))
    (dark, dark_error), (bright, bright_error) = found
    change, error = bright - dark, np.hypot(dark_error, bright_error)
    size = max(float(change[0]), 3 * float(error[0]), TINY)
    return Estimate(float(change[1]) / size, float(error[1]) / size)


def spread(seen: Sequence[Spectra], readout: float | None) -> tuple[Estimate, tuple[tuple[float, ...], ...]]:
    """Point spread, pixels, and radial spectrum of pure noise, such as the difference of two flats.

    `readout`: power of white read-out noise, units², if it is known. Rows of the spectrum: cycles per pixel,
    power, fitted power; the last two as shares of the power of white noise of the same variance. Raises MicrographError
    for frames too small.
    """
    cells = Cells.of(seen[0].side)
    if (cells.radius > RINGS[0]).sum() < FEWEST:
        raise MicrographError("frames of at least 64 x 64 pixels are needed to calibrate a camera; crop them less")
    levels = np.concatenate([cells.levels(one.power) for one in seen])
    mean = levels.mean(axis=0)
    spectrum = Spectrum(cells, mean, np.full(len(mean), cells.error / sqrt(len(levels))))
    power = float(np.mean([_white(one) for one in seen]))
    start = _start(spectrum)
    if start is None:  # almost white
        start = np.array([log(power), _LEAST_SPREAD**2, 0.0, 0.0])
    start[2] = start[2] if readout is None else _LIFTED * readout
    found = fitted(spectrum, cells.radius > 0, start, readout=readout is None, leak=False)
    width = sqrt(float(found.parameters[1]))
    fit = model(cells, found.parameters, found.used)[0]
    error = min(sqrt(found.covariance[1, 1]) / (2 * max(width, 0.1)), WIDEST)
    taken, doubt = 1 - sharing(width), sharing(width) - sharing(width + error)
    psf = Estimate(width, error) if taken > max(_NARROW, 3 * doubt) else Estimate(0.0, min(error, _LEAST_SPREAD))
    edges = np.linspace(0.05, 0.7, 14)
    rings = [(cells.radius >= low) & (cells.radius < high) for low, high in pairwise(edges)]
    table = (
        (cells.radius[one].mean(), mean[one].mean() / power, fit[one].mean() / power) for one in rings if one.any()
    )
    return psf, tuple(tuple(round(float(value), 5) for value in row) for row in table)


def _white(seen: Spectra) -> float:
    """Variance of the noise, units²: the mean of all its power."""
    weight = np.full(seen.power.shape[2], 2.0)
    weight[[0, -1]] = 1
    return float((seen.power.mean(axis=0) * weight).sum() / (weight.sum() * seen.power.shape[1]))
