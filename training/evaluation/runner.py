"""Runs methods over pairs, and keeps all measurements if the run is stopped."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from daemon.errors import MicrographError
from daemon.files import write_atomically
from training.evaluation import pairs, rows
from training.evaluation.methods import Method
from training.evaluation.pairs import Instance, Key
from training.evaluation.rows import Row
from training.progress import Bar

log = logging.getLogger(__name__)

ROWS = "instances.jsonl"
FLUSH_SECONDS = 20.0
_MAPPED = ("low", "ordinary")
"""Regimes of figure 5."""


@dataclass(slots=True)
class ErrorMap:
    """Running sum of the absolute errors of every pixel, for one method and regime."""

    path: Path
    identity: str
    total: NDArray[np.float64]
    keys: dict[str, None] = field(default_factory=dict)
    """Fingerprints of the summed pairs, so that each counts once."""
    changed: bool = False

    @classmethod
    def load(cls, path: Path, identity: str, side: int) -> "ErrorMap":
        """The saved map of this method and side, else an empty one."""
        fresh = cls(path, identity, np.zeros((side, side)))
        try:
            with np.load(path, allow_pickle=False) as saved:
                mean, keys = saved["mean"], saved["keys"].tolist()
                if str(saved["identity"]) != identity or mean.shape != (side, side):
                    return fresh
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return fresh  # none yet, or from another version
        return cls(path, identity, mean.astype(np.float64) * len(keys), dict.fromkeys(keys))

    def add(self, fingerprint: str, error: NDArray[np.float32]) -> None:
        """Add a pair, unless it was added before a kill."""
        if error.shape == self.total.shape and fingerprint not in self.keys:
            self.total += error
            self.keys[fingerprint] = None
            self.changed = True

    def save(self) -> None:
        """Write it atomically if it has changed."""
        if not self.changed:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        count = len(self.keys)
        mean = (self.total / max(count, 1)).astype(np.float32)
        keys, identity = np.array(list(self.keys)), self.identity
        write_atomically(self.path, partial(np.savez, mean=mean, count=count, keys=keys, identity=identity))
        self.changed = False


def measure_all(
    out: Path, work: Sequence[tuple[Key, Sequence[Method]]], side: int, bar: Bar | None = None
) -> list[Row]:
    """Rows of every wanted (pair, method): valid ones from OUT, and the others, measured and added.

    Error maps are written before the rows they contain, so a kill in between costs time and never a wrong map.
    """
    path = out / ROWS
    kept = {(row.key, row.method): row for row in rows.read(path)}
    result: list[Row] = []
    fresh: list[Row] = []
    maps: dict[tuple[str, str], ErrorMap] = {}
    flushed = time.monotonic()

    def flush() -> None:
        nonlocal flushed
        for error_map in maps.values():
            error_map.save()
        if fresh:
            rows.append(path, fresh)
            fresh.clear()
        flushed = time.monotonic()

    try:
        for done, (key, methods) in enumerate(work):
            instance: Instance | None = None
            for method in methods:
                old = kept.get((str(key), method.name))
                if old and old.pair == key.fingerprint and old.identity == method.identity:
                    result.append(old)
                    continue
                if instance is None:
                    try:
                        instance = pairs.make(key)
                    except MicrographError as reason:
                        log.warning("skipped: %s", reason)
                        break
                row, error = rows.measure(method, instance)
                if key.regime in _MAPPED:
                    place = (key.regime, method.name)
                    if place not in maps:
                        file = out / "errors" / f"{key.regime}.{method.name}.npz"
                        maps[place] = ErrorMap.load(file, f"{method.identity} seed {key.seed}", side)
                    maps[place].add(key.fingerprint, error)
                result.append(row)
                fresh.append(row)
                if time.monotonic() - flushed > FLUSH_SECONDS:
                    flush()
            if bar:
                bar.show(done + 1, len(work))
    finally:
        flush()
    return result


@dataclass(frozen=True, slots=True)
class Plan:
    """Number of pairs of each regime, real and simulated; contrast regimes have their own."""

    real: int
    simulated: int
    real_contrast: int
    simulated_contrast: int

    def keys(self, subjects: Mapping[str, Sequence[pairs.Subject]], seed: int, side: int) -> list[Key]:
        """All keys, regimes and strata in turn, so that any first part has some of each."""
        turns: list[tuple[float, int, Key]] = []
        for order, regime in enumerate(pairs.REGIMES):
            contrast = regime in pairs.CONTRASTS
            numbers = {
                "real": self.real_contrast if contrast else self.real,
                "simulated": self.simulated_contrast if contrast else self.simulated,
            }
            for stratum, number in numbers.items():
                keys = pairs.plan(subjects.get(stratum, ()), regime, number, seed, side)
                turns += [((place + 0.5) / number, order, key) for place, key in enumerate(keys)]
        return [key for _, _, key in sorted(turns, key=lambda turn: turn[:2])]
