"""Measures one row for every pair and method, and keeps rows in a file that survives a kill at any moment."""

import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from daemon.errors import ConfigError
from daemon.micrograph import Image
from daemon.verdict import rings
from training.evaluation import metrics
from training.evaluation.methods import Method
from training.evaluation.pairs import Instance

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one method on one pair; `training.evaluation.command` describes the fields."""

    key: str
    regime: str
    stratum: str
    micrograph: str
    source: str
    modality: str
    repetition: int
    binned: int
    shape: tuple[int, int]
    pair: str
    contrast: float
    dose: float
    mean: float
    truth_noise: float
    scale: float
    method: str
    identity: str
    seconds: float
    mse: float
    ssim: float
    psnr: float
    frc: tuple[float, ...]

    @property
    def noise(self) -> float:
        """Mean squared error in counts squared."""
        return float(self.dose**2 * 10 ** (-self.psnr / 10))


def measure(method: Method, instance: Instance) -> tuple[Row, Image]:
    """Restore a pair and judge the result → (row, absolute error of every pixel in the [0, 1] scale).

    All methods are judged alike: each result is clipped to the range of the noisy image, which is [0, 1] in the paper's
    scale, before it is measured. Time is processor time, so other load has little effect.
    """
    key, pair = instance.key, instance.pair
    begin = process_time()
    restored = method.run(pair)
    seconds = process_time() - begin
    if restored.shape != pair.counts.shape or not np.isfinite(restored).all():
        raise ConfigError(
            f"{method.name} on {key}: gave {restored.shape}, or pixels that are not finite; its weights are damaged or "
            "diverged: leave it out, or train it again"
        )
    scaled = np.clip(pair.scaling.to_units(restored), 0, 1)
    counts = pair.scaling.to_pixels(scaled)
    height, width = pair.counts.shape
    row = Row(
        key=str(key),
        regime=key.regime,
        stratum=key.subject.stratum,
        micrograph=key.subject.name,
        source=key.subject.source,
        modality=key.subject.modality,
        repetition=key.repetition,
        binned=instance.binned,
        shape=(height, width),
        pair=key.fingerprint,
        contrast=instance.contrast,
        dose=_short(instance.dose),
        mean=_short(float(pair.true_counts.mean(dtype=np.float64))),
        truth_noise=_short(instance.truth_noise),
        scale=_short(pair.scaling.unit),
        method=method.name,
        identity=method.identity,
        seconds=_short(seconds),
        mse=_short(metrics.mse(scaled, pair.truth)),
        ssim=_short(metrics.ssim(scaled, pair.truth)),
        psnr=_short(metrics.psnr(counts, pair.true_counts, instance.dose)),
        frc=tuple(round(float(value), 4) for value in rings.frc(scaled, pair.truth)),
    )
    return row, np.abs(scaled - pair.truth)


def _short(value: float) -> float:
    """Rounded to seven figures, float32's precision."""
    return float(f"{value:.7g}")


def read(path: Path) -> list[Row]:
    """Rows written before. Raises ConfigError if the file cannot be read.

    A last line cut short by a kill is dropped, in the file too; a damaged one elsewhere is reported and left out.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); choose another --out") from error
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as stream:
            stream.truncate(whole)
    rows = []
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            rows.append(_row(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            log.warning("%s, line %d: not a row of this version (%s); it is measured again", path, number, error)
    return rows


def current(path: Path, identities: Mapping[str, str]) -> list[Row]:
    """The last row of every key and method whose identity is that in `identities` (name → identity)."""
    last = {(row.key, row.method): row for row in read(path)}
    return [row for row in last.values() if identities.get(row.method) == row.identity]


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows. Raises ConfigError if they cannot be written."""
    text = "".join(json.dumps(asdict(row), allow_nan=False) + "\n" for row in rows)
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}); make room, then run the same again"
        ) from error


def _row(values: dict[str, Any]) -> Row:
    row = Row(**{field.name: values[field.name] for field in fields(Row)})
    if not all(math.isfinite(value) for value in (row.mse, row.ssim, row.psnr)):
        raise ValueError("a figure is not finite")
    if len(row.frc) != metrics.RINGS:
        raise ValueError("it has another number of rings")
    return Row(**{**asdict(row), "shape": tuple(row.shape), "frc": tuple(row.frc)})
