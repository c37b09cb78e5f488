"""Seeded pairs of noisy image and truth for measurements: the same for all methods at any time.

A pair is a pure function of seed, side, regime, micrograph, repetition and content of the file (or family of
`simulate.HELD_OUT` that draws the scene). Regimes `low` and `ordinary` are the paper's section 3.1. `contrast_0.05` and
`contrast_0.2` spend the same electrons on the same crop at that contrast; contrast 1 is `low` itself.
"""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice, zip_longest
from pathlib import Path
from zlib import crc32

import numpy as np

from daemon.backends.manifest import sha256
from daemon.counts.scaling import minmax_crop
from daemon.errors import MicrographError
from training.data import simulate
from training.data.exposure import Image, Pair, expose, paper_low_dose, paper_ordinary_dose, paper_pair
from training.data.truths import Truth, load_truths, own_noise

VERSION = 1
"""Increased when the same key gives another pair: older rows are then not used again."""

CONTRASTS = {"contrast_0.05": 0.05, "contrast_0.2": 0.2}
REGIMES = ("low", "ordinary", *CONTRASTS)

SMALLEST = 32


@dataclass(frozen=True, slots=True)
class Subject:
    """Source of pairs: a micrograph file, or the next scene of a simulated family."""

    stratum: str
    """ "real" or "simulated"."""
    name: str
    source: str
    digest: str
    """Changes with the file, or the family's scenes."""
    modality: str = ""
    truth: Truth | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """Names one pair."""

    regime: str
    subject: Subject
    repetition: int
    seed: int
    side: int

    def __str__(self) -> str:
        return f"{self.regime}/{self.subject.stratum}/{self.subject.name}/{self.repetition}"

    @property
    def fingerprint(self) -> str:
        """Equal for equal pairs: 16 hexadecimal digits of all parameters of a pair."""
        words = (VERSION, self, self.seed, self.side, self.subject.digest)
        return hashlib.sha256("|".join(map(str, words)).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """A pair and its figures for the tables."""

    key: Key
    pair: Pair
    contrast: float
    dose: float
    """Range of the truth, counts: the peak of PSNR."""
    truth_noise: float
    """Estimated σ, in counts, of the truth's own noise; 0 for simulated ones."""
    binned: int


def real_subjects(folder: Path, cache: Path | None, table: Path | None) -> list[Subject]:
    """Every micrograph below `folder` that is suitable as truth, in order of path; the log lists the others.

    `cache`: folder of prepared images; `table`: a CSV file with the columns name, source and, if known, modality.
    Raises ConfigError as `load_truths` does.
    """
    truths = load_truths(folder, cache, table, SMALLEST, "paper")
    kinds = _modalities(table) if table else {}
    return [
        Subject(
            "real", truth.name, truth.source, sha256(folder / truth.name)[:16],
            kinds.get(Path(truth.name).stem, ""), truth,
        )
        for truth in truths
    ]  # fmt: skip


def simulated_subjects() -> list[Subject]:
    """The families of simulated micrographs that no training has."""
    subjects = []
    for name, draw in simulate.HELD_OUT.items():
        probe = (draw(np.random.default_rng(0), 64) * 255).round().astype(np.uint8)
        digest = hashlib.sha256(probe.tobytes()).hexdigest()[:16]
        subjects.append(Subject("simulated", name, f"simulation: {name}", digest, "simulated"))
    return subjects


def plan(subjects: Sequence[Subject], regime: str, number: int, seed: int, side: int) -> list[Key]:
    """The first `number` pairs of a regime: every subject once, source by source in turn; then all again.

    A longer plan begins with the shorter one.
    """
    by_source: dict[str, list[Subject]] = defaultdict(list)
    for subject in subjects:
        by_source[subject.source].append(subject)
    rng = np.random.default_rng([seed, crc32(b"order")])
    shuffled = [[members[i] for i in rng.permutation(len(members))] for members in by_source.values()]
    turn = [subject for row in zip_longest(*shuffled) for subject in row if subject is not None]
    if not turn:
        return []
    rounds = (Key(regime, subject, repetition, seed, side) for repetition in count() for subject in turn)
    return list(islice(rounds, number))


def make(key: Key) -> Instance:
    """The pair of a key. Raises MicrographError if its file is missing or no image any more."""
    contrast = CONTRASTS.get(key.regime, 1.0)
    crop, binned = _crop(key)
    law = paper_ordinary_dose if key.regime == "ordinary" else paper_low_dose
    peak = law(_rng(key, "ordinary dose" if key.regime == "ordinary" else "low dose"))
    rng = _rng(key, key.regime)
    if contrast == 1:
        pair = paper_pair(rng, crop, peak)
        dose = peak
    else:
        counts, true_counts = expose(rng, crop, peak * float(crop.mean(dtype=np.float64)), contrast)
        scaling = minmax_crop(counts)
        pair = Pair(scaling.to_units(counts), scaling.to_units(true_counts), scaling, counts, true_counts)
        dose = float(np.ptp(true_counts))
    noise = own_noise(pair.true_counts) if key.subject.stratum == "real" else 0.0
    return Instance(key, pair, contrast, dose, noise, binned)


def _rng(key: Key, purpose: str) -> np.random.Generator:
    return np.random.default_rng([key.seed, crc32(key.subject.name.encode()), key.repetition, crc32(purpose.encode())])


def _crop(key: Key) -> tuple[Image, int]:
    """Section 3.1: area downsizing, a random crop, one of eight symmetries, [0, 1]. → (crop, binning)."""
    rng = _rng(key, "crop")
    truth = key.subject.truth
    if truth is None:
        return np.asarray(simulate.HELD_OUT[key.subject.name](rng, key.side), np.float32), 1
    (image,) = truth.versions
    height, width = (min(extent, key.side) for extent in image.shape)
    for _ in range(20):  # a corner may be empty
        row, column = int(rng.integers(image.shape[0] - height + 1)), int(rng.integers(image.shape[1] - width + 1))
        crop = image[row : row + height, column : column + width]
        if crop.min() < crop.max():
            break
    else:
        raise MicrographError(f"{truth.name}: nearly all of it is one grey; it is not suitable as a truth: remove it")
    crop = np.rot90(crop, int(rng.integers(4)))
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    low, high = crop.min(), crop.max()
    return np.ascontiguousarray((crop - low) / (high - low), np.float32), truth.binned[0]


def _modalities(table: Path) -> dict[str, str]:
    with table.open(newline="", encoding="utf-8-sig") as stream:
        kinds = {row["name"]: row.get("modality") or "" for row in csv.DictReader(stream)}
    return {Path(name).stem: kind for name, kind in kinds.items()} | kinds
