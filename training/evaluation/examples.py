"""Pairs at low dose for figures 6 to 8, restored and kept as arrays."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from daemon.errors import MicrographError
from training.evaluation import methods as known
from training.evaluation import pairs
from training.evaluation.methods import Method

log = logging.getLogger(__name__)

_EXAMPLES = {6: ("TEM", 4), 7: ("", 4), 8: ("STEM", 4)}
"""Figure → beginning of its micrographs' modality, and their number. 7: those neither in 6 nor in 8."""


def examples(
    out: Path, subjects: Mapping[str, Sequence[pairs.Subject]], methods: Sequence[Method], seed: int, side: int
) -> list[dict[str, Any]]:
    """Pairs at low dose for figures 6 to 8, as .npz files: restored by BM3D and the weights (without: the Gaussian)."""
    shown = [method for method in methods if method.family in ("bm3d", "weights")]
    shown = shown or [method for method in methods if method.name == "gaussian"]
    restore = {method.name: known.on_counts(method, out / "rival" if method.slow else None) for method in shown}
    folder = out / "examples"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.npz"):
        old.unlink()
    everything = [*subjects.get("real", ()), *subjects["simulated"]]
    listed: list[dict[str, Any]] = []
    for figure, (_, number) in _EXAMPLES.items():
        fitting = [s for s in everything if _figure(s) == figure]
        for key in pairs.plan(fitting, "low", min(number, len(fitting)), seed, side):
            try:
                pair = pairs.make(key).pair
            except MicrographError as reason:
                log.warning("skipped: %s", reason)
                continue
            images = {"noisy": pair.noisy, "truth": pair.truth}
            images |= {n: np.clip(pair.scaling.to_units(run(pair.counts)), 0, 1) for n, run in restore.items()}
            file = f"examples/{figure}-{len(listed)}.npz"
            np.savez_compressed(out / file, allow_pickle=False, **{k: v.astype(np.float16) for k, v in images.items()})
            listed.append({"file": file, "key": str(key), "figure": figure, "modality": key.subject.modality,
                           "source": key.subject.source, "methods": list(restore)})  # fmt: skip
    return listed


def _figure(subject: pairs.Subject) -> int:
    return next((figure for figure, (kind, _) in _EXAMPLES.items() if kind and subject.modality.startswith(kind)), 7)
