"""Specimens with one place that is unlike the others, and the means to measure how much so; the truth is known.

None of this is what is trained on (`training.data.defects`): every lattice here is perfect but for the one defect, and
made by other code.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daemon.micrograph import Image
from training.data.drawing import smooth_field
from training.evaluation.guard import Real

_PLACES = 40
"""A defect is compared with no more places than this, the nearest ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Specimen:
    """`scene` (side, side) in [0, 1] with a defect; `profiles` (places, side * side), each sums to 1."""

    scene: Image
    profiles: Real
    """Where brightness is measured: first in the defect's places, then in those that it is compared with."""
    marked: int = 1
    """Number of the defect's places."""
    normal: Real | None = None
    """(2,) unit vector: the direction in which a row of atoms could be shifted."""

    def contrast(self, image: Image) -> float:
        """Mean brightness of the compared places less that of the defect's, in the image's units."""
        brightness = self.profiles @ image.ravel().astype(np.float64)
        return float(brightness[self.marked :].mean() - brightness[: self.marked].mean())


Draw = Callable[[np.random.Generator, int], Specimen]
"""From a random generator and a side in pixels."""


def lattice(rng: np.random.Generator, side: int, spacing: float = 9.0, width: float = 1.9) -> Specimen:
    """A hexagonal sheet of Gaussian atoms (σ `width` px) at `spacing` px, turned and shifted at random; one missing."""
    site, _, _ = _sites(rng, side, spacing, np.pi / 3)
    rows, columns = _gaussians(site, side, width)
    scene = np.einsum("sy,sx->yx", rows[1:], columns[1:])
    inner = _inner(site, side, spacing)
    return Specimen(_graded(scene), _profiles(rows[inner], columns[inner]))


def substituted(factor: float, spacing: float = 8.0, width: float = 1.6) -> Draw:
    """A square lattice, one atom of which is `factor` times as bright."""

    def draw(rng: np.random.Generator, side: int) -> Specimen:
        site, _, _ = _sites(rng, side, spacing, np.pi / 2)
        rows, columns = _gaussians(site, side, width)
        inner = np.flatnonzero(_inner(site, side, spacing))[:_PLACES]
        brightness = np.ones(len(site))
        brightness[0] = factor
        return Specimen(_graded((rows * brightness[:, None]).T @ columns), _profiles(rows[inner], columns[inner]))

    return draw


def adatom(rng: np.random.Generator, side: int, spacing: float = 11.0, width: float = 1.7) -> Specimen:
    """A hexagonal sheet with one more atom, in a hollow between three others; compared with the empty hollows."""
    site, a, b = _sites(rng, side, spacing, np.pi / 3)
    hollow = site + (a + b) / 3
    everything = np.concatenate([site, hollow[:1]])
    rows, columns = _gaussians(everything, side, width)
    inner = np.flatnonzero(_inner(hollow, side, spacing))[:_PLACES]
    return Specimen(_graded(rows.T @ columns), _profiles(*_gaussians(hollow[inner], side, width)))


def single_atom(grain: float, width: float = 1.9) -> Draw:
    """One atom, twice as bright as the support that it lies on; `grain`: rms of the support's own texture, of 1.

    Compared with places of the support all around.
    """

    def draw(rng: np.random.Generator, side: int) -> Specimen:
        y, x = np.meshgrid(*2 * [np.arange(1.5, side / 8 - 1) * 8], indexing="ij")
        atom = side / 2 + rng.uniform(-4, 4, 2)
        place = np.stack([y.ravel(), x.ravel()], 1)
        place = place[np.argsort(np.hypot(*(place - atom).T))]
        place = np.concatenate([atom[None], place[np.hypot(*(place - atom).T) > 6 * width][:_PLACES]])
        rows, columns = _gaussians(place, side, width)
        support = 0.5 + 0.5 * grain * smooth_field(rng, side, 3.0)
        scene = np.clip(support + 0.5 * np.outer(rows[0], columns[0]), 0, 1)
        return Specimen(scene.astype(np.float32), _profiles(rows, columns))

    return draw


def edge(step: bool, spacing: float = 9.5, width: float = 1.8) -> Draw:
    """A square lattice that ends; its last row is compared with the first that is not there.

    With a `step` one half of the edge is a row further out, and its last two atoms are what is measured.
    """

    def draw(rng: np.random.Generator, side: int) -> Specimen:
        site, a, b = _sites(rng, side, spacing, np.pi / 2)
        column, row = np.round((site - site[0]) @ np.linalg.inv(np.stack([a, b]))).astype(int).T
        last = np.where(step & (column <= 0), 1, 0)
        inner = _inner(site, side, spacing)
        here = inner & (row == last) & (column <= 0) & (column > -2) if step else inner & (row == 0)
        beyond = inner & (row == last + 1) & (not step or (column <= 0) | (column > 2))
        atoms = _gaussians(site[row <= last], side, width)
        measured = _gaussians(np.concatenate([site[here], site[beyond]]), side, width)
        return Specimen(_graded(atoms[0].T @ atoms[1]), _profiles(*measured), int(here.sum()), b / spacing)

    return draw


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """A lattice with some atoms missing and some twice as bright: `scene`, and `perfect` without that, (side, side)."""

    scene: Image
    perfect: Image
    rows: Real
    columns: Real
    """(sites, side) each, summing to 1: the product of the two is an atom's own shape."""
    defect: Real
    """(sites,): -1 where an atom is missing, 1 where it is twice as bright, else 0."""
    atom: float
    """What `brightness` gives for one whole atom of the scene."""

    def brightness(self, image: Image) -> Real:
        """(sites,): how bright an image is there, in its own units."""
        return np.asarray(((self.rows @ image) * self.columns).sum(1))

    def variance(self, image: Image) -> Real:
        """(sites,): of `brightness`, where the image is the variance of its pixels."""
        return np.asarray(((self.rows**2 @ image) * self.columns**2).sum(1))


def sheet(rng: np.random.Generator, side: int, each: int = 2, spacing: float = 9.0, width: float = 1.8) -> Sheet:
    """A square or hexagonal lattice with `each` of both defects, at sites chosen at random."""
    site, _, _ = _sites(rng, side, spacing, float(rng.choice([np.pi / 2, np.pi / 3])))
    site = site[np.argsort(~_inner(site, side, spacing), kind="stable")]
    inner = int(_inner(site, side, spacing).sum())
    rows, columns = _gaussians(site, side, width)
    defect = np.zeros(inner)
    defect[rng.choice(inner, 2 * each, replace=False)] = np.repeat([-1.0, 1.0], each)
    perfect = rows.T @ columns
    scene = perfect + (rows[:inner] * defect[:, None]).T @ columns[:inner]
    top = scene.max()
    graded = [np.asarray(0.1 + 0.9 * image / top, np.float32) for image in (scene, perfect)]
    shapes = [part[:inner] / part[:inner].sum(1, keepdims=True) for part in (rows, columns)]
    atom = 0.9 / top * float(np.prod([shape[0] @ part[0] for shape, part in zip(shapes, (rows, columns), strict=True)]))
    return Sheet(graded[0], graded[1], shapes[0], shapes[1], defect, atom)


def _sites(rng: np.random.Generator, side: int, spacing: float, angle: float) -> tuple[Real, Real, Real]:
    """Sites (n, 2) of a lattice turned and shifted at random, from the centre outwards, and its two vectors."""
    turn = rng.uniform(0, 2 * np.pi)
    a = spacing * np.array([np.cos(turn), np.sin(turn)])
    b = spacing * np.array([np.cos(turn + angle), np.sin(turn + angle)])
    reach = np.arange(-2 * side // int(spacing), 2 * side // int(spacing) + 1)
    i, j = (grid.ravel()[:, None] for grid in np.meshgrid(reach, reach))
    site = i * a + j * b + side / 2 + rng.uniform(-0.5, 0.5, 2) * spacing
    site = site[((site > -spacing) & (site < side + spacing)).all(1)]
    return site[np.argsort(np.hypot(*(site - side / 2).T))], a, b


def _inner(site: Real, side: int, spacing: float) -> NDArray[np.bool_]:
    return np.asarray(((site > 1.5 * spacing) & (site < side - 1.5 * spacing)).all(1))


def _gaussians(site: Real, side: int, width: float) -> tuple[Real, Real]:
    """(n, side) each: an atom's profile along rows and along columns, 1 at its centre."""
    pixel = np.arange(side)
    rows, columns = (np.exp(-0.5 * ((pixel - site[:, axis, None]) / width) ** 2) for axis in (0, 1))
    return rows, columns


def _graded(scene: Real) -> Image:
    return np.asarray(0.1 + 0.9 * scene / scene.max(), np.float32)


def _profiles(rows: Real, columns: Real) -> Real:
    profiles = np.einsum("sy,sx->syx", rows, columns).reshape(len(rows), -1)
    return np.asarray(profiles / profiles.sum(1, keepdims=True))
