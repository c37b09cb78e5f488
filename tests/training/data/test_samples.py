"""Batches: a sample is a pure function of seed, step and index, in the units of the serving contract or the paper's."""

import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data import samples, simulate
from training.data.exposure import Detector, Image
from training.data.samples import (
    Batch,
    Draw,
    PaperDraw,
    barely_visible,
    batch,
    draw_crop,
    mean_dose,
    paper_batch,
    paper_sample,
    sample,
)
from training.data.truths import Truth


def smooth(side: int = 256) -> Image:
    """A noiseless image in [0, 1]."""
    wave = np.sin(np.arange(side) / 20)
    return (0.5 + 0.5 * wave[:, None] * wave).astype(np.float32)


TRUTHS = [Truth("a", "a", (smooth(200), smooth(100)), (1, 2)), Truth("b", "b", (smooth(96) ** 2,), (1,))]
SCENES = simulate.bank(3, 4, 96)
SMALL = Draw(side=64)


def same(one: Batch, two: Batch) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in ("noisy", "truth", "level", "weight"))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_crops_have_the_side_asked_for_and_stay_within_0_and_1(seed: int) -> None:
    crop = draw_crop(np.random.default_rng(seed), [smooth(70), smooth(64)], 64)
    assert crop.shape == (64, 64)
    assert crop.dtype == np.float32
    assert crop.flags["C_CONTIGUOUS"]
    assert crop.min() >= 0
    assert crop.max() <= 1


def test_crops_come_in_eight_symmetries() -> None:
    corner = np.arange(16, dtype=np.float32).reshape(4, 4) / 15
    seen = {draw_crop(np.random.default_rng(seed), [corner], 4).tobytes() for seed in range(200)}
    assert seen == {
        np.ascontiguousarray(np.rot90(image, turns)).tobytes()
        for image in (corner, corner[:, ::-1])
        for turns in range(4)
    }


@pytest.mark.parametrize("shape", [(40, 40), (10, 64), (65, 1)])
def test_a_micrograph_smaller_than_a_crop_is_mirrored_with_one_warning(
    shape: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    samples._say_mirrored.cache_clear()
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    with caplog.at_level(logging.INFO):
        crops = [draw_crop(np.random.default_rng(seed), [image], 64) for seed in range(20)]
    assert {crop.shape for crop in crops} == {(64, 64)}
    assert all(np.isin(crop, image).all() for crop in crops)
    assert sum("mirror" in r.getMessage() for r in caplog.records) == 1


def test_a_sample_is_a_pure_function_of_seed_step_and_index() -> None:
    whole = batch(SMALL, TRUTHS, SCENES, 7, 30, range(6))
    for index in (5, 0, 3):  # in any order, after whatever else was drawn
        one = sample(SMALL, TRUTHS, SCENES, 7, 30, index)
        assert same(one, Batch(*(getattr(whole, n)[index : index + 1] for n in ("noisy", "truth", "level", "weight"))))
    shares = [batch(SMALL, TRUTHS, SCENES, 7, 30, range(rank, 6, 2)) for rank in range(2)]
    assert np.array_equal(np.concatenate([s.noisy for s in shares]), whole.noisy[[0, 2, 4, 1, 3, 5]])
    others = [sample(SMALL, TRUTHS, SCENES, *place) for place in [(8, 30, 5), (7, 31, 5), (7, 30, 6)]]
    assert not any(same(sample(SMALL, TRUTHS, SCENES, 7, 30, 5), other) for other in others)


def test_the_papers_samples_are_pure_too() -> None:
    draw = PaperDraw(side=64, low=0.5, simulated=0.3)
    whole = paper_batch(draw, TRUTHS, SCENES, 7, 30, range(4))
    assert np.array_equal(paper_sample(draw, TRUTHS, SCENES, 7, 30, 2).noisy, whole.noisy[2:3])


def test_a_batch_can_be_sent_to_another_process() -> None:
    one = sample(SMALL, TRUTHS, SCENES, 1, 2, 3)
    assert same(pickle.loads(pickle.dumps(one)), one)


def counts_of(units: Image, level: Image) -> Image:
    """Noise units → counts."""
    unit = 0.5 / level
    return units * unit + (unit**2 - 3 / 8)


def test_a_batch_is_in_noise_units() -> None:
    drawn = batch(SMALL, TRUTHS, SCENES, 0, 0, range(64))
    assert drawn.noisy.shape == drawn.truth.shape == (64, 1, 64, 64)
    assert drawn.level.shape == drawn.weight.shape == (64, 1, 1, 1)
    assert {a.dtype for a in (drawn.noisy, drawn.truth, drawn.level, drawn.weight)} == {np.dtype(np.float32)}
    dose = (0.5 / drawn.level / drawn.weight) ** 2 - 3 / 8
    counts = counts_of(drawn.noisy, drawn.level)  # whole numbers again
    assert np.abs(counts - np.round(counts)).max() < 0.02
    assert np.allclose(counts.mean((1, 2, 3), keepdims=True), dose, rtol=0.01, atol=0.11)
    bright = (dose > 10).ravel()
    noise = ((drawn.noisy - drawn.truth) * drawn.weight)[bright].std((1, 2, 3))
    assert bright.sum() > 30
    assert np.all(np.abs(noise - 1) < 0.08)


def test_doses_and_contrasts_have_the_shares_of_the_draw() -> None:
    rng = np.random.default_rng(0)
    # A mean grey of 0.4: the low law begins at 10 mean counts, the ordinary one at 80 and ends at 1000.
    doses = np.array([mean_dose(Draw(), rng, 0.4) for _ in range(8000)])
    assert doses.min() >= 0.5
    assert doses.max() <= 5000
    wide = 0.35
    assert np.mean(doses < 10) == pytest.approx(wide * np.log(10 / 0.5) / np.log(10_000), abs=0.015)
    assert np.mean(doses > 1000) == pytest.approx(wide * np.log(5) / np.log(10_000), abs=0.015)
    only = np.array([mean_dose(Draw(low=0, ordinary=1), rng, 0.4) for _ in range(500)])
    assert only.min() >= 80
    assert only.max() <= 1000
    sparse = np.array([mean_dose(Draw(low=0, ordinary=1), rng, 0.4, simulated=True) for _ in range(8000)])
    assert np.mean(sparse < 80) == pytest.approx(0.3, abs=0.02)
    assert np.median(sparse[sparse < 80]) == pytest.approx(np.sqrt(0.5 * 20), rel=0.1)
    faint = np.array([barely_visible(Draw(), rng) for _ in range(4000)])
    dose, contrast = faint.T
    assert np.median(dose) == pytest.approx(np.sqrt(0.5 * 5000), rel=0.15)
    assert 0.02 <= contrast.min() < contrast.max() <= 1
    free = (contrast > 0.02) & (contrast < 1)
    visible = (contrast * np.sqrt(dose))[free]
    assert 0.5 - 1e-9 <= visible.min() < visible.max() <= 4 + 1e-9
    drawn = batch(replace(SMALL, low=0, ordinary=1, stranger=0, sparse=0, faint=0), TRUTHS, SCENES, 0, 0, range(200))
    truth = counts_of(drawn.truth, drawn.level)
    # Of full contrast the darkest pixel of a crop has few counts; of a diluted one, many.
    dark = truth.min((1, 2, 3)) < 0.02 * truth.max((1, 2, 3))
    assert 0.3 < dark.mean() < 0.6


def test_shares_of_simulated_crops() -> None:
    flat = [np.full((64, 64), 0.25, np.float32)]
    grey = [Truth("grey", "grey", (np.full((64, 64), 0.5, np.float32),), (1,))]
    draw = PaperDraw(side=64)
    rng = np.random.default_rng(0)
    picked = [samples._versions(rng, 0.3, grey, flat)[0][0][0, 0] == 0.25 for _ in range(2000)]
    assert np.mean(picked) == pytest.approx(0.3, abs=0.04)
    assert paper_sample(draw, [], SCENES, 0, 0, 0).noisy.std() > 0.1
    assert sample(SMALL, grey, [], 0, 0, 0).noisy.shape == (1, 1, 64, 64)
    with pytest.raises(ValueError, match="neither a truth nor a scene"):
        sample(SMALL, [], [], 0, 0, 0)


def test_a_detectors_gain_and_offset_are_undone_and_its_read_out_counts_as_counts() -> None:
    detector = Detector(readout=6, gain=40, offset=-300, psf=0)
    draw = replace(SMALL, stranger=0, low=0, ordinary=0, doses=(2, 4), full_contrast=0)
    ideal = batch(draw, TRUTHS, [], 0, 0, range(40))
    real = batch(replace(draw, real_detector=1, worst_detector=detector), TRUTHS, [], 0, 0, range(40))
    # Read-out noise of r counts is that of r² more counts: uniform shares of 6 counts, so 12 on average.
    assert float(counts_of(ideal.truth, ideal.level).mean()) == pytest.approx(2.9, abs=0.3)
    assert float(counts_of(real.truth, real.level).mean()) == pytest.approx(2.9 + 12, abs=3)
    noise = [((b.noisy - b.truth) * b.weight).std((1, 2, 3)) for b in (ideal, real)]
    assert all(0.75 < one.min() and one.max() < 1.15 for one in noise)


def test_the_papers_batch_is_scaled_to_0_and_1_and_matched_in_mean() -> None:
    drawn = paper_batch(PaperDraw(side=64), TRUTHS, SCENES, 0, 0, range(12))
    assert drawn.noisy.min((2, 3)) == pytest.approx(0)
    assert drawn.noisy.max((2, 3)) == pytest.approx(1)
    assert np.allclose(drawn.noisy.mean((2, 3)), drawn.truth.mean((2, 3)), rtol=1e-4)
    assert np.all(drawn.level == 0)
    assert np.all(drawn.weight == 1)


def test_the_papers_doses_are_low_or_ordinary() -> None:
    noise = [
        (lambda b: np.square(b.noisy - b.truth).mean())(
            paper_batch(PaperDraw(side=64, low=low), TRUTHS, [], 0, 0, range(20))
        )
        for low in (1.0, 0.0)
    ]
    assert noise[0] > 5 * noise[1]


def test_a_crop_without_contrast_makes_a_sample_without_holes() -> None:
    black = [Truth("black", "black", (np.zeros((80, 80), np.float32),), (1,))]
    for make, draw in ((sample, SMALL), (paper_sample, PaperDraw(side=64))):
        for index in range(20):
            one = make(draw, black, [], 0, 0, index)  # type: ignore[operator]
            assert np.isfinite(one.noisy).all()
            assert np.isfinite(one.truth).all()


def test_flat_crops_are_flat_at_any_dose_and_as_many_as_asked_for() -> None:
    draw = replace(SMALL, flat=1.0)
    drawn = batch(draw, TRUTHS, SCENES, 0, 0, range(40))
    assert (drawn.truth.max((1, 2, 3)) == drawn.truth.min((1, 2, 3))).all()
    dose = (0.5 / drawn.level.ravel() / drawn.weight.ravel()) ** 2
    assert dose.min() < 5
    assert dose.max() > 500
    assert (drawn.noisy.std((1, 2, 3)) > 0).any()
    some = batch(replace(SMALL, flat=0.3), TRUTHS, SCENES, 0, 0, range(40))
    flat = some.truth.max((1, 2, 3)) == some.truth.min((1, 2, 3))
    assert 4 <= flat.sum() <= 22


def test_errors_at_marked_defects_weigh_more_and_nothing_else_changes() -> None:
    scenes = simulate.marked_bank(4, 14, 160)
    plain, heavy = (batch(Draw(side=128, simulated=1.0, emphasis=e), (), scenes, 7, 0, range(16)) for e in (0.0, 15.0))
    for name in ("noisy", "truth", "level"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(heavy, name))
    more = (heavy.weight / plain.weight) ** 2
    assert more.shape == heavy.noisy.shape
    assert more.min() == pytest.approx(1) and 8 < more.max() <= 16 * 1.001
    assert 0.001 < np.mean(more > 4) < 0.2, "defects are rare"
    flat = batch(Draw(side=128, simulated=1.0, emphasis=15.0, flat=1.0), (), scenes, 7, 0, range(16))
    assert np.ptp(flat.weight, axis=(2, 3)).max() == 0, "a flat field has none"


def test_crops_of_marked_scenes_are_those_of_the_images_alone() -> None:
    scenes = simulate.marked_bank(5, 6, 96)
    bare = [np.asarray(scene[..., 0], np.float32) for scene in scenes]
    draw = Draw(side=128, simulated=1.0)  # larger than the scenes, which are continued
    assert same(batch(draw, (), scenes, 3, 1, range(8)), batch(draw, (), bare, 3, 1, range(8)))
