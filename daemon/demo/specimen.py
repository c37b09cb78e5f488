"""A simulated specimen, and the counts that a camera records of it."""

from collections.abc import Sequence
from math import ceil, cos, pi, radians, sin, sqrt

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float32]

PIXEL_NM = 0.04
_WAVELENGTH_NM = 0.00251  # electrons of 200 keV
_LIMIT = 0.25  # information limit, cycles per pixel: 0.16 nm
_MARGIN = 32  # pixels computed and cut off on each side, because the FFT is periodic

# Lattice rows of gold seen down a zone axis: (direction in degrees, spacing in nm, weight).
_ZONE_110 = ((54.74, 0.2355, 1.0), (-54.74, 0.2355, 1.0), (0.0, 0.2039, 0.7))
_ZONE_100 = ((0.0, 0.2039, 1.0), (90.0, 0.2039, 1.0))
_ONE_ROW = ((0.0, 0.2355, 1.2),)


def scene(rng: np.random.Generator, side: int) -> Real:
    """One noiseless micrograph, (side, side) float32 in [0, 1], band-limited to about 2 px as optics do."""
    size = side + 2 * _MARGIN
    film = _carbon(rng, size)
    metal, rows, loss = _particles(rng, size)
    dark_field = rng.random() < 0.3
    image = _dark_field(film, metal, rows) if dark_field else _bright_field(film, metal, rows, loss, rng.uniform(7, 16))
    image = image[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    low, high = float(image.min()), float(image.max())
    return ((image - low) / (high - low)).astype(np.float32)


def expose(
    truth_scene: Real, dose: float, contrast: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint16], Real]:
    """Record a scene (H, W) in [0, 1] with `dose` mean counts per pixel → (counts uint16, expected counts float32).

    `contrast` in (0, 1] dilutes the scene with a uniform background: expected = dose (1 + contrast (x / mean(x) - 1)),
    so the mean is `dose` whatever the contrast. Counts are Poisson. Raises ValueError outside these ranges.
    """
    if not (dose > 0 and 0 < contrast <= 1):
        raise ValueError(f"dose must be positive and contrast in (0, 1], not {dose} and {contrast}")
    relative = truth_scene.astype(np.float64) / truth_scene.mean(dtype=np.float64)
    expected = dose * (1 + contrast * (relative - 1))
    counts = np.minimum(rng.poisson(expected), np.iinfo(np.uint16).max)
    return counts.astype(np.uint16), expected.astype(np.float32)


def _frequencies(size: int) -> Real:
    """Squared spatial frequency of a real FFT of (size, size), cycles² per pixel²: (size, size // 2 + 1)."""
    ky, kx = np.fft.fftfreq(size), np.fft.rfftfreq(size)
    return (ky[:, None] ** 2 + kx[None, :] ** 2).astype(np.float32)


def _carbon(rng: np.random.Generator, size: int) -> Real:
    """Projected density of a thin amorphous film, mean near 1: atomic disorder and a thickness that drifts."""
    k2 = _frequencies(size)
    white = np.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32))
    atoms = np.fft.irfft2(white * np.exp(-k2 / 0.2**2), s=(size, size))
    drift = np.fft.irfft2(white * np.exp(-k2 * (1.5 * 120) ** 2), s=(size, size))
    film: Real = (1 + 0.12 * atoms / atoms.std() + 0.25 * drift / drift.std()).astype(np.float32)
    return film


def _particles(rng: np.random.Generator, size: int) -> tuple[Real, Real, Real]:
    """Particles dropped until they cover about a third of the field, some onto others.

    Returns their thickness in nm, the lattice rows in it (nm, signed), and the amplitude each loses to diffraction.
    """
    metal, rows, loss = (np.zeros((size, size), np.float32) for _ in range(3))
    typical = rng.uniform(42, 78)
    covered = 0.0
    target = rng.uniform(0.28, 0.42) * size**2
    while covered < target:
        radius = float(np.clip(typical * rng.lognormal(0, 0.28), 26, 150))
        covered += pi * radius**2
        cy, cx = rng.uniform(0, size, 2)
        top, left = max(0, ceil(cy - 1.2 * radius)), max(0, ceil(cx - 1.2 * radius))
        bottom, right = min(size, int(cy + 1.2 * radius)), min(size, int(cx + 1.2 * radius))
        if bottom <= top or right <= left:
            continue
        y = (np.arange(top, bottom, dtype=np.float32) - np.float32(cy))[:, None]
        x = (np.arange(left, right, dtype=np.float32) - np.float32(cx))[None, :]
        here = np.s_[top:bottom, left:right]
        thickness = _crystal(rng, y, x, radius)
        metal[here] += thickness
        loss[here] += thickness * np.float32(rng.uniform(0.5, 1.5))
        if rng.random() < 0.85:  # the others are too far off any zone axis to show lattice rows
            rows[here] += np.minimum(thickness, 5) * _lattice(rng, y, x)
    return metal, rows, loss


def _crystal(rng: np.random.Generator, y: Real, x: Real, radius: float) -> Real:
    """Thickness in nm of one crystal at pixel offsets y (h, 1), x (1, w) from its centre: facets, rounded corners."""
    facets = int(rng.integers(5, 9))
    turn = rng.uniform(0, 2 * pi)
    sharpness = rng.uniform(10, 22) / radius
    total = np.zeros(np.broadcast_shapes(y.shape, x.shape), np.float32)
    for angle in turn + np.arange(facets) * 2 * pi / facets:
        reach = radius * rng.uniform(0.82, 1.0)
        total += np.exp(np.float32(sharpness) * (np.float32(cos(angle)) * x + np.float32(sin(angle)) * y - reach))
    depth = np.clip(-np.log(total + np.float32(1e-30)) / np.float32(sharpness * radius), 0, 1)
    height = rng.uniform(0.75, 1.15) * 2 * radius * PIXEL_NM
    profile: Real = (height * np.sqrt(depth * (2 - depth))).astype(np.float32)
    return profile


def _lattice(rng: np.random.Generator, y: Real, x: Real) -> Real:
    """Lattice rows at the same offsets, about -1 to 1: a single crystal, twin lamellae or a five-fold particle."""
    turn = rng.uniform(0, 2 * pi)
    habit = rng.choice(["110", "100", "row", "twin", "five"], p=[0.3, 0.12, 0.28, 0.15, 0.15])
    if habit == "five":
        sector = np.floor((np.arctan2(y, x) - turn) / (2 * pi / 5)).astype(np.int8) % 5
        return np.choose(sector, [_rows(_ZONE_110, turn + (k + 0.5) * 2 * pi / 5, y, x) for k in range(5)])
    if habit == "twin":
        normal = turn + radians(54.74)
        across = np.float32(cos(normal)) * x + np.float32(sin(normal)) * y
        lamella = np.floor(across / np.float32(rng.uniform(22, 60)) + np.float32(rng.random())) % 2 == 0
        mirrored = [(2 * 54.74 + 180 - angle, spacing, weight) for angle, spacing, weight in _ZONE_110]
        return np.where(lamella, _rows(_ZONE_110, turn, y, x), _rows(mirrored, turn, y, x))
    return _rows({"110": _ZONE_110, "100": _ZONE_100, "row": _ONE_ROW}[str(habit)], turn, y, x)


def _rows(family: Sequence[tuple[float, float, float]], turn: float, y: Real, x: Real) -> Real:
    """Sum of plane waves of a family of lattice rows turned by `turn` radians, divided by their total weight."""
    total = np.zeros(np.broadcast_shapes(y.shape, x.shape), np.float32)
    for angle, spacing, weight in family:
        direction, k = turn + radians(angle), 2 * pi * PIXEL_NM / spacing
        total += np.float32(weight) * np.cos(np.float32(k * cos(direction)) * x + np.float32(k * sin(direction)) * y)
    return total / np.float32(sqrt(sum(weight**2 for _, _, weight in family)) * 1.4)


def _bright_field(film: Real, metal: Real, rows: Real, loss: Real, defocus: float) -> Real:
    """Coherent image: the exit wave, weakened and delayed, propagated by `defocus` nm."""
    phase = 0.13 * film + 0.06 * metal + 0.055 * rows
    wave = np.exp(-0.08 * film - 0.06 * loss + 1j * phase).astype(np.complex64)
    k = np.fft.fftfreq(len(film)).astype(np.float32)
    k2 = k[:, None] ** 2 + k[None, :] ** 2
    bend = pi * _WAVELENGTH_NM * defocus / PIXEL_NM**2
    transfer = np.exp(1j * np.float32(bend) * k2 - (k2 / np.float32(_LIMIT**2)) ** 2).astype(np.complex64)
    wave = np.fft.ifft2(np.fft.fft2(wave) * transfer)
    return (wave.real**2 + wave.imag**2).astype(np.float32)


def _dark_field(film: Real, metal: Real, rows: Real) -> Real:
    """Incoherent image: scattering to high angles is bright, blurred by the probe."""
    mass = 1.5 * film + metal + 0.4 * rows
    probe = np.exp(-_frequencies(len(film)) / np.float32((0.8 * _LIMIT) ** 2))
    return np.fft.irfft2(np.fft.rfft2(mass) * probe, s=film.shape).astype(np.float32)
