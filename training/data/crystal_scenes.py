"""Crystals as a microscope shows them, and atoms without a crystal: families of simulated scenes to train on.

Contrast is incoherent (`atomic_columns`) or that of a few beams (`lattice_fringes`); both take their crystals from
`crystals` and their faults from `defects`. The specimen is a wedge, bends, drifts under the scan, is partly covered.

Each family returns a scene, and an image of the places that a network must not smooth away: 1 at each point defect or
single atom, falling to 0.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from training.data.crystals import Crystal, draw_perfect
from training.data.defects import with_defects
from training.data.drawing import Real, Scene, filtered_noise, log_uniform, log_uniforms, smooth_field, splat, stretch

MARGIN = 20
"""Pixels drawn beyond every border and cut off: columns outside reach in, and nothing comes round from the far side."""

_SHARPEST = 0.7
"""No column is narrower than this σ, pixels: no optics, and no sampling, would show it."""

SITE = 0.35
"""σ of the Gaussian that marks a defect's place, over the distance of nearest columns."""


def atomic_columns(rng: np.random.Generator, side: int) -> tuple[Scene, Scene]:
    """A crystal down a zone axis in incoherent contrast, bright or dark, on the haze of its own thickness."""
    crystal = draw(rng, side)
    width = max(_SHARPEST, crystal.spacing * rng.uniform(0.08, 0.3))
    haze, far = rng.uniform(0, 0.6), crystal.spacing * rng.uniform(1.2, 3)
    image = finished(
        rng,
        image_of(
            crystal,
            side,
            lambda f2: (1 - haze) * np.exp(-2 * np.pi**2 * width**2 * f2) + haze * np.exp(-2 * np.pi**2 * far**2 * f2),
            jitter=rng.normal(0, rng.choice([0.0, rng.uniform(0.03, 0.3)]), side + 2 * MARGIN),
        ),
    )
    return image, places(crystal, side)


def lattice_fringes(rng: np.random.Generator, side: int) -> tuple[Scene, Scene]:
    """A crystal in phase contrast: a lens of some defocus lets few beams and their harmonics through."""
    crystal = draw(rng, side)
    defocus, shift = crystal.spacing**2 * rng.uniform(0, 1.2), rng.uniform(0, np.pi / 2)
    cutoff = min(rng.uniform(1.25, 3.5) / crystal.spacing, 0.3)
    image = finished(
        rng,
        image_of(crystal, side, lambda f2: np.sin(np.pi * defocus * f2 + shift) * np.exp(-((f2 / cutoff**2) ** 2))),
    )
    return image, places(crystal, side)


def single_atoms(rng: np.random.Generator, side: int) -> tuple[Scene, Scene]:
    """Single atoms, pairs and clusters of some species on an amorphous film; no lattice at all."""
    width = log_uniform(rng, 0.8, 4.0)
    count = int(log_uniform(rng, 3, 200) * (side / 320) ** 2) + 1
    position = rng.uniform(0, side, (count, 2))
    if rng.random() < 0.5:  # some have neighbours
        near = position[rng.random(count) < rng.uniform(0.1, 0.8)]
        for _ in range(int(rng.integers(1, 5))):
            position = np.concatenate([position, near + rng.normal(0, rng.uniform(2, 4) * width, near.shape)])
    species = log_uniforms(rng, 0.2, 1, 3)
    brightness = species[rng.integers(3, size=len(position))] * rng.uniform(0.9, 1.1, len(position))
    f2 = np.fft.fftfreq(side)[:, None] ** 2 + np.fft.rfftfreq(side)[None, :] ** 2
    points = np.fft.rfft2(splat(side, position, brightness)) * np.exp(-2 * (np.pi * width) ** 2 * f2)
    atoms = np.fft.irfft2(points, s=(side, side)) * 2 * np.pi * width**2
    grain, coarse = rng.uniform(1.5, 8), rng.uniform(40, 200)
    film = log_uniform(rng, 0.01, 0.25) * smooth_field(rng, side, grain)
    film += rng.uniform(0, 0.3) * smooth_field(rng, side, coarse)
    return stretch(_signed(rng, atoms + film)), _marked(side, position, width, 0)


def places(crystal: Crystal, side: int) -> Scene:
    """Where the point defects of a crystal are, as an image (side, side) in [0, 1]."""
    odd = np.zeros(len(crystal.position), bool) if crystal.odd is None else crystal.odd
    return _marked(side, crystal.position[odd] + side / 2, SITE * crystal.spacing, MARGIN)


def _marked(side: int, position: Real, width: float, margin: int) -> Scene:
    canvas = side + 2 * margin
    f2 = np.fft.fftfreq(canvas)[:, None] ** 2 + np.fft.rfftfreq(canvas)[None, :] ** 2
    points = np.fft.rfft2(splat(canvas, position + margin, np.ones(len(position))))
    marks = np.fft.irfft2(points * np.exp(-2 * (np.pi * width) ** 2 * f2), s=(canvas, canvas)) * 2 * np.pi * width**2
    return np.asarray(marks[margin : canvas - margin, margin : canvas - margin].clip(0, 1), np.float32)


def draw(rng: np.random.Generator, side: int) -> Crystal:
    """A crystal of any kind, with defects or without, its columns not quite alike, bent and drifting."""
    crystal = with_defects(rng, draw_perfect(rng, 0.75 * side + MARGIN))
    count = len(crystal.position)
    unlike = rng.choice([0.0, rng.uniform(0, 0.12)])
    waves = rng.uniform(0.3, 1.5, (2, 2)) / side * rng.choice([-1, 1], (2, 2))
    bent = np.sin(2 * np.pi * (crystal.position @ waves + rng.random(2))) * rng.uniform(0, 0.4, 2) * crystal.spacing
    rows = crystal.position[:, :1] / side
    drift = rows * rng.normal(0, 0.02, 2) * side + rows**2 * rng.normal(0, 0.01, 2) * side
    out_of_place = rng.normal(0, rng.uniform(0, 0.03) * crystal.spacing, (count, 2))
    thickness = 1 + rng.uniform(-0.8, 0.8) * (crystal.position @ rng.normal(0, 0.7, 2)) / side
    return replace(
        crystal,
        position=crystal.position + bent + drift + out_of_place,
        brightness=crystal.brightness * np.maximum(thickness, 0.05) * rng.normal(1, unlike, count).clip(0),
    )


def image_of(crystal: Crystal, side: int, transfer: Callable[[Real], Real], jitter: Real | None = None) -> Real:
    """Every column through a transfer function of squared spatial frequency (cycles per pixel)² → (side, side).

    `jitter` (side + 2 `MARGIN`,): how far each scan line is out of place, in pixels.
    """
    canvas = side + 2 * MARGIN
    fy, fx = np.fft.fftfreq(canvas)[:, None], np.fft.rfftfreq(canvas)[None, :]
    points = splat(canvas, crystal.position + canvas / 2, crystal.brightness)
    lines = np.fft.ifft(np.fft.rfft2(points) * transfer(fy**2 + fx**2), axis=0)
    if jitter is not None:
        lines = lines * np.exp(-2j * np.pi * fx * jitter[:, None])
    image: Real = np.fft.irfft(lines, canvas, axis=1)
    return image[MARGIN:-MARGIN, MARGIN:-MARGIN]


def finished(rng: np.random.Generator, image: Real) -> Scene:
    """Slow changes of brightness, a support, an amorphous layer over all or part, and either sign."""
    side = len(image)
    image = image / (np.ptp(image) + 1e-12)
    slow = smooth_field(rng, side, rng.uniform(60, 200))
    image = image * (1 + rng.uniform(0, 0.3) * slow.clip(-2, 2)) + rng.uniform(0, 0.15) * slow
    if rng.random() < 0.35:
        grain = rng.uniform(1.5, 4)
        layer = filtered_noise(rng, side, lambda f: np.exp(-2 * (np.pi * grain * f) ** 2))
        covered = 1 / (1 + np.exp(-rng.uniform(2, 20) * (slow + rng.uniform(-1, 1.5))))
        image = image + log_uniform(rng, 0.01, 0.12) * covered * (layer + rng.uniform(0, 2))
    return stretch(_signed(rng, image))


def _signed(rng: np.random.Generator, image: Real) -> Real:
    return image if rng.random() < 0.7 else -image
