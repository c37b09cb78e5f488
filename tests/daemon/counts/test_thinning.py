"""Thinning: parts are independent Poisson counts, and what is not plain counts is refused with what was measured."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from daemon.counts.scaling import noise_units
from daemon.counts.thinning import examine, thin
from daemon.demo.specimen import scene
from training.data import simulate
from training.data.exposure import smear
from training.data.samples import Batch
from training.finetuning.noisy import Field, divide
from training.losses import LOSSES

Counts = NDArray[np.int64]
EVERYWHERE = (slice(None), slice(None))


@cache
def specimen(seed: int, side: int = 256) -> NDArray[Any]:
    """Mean 1, contrast of up to 60 %."""
    draw = simulate.HELD_OUT["sheet_with_adatoms"] if seed % 2 else scene
    image = draw(np.random.default_rng(seed), side)
    return 1 + 0.6 * (image / image.mean() - 1)


def counted(dose: float, seed: int = 0, side: int = 256) -> Counts:
    return np.random.default_rng(seed).poisson(dose * specimen(seed, side))


@given(st.floats(0.3, 30), st.floats(0.3, 0.9), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_the_parts_add_up_and_are_independent_poisson_counts(dose: float, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(dose, (256, 256)).astype(np.float32)
    first, second = thin(rng, counts, share)
    assert np.array_equal(first + second, counts)
    for part, mean in ((first, share * dose), (second, (1 - share) * dose)):
        assert part.min() >= 0
        assert float(part.mean()) == pytest.approx(mean, abs=5 * (mean / part.size) ** 0.5)
        assert float(part.var()) == pytest.approx(mean, rel=5 * ((2 + 1 / mean) / part.size) ** 0.5)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 5 / 256


def test_parts_of_counts_times_two_share_noise() -> None:
    """Why the gain must be 1: their covariance is p (1 - p) (variance - mean), a quarter of the mean here."""
    rng = np.random.default_rng(0)
    first, second = thin(rng, 2 * rng.poisson(10, (512, 512)).astype(np.float32), 0.5)
    assert float(np.cov(first.ravel(), second.ravel())[0, 1]) == pytest.approx(0.25 * (40 - 20), rel=0.05)


@pytest.mark.parametrize("loss", ["mse", "poisson", "l1"])
def test_squared_error_and_likelihood_find_half_a_count_per_pixel_and_the_absolute_error_none(
    loss: str,
) -> None:
    rng = np.random.default_rng(1)
    flat = Field("flat", "", ("flat",), [rng.poisson(1.0, (256, 256)).astype(np.float32)], (1.0,), {})
    scaling = noise_units(0.5)
    one = np.ones((1, 1, 1, 1), np.float32)
    guess = torch.nn.Parameter(torch.tensor(0.3))  # counts per pixel
    optimiser = torch.optim.Adam([guess], 0.02)
    for _ in range(300):
        found = divide(rng, flat, (slice(0, 64), slice(0, 64)), 0.5)
        batch = Batch(*(scaling.to_units(x)[None, None] for x in (found.noisy, found.target)), scaling.level * one, one)
        output = ((guess - scaling.zero) / scaling.unit).expand(1, 1, 64, 64)
        value = (output - torch.from_numpy(batch.truth)).abs().mean() if loss == "l1" else LOSSES[loss](output, batch)
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert guess.item() == pytest.approx(0.0 if loss == "l1" else 0.5, abs=0.03)


@pytest.mark.parametrize("share", [0.5, 0.75, 0.9])
def test_the_target_is_unbiased_for_the_input_and_its_variance_is_as_stated(share: float) -> None:
    truth = 4 * specimen(2)
    rng = np.random.default_rng(3)
    field = Field("x", "", ("x",), [rng.poisson(truth).astype(np.float32)], (float(truth.mean()),), {})
    found = divide(rng, field, EVERYWHERE, share)
    assert found.dose == pytest.approx(share * 4)
    residual = found.target - share * truth
    assert abs(float(residual.mean())) < 5 * float(residual.std()) / 256
    assert float((residual * (truth - truth.mean())).mean()) == pytest.approx(0, abs=0.15)
    assert float(residual.var()) == pytest.approx(found.noise * found.dose, rel=0.05)
    assert abs(np.corrcoef(residual.ravel(), (found.noisy - share * truth).ravel())[0, 1]) < 5 / 256


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dose", [0.3, 3.0, 40.0, 400.0])
def test_counts_of_any_specimen_may_be_thinned(dose: float, seed: int) -> None:
    evidence = examine(counted(dose, seed), "uint16")
    assert evidence.reasons == ()
    assert evidence.variance_over_mean == pytest.approx(1, abs=0.15)
    assert abs(evidence.correlation) < 0.1


def blurred(counts: Counts) -> Counts:
    return np.rint(smear((16 * counts).astype(np.float32), 0.6)).astype(np.int64) // 4


@pytest.mark.parametrize(
    ("spoil", "stored", "reason"),
    [
        (lambda n: 1.37 * n, "float32", "not whole numbers"),
        (lambda n: 3 * n, "uint16", r"noise variance is (2\.[6-9]|3\.[0-4])\d* times the mean"),
        (lambda n: n + 200, "uint16", r"noise variance is 0\.\d+ times the mean"),
        (lambda n: n - 40, "int16", "negative, down to -"),
        (blurred, "uint16", r"noise of neighbouring pixels is correlated \(\+0\.\d"),
        (lambda n: np.clip(n * 255 // n.max(), 0, 255), "uint8", "8-bit and its values reach 255"),
        (lambda n: np.minimum(n, int(np.percentile(n, 97))), "uint16", "saturated"),
        (lambda n: np.full_like(n, 7), "uint16", r"constant \(every pixel is 7\)"),
        (lambda n: n[:40, :40], "uint16", "too few to tell"),
    ],
    ids=["not whole", "gain", "pedestal", "negative", "correlated", "8-bit", "saturated", "constant", "tiny"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_values_that_are_no_counts_are_refused_with_the_measurement(
    spoil: Callable[[Counts], Any], stored: str, reason: str, seed: int
) -> None:
    reasons = "; ".join(examine(spoil(counted(60, seed)), stored).reasons)
    assert re.search(reason, reasons), reasons


def test_a_stretched_histogram_is_recognised_by_its_gaps() -> None:
    reasons = examine(2 * counted(60), "uint16").reasons
    assert any("grey levels" in reason and "empty" in reason for reason in reasons)
