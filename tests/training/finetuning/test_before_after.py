"""Before and after: the estimate without a truth is honest, and so are the verdict and the report."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.data import simulate
from training.data.truths import Truth
from training.finetuning.before_after import (
    DOSES,
    HALF,
    HeldOutCase,
    block_errors,
    clean_cases,
    compare,
    denoise,
    errors,
    noisy_cases,
    spread,
    windows,
)
from training.finetuning.before_after_report import NUMBERS, PICTURE, REPORT, advice, write
from training.finetuning.noisy import Field
from training.network import local_mean

SIDE = 256


class Blur(nn.Module):
    """Mixes an image with its local mean."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))

    def forward(self, units: Tensor, level: Tensor) -> Tensor:
        return units + self.share * (local_mean(units, 8) - units)


@cache
def scene(seed: int) -> simulate.Scene:
    families = list(simulate.TRAINING.values())
    return families[seed % len(families)](np.random.default_rng(seed), SIDE)


@cache
def truth(seed: int) -> NDArray[np.float32]:
    image = scene(seed)
    return 6 * (1 + 0.5 * (image / image.mean() - 1))


def a_field(seed: int, number: int, gain: float = 1.0) -> Field:
    rng = np.random.default_rng(seed)
    frames = [gain * rng.poisson(truth(seed) / number).astype(np.float32) for _ in range(number)]
    return Field(f"f{seed}.tif", "", (f"f{seed}.tif",), frames, tuple(float(f.mean()) for f in frames), {})


def test_windows_do_not_overlap_and_stay_inside() -> None:
    assert [len(list(windows(shape))) for shape in ((64, 64), (600, 1100), (1024, 4096), (130, 90))] == [1, 2, 4, 2]
    for shape in ((130, 90), (1500, 700), (2048, 2048)):
        seen = np.zeros(shape, int)
        for window in windows(shape):
            seen[window] += 1
            assert seen[window].shape[0] == seen[window].shape[1]
            assert seen[window].shape[0] % 64 == 0
        assert seen.max() == 1


@pytest.mark.parametrize(("number", "gain"), [(1, 1.0), (2, 1.0), (4, 1.0), (2, 3.0)])
def test_the_error_estimated_without_a_truth_is_the_true_error(number: int, gain: float) -> None:
    """Also where the gain that was stated is wrong, if there are real exposures."""
    network = Blur(0.8)
    estimated, true = [], []
    for seed in range(4):
        for case in noisy_cases([a_field(seed, number, gain)], seed):
            result = denoise(network, case)
            estimated.append(block_errors(result, case))
            # Each half has half of the dose.
            dose = (0.5 / case.level) ** 2 - 3 / 8
            expected = gain * truth(seed) * dose / (gain * truth(seed).mean())
            units = (expected - dose) * 2 * case.level
            true.append(block_errors(result, HeldOutCase("", "", case.noisy, units.astype(np.float32), case.level)))
    error = np.concatenate(estimated) - np.concatenate(true)
    assert abs(error.mean()) < 4 * error.std() / error.size**0.5
    assert error.std() / error.size**0.5 < 0.1 * np.concatenate(true).mean()


def test_clean_cases_are_the_same_each_time_and_in_noise_units() -> None:
    truths = [Truth("x.tif", "s", [scene(1)], (1,))]
    cases, again = list(clean_cases(truths, 3)), list(clean_cases(truths, 3))
    assert len(cases) == len(DOSES)
    assert all(np.array_equal(one.noisy, two.noisy) for one, two in zip(cases, again, strict=True))
    for case in cases:
        assert float((case.noisy - case.target).std()) == pytest.approx(1, rel=0.15)
        assert block_errors(case.noisy, case).mean() == pytest.approx(1, rel=0.1)


def test_a_better_network_is_called_better_a_worse_one_worse_and_itself_neither(tmp_path: Path) -> None:
    fields = [a_field(seed, 1 + seed % 2) for seed in range(4)]
    bad, good = Blur(0.0), Blur(0.9)
    better = compare(bad, good, noisy_cases(fields, 1))
    assert better.verdict == "better"
    assert better.recommended
    (regime,) = better.regimes
    assert (regime.name, regime.files) == (HALF, 4)
    assert regime.before.mean == pytest.approx(1, abs=0.05)
    assert regime.fall.mean == pytest.approx(regime.before.mean - regime.after.mean)
    assert regime.psnr_before is None
    few = compare(bad, good, noisy_cases(fields[:3], 1))
    assert few.verdict == "better"
    assert not few.recommended
    assert "better on the 3 held-out file(s), but 4 are needed" in advice(few)
    worse = compare(good, bad, noisy_cases(fields, 1))
    assert worse.verdict == "worse"
    assert not worse.recommended
    assert "do not use them" in advice(worse)
    same = compare(good, good, noisy_cases(fields, 1))
    assert same.verdict == "no measurable difference"
    assert not same.recommended
    broken = Blur(float("nan"))
    assert compare(good, broken, noisy_cases(fields, 1)).verdict == "worse"
    write(better, tmp_path, "Fine-tuning", ["a remark"])
    text = (tmp_path / REPORT).read_text()
    assert advice(better) in text
    assert "a remark" in text
    assert "f3.tif" in text
    assert "There is no truth" in text
    assert json.loads((tmp_path / NUMBERS).read_text())["verdict"] == "better"
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_better_here_and_worse_there_is_mixed_and_psnr_follows_the_error(tmp_path: Path) -> None:
    truths = [Truth(f"{i}.tif", str(i), [scene(i)], (1,)) for i in range(3)]
    outcome = compare(Blur(0.0), Blur(0.8), clean_cases(truths, 1))
    assert outcome.verdict == "mixed"
    assert not outcome.recommended
    assert [regime.name for regime in outcome.regimes] == [f"{dose:g} counts per pixel" for dose in DOSES]
    first, last = outcome.regimes[0], outcome.regimes[-1]
    assert first.fall.low > 0 > last.fall.high
    assert first.psnr_before is not None
    assert first.psnr_after is not None
    assert first.psnr_after > first.psnr_before + 3
    write(outcome, tmp_path, "Fine-tuning", [])
    assert f"{first.psnr_before:.2f} / {first.psnr_after:.2f}" in (tmp_path / REPORT).read_text()


def test_figures_for_the_curve_have_its_names_and_come_from_cases_at_even_steps() -> None:
    truths = [Truth("x.tif", "s", [scene(1)], (1,))]
    found = errors(Blur(0.0), clean_cases(truths, 1))
    assert list(found) == [f"validation_error_{dose:g}_counts" for dose in DOSES]
    assert found["validation_error_50_counts"] == pytest.approx(1, rel=0.1)
    case = next(clean_cases(truths, 1))
    many = [HeldOutCase(str(i), "", case.noisy, case.target, case.level) for i in range(100)]
    kept = [int(one.file) for one in spread(many, 16)]
    assert 16 <= len(kept) < 32
    assert set(np.diff(kept)) == {4}
    assert len(spread(many[:20], 16)) == 20


def test_there_must_be_something_to_compare_on() -> None:
    with pytest.raises(ValueError, match="no held-out image"):
        compare(Blur(0.0), Blur(1.0), [])
