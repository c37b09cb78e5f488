"""Model of a noise spectrum: noise through a Gaussian point spread, plus white noise; and its least-squares fit.

``N T(f) + R + S(f) T(f)``: the power N of counted noise at frequency zero, the transfer T of the point spread, white
noise R, and the power S that a specimen's structure leaks into fine detail.
"""

from dataclasses import dataclass
from functools import cache
from math import exp, log, log1p, sqrt

import numpy as np
from numpy.typing import NDArray

from daemon.counts.noise import relative_error

Values = NDArray[np.float64]

_CELL, _INNERMOST = 4, 3
"""Side of a cell in spectral terms, and the terms along either axis that edges and scan lines reach."""
_LEAK, _LEAK_AT = 3.0, 0.2
"""Exponent by which structure's power falls with frequency; frequency, cycles per pixel, at which S is stated."""
WIDEST = 2.0
"""Largest point spread in the fit, pixels."""
LEAST = 1e-4
"""Share of the mean power below which a cell's deviation is ignored."""


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Squares of _CELL × _CELL terms of the half spectra of patches, with those of the opposite frequency along y."""

    terms: NDArray[np.intp]
    """(cells, 2 _CELL²): flat places in the half spectrum."""
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    """(cells, _CELL²): frequencies along y and x, in terms."""
    radius: Values
    """(cells,): cycles per pixel."""
    leak: Values
    """(cells, _CELL²): the shape of S."""
    side: tuple[int, int]

    @classmethod
    @cache
    def of(cls, side: tuple[int, int]) -> "Cells":
        """Cells of patches of `side`, pixels; none if these are small."""
        height, width = side
        first = [np.arange(_INNERMOST, size // 2 - _CELL + 1, _CELL) for size in side]
        y, x = (one.ravel()[:, None] for one in np.meshgrid(*first, indexing="ij"))
        rows = y + np.repeat(np.arange(_CELL), _CELL)
        columns = x + np.tile(np.arange(_CELL), _CELL)
        across = width // 2 + 1
        terms = np.concatenate([rows * across + columns, (height - rows) * across + columns], axis=1)
        frequency = np.hypot(rows / height, columns / width)
        return cls(terms, rows, columns, frequency.mean(axis=1), (_LEAK_AT / frequency) ** _LEAK, side)

    @property
    def error(self) -> float:
        """Relative standard error of one level."""
        return relative_error(self.terms.shape[1], 0.5)

    def levels(self, power: Values) -> Values:
        """(n, cells): the mean of exponentially distributed `power` (n, h, w // 2 + 1), from each cell's median."""
        number = self.terms.shape[1]
        middle = number // 2
        flat = power.reshape(len(power), -1)[:, self.terms]
        return np.asarray(np.partition(flat, middle, axis=2)[:, :, middle] / -log1p(-(middle + 0.5) / number))

    def transfer(self, square: float, used: NDArray[np.bool_]) -> tuple[Values, Values]:
        """Power transfer (c, _CELL²) of a point spread of variance `square`, pixels², and its derivative by that."""
        (down, down_slope), (over, over_slope) = (_transfer(square, size) for size in self.side)
        rows, columns = self.rows[used], self.columns[used]
        return down[rows] * over[columns], down_slope[rows] * over[columns] + down[rows] * over_slope[columns]


@cache
def _cosines(size: int) -> Values:
    """(terms, lags): twice the cosine of the phase to a pixel's neighbours, for the terms from -1 to size // 2 + 1."""
    lags = np.arange(1, int(4 * WIDEST) + 1)
    return 2 * np.cos(2 * np.pi * np.arange(-1, size // 2 + 2)[:, None] * lags / size)


def _transfer(square: float, size: int) -> tuple[Values, Values]:
    """Power transfer of a sampled Gaussian along one axis, as a Hann window shows it, and its derivative."""
    cosines = _cosines(size)
    lags = np.square(np.arange(1, cosines.shape[1] + 1))
    variance = max(square, 1e-2)
    taps = np.exp(-0.5 * lags / variance)
    slope = taps * lags / (2 * variance**2)
    total = 1 + 2 * taps.sum()
    amplitude = (1 + cosines @ taps) / total
    power = np.square(amplitude)
    change = 2 * amplitude * (cosines @ slope - 2 * slope.sum() * amplitude) / total
    return (power[:-2] + 4 * power[1:-1] + power[2:]) / 6, (change[:-2] + 4 * change[1:-1] + change[2:]) / 6


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Input of the fit: the level of each cell in flat patches, units², and its relative standard error (cells,)."""

    cells: Cells
    level: Values
    error: Values


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """`parameters`: log N, the point spread's variance, R, and S at _LEAK_AT."""

    parameters: Values
    covariance: Values
    used: NDArray[np.bool_]
    misfit: float
    """Mean square deviation in standard errors, for each degree of freedom."""
    cost: float

    @property
    def vagueness(self) -> float:
        """Relative standard error of N."""
        return sqrt(self.covariance[0, 0])


def model(cells: Cells, parameters: Values, used: NDArray[np.bool_]) -> tuple[Values, Values]:
    """Expected levels (c,) of the cells `used`, and their derivatives by the parameters (c, 4).

    A level comes from the median of terms whose expectations differ within the cell. Newton's method finds it; its
    derivatives are weighted means of those of the terms.
    """
    size = exp(parameters[0])
    transfer, slope = cells.transfer(float(parameters[1]), used)
    shape = cells.leak[used]
    inner = size + parameters[3] * shape
    rate = 1 / (transfer * inner + parameters[2])
    middle = log(2) * np.exp(-np.log(rate).mean(axis=1))[:, None]
    for _ in range(2):
        left = np.exp(-middle * rate)
        wrong = left.mean(axis=1, keepdims=True) - 0.5
        middle = middle * np.exp(np.clip(wrong / ((left * rate).mean(axis=1, keepdims=True) * middle), -1, 1))
    left = np.exp(-middle * rate) * rate
    weight = left * rate * (middle / (log(2) * left.sum(axis=1, keepdims=True)))
    counted = weight * transfer
    parts = (size * counted, weight * slope * inner, weight, counted * shape)
    return middle[:, 0] / log(2), np.stack([part.sum(axis=1) for part in parts], axis=1)


def fitted(seen: Spectrum, used: NDArray[np.bool_], start: Values, readout: bool = True, leak: bool = True) -> Fit:
    """Least squares by Levenberg and Marquardt's method over the cells `used`.

    Without `readout` R is fixed, without `leak` S.
    """
    fixed = np.array([False, False, not readout, not leak])
    level, error = seen.level[used], seen.error[used]
    least = LEAST * float(seen.level.mean())

    def deviations(parameters: Values) -> tuple[Values, Values, float]:
        expected, derivative = model(seen.cells, parameters, used)
        scale = error * expected + least
        off = (level - expected) / scale
        derivative[:, fixed] = 0
        return off, derivative / scale[:, None], float(off @ off + 2 * np.log(scale).sum())

    parameters, damping = start, 1e-3
    off, slopes, cost = deviations(parameters)
    for _ in range(15):
        before = cost
        unit = np.sqrt(np.square(slopes).sum(axis=0)) + 1e-300
        pull = (slopes / unit).T @ off
        held = (parameters <= 0) & (pull <= 0) & (np.arange(4) > 0)  # at its bound, and drawn beyond it
        unit, pull = np.where(held, np.inf, unit), np.where(held, 0.0, pull)
        normal = (slopes / unit).T @ (slopes / unit)
        for _ in range(5):
            trial = _within(parameters, np.linalg.solve(normal + damping * np.eye(4), pull) / unit)
            found = deviations(trial)
            damping *= 0.1 if found[2] <= cost else 10
            if found[2] <= cost:
                parameters, (off, slopes, cost) = trial, found
                break
        if before - cost < 0.03:
            break
    return Fit(parameters, _covariance(slopes), used, float(off @ off) / max(1, len(off) - 4), cost)


def _covariance(slopes: Values) -> Values:
    """Of the parameters (4, 4), from the derivatives of the deviations (c, 4); 0 for fixed ones."""
    unit = np.sqrt(np.square(slopes).sum(axis=0))
    unit[unit == 0] = np.inf
    normal = (slopes / unit).T @ (slopes / unit)
    return np.asarray(np.linalg.inv(normal + 1e-9 * np.eye(4)) / np.outer(unit, unit))


def _within(parameters: Values, step: Values) -> Values:
    """The parameters after a step of the fit, both within bounds."""
    square = float(parameters[1])
    size = parameters[0] + np.clip(step[0], -1, 1)
    square = float(np.clip(square + np.clip(step[1], -0.5 * square - 0.05, 0.5 * square + 0.1), 0, WIDEST**2))
    return np.array([size, square, max(parameters[2] + step[2], 0.0), max(parameters[3] + step[3], 0.0)])
