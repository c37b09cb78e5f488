"""Simulated noiseless micrographs to train on: kinds of specimen that freely licensed data lack.

Every generator is a pure function of a random generator and a side length and returns (side, side) float32 in
[0, 1]. The simulated camera of the demo and of the tests (`daemon.camera`) shows another kind of specimen, and
nothing here resembles it on purpose, so that figures measured on it are honest.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Scene = NDArray[np.float32]
Generator = Callable[[np.random.Generator, int], Scene]


def filtered_noise(
    rng: np.random.Generator, side: int, transfer: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """White noise through a radial transfer function of spatial frequency (cycles per pixel), unit variance."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) * transfer(frequency)
    field: NDArray[np.float64] = np.fft.irfft2(spectrum, s=(side, side))
    field -= field.mean()
    field /= field.std() + 1e-12
    return field


def stretch(image: NDArray[np.float64]) -> Scene:
    """To [0, 1]."""
    low, high = image.min(), image.max()
    stretched: Scene = ((image - low) / max(high - low, 1e-12)).astype(np.float32)
    return stretched


def smooth_field(rng: np.random.Generator, side: int, scale: float) -> NDArray[np.float64]:
    """A random field that varies over about `scale` pixels, unit variance."""
    return filtered_noise(rng, side, lambda f: np.exp(-((np.pi * scale * f) ** 2)))


def atomic_columns(rng: np.random.Generator, side: int) -> Scene:
    """A crystal seen down a zone axis, in incoherent contrast: one or two columns a cell, vacancies, a boundary."""
    spacing = rng.uniform(5, 28)
    angle, skew = rng.uniform(0, np.pi), rng.choice([np.pi / 2, np.pi / 3, rng.uniform(1.0, 2.0)])
    ratio = rng.choice([1.0, rng.uniform(0.7, 1.5)])
    a = spacing * np.array([np.cos(angle), np.sin(angle)])
    b = ratio * spacing * np.array([np.cos(angle + skew), np.sin(angle + skew)])
    reach = int(2.0 * side / min(spacing, spacing * ratio)) + 2
    i, j = np.meshgrid(np.arange(-reach, reach), np.arange(-reach, reach))
    lattice = np.stack([i.ravel(), j.ravel()], 1) @ np.stack([a, b])
    columns, weights = [lattice], [np.ones(len(lattice))]
    if rng.random() < 0.6:
        columns.append(lattice + rng.uniform(0.3, 0.7) * (a + b))
        weights.append(np.full(len(lattice), rng.uniform(0.15, 1.0)))
    position, weight = np.concatenate(columns) + side / 2, np.concatenate(weights)
    weight = weight * (rng.random(len(weight)) > rng.choice([0.0, 0.01, 0.05])) * rng.uniform(0.85, 1.15, len(weight))
    position = position + rng.normal(0, rng.uniform(0, 0.03) * spacing, position.shape)
    if rng.random() < 0.4:  # a boundary: beyond a line the crystal is shifted, or ends
        normal = rng.standard_normal(2)
        beyond = (position - side * rng.uniform(0.3, 0.7, 2)) @ normal > 0
        if rng.random() < 0.5:
            weight = weight * ~beyond
        else:
            position = position + beyond[:, None] * rng.uniform(-0.5, 0.5) * (a + b)
    inside = np.all((position >= 0) & (position < side - 1), axis=1) & (weight > 0)
    y, x = position[inside].T
    y0, x0 = y.astype(int), x.astype(int)
    fy, fx = y - y0, x - x0
    points = np.zeros((side, side))
    for dy, wy in ((0, 1 - fy), (1, fy)):
        for dx, wx in ((0, 1 - fx), (1, fx)):
            np.add.at(points, (y0 + dy, x0 + dx), weight[inside] * wy * wx)
    sigma = spacing * rng.uniform(0.1, 0.26)
    frequency2 = np.fft.fftfreq(side)[:, None] ** 2 + np.fft.rfftfreq(side)[None, :] ** 2
    image = np.fft.irfft2(np.fft.rfft2(points) * np.exp(-2 * (np.pi * sigma) ** 2 * frequency2), s=(side, side))
    thickness = 1 + rng.uniform(0, 0.4) * smooth_field(rng, side, rng.uniform(60, 200))
    image = image / (image.max() + 1e-12) * thickness + rng.uniform(0, 0.5) * thickness
    return stretch(image if rng.random() < 0.7 else -image)


def phase_contrast(rng: np.random.Generator, side: int) -> Scene:
    """A weak amorphous phase object under a defocused lens: Thon rings, over a slow thickness."""
    defocus, decay, shift = rng.uniform(20, 1500), rng.uniform(2.0, 40.0), rng.uniform(0, np.pi / 2)
    grain = filtered_noise(rng, side, lambda f: np.sin(np.pi * defocus * f**2 + shift) * np.exp(-decay * f**2 * 4))
    return stretch(grain * rng.uniform(0.2, 1) + rng.uniform(0, 2) * smooth_field(rng, side, rng.uniform(40, 200)))


def thickness_fringes(rng: np.random.Generator, side: int) -> Scene:
    """A bent, wedge-shaped crystal in conventional diffraction contrast: bend contours and thickness fringes."""
    y, x = np.mgrid[0:side, 0:side] / side
    angle = rng.uniform(0, 2 * np.pi)
    bend = rng.uniform(0.3, 2) * smooth_field(rng, side, rng.uniform(30, 150))
    thickness = rng.uniform(2, 25) * (x * np.cos(angle) + y * np.sin(angle)) + bend
    deviation = rng.uniform(0.5, 4) * (smooth_field(rng, side, rng.uniform(60, 200)) + rng.uniform(-1, 1))
    effective = np.sqrt(1 + deviation**2)
    image = 1 - np.sin(np.pi * thickness * effective) ** 2 / effective**2
    if rng.random() < 0.5:  # dislocations cut the contours
        for _ in range(rng.integers(1, 12)):
            cy, cx, turn = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0, np.pi)
            across = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
            along = -(x - cx) * np.sin(turn) + (y - cy) * np.cos(turn)
            width = rng.uniform(1, 4) / side
            image -= rng.uniform(0.2, 0.8) * np.exp(
                -((across / width) ** 2) / 2 - (along / rng.uniform(0.02, 0.3)) ** 2
            )
    return stretch(image)


def membranes(rng: np.random.Generator, side: int) -> Scene:
    """Stained or frozen membranes: bilayers as level sets of random fields and as vesicles, in a grainy matrix."""
    y, x = np.mgrid[0:side, 0:side].astype(float)
    width = rng.uniform(1.2, 4.0)
    image = rng.uniform(0, 0.5) * smooth_field(rng, side, rng.uniform(1.5, 6)) + 0.3 * smooth_field(rng, side, 80)
    for _ in range(rng.integers(0, 3)):
        field = smooth_field(rng, side, rng.uniform(20, 80))
        slope = np.hypot(*np.gradient(field)) + 1e-3
        distance = np.abs(field - rng.uniform(-0.7, 0.7)) / slope
        image -= rng.uniform(0.5, 3) * np.exp(-((distance / width) ** 2))
    for _ in range(rng.integers(0, 14)):
        cy, cx, radius = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(8, side / 4)
        distance = np.abs(np.hypot(y - cy, (x - cx) * rng.uniform(0.7, 1.3)) - radius)
        leaflets = np.exp(-(((distance - width) / width) ** 2))
        image -= rng.uniform(0.5, 3) * leaflets
        if rng.random() < 0.3:
            image += rng.uniform(-1.5, 1.5) * (np.hypot(y - cy, x - cx) < radius - 2 * width)
    return stretch(image)


GENERATORS: dict[str, Generator] = {
    "atomic_columns": atomic_columns,
    "phase_contrast": phase_contrast,
    "thickness_fringes": thickness_fringes,
    "membranes": membranes,
}


def bank(seed: int, count: int, side: int) -> list[Scene]:
    """`count` scenes, the families in turn; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    generators = list(GENERATORS.values())
    return [generators[index % len(generators)](rng, side) for index in range(count)]
