"""Simulated noiseless micrographs: kinds of specimen that freely licensed data lack.

Every generator is a pure function of a random generator and a side length and returns (side, side) float32 in
[0, 1]. Those of `TRAINING` are trained on. Those of `HELD_OUT`, the simulated camera of the demo among them, show
other kinds of specimen and are never trained on. (They were looked at, though, while the network was developed: the
picture of the demo shows one. Figures measured on them say how training carries over to other specimens.)
"""

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.demo import specimen
from training.data.crystal_scenes import atomic_columns, lattice_fringes, single_atoms
from training.data.drawing import Scene, filtered_noise, smooth_field, splat, stretch

Generator = Callable[[np.random.Generator, int], Scene]


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


def interference(rng: np.random.Generator, side: int) -> Scene:
    """Fringes of an off-axis hologram, or of moiré: waves that an object bends, shifts and makes fainter."""
    y, x = np.mgrid[0:side, 0:side].astype(float)
    image = rng.uniform(0, 0.3) * smooth_field(rng, side, rng.uniform(20, 120))
    border = smooth_field(rng, side, rng.uniform(15, 80)) - rng.uniform(-1, 1.5)
    inside = 1 / (1 + np.exp(-np.clip(border * rng.uniform(2, 30), -50, 50)))
    for _ in range(rng.integers(1, 3)):
        angle, period = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(2.6), np.log(24)))
        phase = 2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period
        phase += rng.uniform(0, 3) * smooth_field(rng, side, rng.uniform(30, 150)) + rng.uniform(0, 8) * inside
        visible = rng.uniform(0.1, 1) * (1 - rng.uniform(0, 1) * inside)
        image += visible * np.cos(phase)
    return stretch(image * (1 - rng.uniform(0, 0.7) * inside))


# Held out


def grains(rng: np.random.Generator, side: int) -> Scene:
    """A thin polycrystal: lattice fringes that turn from grain to grain, a second layer below, moiré between them."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    image = np.ones((side, side), np.float32)
    for depth in range(int(rng.integers(1, 3))):
        size = rng.uniform(35, 130)
        number = max(3, int((side / size) ** 2))
        seeds = rng.uniform(0, side, (number, 2)).astype(np.float32)
        nearest = np.full((side, side), np.inf, np.float32)
        second = nearest.copy()
        label = np.zeros((side, side), np.intp)
        for index, (row, column) in enumerate(seeds):
            distance = np.hypot(y - row, x - column)
            second = np.minimum(second, np.maximum(nearest, distance))
            label[distance < nearest] = index
            np.minimum(nearest, distance, out=nearest)
        angle, period = rng.uniform(0, np.pi, number), rng.uniform(4, 9) * rng.choice([1.0, 1.155], number)
        crossed = rng.choice([np.pi / 2, 1.231, 0.0], number)  # two sets of rows, or one
        fringes = np.zeros((side, side), np.float32)
        for turn in (angle, angle + crossed):
            ky, kx = (2 * np.pi / period * np.sin(turn)).astype(np.float32), (2 * np.pi / period * np.cos(turn))
            fringes += np.cos(ky[label] * y + kx.astype(np.float32)[label] * x + rng.uniform(0, 2 * np.pi))
        visible = (rng.random(number) * (rng.random(number) < 0.75)).astype(np.float32)[label]
        grey = rng.uniform(0.55, 1.0, number).astype(np.float32)[label]
        edge = np.exp(-(((second - nearest) / rng.uniform(1.5, 5)) ** 2))
        layer = grey * (1 + rng.uniform(0.1, 0.25) * visible * fringes) - rng.uniform(-0.1, 0.3) * edge
        image *= layer if depth == 0 else 0.4 + 0.6 * layer
    return stretch(image + rng.uniform(0, 0.03) * smooth_field(rng, side, rng.uniform(1.5, 4)))


def sheet_with_adatoms(rng: np.random.Generator, side: int) -> Scene:
    """A honeycomb sheet one layer thick in dark field: vacancies, single heavy atoms, dirt, sometimes a hole."""
    bond, turn = rng.uniform(5, 14), rng.uniform(0, 2 * np.pi)
    directions = turn + np.array([0, np.pi / 3])
    cell = np.sqrt(3) * bond * np.stack([np.sin(directions), np.cos(directions)], 1)
    reach = int(1.5 * side / bond) + 2
    i, j = np.meshgrid(np.arange(-reach, reach), np.arange(-reach, reach))
    first = np.stack([i.ravel(), j.ravel()], 1) @ cell + side / 2 + rng.uniform(0, bond, 2)
    near = np.all((first > -2 * bond) & (first < side + 2 * bond), axis=1)
    first = first[near]
    second, hollow = first + cell.sum(0) / 3, first + cell.sum(0) * 2 / 3
    position = np.concatenate([first, second])
    weight = np.repeat([1.0, rng.choice([1.0, rng.uniform(0.15, 0.6)])], len(first))
    weight *= rng.random(len(weight)) > rng.choice([0.002, 0.01, 0.03])
    heavy = np.concatenate([first, second, hollow])
    heavy = heavy[rng.random(len(heavy)) < rng.uniform(0.5, 12) / len(heavy) * (side / 100) ** 2]
    position = np.concatenate([position + rng.normal(0, 0.02 * bond, position.shape), heavy])
    weight = np.concatenate([weight, rng.uniform(1.5, 4, len(heavy))])
    dirt = np.maximum(smooth_field(rng, side, rng.uniform(25, 90)) - rng.uniform(0.2, 1.5), 0)
    dirt *= 1 + 0.3 * smooth_field(rng, side, rng.uniform(1.5, 3))
    field = smooth_field(rng, side, rng.uniform(40, 120))
    if rng.random() < 0.35:
        row, column = np.clip(position.round().astype(int), 0, side - 1).T
        weight = weight * (field[row, column] < rng.uniform(0.9, 1.8))
    core, tail = bond * rng.uniform(0.16, 0.3), bond * rng.uniform(0.6, 1.0)
    halo = rng.uniform(0, 0.4)
    points = splat(side, position, weight)
    frequency2 = np.fft.fftfreq(side)[:, None] ** 2 + np.fft.rfftfreq(side)[None, :] ** 2
    probe = sum(part * np.exp(-2 * (np.pi * s) ** 2 * frequency2) for part, s in ((1 - halo, core), (halo, tail)))
    atoms = np.fft.irfft2(np.fft.rfft2(points) * probe, s=(side, side)) * 2 * np.pi * core**2
    return stretch(atoms + rng.uniform(0.1, 1.2) * dirt + rng.uniform(0, 0.1) * smooth_field(rng, side, 100))


def capsids(rng: np.random.Generator, side: int) -> Scene:
    """Virus-like particles in ice, out of focus: icosahedral shells of subunits, full or empty, each turned at will."""
    margin = 48
    size = side + 2 * margin
    golden = (1 + np.sqrt(5)) / 2
    corners = np.array([[0, s, t * golden] for s in (-1, 1) for t in (-1, 1)])
    corners = np.concatenate([np.roll(corners, shift, axis=1) for shift in range(3)])
    distance = np.linalg.norm(corners[:, None] - corners[None], axis=2)
    pairs = [(corners[a] + corners[b]) for a in range(12) for b in range(a) if distance[a, b] < 2.1]
    threefold = [
        corners[a] + corners[b] + corners[c]
        for a in range(12)
        for b in range(a)
        for c in range(b)
        if max(distance[a, b], distance[a, c], distance[b, c]) < 2.1
    ]
    shell = np.concatenate([corners, np.array(pairs), np.array(threefold)])
    shell /= np.linalg.norm(shell, axis=1)[:, None]
    radius = rng.uniform(16, 60)
    weight = np.repeat([rng.uniform(0.5, 2), 1.0, rng.uniform(0.2, 1.2)], [12, len(pairs), len(threefold)])
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    mass = np.zeros((size, size))
    centres: list[NDArray[np.float64]] = []
    for _ in range(int(rng.uniform(0.5, 1.5) * (size / (2.4 * radius)) ** 2) + 1):
        centre = rng.uniform(0, size, 2)
        if any(np.hypot(*(centre - other)) < 2.1 * radius for other in centres):
            continue
        centres.append(centre)
        turned, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        mass += splat(size, (radius * shell @ turned)[:, :2] + centre, weight) / len(shell)
        if rng.random() < 0.7:  # the genome
            inside = np.maximum(1 - ((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (0.8 * radius) ** 2, 0)
            mass += rng.uniform(0.3, 1.2) * np.sqrt(inside) / (2 * radius**2)
    frequency2 = np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size)[None, :] ** 2
    blob = radius * rng.uniform(0.07, 0.16)
    ice = filtered_noise(rng, size, lambda f: np.exp(-((4 * f) ** 2)))
    phase = mass * radius**2 + rng.uniform(0.01, 0.15) * ice + rng.uniform(0, 0.3) * smooth_field(rng, size, 150)
    spread, defocus = np.exp(-2 * (np.pi * blob) ** 2 * frequency2), rng.uniform(20, 250)
    lens = np.sin(np.pi * defocus * frequency2 + rng.uniform(0.1, 0.6)) * np.exp(-rng.uniform(15, 60) * frequency2)
    image = np.fft.irfft2(np.fft.rfft2(phase) * (0.2 + 0.8 * spread) * lens, s=(size, size))
    return stretch(-image[margin:-margin, margin:-margin])


MARKED: dict[str, Callable[[np.random.Generator, int], tuple[Scene, Scene]]] = {
    "atomic_columns": atomic_columns,
    "lattice_fringes": lattice_fringes,
    "single_atoms": single_atoms,
}
"""Families that also mark the places of their defects or atoms."""


def _image_of(marked: Callable[[np.random.Generator, int], tuple[Scene, Scene]]) -> Generator:
    return lambda rng, side: marked(rng, side)[0]


TRAINING: dict[str, Generator] = {
    **{name: _image_of(marked) for name, marked in MARKED.items()},
    "phase_contrast": phase_contrast,
    "thickness_fringes": thickness_fringes,
    "membranes": membranes,
    "interference": interference,
}

SHARES: dict[str, int] = {
    "atomic_columns": 3,
    "lattice_fringes": 2,
    "single_atoms": 1,
    "phase_contrast": 2,
    "thickness_fringes": 2,
    "membranes": 2,
    "interference": 2,
}
"""Of the families to train on, in parts of their sum: five in fourteen scenes show a lattice."""

HELD_OUT: dict[str, Generator] = {
    "nanoparticles": specimen.scene,
    "grains": grains,
    "sheet_with_adatoms": sheet_with_adatoms,
    "capsids": capsids,
}
"""To measure on; nothing that trains or chooses checkpoints may look at these."""


def bank(seed: int, count: int, side: int, families: Mapping[str, Generator] = TRAINING) -> list[Scene]:
    """`count` scenes, the families in turn by their `SHARES`; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    return [families[name](rng, side) for name in islice(turns(families), count)]


def marked_bank(
    seed: int, count: int, side: int, report: Callable[[int, int], None] | None = None
) -> list[NDArray[Any]]:
    """The scenes of `bank` for training, (side, side, 2) float16 each: the image, and the places of its defects.

    `report` is called after each, with the number of those done and `count`.
    """
    rng = np.random.default_rng(seed)
    made = []
    for name in islice(turns(TRAINING), count):
        marked = MARKED.get(name)
        image, places = marked(rng, side) if marked else (TRAINING[name](rng, side), np.zeros((side, side)))
        made.append(np.stack([image, places], -1).astype(np.float16))
        if report is not None:
            report(len(made), count)
    return made


def turns(families: Mapping[str, Generator]) -> Iterator[str]:
    """Names of families, endlessly: each as often as its share says, 1 where it has none, and spread evenly."""
    shares = {name: SHARES.get(name, 1) for name in families}
    due = dict.fromkeys(shares, 0)
    while True:
        due = {name: due[name] + share for name, share in shares.items()}
        name = max(due, key=due.__getitem__)
        due[name] -= sum(shares.values())
        yield name


_DRAWN_BY = ("crystal_scenes", "crystals", "defects", "drawing", "simulate")


def fingerprint() -> str:
    """SHA-256 of the code that draws scenes, so that stored ones are told from those of other code."""
    sources = (inspect.getsource(sys.modules[f"training.data.{name}"]) for name in _DRAWN_BY)
    return hashlib.sha256("".join(sources).encode()).hexdigest()
