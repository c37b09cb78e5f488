"""The paper's table and figures, by its protocol (sections 3.1 and 4): its filters, and one network for each dose.

`python -m training evaluate DATA --paper RUN --weights LOW --weights ORDINARY --out OUT`, where RUN is the folder of
`fit --preset ede2018`. Pairs are the real ones at low and ordinary dose of every evaluation (`pairs`), and so are rows,
error maps and examples in OUT. Besides, OUT gets `paper.html` and `paper.json`:

    about; machine
    networks {low, ordinary}: {name, sha256, parameters, megabytes, load_seconds, seconds (median processor time of a
        crop of side², one thread, one crop at a time), and `training`: the record of its run without names of files}
    protocol {side, seed, pairs (of each dose), data, micrographs, sources, trained_on (files in both sets: none) ...}
    methods {name: {label, family, identity (of what ran), seconds}}; tables (as in `evaluation.json`; `network` is that
        of the dose)
    under_best {low, ordinary}: {filter (the best of the nine), mse, similarity: shares by which the network is better,
        evened over sources as in the table; mse_mean_not_carried: if RUN holds weights, of these, whose means are as
        they come out; mse_pairs: of plain means over pairs; paper {mse, similarity}: the same of its table 1}
    error_maps {low, ordinary}: {mean, lowest, highest (pixel), pairs}
    pairs {low, ordinary}: {keys, and for each method lists of mse, ssim} (figure 4); curves {first,
        low, ordinary} (figure 3)
    first: {steps, minutes, recipe} of the phase before both doses that the preset `ede2018-quarter` has, or null
"""

import argparse
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from daemon.backends import manifest
from daemon.errors import ConfigError
from daemon.files import save
from training import curve
from training.distributed import Place
from training.evaluation import methods as known
from training.evaluation import pairs, tables
from training.evaluation.examples import examples
from training.evaluation.methods import Method
from training.evaluation.pairs import Key, Subject
from training.evaluation.report import paper_page
from training.evaluation.report.tables import PAPER
from training.evaluation.rows import Row
from training.evaluation.runner import measure_all
from training.loop import RECORD, WEIGHTS
from training.network import NetworkName, build
from training.progress import Bar

log = logging.getLogger(__name__)

REGIMES = ("low", "ordinary")
_FIRST = "first"
NETWORK = "network"
"""The method of the tables that stands for both networks, as they are served."""
PLAIN = "network_mean_not_carried"
"""The same as the training left them: float32, and the mean as it comes out."""
_LABELS = {NETWORK: "Network, here", PLAIN: "the same, mean not carried"}
_SIMULATED_KINDS = {"nanoparticles": "TEM", "capsids": "TEM", "sheet_with_adatoms": "STEM"}
"""Modality that a simulated family resembles, for figures 6 to 8."""
_ABOUT = (
    "The protocol of Ede and Beanland's paper with its network at reduced width, trained and tested on other data: "
    "not the paper's result."
)


def run(options: argparse.Namespace, side: int, instances: int) -> int:
    """Measure, tabulate, draw. Raises ConfigError or WeightsError with the remedy."""
    if not options.micrographs:
        raise ConfigError("--paper needs a folder of micrographs to test on")
    if not any((options.paper / regime / curve.CURVE).is_file() for regime in REGIMES):
        raise ConfigError(
            f"{options.paper}: neither low/{curve.CURVE} nor ordinary/{curve.CURVE} is in it; name the folder that "
            "`fit --preset ede2018` wrote to"
        )
    folders = _folders(options.weights)
    networks = {regime: known.weights(str(folder), options.threads) for regime, folder in folders.items()}
    trained = {regime: options.paper / regime for regime in REGIMES if (options.paper / regime / WEIGHTS).is_file()}
    plain = {regime: known.weights(str(folder), options.threads) for regime, folder in trained.items()}
    filters = list(known.methods(tuple(known.NINE)).values())
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    real = pairs.real_subjects(options.micrographs, out / "cache", options.sources)
    of_dose = {regime: [networks[regime], *([plain[regime]] if regime in plain else [])] for regime in REGIMES}
    work = _work(real, filters, of_dose, instances, options.seed, side)
    names = {method.name: NETWORK for method in networks.values()} | {method.name: PLAIN for method in plain.values()}
    if len(names) != len(networks) + len(plain):
        raise ConfigError(f"two networks are called the same ({', '.join(names)}); rename a folder")
    rows = [
        replace(row, method=names.get(row.method, row.method)) for row in measure_all(out, work, side, Bar("pairs"))
    ]
    result = {
        "about": _ABOUT,
        "machine": f"{Place.join().described}, {os.cpu_count()} cores",
        "networks": {regime: _network(rows, regime, networks[regime], folders[regime], side) for regime in REGIMES},
        "protocol": _protocol(options, real, folders, instances, side),
        **_tabulated(rows, filters, side, _LABELS if plain else {NETWORK: _LABELS[NETWORK]}),
        "error_maps": {regime: _map(out, regime, method) for regime, method in networks.items()},
        "first": _first(options.paper / _FIRST),
        "curves": {phase: curve.read(options.paper / phase) for phase in (_FIRST, *REGIMES)},
    }
    shown = {"simulated": [_resembling(subject) for subject in pairs.simulated_subjects()]}
    if not options.no_examples:
        shown["real"] = real
    result["examples"] = examples(out, shown, [networks["low"]], options.seed, side)
    save(out / paper_page.RESULT, json.dumps(result, indent=1, allow_nan=False).encode() + b"\n")
    for regime, found in result["under_best"].items():
        change, papers = -found["mse"], -found["paper"]["mse"]
        print(f"{regime}: MSE {change:+.1%} against that of {found['filter']} (paper: {papers:+.1%})")
    print(f"{out / paper_page.RESULT}; {paper_page.write(out, rows, options.paper)}")
    return 0


def _first(run: Path) -> dict[str, Any] | None:
    if not (run / RECORD).is_file():
        return None
    record = json.loads((run / RECORD).read_text("utf-8"))
    return {name: record[name] for name in ("steps", "minutes", "recipe")}


def _folders(weights: Sequence[str]) -> dict[str, Path]:
    """Dose → the folder of its network."""
    if len(weights) != len(REGIMES) or len(set(weights)) != len(weights):
        raise ConfigError("--paper takes two --weights: the network for low doses, then that for ordinary doses")
    return {regime: manifest.verified(name).folder for regime, name in zip(REGIMES, weights, strict=True)}


def _work(
    real: Sequence[Subject],
    filters: Sequence[Method],
    networks: Mapping[str, Sequence[Method]],
    number: int,
    seed: int,
    side: int,
) -> list[tuple[Key, Sequence[Method]]]:
    """The same number of pairs of each dose, in turn."""
    planned = [pairs.plan(real, regime, number, seed, side) for regime in REGIMES]
    return [(key, [*filters, *networks[key.regime]]) for both in zip(*planned, strict=True) for key in both]


def _tabulated(
    rows: Sequence[Row], filters: Sequence[Method], side: int, networks: Mapping[str, str]
) -> dict[str, Any]:
    """Methods, tables, the network against the best of the nine, and the errors of each pair."""
    times = tables.seconds(rows, side)
    methods = {
        method.name: {"label": method.label, "family": method.family, "identity": method.identity} for method in filters
    }
    for name, label in networks.items():
        ran = sorted({row.identity for row in rows if row.method == name})
        methods[name] = {"label": label, "family": "weights", "identity": ", ".join(ran)}
    entries = [e for e in tables.table(rows) if e["stratum"] == "all" and e["instances"] == "shared"]
    return {
        "methods": {name: {**method, "seconds": times.get(name)} for name, method in methods.items()},
        "tables": entries,
        "under_best": {regime: _under_best(rows, entries, regime) for regime in REGIMES},
        "pairs": {regime: _errors(rows, regime, list(methods)) for regime in REGIMES},
    }


def _under_best(rows: Sequence[Row], entries: Sequence[Mapping[str, Any]], regime: str) -> dict[str, Any]:
    """Shares by which the network's mean error is below that of the best filter, and its similarity above."""
    mine = {entry["method"]: entry for entry in entries if entry["regime"] == regime}
    pairwise = {
        name: float(np.mean([row.mse for row in rows if row.regime == regime and row.method == name])) for name in mine
    }
    error = {name: float(entry["mse"]) for name, entry in mine.items()}
    column = 4 * REGIMES.index(regime)
    return {
        "filter": min(known.NINE, key=lambda name: error[name]),
        "mse": _less(error, NETWORK),
        "mse_mean_not_carried": _less(error, PLAIN) if PLAIN in error else None,
        "mse_pairs": _less(pairwise, NETWORK),
        "similarity": _more({name: entry["ssim"] for name, entry in mine.items()}, NETWORK),
        "paper": {
            "mse": _less({name: figures[column] for name, figures in PAPER.items()}, "paper"),
            "similarity": _more({name: figures[column + 2] for name, figures in PAPER.items()}, "paper"),
        },
    }


def _less(values: Mapping[str, float], ours: str) -> float:
    return round(1 - values[ours] / min(values[name] for name in known.NINE), 4)


def _more(values: Mapping[str, float], ours: str) -> float:
    return round(values[ours] / max(values[name] for name in known.NINE) - 1, 4)


def _errors(rows: Sequence[Row], regime: str, names: Sequence[str]) -> dict[str, Any]:
    by_method = {name: [row for row in rows if row.regime == regime and row.method == name] for name in names}
    return {"keys": [row.key for row in by_method[NETWORK]]} | {
        name: {"mse": [row.mse for row in found], "ssim": [row.ssim for row in found]}
        for name, found in by_method.items()
    }


def _network(rows: Sequence[Row], regime: str, method: Method, folder: Path, side: int) -> dict[str, Any]:
    """Name, size, cost and training of the network for a dose."""
    described = manifest.load(folder)
    own = [row for row in rows if row.regime == regime and row.method == NETWORK]
    record = {key: value for key, value in described.training.items() if key not in ("micrographs", "held_out")}
    return {
        "name": described.name,
        "sha256": described.sha256,
        "parameters": _parameters(described.network, described.arguments),
        "megabytes": round(method.megabytes, 2),
        "load_seconds": round(method.load_seconds, 3),
        "seconds": tables.seconds(own, side).get(NETWORK),
        "micrographs": len(described.training.get("micrographs", ())),
        "training": record,
    }


def _parameters(network: NetworkName, arguments: dict[str, Any]) -> int:
    with torch.device("meta"):
        return sum(values.numel() for values in build(network, arguments).parameters())


def _map(out: Path, regime: str, method: Method) -> dict[str, Any]:
    """Figures of the mean absolute error of every pixel."""
    path = out / "errors" / f"{regime}.{method.name}.npz"
    with np.load(path, allow_pickle=False) as stored:
        mean = stored["mean"]
        return {
            "mean": float(mean.mean()),
            "lowest": float(mean.min()),
            "highest": float(mean.max()),
            "pairs": int(stored["count"]),
        }


def _resembling(subject: Subject) -> Subject:
    return replace(subject, modality=_SIMULATED_KINDS.get(subject.name, subject.modality))


def _protocol(
    options: argparse.Namespace, real: Sequence[Subject], folders: Mapping[str, Path], instances: int, side: int
) -> dict[str, Any]:
    seen = sorted(
        {Path(subject.name).name for subject in real}
        & set().union(*(known.learnt_from(str(folder)) for folder in folders.values()))
    )
    if seen:
        log.warning("trained on %s: the figures are not those of new images", ", ".join(seen))
    return {
        "data": options.micrographs.name,
        "micrographs": len(real),
        "sources": sorted({subject.source for subject in real}),
        "side": side,
        "seed": options.seed,
        "pairs": instances,
        "not_binned": sorted(s.name for s in real if s.truth and s.truth.binned[0] == 1),
        "trained_on": seen,
        "examples": "simulated specimens" if options.no_examples else "simulated specimens and micrographs",
        "threads": options.threads,
    }
