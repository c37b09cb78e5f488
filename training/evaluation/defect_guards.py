"""No atom lost: does a defect survive denoising with most of its contrast, wherever it can be seen at all?

A missing atom, one too many, a foreign one, the edge of a crystal: what a network that knows lattices would repair.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np

from daemon.micrograph import Image
from training.data.exposure import expose
from training.evaluation import spectrum
from training.evaluation.defect_specimens import Draw, Specimen, adatom, edge, lattice, single_atom, substituted
from training.evaluation.guard import Denoise, Guard, counts_from

_VACANCY_KEPT = 0.7
"""Least share of a defect's contrast that must be left."""

_VISIBLE = 6.5
"""Signal-to-noise ratio of a vacancy, measured with full knowledge of where it is, from which a denoiser is expected to
keep it where no rival says so. BM3D keeps it from about there on."""

_VACANCY_EXPOSURES = (
    (1.0, 1.0), (10.0, 1.0), (10.0, 0.2), (30.0, 0.2), (100.0, 0.2), (100.0, 0.05), (300.0, 0.05), (1000.0, 0.05),
)  # fmt: skip
"""(mean counts per pixel, contrast) of the lattices with a vacancy; the faintest are beyond BM3D."""

EXPOSURES = ((1.0, 1.0), (3.0, 1.0), (12.0, 1.0), (100.0, 1.0), (15.0, 0.2), (150.0, 0.2), (2000.0, 0.05))
"""(mean counts per pixel, contrast) of the other specimens: two or three of them show each kind at 6.5 to 9 σ."""

ADDED: dict[str, Draw] = {
    "adatom on a lattice": adatom,
    "atom on a flat support": single_atom(0.0),
    "atom on an amorphous support": single_atom(0.06),
}
FOREIGN: dict[str, Draw] = {"1.5 times as bright": substituted(1.5), "0.6 times as bright": substituted(0.6)}
EDGES: dict[str, Draw] = {"free edge": edge(step=False), "step": edge(step=True)}

_OUT_OF_PLACE = 0.2
"""Pixels by which the last row of a crystal may be shifted, on average: a fiftieth of the distance of its rows."""


def vacancy(
    denoise: Denoise,
    seeds: int = 50,
    side: int = 96,
    exposures: Sequence[tuple[float, float]] = _VACANCY_EXPOSURES,
    rival: Denoise | None = None,
) -> Guard:
    """Is a missing atom still missing after denoising, at those exposures where `rival` keeps it, or it is visible?

    `exposures`: (mean counts per pixel, contrast). Kept = contrast of the result over that of the truth, each the
    mean brightness of the whole atoms less that of the vacancy; mean over `seeds` lattices.
    """
    rows = measured(denoise, lattice, seeds, side, exposures, rival, family=2)
    for row in rows:
        row["required"] = bool(row["rival"] >= _VACANCY_KEPT if rival else row["visible"] >= _VISIBLE)
    where = "the rival keeps it" if rival else f"it stands {_VISIBLE:g} σ above the noise"
    return Guard(
        "a vacancy stays a vacancy",
        _worst(rows),
        ">=",
        _VACANCY_KEPT,
        f"lowest, over the exposures at which {where}, of the share of a vacancy's contrast that is kept, mean over "
        f"{seeds} lattices",
        {"seeds": seeds, "side": side, "exposures": rows},
    )


def added_atoms(denoise: Denoise, seeds: int = 20, side: int = 96, rival: Denoise | None = None) -> Guard:
    """Does an atom too many stay: on a lattice, on a support without texture, on an amorphous one?"""
    return _kept("an added atom stays", ADDED, 5, denoise, seeds, side, rival)[0]


def foreign_atoms(denoise: Denoise, seeds: int = 20, side: int = 96, rival: Denoise | None = None) -> Guard:
    """Does an atom that is brighter or darker than all the others stay so?"""
    return _kept("a foreign atom stays foreign", FOREIGN, 6, denoise, seeds, side, rival)[0]


def edges(denoise: Denoise, seeds: int = 20, side: int = 96, rival: Denoise | None = None) -> tuple[Guard, Guard]:
    """Does the last row of a crystal keep its contrast, and its place, at a free edge and at a step?"""
    guard, found = _kept("the last row of a crystal stays", EDGES, 7, denoise, seeds, side, rival)
    shifts = [abs(row["displaced"]) for rows in found.values() for row in rows if row["required"]]
    return guard, Guard(
        "the last row of a crystal stays in its place",
        max(shifts, default=float("nan")),
        "<=",
        _OUT_OF_PLACE,
        f"largest, over {', '.join(EDGES)} and the exposures at which its contrast must be kept, of the mean shift of "
        f"the last row across the edge, pixels, over {seeds} crystals",
        {"seeds": seeds, "side": side},
    )


def _kept(
    name: str,
    kinds: Mapping[str, Draw],
    family: int,
    denoise: Denoise,
    seeds: int,
    side: int,
    rival: Denoise | None,
) -> tuple[Guard, dict[str, list[dict[str, Any]]]]:
    found = {
        kind: measured(denoise, draw, seeds, side, EXPOSURES, rival, 10 * family + number)
        for number, (kind, draw) in enumerate(kinds.items())
    }
    for rows in found.values():
        for row in rows:
            row["required"] = bool(row["visible"] >= _VISIBLE or (rival and row["rival"] >= _VACANCY_KEPT))
    where = f"it stands {_VISIBLE:g} σ above the noise" + (" or the rival keeps it" if rival else "")
    guard = Guard(
        name,
        _worst([row for rows in found.values() for row in rows]),
        ">=",
        _VACANCY_KEPT,
        f"lowest, over {', '.join(kinds)} and the exposures at which {where}, of the share of contrast that is kept, "
        f"mean over {seeds} specimens",
        {"seeds": seeds, "side": side, "exposures": found},
    )
    return guard, found


def _worst(rows: Sequence[Mapping[str, Any]]) -> float:
    return min((row["kept"] for row in rows if row["required"]), default=float("nan"))


def measured(
    denoise: Denoise,
    draw: Draw,
    seeds: int,
    side: int,
    exposures: Sequence[tuple[float, float]],
    rival: Denoise | None,
    family: int,
) -> list[dict[str, Any]]:
    """A row for every exposure (mean counts per pixel, contrast); `family` tells the random numbers of kinds apart.

    kept, rival: shares of the defect's contrast, means over `seeds` specimens; spread of kept; visible: its
    signal-to-noise ratio for who knows where to look; displaced, of rows of atoms only: pixels along their normal.
    """
    rows = []
    for dose, contrast in exposures:
        found: dict[str, list[float]] = {"kept": [], "rival": [], "visible": [], "displaced": []}
        for seed in range(seeds):
            rng = np.random.default_rng([seed, family, int(dose * 10), int(contrast * 100)])
            specimen = draw(rng, side)
            counts, truth = expose(rng, specimen.scene, dose, contrast)
            whole = specimen.contrast(truth)
            noise = sqrt(float(np.square(specimen.profiles[0]) @ truth.ravel()))
            result = counts_from(denoise, counts)
            found["visible"].append(abs(whole) / noise)
            found["kept"].append(specimen.contrast(result) / whole)
            if specimen.normal is not None:
                found["displaced"].append(displaced(specimen, result, truth))
            if rival:
                found["rival"].append(specimen.contrast(counts_from(rival, counts)) / whole)
        means = {name: spectrum.short(np.mean(values)) if values else None for name, values in found.items()}
        if means["displaced"] is None:
            del means["displaced"]
        rows.append({"dose": dose, "contrast": contrast, **means, "spread": spectrum.short(np.std(found["kept"]))})
    return rows


def displaced(specimen: Specimen, result: Image, truth: Image) -> float:
    """Pixels by which the marked atoms of `result` are shifted along the specimen's normal, to first order.

    Least squares of ``result = scale (truth - shift ∂truth) + background`` around them; 3 at most, and where no row is
    left at all.
    """
    assert specimen.normal is not None
    around = specimen.profiles[: specimen.marked].max(0)
    window = around > 0.15 * around.max()
    rows, columns = np.gradient(truth.astype(np.float64))
    slope = specimen.normal[0] * rows + specimen.normal[1] * columns
    terms = np.stack([truth.ravel()[window], -slope.ravel()[window], np.ones(int(window.sum()))], 1)
    (scale, shifted, _), *_ = np.linalg.lstsq(terms, result.ravel()[window].astype(np.float64), rcond=None)
    return float(np.clip(shifted / scale, -3, 3)) if scale > 0 else 3.0
