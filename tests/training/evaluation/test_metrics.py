"""Errors, correlations and statistics against independent references."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import gaussian_kde
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from daemon.verdict import rings
from training import averages
from training.evaluation import metrics


def pair(seed: int, shape: tuple[int, int] = (64, 48)) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    truth = rng.random(shape, np.float32)
    return (truth + rng.normal(0, 0.1, shape)).astype(np.float32), truth


@pytest.mark.parametrize("shape", [(64, 48), (33, 70), (128, 128)])
def test_ssim_is_scikit_images(shape: tuple[int, int]) -> None:
    image, truth = pair(1, shape)
    expected = structural_similarity(
        image.astype(float), truth.astype(float),
        data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    assert metrics.ssim(image, truth) == pytest.approx(expected, abs=1e-9)


def test_psnr_and_mse() -> None:
    image, truth = pair(2)
    expected = peak_signal_noise_ratio(truth.astype(float), image.astype(float), data_range=7.0)
    assert metrics.psnr(image, truth, 7.0) == pytest.approx(expected, abs=1e-5)
    assert metrics.mse(truth + np.float32(0.5), truth) == pytest.approx(0.25, rel=1e-6)
    assert metrics.psnr(truth, truth, 1) == float("inf")
    assert np.isnan(metrics.psnr(truth * np.nan, truth, 1))


def test_frc_of_equal_images_is_one_and_of_the_negative_minus_one() -> None:
    image, _ = pair(3)
    assert rings.frc(image, image) == pytest.approx(np.ones(metrics.RINGS))
    assert rings.frc(image, 5 - 2 * image) == pytest.approx(-np.ones(metrics.RINGS), abs=1e-5)


def test_frc_sees_where_detail_was_lost() -> None:
    _, truth = pair(4, (128, 128))
    f = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(128)[None, :])
    noise = np.random.default_rng(0).normal(0, 1e-3, truth.shape)
    blurred = np.fft.irfft2(np.fft.rfft2(truth) * (f < 0.25), s=truth.shape) + noise
    curve = rings.frc(blurred.astype(np.float32), truth)
    assert (curve[metrics.frequencies() < 0.22] > 0.99).all()
    assert (curve[metrics.frequencies() > 0.28] < 0.3).all()


def test_frc_of_a_constant_is_zero() -> None:
    _, truth = pair(5)
    assert (rings.frc(np.ones_like(truth), truth) == 0).all()


def test_two_sigma_line_holds_for_independent_noise() -> None:
    shape = (96, 80)
    pairs = (np.random.default_rng(seed).standard_normal((2, *shape)).astype(np.float32) for seed in range(150))
    curves = np.array([rings.frc(*pair) for pair in pairs])
    ratio = 2 * curves.std(0) / metrics.frc_noise(shape)
    assert 0.7 < np.median(ratio) < 1.1  # a little wide on purpose: the window's ties differ from ring to ring


@given(st.lists(st.tuples(st.floats(-5, 5), st.sampled_from("abc")), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_mean_over_sources_weighs_sources_alike(values: list[tuple[float, str]]) -> None:
    numbers, sources = [v for v, _ in values], [s for _, s in values]
    per_source = [np.mean([v for v, s in values if s == source]) for source in set(sources)]
    assert averages.mean_over_sources(numbers, sources) == pytest.approx(float(np.mean(per_source)), abs=1e-9)
    interval = averages.bootstrap(numbers, sources, rounds=100)
    assert interval.mean == pytest.approx(float(np.mean(per_source)), abs=1e-9)
    assert min(numbers) - 1e-9 <= interval.low <= interval.high <= max(numbers) + 1e-9


def test_bootstrap_covers_the_truth_and_is_seeded() -> None:
    sources = [f"s{i % 12}" for i in range(96)]
    inside = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        effect = dict(zip(sorted(set(sources)), rng.normal(1.0, 0.5, 12), strict=True))
        values = [effect[source] + rng.normal(0, 0.5) for source in sources]
        interval = averages.bootstrap(values, sources, rounds=400)
        inside += interval.low <= 1.0 <= interval.high
        assert interval == averages.bootstrap(values, sources, rounds=400)
    assert inside >= 50


def test_statistics_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        averages.mean_over_sources([], [])


def test_kde_is_scotts() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, 300)
    position, density = metrics.kde(values, 0, 1)
    assert len(position) == metrics.KDE_BINS
    assert density == pytest.approx(gaussian_kde(values, "scott")(position))
    assert density.sum() * (position[1] - position[0]) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("values", [[0.5], [0.3, 0.3, 0.3]])
def test_kde_of_values_that_are_all_alike(values: list[float]) -> None:
    position, density = metrics.kde(values, 0, 1)
    assert abs(position[density.argmax()] - values[0]) < 0.005
    assert density.sum() * (position[1] - position[0]) == pytest.approx(1)
