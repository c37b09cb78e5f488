"""Training without clean images: a noisy input, and as its target another noisy image of the same scene.

The squared error against a target whose noise is independent of the input's and has mean zero differs from that
against the truth by a constant, the target's variance; so the same network minimises both (noise2noise, Lehtinen et
al., ICML 2018). That holds for losses whose minimiser is the expectation: squared error, and Poisson likelihood. The
absolute error's minimiser is the median, which at half a count per pixel is 0: the network would learn black.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from daemon.counts.scaling import noise_units
from daemon.counts.thinning import thin
from daemon.micrograph import Image
from training.data.samples import Batch

SHARES = (0.5, 0.9)
"""Range of a thinned input's share: near the dose in service, with enough counts in the target."""


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """One field of view in counts: several independent exposures of it, or one that may be thinned.

    `exposures` (H, W) float32 each, spikes filled in; `doses` their mean counts per pixel. `files` below the data
    folder. `measured`: measurements on loading, of JSON types.
    """

    name: str
    source: str
    files: tuple[str, ...]
    exposures: Sequence[Image]
    doses: tuple[float, ...]
    measured: dict[str, float]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.exposures[0].shape
        return height, width


@dataclass(frozen=True, slots=True, eq=False)
class Division:
    """A window of a field as input and target (H, W) float32, in counts of the input.

    `dose` is the input's mean counts per pixel over the whole field, for the scaling. The target
    is scaled to it: its expectation is the input's, its variance `noise` times the input's.
    """

    noisy: Image
    target: Image
    dose: float
    noise: float


def divide(rng: np.random.Generator, field: Field, window: tuple[slice, slice], share: float) -> Division:
    """Divide a field into independent input and target, the input with about `share` of the dose.

    Exposures go whole to one side or the other, at least one to each; a single one is thinned.
    """
    total = sum(field.doses)
    if len(field.exposures) == 1:
        first, second = thin(rng, field.exposures[0][window], share)
    else:
        number = len(field.exposures)
        order = rng.permutation(number)
        chosen = int(np.clip(round(share * number), 1, number - 1))
        first, second = (
            np.add.reduce([field.exposures[index][window] for index in part])
            for part in (order[:chosen], order[chosen:])
        )
        share = sum(field.doses[index] for index in order[:chosen]) / total
    ratio = share / (1 - share)
    return Division(first, second * np.float32(ratio), share * total, ratio)


def sample(fields: Sequence[Field], side: int, seed: int, step: int, index: int) -> Batch:
    """Sample `index` of step `step` of the run `seed`: a batch of one, the same for the same arguments.

    A random crop (side, side) in one of its eight symmetries, divided at random; in the noise units of the input.
    `weight` is 1 over the target's σ in input σ, so that targets of different noise count alike.
    """
    rng = np.random.default_rng([seed, step, index])
    field = fields[int(rng.integers(len(fields)))]
    row, column = (int(rng.integers(extent - side + 1)) for extent in field.shape)
    found = divide(rng, field, (slice(row, row + side), slice(column, column + side)), rng.uniform(*SHARES))
    turns, mirrored = int(rng.integers(4)), bool(rng.random() < 0.5)
    scaling = noise_units(found.dose)

    def turned(image: Image) -> Image:
        image = np.rot90(image, turns)
        return scaling.to_units(image[:, ::-1] if mirrored else image)[None, None]

    level, weight = (np.full((1, 1, 1, 1), value, np.float32) for value in (scaling.level, found.noise**-0.5))
    return Batch(turned(found.noisy), turned(found.target), level, weight)


def batch(fields: Sequence[Field], side: int, seed: int, step: int, indices: Sequence[int]) -> Batch:
    """The samples `indices` of one step, in that order; arrays (N, 1, side, side)."""
    samples = [sample(fields, side, seed, step, index) for index in indices]
    return Batch(
        np.concatenate([one.noisy for one in samples]),
        np.concatenate([one.truth for one in samples]),
        np.concatenate([one.level for one in samples]),
        np.concatenate([one.weight for one in samples]),
    )
