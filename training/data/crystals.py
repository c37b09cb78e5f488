"""Perfect crystals seen down a zone axis: projected cells of many kinds, and the columns of atoms that repeat them.

Positions are (row, column) in pixels from the centre of the scene; brightness is a column's integrated intensity.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.drawing import Real, log_uniform

_SPACINGS = (4.0, 30.0)
"""Distance of nearest columns, pixels; log-uniform."""

_Sites = tuple[tuple[float, float, int], ...]

CELLS: dict[str, tuple[float, float, _Sites]] = {
    "square": (90, 1, ((0, 0, 0),)),
    "hexagonal": (60, 1, ((0, 0, 0),)),
    "oblique": (74, 1.3, ((0, 0, 0),)),
    "honeycomb": (60, 1, ((0, 0, 0), (1 / 3, 1 / 3, 0))),
    "two-layer honeycomb": (60, 1, ((0, 0, 0), (1 / 3, 1 / 3, 1))),
    "fcc [110]": (90, 2**0.5, ((0, 0, 0), (0.5, 0.5, 0))),
    "dumbbells [110]": (90, 2**-0.5, ((0, 0, 0), (0.25, 0, 1), (0.5, 0.5, 0), (0.75, 0.5, 1))),
    "rock salt [100]": (90, 1, ((0, 0, 0), (0.5, 0.5, 1))),
    "perovskite [100]": (90, 1, ((0, 0, 0), (0.5, 0.5, 1), (0.5, 0, 2), (0, 0.5, 2))),
    "perovskite [110]": (90, 2**0.5, ((0, 0, 0), (0, 0.5, 1), (0.5, 0.5, 2))),
    "layers": (90, 2.3, ((0, 0, 0), (0.5, 0.36, 1), (0.5, 0.64, 1))),
}
"""Angle between a cell's edges in degrees, length of the second over the first, and its columns: place in fractions of
both edges, species."""


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """`edges` (2, 2), a row each, where nearest columns are 1 apart; `sites` (k, 2) in fractions of them."""

    edges: Real
    sites: Real
    brightness: Real
    """(k,), at most 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Crystal:
    """Columns of atoms, with what defects have made of them.

    `position` (n, 2), `brightness` (n,); `edges` (2, 2) of the perfect cell in pixels, a row each; `spacing` of nearest
    columns and `reach`, half of the side of the square that the columns fill, in pixels.
    """

    position: Real
    brightness: Real
    cell: Cell
    edges: Real
    spacing: float
    reach: float
    defects: tuple[str, ...] = ()
    """Names of the defects that it has."""
    odd: NDArray[np.bool_] | None = None
    """(n,) which columns have a point defect; None: none."""


def draw_cell(rng: np.random.Generator) -> Cell:
    """A cell of any kind, whose species differ in brightness by any factor down to 0.15."""
    kind = str(rng.choice(list(CELLS)))
    angle, ratio, columns = CELLS[kind]
    if kind == "oblique":
        angle, ratio = rng.uniform(62, 88), rng.uniform(1, 1.5)
    turn = np.radians(angle)
    edges = np.array([[1.0, 0.0], [ratio * np.cos(turn), ratio * np.sin(turn)]])
    sites = np.array([column[:2] for column in columns])
    species = np.array([column[2] for column in columns])
    shift = np.stack(np.meshgrid(*2 * [np.arange(-2, 3)]), -1).reshape(-1, 2)
    apart = (sites[:, None, None] - sites[None, :, None] + shift) @ edges
    distance = np.hypot(apart[..., 0], apart[..., 1])
    relative = np.array([1.0, *rng.uniform(0.15, 1, 2)])
    return Cell(edges / distance[distance > 1e-6].min(), sites, relative[species])


def grow(cell: Cell, spacing: float, turn: float, origin: Real, reach: float) -> Crystal:
    """The perfect crystal with a cell's corner at `origin`, turned by `turn` (rad): every column within `reach`."""
    cos, sin = np.cos(turn), np.sin(turn)
    edges = spacing * cell.edges @ np.array([[cos, sin], [-sin, cos]])
    furthest = np.linalg.norm(np.linalg.inv(edges), axis=0) * (reach + np.abs(origin).max()) * 2**0.5
    i, j = np.meshgrid(*(np.arange(-np.ceil(n) - 1, np.ceil(n) + 2) for n in furthest))
    corner = np.stack([i.ravel(), j.ravel()], 1)
    position = ((corner[:, None] + cell.sites).reshape(-1, 2)) @ edges + origin
    brightness = np.tile(cell.brightness, len(corner))
    near = (np.abs(position) < reach).all(1)
    return Crystal(position[near], brightness[near], cell, edges, spacing, reach)


def draw_perfect(rng: np.random.Generator, reach: float) -> Crystal:
    """A crystal of any kind and spacing."""
    spacing = log_uniform(rng, *_SPACINGS)
    return grow(draw_cell(rng), spacing, rng.uniform(0, 2 * np.pi), rng.uniform(-spacing, spacing, 2), reach)
