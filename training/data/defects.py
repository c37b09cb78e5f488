"""What is wrong with crystals: atoms that are missing, foreign or out of place, and faults that run through them.

A network that has only seen perfect lattices fills a vacancy in. So the crystals it learns from are rich in what must
survive. Every defect is a function of a random generator and a crystal and returns another crystal; those of `POINT`
also take the share of columns to change.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from training.data.crystals import Crystal, draw_cell, grow
from training.data.drawing import Real, log_uniform, log_uniforms

POINT_SHARE = 0.5
"""Of crystals, those with point defects."""

EXTENDED_SHARE = 0.4
"""Of crystals, those with extended ones."""

_DENSITY = (0.005, 0.1)
"""Share of the columns of a crystal with point defects that have one; log-uniform."""

_POISSON_RATIO = 0.3


def with_defects(rng: np.random.Generator, crystal: Crystal) -> Crystal:
    """The crystal with point defects, extended ones, both, or none."""
    if rng.random() < EXTENDED_SHARE:
        for name in rng.choice(list(EXTENDED), int(rng.integers(1, 3)), replace=False):
            crystal = _noted(EXTENDED[name](rng, crystal), str(name))
    if rng.random() < POINT_SHARE:
        before = crystal
        kinds = rng.choice(list(POINT), int(rng.integers(1, 4)), replace=False)
        density = log_uniform(rng, *_DENSITY)
        for name in kinds:
            crystal = _noted(POINT[name](rng, crystal, density / len(kinds)), str(name))
        crystal = replace(crystal, odd=_changed(before, crystal))
    return crystal


def _changed(before: Crystal, after: Crystal) -> NDArray[np.bool_]:
    """Which columns differ from those before, or are new; point defects keep the order and append."""
    count = len(before.position)
    moved = (after.position[:count] != before.position).any(1)
    return np.append(
        moved | (after.brightness[:count] != before.brightness), np.ones(len(after.position) - count, bool)
    )


def _noted(crystal: Crystal, name: str) -> Crystal:
    return replace(crystal, defects=(*crystal.defects, name))


# Point defects


def _some(rng: np.random.Generator, crystal: Crystal, share: float) -> NDArray[np.intp]:
    """Indices of that share of the columns, of one at least."""
    count = len(crystal.position)
    return rng.choice(count, min(count, max(1, round(share * count))), replace=False)


def _directions(rng: np.random.Generator, count: int) -> Real:
    angle = rng.uniform(0, 2 * np.pi, count)
    return np.stack([np.sin(angle), np.cos(angle)], 1)


def missing(rng: np.random.Generator, crystal: Crystal, share: float) -> Crystal:
    """Columns that are empty, or occupied in part."""
    which, brightness = _some(rng, crystal, share), crystal.brightness.copy()
    brightness[which] *= np.where(rng.random(len(which)) < 0.6, 0, rng.random(len(which)))
    return replace(crystal, brightness=brightness)


def missing_clusters(rng: np.random.Generator, crystal: Crystal, share: float) -> Crystal:
    """Vacancies in groups."""
    radius = rng.uniform(1.1, 2.5) * crystal.spacing
    together = len(crystal.position) * np.pi * radius**2 / (2 * crystal.reach) ** 2
    seeds = crystal.position[_some(rng, crystal, share / max(together, 1))]
    away = crystal.position[:, None] - seeds
    gone = (np.square(away).sum(2) < radius**2).any(1)
    return replace(crystal, brightness=crystal.brightness * ~gone)


def substituted(rng: np.random.Generator, crystal: Crystal, share: float) -> Crystal:
    """Foreign atoms, 0.3 to 4 times as bright: of one species, or each of its own."""
    which, brightness = _some(rng, crystal, share), crystal.brightness.copy()
    species = 1 if rng.random() < 0.6 else len(which)
    brightness[which] *= log_uniforms(rng, 0.3, 4, species)
    return replace(crystal, brightness=brightness)


def added(rng: np.random.Generator, crystal: Crystal, share: float) -> Crystal:
    """Adatoms and interstitials: more atoms, beside the columns."""
    near = crystal.position[_some(rng, crystal, share)]
    beside = near + _directions(rng, len(near)) * rng.uniform(0.35, 0.75, (len(near), 1)) * crystal.spacing
    brightness = log_uniforms(rng, 0.2, 3, len(near))
    return replace(
        crystal,
        position=np.concatenate([crystal.position, beside]),
        brightness=np.concatenate([crystal.brightness, brightness * np.median(crystal.brightness)]),
    )


def displaced(rng: np.random.Generator, crystal: Crystal, share: float) -> Crystal:
    """Columns out of place."""
    which, position = _some(rng, crystal, share), crystal.position.copy()
    position[which] += _directions(rng, len(which)) * rng.uniform(0.1, 0.35, (len(which), 1)) * crystal.spacing
    return replace(crystal, position=position)


def split(rng: np.random.Generator, crystal: Crystal, share: float) -> Crystal:
    """Columns in two halves."""
    which, position, brightness = _some(rng, crystal, share), crystal.position.copy(), crystal.brightness.copy()
    half = _directions(rng, len(which)) * rng.uniform(0.12, 0.3) * crystal.spacing
    other = position[which] - half
    position[which] += half
    brightness[which] /= 2
    return replace(
        crystal,
        position=np.concatenate([position, other]),
        brightness=np.concatenate([brightness, brightness[which]]),
    )


# Extended defects


def _edge(rng: np.random.Generator, crystal: Crystal) -> Real:
    """One of the cell's edges, or their diagonal: a direction of dense rows."""
    a, b = crystal.edges
    return np.asarray((a, b, a + b)[int(rng.integers(3))], np.float64)


def _line(rng: np.random.Generator, crystal: Crystal) -> tuple[Real, Real]:
    """Distance (n,) of the columns from a line along dense rows that passes near the centre, and the line's normal."""
    along = _edge(rng, crystal) if rng.random() < 0.7 else _directions(rng, 1)[0]
    normal = np.array([-along[1], along[0]]) / np.hypot(*along)
    return (crystal.position - rng.uniform(-0.25, 0.25, 2) * crystal.reach) @ normal, normal


def dislocations(rng: np.random.Generator, crystal: Crystal) -> Crystal:
    """Edge dislocations, by the displacement field of an isotropic medium (Hirth and Lothe, 1982, eq. 3-45)."""
    moved = np.zeros_like(crystal.position)
    for _ in range(int(rng.integers(1, 5))):
        burgers = _edge(rng, crystal) * rng.choice([-1, 1])
        length = float(np.hypot(*burgers))
        along = burgers / length
        across = np.array([-along[1], along[0]])
        from_core = crystal.position - rng.uniform(-0.6, 0.6, 2) * crystal.reach
        x, y = from_core @ along, from_core @ across
        r2 = x**2 + y**2 + (0.2 * length) ** 2
        stiff = 1 - _POISSON_RATIO
        ux = np.arctan2(y, x) + x * y / (2 * stiff * r2)
        uy = -((1 - 2 * _POISSON_RATIO) / (4 * stiff) * np.log(r2 / length**2) + (x**2 - y**2) / (4 * stiff * r2))
        moved += length / (2 * np.pi) * (ux[:, None] * along + uy[:, None] * across)
    return replace(crystal, position=crystal.position + moved)


def fault(rng: np.random.Generator, crystal: Crystal) -> Crystal:
    """A stacking fault or antiphase boundary: beyond a line, or in a ribbon, the crystal is shifted."""
    distance, _ = _line(rng, crystal)
    beyond = distance > 0
    if rng.random() < 0.5:
        beyond &= distance < rng.uniform(1, 12) * crystal.spacing
    shift = np.array([(1 / 3, 1 / 3), (0.5, 0), (0, 0.5), (0.5, 0.5), rng.uniform(0, 1, 2)][int(rng.integers(5))])
    return replace(crystal, position=crystal.position + beyond[:, None] * (shift @ crystal.edges))


def twin(rng: np.random.Generator, crystal: Crystal) -> Crystal:
    """Beyond a line the crystal's mirror image."""
    distance, normal = _line(rng, crystal)
    if np.count_nonzero(distance > 0) > len(distance) / 2:  # the larger part is mirrored: it covers the smaller
        distance, normal = -distance, -normal
    near, mirrored = distance <= 0, distance < -0.25 * crystal.spacing
    image = crystal.position[mirrored] - 2 * distance[mirrored, None] * normal
    return replace(
        crystal,
        position=np.concatenate([crystal.position[near], image]),
        brightness=np.concatenate([crystal.brightness[near], crystal.brightness[mirrored]]),
    )


def grain(rng: np.random.Generator, crystal: Crystal) -> Crystal:
    """Beyond a line the same crystal, turned."""
    distance, normal = _line(rng, crystal)
    start = crystal.position[np.argmin(np.abs(distance))]
    other = grow(crystal.cell, crystal.spacing, rng.uniform(0, 2 * np.pi), rng.normal(0, 1, 2), crystal.reach)
    beyond = (other.position - start) @ normal > 0.25 * crystal.spacing
    return _replaced(crystal, distance > 0, other, beyond)


def free_edge(rng: np.random.Generator, crystal: Crystal) -> Crystal:
    """The crystal ends at a line with steps, each some rows high."""
    distance, normal = _line(rng, crystal)
    along = crystal.position @ np.array([normal[1], -normal[0]])
    for _ in range(int(rng.integers(0, 5))):
        row = crystal.spacing * rng.choice([0.5, 1, 1, 2, 4])
        distance = distance + row * rng.choice([-1, 1]) * (along > rng.uniform(-0.7, 0.7) * crystal.reach)
    inside = distance <= 0
    return replace(crystal, position=crystal.position[inside], brightness=crystal.brightness[inside])


def voids(rng: np.random.Generator, crystal: Crystal) -> Crystal:
    """Places where the crystal is thinner, or missing."""
    brightness = crystal.brightness
    for _ in range(int(rng.integers(1, 5))):
        inside = _ellipse(rng, crystal, crystal.position, rng.uniform(1.5, 8))
        brightness = brightness * np.where(inside, rng.choice([0.0, rng.uniform(0, 0.8)]), 1.0)
    return replace(crystal, brightness=brightness)


def inclusion(rng: np.random.Generator, crystal: Crystal) -> Crystal:
    """A second phase: inside an ellipse another crystal, or the same one of other brightness."""
    phase = crystal if rng.random() < 0.4 else None
    other = phase or grow(
        draw_cell(rng),
        crystal.spacing * rng.uniform(0.85, 1.3),
        rng.uniform(0, 2 * np.pi),
        rng.normal(0, 1, 2),
        crystal.reach,
    )
    other = replace(other, brightness=other.brightness * log_uniform(rng, 0.4, 2.5))
    state, size = rng.integers(2**32), rng.uniform(3, 20)
    here, there = (
        _ellipse(np.random.default_rng(state), crystal, position, size)
        for position in (crystal.position, other.position)
    )
    return _replaced(crystal, here, other, there)


def _ellipse(rng: np.random.Generator, crystal: Crystal, position: Real, size: float) -> NDArray[np.bool_]:
    """Which of `position` lie in an ellipse of about `size` spacings (less in a small scene) somewhere."""
    from_centre = position - rng.uniform(-0.6, 0.6, 2) * crystal.reach
    direction = _directions(rng, 1)[0]
    radii = min(size * crystal.spacing, 0.3 * crystal.reach) * np.array([1.0, rng.uniform(0.5, 1)])
    x, y = from_centre @ direction, from_centre @ np.array([-direction[1], direction[0]])
    return np.asarray((x / radii[0]) ** 2 + (y / radii[1]) ** 2 < 1)


def _replaced(crystal: Crystal, gone: NDArray[np.bool_], other: Crystal, taken: NDArray[np.bool_]) -> Crystal:
    return replace(
        crystal,
        position=np.concatenate([crystal.position[~gone], other.position[taken]]),
        brightness=np.concatenate([crystal.brightness[~gone], other.brightness[taken]]),
    )


POINT: dict[str, Callable[[np.random.Generator, Crystal, float], Crystal]] = {
    "missing": missing,
    "missing in clusters": missing_clusters,
    "substituted": substituted,
    "added": added,
    "displaced": displaced,
    "split": split,
}

EXTENDED: dict[str, Callable[[np.random.Generator, Crystal], Crystal]] = {
    "dislocations": dislocations,
    "fault": fault,
    "twin": twin,
    "grain": grain,
    "free edge": free_edge,
    "voids": voids,
    "inclusion": inclusion,
}
