"""Exposures: the truth is what the detector shows on average, and the paper's pairs are the paper's."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.exposure import (
    IDEAL,
    Detector,
    Image,
    expose,
    paper_low_dose,
    paper_ordinary_dose,
    paper_pair,
    smear,
)


def waves(side: int = 64) -> Image:
    """A noiseless image in [0, 1]."""
    wave = np.sin(np.arange(side) / 7)
    return (0.5 + 0.5 * wave[:, None] * wave).astype(np.float32)


@given(st.floats(0.5, 5000), st.floats(0.02, 1), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_the_mean_of_the_truth_is_the_dose_and_its_contrast_as_asked(dose: float, contrast: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    crop = rng.random((64, 64), np.float32)
    noisy, truth = expose(rng, crop, dose, contrast)
    assert noisy.dtype == truth.dtype == np.float32
    assert float(truth.mean(dtype=np.float64)) == pytest.approx(dose, rel=1e-4)
    assert float(truth.std() / truth.mean()) == pytest.approx(contrast * float(crop.std() / crop.mean()), rel=1e-3)
    assert truth.min() >= 0
    assert noisy.min() >= 0
    assert np.array_equal(noisy, np.round(noisy))
    # A sum of Poisson counts has as much variance as mean.
    assert abs(float(noisy.sum(dtype=np.float64)) - dose * 4096) < 6 * (dose * 4096) ** 0.5 + 1


def test_a_black_crop_can_be_exposed() -> None:
    noisy, truth = expose(np.random.default_rng(0), np.zeros((32, 32), np.float32), 20, 0.25)
    assert truth == pytest.approx(15)
    assert np.isfinite(noisy).all()


def average(detector: Detector, number: int = 300) -> tuple[Image, Image]:
    """Mean of many exposures of one crop, and their truth."""
    rng = np.random.default_rng(1)
    exposures = [expose(rng, waves(48), 30, 0.8, detector) for _ in range(number)]
    return np.mean([pixels for pixels, _ in exposures], axis=0), exposures[0][1]


@pytest.mark.parametrize(
    "detector",
    [
        IDEAL,
        Detector(readout=4),
        Detector(gain=37.5, offset=-200),
        Detector(psf=0.9),
        Detector(readout=2, gain=0.1, offset=7, psf=1.5),
    ],
)
def test_the_truth_is_what_the_detector_shows_on_average(detector: Detector) -> None:
    shown, truth = average(detector)
    assert shown.dtype == truth.dtype == np.float32
    sigma = detector.gain * (54 + detector.readout**2) ** 0.5 / 300**0.5  # at the brightest: 30 (1 + 0.8) counts
    assert np.abs(shown - truth).max() < 6 * sigma
    assert abs(float((shown - truth).mean())) < 6 * sigma / 48


def test_read_out_adds_its_variance_to_that_of_the_counts() -> None:
    pixels, truth = expose(np.random.default_rng(0), waves(256), 10, 0.5, Detector(readout=3))
    assert float((pixels - truth).var()) == pytest.approx(10 + 9, rel=0.03)


def test_a_point_spread_makes_neighbours_noise_alike_and_loses_no_count() -> None:
    flat = np.ones((256, 256), np.float32)
    sharp, _ = expose(np.random.default_rng(0), flat, 100, 1)
    smeared, truth = expose(np.random.default_rng(0), flat, 100, 1, Detector(psf=1))
    noise = (smeared - truth).astype(np.float64)
    assert noise.var() == pytest.approx(100 / (4 * np.pi), rel=0.05)  # of a Gaussian of σ = 1 pixel
    assert (noise[:, 1:] * noise[:, :-1]).mean() / noise.var() == pytest.approx(np.exp(-0.25), abs=0.03)
    assert smeared.sum(dtype=np.float64) == pytest.approx(sharp.sum(dtype=np.float64), rel=1e-5)


def test_smearing_a_point_gives_a_gaussian() -> None:
    point = np.zeros((41, 41), np.float32)
    point[20, 20] = 1
    y, x = np.mgrid[-20:21, -20:21]
    assert np.allclose(smear(point, 2.0), np.exp(-(y**2 + x**2) / 8) / (8 * np.pi), atol=2e-5)


@pytest.mark.parametrize("name", ["hot_pixels", "x_rays"])
def test_spikes_are_as_many_as_asked_and_not_in_the_truth(name: str) -> None:
    flat = np.ones((256, 256), np.float32)
    pixels, truth = expose(np.random.default_rng(0), flat, 1, 1, Detector(**{name: 0.002}))
    spikes = int((pixels > 18).sum())
    expected = 0.002 * 256**2
    assert 0.7 * expected < spikes < 2.5 * expected  # an X-ray often shows in two pixels
    assert truth.max() == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"readout": -1.0},
        {"psf": -0.1},
        {"hot_pixels": 1.0},
        {"x_rays": float("nan")},
        {"gain": 0.0},
        {"gain": float("inf")},
        {"offset": float("nan")},
    ],
)
def test_a_detector_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="detector"):
        Detector(**wrong)


def test_an_ideal_detector_only_counts() -> None:
    assert {f.name: f.default for f in fields(Detector)} == {
        "readout": 0, "gain": 1, "offset": 0, "psf": 0, "hot_pixels": 0, "x_rays": 0}  # fmt: skip


# Section 3.1


def test_doses_follow_the_papers_laws() -> None:
    rng = np.random.default_rng(0)
    low = np.array([paper_low_dose(rng) for _ in range(20_000)])
    assert low.min() > 25
    assert low.mean() == pytest.approx(100, rel=0.02)
    assert np.median(low) == pytest.approx(25 + 75 * np.log(2), rel=0.03)
    ordinary = np.array([paper_ordinary_dose(rng) for _ in range(20_000)])
    assert ordinary.min() >= 200
    assert ordinary.max() <= 2500
    assert ordinary.mean() == pytest.approx(1350, rel=0.02)
    assert ordinary.std() == pytest.approx(2300 / 12**0.5, rel=0.02)


@given(st.floats(1, 3000), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_a_pair_is_made_as_in_section_3_1(dose: float, seed: int) -> None:
    crop = waves()
    pair = paper_pair(np.random.default_rng(seed), crop, dose)
    counts = np.random.default_rng(seed).poisson(np.float32(dose) * crop)
    assert np.array_equal(pair.counts, counts)
    assert np.allclose(pair.noisy, (counts - counts.min()) / (counts.max() - counts.min()), atol=1e-6)
    assert pair.noisy.min() == 0
    assert pair.noisy.max() == pytest.approx(1, abs=1e-6)
    assert np.allclose(pair.truth, crop * pair.noisy.mean(dtype=np.float64) / crop.mean(dtype=np.float64), atol=1e-6)
    assert pair.truth.mean(dtype=np.float64) == pytest.approx(pair.noisy.mean(dtype=np.float64), rel=1e-5)
    assert np.allclose(pair.true_counts, dose * crop, rtol=1e-6)
    assert np.allclose(pair.scaling.to_pixels(pair.noisy), counts, atol=1e-3 * dose)
    assert {a.dtype for a in (pair.noisy, pair.truth, pair.counts, pair.true_counts)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("grey", [0.0, 1.0])
def test_a_crop_of_one_grey_gives_a_pair_without_holes(grey: float) -> None:
    pair = paper_pair(np.random.default_rng(0), np.full((32, 32), grey, np.float32), 50)
    assert np.isfinite(pair.noisy).all()
    assert np.isfinite(pair.truth).all()
    assert pair.truth.mean(dtype=np.float64) == pytest.approx(pair.noisy.mean(dtype=np.float64), rel=1e-5)
