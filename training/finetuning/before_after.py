"""Compares two networks on the same held-out images, with intervals and a verdict.

Errors are mean squared differences from the truth over the noise variance of the input: 1 is the error of the input
itself. Without a truth, an independent noisy image of the same scene stands in for it, and the variance of its
noise, which is known, is subtracted: that estimate has no bias, but an error of its own, and may fall below zero.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from daemon.counts.scaling import ANSCOMBE, noise_units
from daemon.micrograph import Image
from daemon.verdict.psnr import psnr_of_error
from training.averages import Interval, bootstrap
from training.data.exposure import expose
from training.data.truths import Truth
from training.finetuning.noisy import Division, Field, divide
from training.losses import on

ENOUGH_FILES = 4
"""Fewest held-out files for a recommendation: intervals over fewer files are unreliable."""

Effect = Literal["better", "no measurable difference", "mixed", "worse"]

DOSES = (2.0, 10.0, 50.0, 250.0, 1250.0)
"""Mean counts per pixel at which clean images are exposed."""
HALF = "an independent half"
LARGEST = 512
BLOCK = 32
"""Errors are averaged over blocks of 32 × 32 pixels, which are resampled for the intervals within a file."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutCase:
    """One noisy input (H, W) in noise units and its target in the same units.

    `variance` (H, W) is an unbiased estimate, pixel by pixel, of the variance of the target's noise; None: it has none.
    `peak` is the brightest true pixel above zero counts over the input's noise, for PSNR; None without a truth.
    """

    file: str
    regime: str
    noisy: Image
    target: Image
    level: float
    variance: Image | None = None
    peak: float | None = None


def windows(shape: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Up to 2 × 2 windows of at most 512 × 512 pixels that do not overlap, spread over an image."""
    side = min(LARGEST, min(shape) // 64 * 64)
    rows, columns = (np.linspace(0, extent - side, min(2, extent // side)).astype(int) for extent in shape)
    for row in rows:
        for column in columns:
            yield slice(int(row), int(row) + side), slice(int(column), int(column) + side)


def clean_cases(truths: Sequence[Truth], seed: int) -> Iterator[HeldOutCase]:
    """Clean images exposed at every one of DOSES, the same for the same seed. At least 64 pixels a side."""
    for number, truth in enumerate(truths):
        image = truth.versions[0]
        for place, window in enumerate(windows((image.shape[0], image.shape[1]))):
            for dose in DOSES:
                rng = np.random.default_rng([seed, number, place, int(dose)])
                counts, true_counts = expose(rng, image[window], dose, 1.0)
                mean = max(float(counts.mean(dtype=np.float64)), 0.1)
                scaling = noise_units(mean)
                noisy, target = scaling.to_units(counts), scaling.to_units(true_counts)
                peak = float(true_counts.max()) / mean**0.5
                yield HeldOutCase(truth.name, f"{dose:g} counts per pixel", noisy, target, scaling.level, None, peak)


def noisy_cases(fields: Sequence[Field], seed: int) -> Iterator[HeldOutCase]:
    """Fields divided into halves, each of which is input once and target once; the same for the same seed."""
    for number, field in enumerate(fields):
        for place, window in enumerate(windows(field.shape)):
            found = divide(np.random.default_rng([seed, number, place]), field, window, 0.5)
            total = sum(field.doses)
            # From the input's scale back to its own, with the roles exchanged.
            own = found.target / np.float32(found.noise)
            other = Division(own, found.noisy / np.float32(found.noise), total - found.dose, 1 / found.noise)
            for division in (found, other):
                yield _noisy_case(field, division)


def _noisy_case(field: Field, division: Division) -> HeldOutCase:
    """A division of a field as a case.

    Thinned counts have the variance of their mean. Real exposures may have another gain than the stated one; there
    the difference of input and target gives the sum of their variances.
    """
    scaling = noise_units(division.dose)
    if len(field.exposures) == 1:
        variance = division.noise * division.target / np.float32(scaling.unit**2)
    else:
        share = division.noise / (1 + division.noise)
        variance = np.float32(share) * np.square((division.noisy - division.target) / np.float32(scaling.unit))
    noisy, target = scaling.to_units(division.noisy), scaling.to_units(division.target)
    return HeldOutCase(field.name, HALF, noisy, target, scaling.level, variance.astype(np.float32))


def spread(cases: Iterable[HeldOutCase], most: int) -> list[HeldOutCase]:
    """Between `most` and twice as many cases, taken at even steps; all, if there are fewer."""
    kept: list[HeldOutCase] = []
    step = 1
    for index, case in enumerate(cases):
        if index % step == 0:
            kept.append(case)
        if len(kept) == 2 * most:
            kept, step = kept[::2], 2 * step
    return kept


@torch.no_grad()
def denoise(network: nn.Module, case: HeldOutCase) -> Image:
    """The network's result (H, W) float32 in the case's units; the network is in evaluation mode meanwhile."""
    training = network.training
    network.eval()
    like = next(network.parameters())
    level = np.full((1, 1, 1, 1), case.level, np.float32)
    result: Image = network(on(case.noisy[None, None], like), on(level, like))[0, 0].float().cpu().numpy()
    network.train(training)
    return result


def block_errors(result: Image, case: HeldOutCase) -> NDArray[np.float64]:
    """Estimated mean squared error of each block of BLOCK × BLOCK pixels over the input's noise variance: (blocks,)."""
    error = np.square(result - case.target, dtype=np.float64)
    if case.variance is not None:
        error -= case.variance
    rows, columns = (extent // BLOCK for extent in error.shape)
    blocks = error[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    variance = (0.5 / case.level) ** 2
    # A noise unit is a little more than the noise of few counts.
    means: NDArray[np.float64] = blocks.mean((1, 3)).ravel() * (variance / (variance - ANSCOMBE))
    return means


def errors(network: nn.Module, cases: Iterable[HeldOutCase]) -> dict[str, float]:
    """Mean error by regime: figures for a learning curve, whose names begin with "validation"."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for case in cases:
        found[case.regime].append(float(block_errors(denoise(network, case), case).mean()))
    return {
        f"validation_error_{regime.removesuffix(' per pixel').replace(' ', '_')}": float(np.mean(values))
        for regime, values in found.items()
    }


@dataclass(frozen=True, slots=True)
class Regime:
    """Means over files with their intervals. `fall` of the error: positive is better. PSNR in dB, with a truth only."""

    name: str
    files: int
    before: Interval
    after: Interval
    fall: Interval
    psnr_before: float | None
    psnr_after: float | None


@dataclass(frozen=True, slots=True)
class FileErrors:
    """Errors of one file in one regime."""

    file: str
    regime: str
    before: float
    after: float


@dataclass(frozen=True, slots=True, eq=False)
class BeforeAfter:
    """Result of the comparison. `shown`: the first case and its two results."""

    regimes: tuple[Regime, ...]
    rows: tuple[FileErrors, ...]
    shown: tuple[HeldOutCase, Image, Image]

    @property
    def verdict(self) -> Effect:
        """Better or worse by the regimes' intervals; a result that is not finite is worse."""
        better = any(regime.fall.low > 0 for regime in self.regimes)
        worse = any(regime.fall.high < 0 or not isfinite(regime.fall.mean) for regime in self.regimes)
        if worse:
            return "mixed" if better else "worse"
        return "better" if better else "no measurable difference"

    @property
    def recommended(self) -> bool:
        """Whether it is better, on enough files."""
        return self.verdict == "better" and self.files >= ENOUGH_FILES

    @property
    def files(self) -> int:
        """Number of held-out files."""
        return len({row.file for row in self.rows})

    def as_json(self) -> dict[str, Any]:
        numbers = {"regimes": [asdict(one) for one in self.regimes], "files": [asdict(one) for one in self.rows]}
        return {"verdict": self.verdict, "recommended": self.recommended, **numbers}


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """Both networks on one file in one regime: errors (2, blocks) of each case, and its peak if known."""

    blocks: list[NDArray[np.float64]]
    peaks: list[float]

    @property
    def errors(self) -> NDArray[np.float64]:
        """Of all cases: (2, blocks)."""
        return np.concatenate(self.blocks, 1)


def compare(before: nn.Module, after: nn.Module, cases: Iterable[HeldOutCase], seed: int = 0) -> BeforeAfter:
    """Both networks on every case. Raises ValueError if there is none."""
    found: defaultdict[str, defaultdict[str, _Measured]] = defaultdict(lambda: defaultdict(lambda: _Measured([], [])))
    shown: tuple[HeldOutCase, Image, Image] | None = None
    for case in cases:
        results = denoise(before, case), denoise(after, case)
        shown = shown or (case, *results)
        measured = found[case.regime][case.file]
        measured.blocks.append(np.stack([block_errors(result, case) for result in results]))
        if case.peak is not None:
            measured.peaks.append(case.peak)
    if shown is None:
        raise ValueError("there is no held-out image to compare on")
    # Bonferroni: intervals for several regimes are together wrong in 5 % of all cases.
    regimes = [_regime(name, files, seed, 0.05 / len(found)) for name, files in found.items()]
    rows = [
        FileErrors(file, name, float(measured.errors[0].mean()), float(measured.errors[1].mean()))
        for name, files in found.items()
        for file, measured in files.items()
    ]
    return BeforeAfter(tuple(regimes), tuple(rows), shown)


def _regime(name: str, files: Mapping[str, _Measured], seed: int, doubt: float) -> Regime:
    """Means over files with intervals that are wrong with a chance of `doubt`."""
    tables = {file: measured.errors for file, measured in files.items()}
    before, after = np.concatenate(list(tables.values()), 1)
    of = [file for file, table in tables.items() for _ in range(table.shape[1])]
    # One seed for all three, so that each draws the same files and blocks.
    first, second, fall = (bootstrap(values, of, seed, doubt=doubt) for values in (before, after, before - after))
    psnr: tuple[float | None, float | None] = None, None
    if all(measured.peaks for measured in files.values()):
        psnr = _psnr(files, 0), _psnr(files, 1)
    return Regime(name, len(files), first, second, fall, *psnr)


def _psnr(files: Mapping[str, _Measured], which: int) -> float:
    """Mean over files, dB; `which`: 0 before, 1 after."""
    return float(np.mean([psnr_of_error(max(one.peaks), float(one.errors[which].mean())) for one in files.values()]))
