"""Means and intervals over micrographs of several sources.

Means are taken per source and then over sources, so that a laboratory with ten micrographs does not count ten
times; intervals come from resampling sources first and then values within them.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its interval, 95 % unless stated otherwise."""

    mean: float
    low: float
    high: float


def mean_over_sources(values: ArrayLike, sources: Sequence[Hashable]) -> float:
    """Mean per source, then over sources. Raises ValueError if there are none."""
    return float(np.mean([group.mean() for group in _by_source(values, sources).values()]))


def bootstrap(
    values: ArrayLike, sources: Sequence[Hashable], seed: int = 0, rounds: int = 2000, doubt: float = 0.05
) -> Interval:
    """The mean over sources of (paired) `values` and its percentile interval, wrong with probability `doubt`.

    With few sources it is narrower than it should be: of 4 sources with 18 values each, a nominal 95 % hold the truth
    in 85 % of all cases. Sources are drawn with replacement, and pairs within each drawn source. Raises ValueError if
    there are none.
    """
    groups = list(_by_source(values, sources).values())
    rng = np.random.default_rng(seed)
    # Every source's resampled means at once; then which sources each round draws.
    means = np.stack([group[rng.integers(len(group), size=(rounds, len(group)))].mean(1) for group in groups], 1)
    rows = np.arange(rounds)[:, None]
    drawn = means[rows, rng.integers(len(groups), size=(rounds, len(groups)))].mean(1)
    low, high = np.percentile(drawn, (50 * doubt, 100 - 50 * doubt))
    return Interval(float(np.mean([group.mean() for group in groups])), float(low), float(high))


def _by_source(values: ArrayLike, sources: Sequence[Hashable]) -> Mapping[Hashable, NDArray[np.float64]]:
    groups: dict[Hashable, list[float]] = {}
    for value, source in zip(np.asarray(values, np.float64).tolist(), sources, strict=True):
        groups.setdefault(source, []).append(value)
    if not groups:
        raise ValueError("no values to average")
    return {source: np.array(group) for source, group in groups.items()}
