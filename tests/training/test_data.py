"""Training data: what is called truth is the truth, and noise is what the serving contract says it is."""

import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from training import simulate
from training.data import Image, bin2, draw_batch, draw_crop, draw_dose, expose, load_folder, own_noise, truths


def smooth(side: int = 256) -> Image:
    """A noiseless image in [0, 1]."""
    wave = np.sin(np.arange(side) / 20)
    return (0.5 + 0.5 * wave[:, None] * wave).astype(np.float32)


@pytest.mark.parametrize("shape", [(256, 256), (255, 257), (256, 255)])
@pytest.mark.parametrize("sigma", [0.01, 0.2])
def test_own_noise_sees_the_noise_and_not_the_specimen(shape: tuple[int, int], sigma: float) -> None:
    image = smooth(300)[: shape[0], : shape[1]]
    noisy = image + np.random.default_rng(0).normal(0, sigma, shape).astype(np.float32)
    assert own_noise(noisy) == pytest.approx(sigma, rel=0.05)
    assert own_noise(image) < 0.002


def test_bin2_averages_areas_and_drops_an_odd_edge() -> None:
    image = np.arange(35, dtype=np.float32).reshape(5, 7)
    assert bin2(image).tolist() == [[4, 6, 8], [18, 20, 22]]
    assert bin2(image).dtype == np.float32


def test_a_clean_micrograph_serves_as_it_is_and_binned() -> None:
    versions = truths(smooth(400) * 1000 + 7, 192)
    assert [v.shape for v in versions] == [(400, 400), (200, 200)]
    assert all(v.dtype == np.float32 and v.min() >= 0 and v.max() <= 1 for v in versions)


def test_a_noisy_micrograph_is_binned_until_it_is_clean_or_small() -> None:
    noise = np.random.default_rng(0).normal(0, 0.06, (800, 800)).astype(np.float32)
    assert [v.shape for v in truths(smooth(800) + noise, 192)] == [(400, 400), (200, 200)]
    assert [v.shape for v in truths(smooth(800) + 20 * noise, 192)] == [(200, 200)]
    assert truths(smooth(100), 192) == []


def test_one_hot_pixel_does_not_decide_the_grey_scale() -> None:
    image = smooth(400)
    image[7, 7] = 1e6
    assert float(np.median(truths(image, 192)[0])) == pytest.approx(0.5, abs=0.05)


@given(st.floats(0.5, 5000), st.floats(0.02, 1), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
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


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_crops_have_the_side_asked_for_and_stay_within_0_and_1(seed: int) -> None:
    crop = draw_crop(np.random.default_rng(seed), [smooth(70), smooth(64)], 64)
    assert crop.shape == (64, 64)
    assert crop.dtype == np.float32
    assert crop.flags["C_CONTIGUOUS"]
    assert crop.min() >= 0
    assert crop.max() <= 1


def test_half_of_the_doses_follow_the_papers_low_dose_law_and_none_is_below_half_a_count() -> None:
    rng = np.random.default_rng(0)
    doses = np.array([draw_dose(rng, 0.4) for _ in range(4000)])
    assert doses.min() >= 0.5
    assert doses.max() > 1000
    # Peak 25 + Exp(75), so never below 25 × 0.4 mean counts, where only the other half reaches.
    assert np.mean(doses < 10) == pytest.approx(0.5 * np.log(10 / 0.5) / np.log(5000 / 0.5), abs=0.03)


def test_a_batch_is_in_noise_units() -> None:
    rng = np.random.default_rng(0)
    scenes = [[scene] for scene in simulate.bank(3, 4, 96)]
    batch = draw_batch(rng, [(0.7, [[smooth(96)]]), (0.3, scenes)], 64, 64)
    assert batch.noisy.shape == batch.truth.shape == (64, 1, 64, 64)
    assert batch.level.shape == batch.weight.shape == (64, 1, 1, 1)
    assert {a.dtype for a in (batch.noisy, batch.truth, batch.level, batch.weight)} == {np.dtype(np.float32)}
    unit = 0.5 / batch.level
    dose = (unit / batch.weight) ** 2 - 3 / 8
    # Counts are whole numbers again when the scaling of the level is undone.
    counts = batch.noisy * unit + (unit**2 - 3 / 8)
    assert np.abs(counts - np.round(counts)).max() < 0.02
    assert np.allclose(counts.mean((1, 2, 3), keepdims=True), dose, rtol=0.01, atol=0.01)
    bright = (dose > 10).ravel()
    noise = ((batch.noisy - batch.truth) * batch.weight)[bright].std((1, 2, 3))
    assert bright.sum() > 30
    assert np.all(np.abs(noise - 1) < 0.08)


def test_the_same_generator_draws_the_same_batch() -> None:
    one, two = (draw_batch(np.random.default_rng(5), [(1.0, [[smooth(96)]])], 4, 64) for _ in range(2))
    assert np.array_equal(one.noisy, two.noisy)
    assert np.array_equal(one.level, two.level)


def test_what_cannot_be_a_truth_is_reported_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = (1000 * smooth(200)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "good.tif", image)
    tifffile.imwrite(tmp_path / "flat.tif", np.full_like(image, 3))
    tifffile.imwrite(tmp_path / "small.tif", image[:100, :100])
    holed = image.astype(np.float32)
    holed[5, 5] = np.nan
    tifffile.imwrite(tmp_path / "holed.tif", holed)
    (tmp_path / "cut.tif").write_bytes((tmp_path / "good.tif").read_bytes()[:4000])
    (tmp_path / "notes.txt").write_text("not a micrograph")
    (tmp_path / "folder.tif").mkdir()
    with caplog.at_level(logging.WARNING):
        assert list(load_folder(tmp_path)) == ["good.tif"]
    said = {name: [r.getMessage() for r in caplog.records if name in r.getMessage()] for name in
            ("flat.tif", "small.tif", "holed.tif", "cut.tif", "notes.txt", "good.tif")}  # fmt: skip
    assert {name: len(lines) for name, lines in said.items()} == {
        "flat.tif": 1, "small.tif": 1, "holed.tif": 1, "cut.tif": 1, "notes.txt": 1, "good.tif": 0}  # fmt: skip
    assert "constant" in said["flat.tif"][0]
    assert "192" in said["small.tif"][0]
    assert "finite" in said["holed.tif"][0]
