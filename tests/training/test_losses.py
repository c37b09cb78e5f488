"""Losses: the paper's to its formula, ours balanced, and for noisy targets only what an expectation minimises."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity as reference_ssim
from torch import Tensor, nn

from daemon.counts.scaling import noise_units
from training.data.samples import Batch
from training.losses import GRID, LOSSES, balanced, grid, huberised, mse, poisson, structural_similarity
from training.network import BatchRenorm2d


def pair(truth: np.ndarray, level: float = 0.1, weight: float = 1.0) -> Batch:
    truth = np.asarray(truth, np.float32).reshape(-1, 1, *np.shape(truth)[-2:])
    shape = (len(truth), 1, 1, 1)
    return Batch(truth, truth, np.full(shape, level, np.float32), np.full(shape, weight, np.float32))


@pytest.mark.parametrize(("error", "value"), [(0.01, 0.1), (0.03, 0.9), (0.1, 10**0.5), (1.0, 1000**0.5)])
def test_the_papers_loss_is_equation_2(error: float, value: float) -> None:
    truth = np.full((2, 8, 8), 0.5)
    output = torch.from_numpy(pair(truth).truth) + error
    assert float(huberised()(output, pair(truth))) == pytest.approx(value, rel=1e-4)


def test_the_papers_loss_has_a_gradient_where_nothing_is_wrong() -> None:
    output = torch.zeros(1, 1, 8, 8, requires_grad=True)
    huberised()(output, pair(np.zeros((1, 8, 8)))).backward()  # type: ignore[no-untyped-call]
    assert output.grad is not None
    assert output.grad.isfinite().all()


def test_clipping_in_the_loss_forgives_what_lies_outside() -> None:
    output = torch.full((1, 1, 8, 8), 1.5)
    assert float(huberised(clip=True)(output, pair(np.ones((1, 8, 8))))) == 0
    assert float(huberised()(output, pair(np.ones((1, 8, 8))))) > 1


def test_structural_similarity_is_that_of_the_reference() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((48, 48)).astype(np.float32)
    noisy = (truth + 0.1 * rng.standard_normal((48, 48))).astype(np.float32)
    _, full = reference_ssim(
        truth, noisy, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    ours = structural_similarity(torch.from_numpy(noisy)[None, None], torch.from_numpy(truth)[None, None])
    assert float(ours) == pytest.approx(float(full[5:-5, 5:-5].mean()), abs=1e-4)
    with_term = huberised(ssim=2.0)(torch.from_numpy(noisy)[None, None], pair(truth[None]))
    without = huberised()(torch.from_numpy(noisy)[None, None], pair(truth[None]))
    assert float(with_term - without) == pytest.approx(2 * (1 - float(ours)), abs=1e-4)


def test_the_grid_loss_sees_a_pattern_below_the_noise_and_only_on_flat_crops() -> None:
    side = 8 * GRID
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.normal(0, 0.05, (2, 1, side, side)).astype(np.float32))
    pattern = torch.zeros_like(noise)
    pattern[..., ::2, :] = 0.02
    flat, scene = np.full((side, side), 3.0), rng.random((side, side))
    both = pair(np.stack([flat, scene]), weight=2.0)
    truth = torch.from_numpy(both.truth)
    expected = 4 * 0.01**2 / 2  # σ of the pattern 0.01, weight 2, one of two crops
    assert float(grid(truth + pattern, both)) == pytest.approx(expected, rel=1e-3)
    with_noise, noise_only = float(grid(truth + pattern + noise, both)), float(grid(truth + noise, both))
    assert with_noise - noise_only == pytest.approx(expected, rel=0.3)
    assert abs(noise_only) < expected / 3
    assert float(grid(truth + 7, both)) == pytest.approx(0, abs=1e-9)  # the level is no pattern
    assert float(grid(truth[1:] + pattern[1:], pair(scene[None]))) == 0


def test_the_grid_loss_of_noise_alone_is_a_small_part_of_a_square() -> None:
    side, rng = 8 * GRID, np.random.default_rng(1)
    flat = pair(np.full((32, side, side), 3.0))
    values = []
    for _ in range(16):
        noise = torch.from_numpy(rng.normal(0, 1, (32, 1, side, side)).astype(np.float32))
        values.append(float(grid(torch.from_numpy(flat.truth) + noise, flat)))
    averaged = 1 / 64  # variance of the noise in an average over all 64 cells, which a plain square would give
    assert 0 < np.mean(values) < averaged / 50


@pytest.mark.parametrize("rows", [True, False])
def test_opposite_patterns_in_the_halves_are_seen(rows: bool) -> None:
    """A network that recognises the borders of a crop learns them, if only averages over half a crop are compared."""
    side = 12 * GRID
    flat = pair(np.full((1, side, side), 3.0))
    pattern = torch.zeros(1, 1, side, side)
    pattern[..., ::2, :] = 0.02
    pattern[..., side // 2 :, :] *= -1
    output = (torch.from_numpy(flat.truth) + (pattern if rows else pattern.mT)).requires_grad_(True)
    value = grid(output, flat)
    value.backward()  # type: ignore[no-untyped-call]
    assert float(value.detach()) == pytest.approx(0.01**2 / 2, rel=1e-3)
    assert output.grad is not None
    assert float((output.grad * (output.detach() - 3)).sum()) > 0  # a step along it removes the pattern


def test_the_balanced_loss_lets_no_crop_drown_another() -> None:
    truth = np.zeros((2, 8, 8))
    output = torch.zeros(2, 1, 8, 8)
    output[0], output[1] = 100.0, 0.1
    output.requires_grad_(True)
    shares = []
    for loss in (mse, balanced):
        output.grad = None
        loss(output, pair(truth)).backward()  # type: ignore[no-untyped-call]
        assert output.grad is not None
        pull = (output.grad * output.detach()).abs().sum((1, 2, 3))
        shares.append(float(pull[1] / pull[0]))
    assert shares[0] < 1e-5
    assert shares[1] > 1e-2


@pytest.mark.parametrize("dose", [0.5, 20.0])
@pytest.mark.parametrize("name", ["mse", "poisson"])
def test_noisy_targets_lead_to_the_expectation(name: str, dose: float) -> None:
    counts = np.random.default_rng(1).poisson(dose, (1, 64, 64)).astype(np.float32)
    scaling = noise_units(dose)
    target = pair(scaling.to_units(counts), scaling.level)
    found = torch.zeros(1, requires_grad=True)
    optimise = torch.optim.LBFGS([found], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimise.zero_grad()
        value = LOSSES[name](found.expand(1, 1, 64, 64), target)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimise.step(closure)  # type: ignore[no-untyped-call]
    assert float(found.detach()) * scaling.unit + scaling.zero == pytest.approx(float(counts.mean()), rel=1e-3)


def test_the_poisson_loss_draws_predictions_below_zero_counts_back() -> None:
    scaling = noise_units(2.0)
    target = pair(scaling.to_units(np.ones((1, 8, 8), np.float32)), scaling.level)
    output = torch.linspace(-50.0, 0.0, 64).reshape(1, 1, 8, 8).requires_grad_(True)
    value = poisson(output, target)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.isfinite()
    assert output.grad is not None
    true = float(scaling.to_units(np.ones(1, np.float32))[0])
    assert torch.equal(output.grad < 0, output.detach() < true)


def test_batch_renormalisation_begins_as_batch_normalisation_and_serves_alike() -> None:
    torch.manual_seed(0)
    usual, renormalised = nn.BatchNorm2d(3, momentum=0.1), BatchRenorm2d(3, momentum=0.1)
    x = 2 * torch.randn(4, 3, 8, 8) + 1
    assert torch.allclose(usual(x), renormalised(x), atol=1e-5)  # at first r is 1 and d is 0
    renormalised.num_batches_tracked.fill_(10**6)  # type: ignore[union-attr]
    renormalised.running_mean.copy_(x.mean((0, 2, 3)))  # type: ignore[union-attr]
    renormalised.running_var.copy_(x.var((0, 2, 3)))  # type: ignore[union-attr]
    in_training = renormalised(x)
    # With wide limits, training does what serving will do.
    assert torch.allclose(in_training, renormalised.eval()(x), atol=0.05)
