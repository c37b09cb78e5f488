"""What simulated scenes are drawn with: random fields, points that lie between pixels, grey scales."""

from collections.abc import Callable
from math import exp, log

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]
Scene = NDArray[np.float32]


def filtered_noise(rng: np.random.Generator, side: int, transfer: Callable[[Real], Real]) -> Real:
    """White noise through a radial transfer function of spatial frequency (cycles per pixel), unit variance."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) * transfer(frequency)
    field: Real = np.fft.irfft2(spectrum, s=(side, side))
    field -= field.mean()
    field /= field.std() + 1e-12
    return field


def stretch(image: Real) -> Scene:
    """To [0, 1]."""
    low, high = image.min(), image.max()
    stretched: Scene = ((image - low) / max(high - low, 1e-12)).astype(np.float32)
    return stretched


def smooth_field(rng: np.random.Generator, side: int, scale: float) -> Real:
    """A random field that varies over about `scale` pixels, unit variance."""
    return filtered_noise(rng, side, lambda f: np.exp(-((np.pi * scale * f) ** 2)))


def splat(side: int, position: Real, weight: Real) -> Real:
    """Points at `position` (n, 2), row and column in pixels, of `weight` (n,) > 0, shared among the nearest pixels."""
    inside = np.all((position >= 0) & (position < side - 1), axis=1) & (weight > 0)
    y, x = position[inside].T
    y0, x0 = y.astype(int), x.astype(int)
    fy, fx = y - y0, x - x0
    points = np.zeros((side, side))
    for dy, wy in ((0, 1 - fy), (1, fy)):
        for dx, wx in ((0, 1 - fx), (1, fx)):
            np.add.at(points, (y0 + dy, x0 + dx), weight[inside] * wy * wx)
    return points


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A factor between two bounds, every factor of two alike."""
    return exp(rng.uniform(log(low), log(high)))


def log_uniforms(rng: np.random.Generator, low: float, high: float, count: int) -> Real:
    """(count,) of them."""
    return np.exp(rng.uniform(log(low), log(high), count))
