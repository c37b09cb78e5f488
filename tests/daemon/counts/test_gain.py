"""Whether an image's own noise tells how its values became counts."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.counts import gain as gains
from daemon.counts.gain import Measured, measure
from daemon.demo.specimen import expose, scene
from daemon.errors import MicrographError
from training.data.simulate import HELD_OUT, TRAINING

KINDS = {**TRAINING, **HELD_OUT}
SIDE = 512


@cache
def specimen(kind: str) -> NDArray[np.float32]:
    return KINDS[kind](np.random.default_rng([77, *kind.encode()]), SIDE)


def noise_of(found: Measured, mean: float) -> float:
    """Standard deviation of a pixel of the mean, as the effective gain and offset have it."""
    noise = found.noise
    return float(np.sqrt(noise.effective_gain * (mean - noise.effective_offset)))


def cameras(kind: str, contrasts: tuple[float, ...]) -> Iterator[tuple[float, float, Measured, float]]:
    """Gain, a pixel's noise, what was measured, and the mean: of cameras with and without pedestal and read-out noise.

    The largest dose is 100: see docs/dose.md for what more brings out of the specimen.
    """
    rng = np.random.default_rng(list(kind.encode()))
    for dose in (1.0, 10.0, 100.0):
        for contrast in contrasts:
            for pedestal in (0.0, 2 * dose):
                for read in (0.0, 0.5):
                    gain = float(np.exp(rng.uniform(np.log(0.01), np.log(1000))))
                    counts, _ = expose(specimen(kind), dose, contrast, rng)
                    image = gain * (counts + pedestal + rng.normal(0, read, counts.shape))
                    image = np.rint(image).astype(np.int32) if gain > 3 else image.astype(np.float32)
                    yield gain, gain * np.sqrt(dose + read**2), measure(image), float(image.mean(dtype=np.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_the_noise_of_a_known_camera_is_found_within_a_tenth(kind: str) -> None:
    for _, noise, found, mean in cameras(kind, (0.02, 0.3)):
        assert noise_of(found, mean) == pytest.approx(noise, rel=0.1)


def test_a_gain_that_counts_as_determined_is_right_within_a_tenth() -> None:
    found = [(one.gain / gain, one.determines_gain) for kind in KINDS for gain, _, one, _ in cameras(kind, (1.0,))]
    errors = np.array([abs(ratio - 1) for ratio, determined in found if determined])
    assert len(errors) > 0.3 * len(found)
    assert np.mean(errors < 0.1) >= 0.95 and errors.max() < 0.25


@pytest.mark.parametrize("mean", [0.1, 1.0, 20.0, 1000.0])
@pytest.mark.parametrize("contrast", [0.05, 0.5])
def test_counts_are_recognised_as_counts(mean: float, contrast: float) -> None:
    rng = np.random.default_rng(7)
    counts, _ = expose(scene(rng, 256), mean, contrast, rng)
    found = measure(counts)
    assert (found.gain, found.offset, found.remark, found.dose_known) == (1.0, 0.0, None, True)


@pytest.mark.parametrize("mean", [1.0, 20.0, 1000.0])
@pytest.mark.parametrize("gain", [0.02, 37.5])
def test_the_gain_of_scaled_counts_is_measured(mean: float, gain: float) -> None:
    rng = np.random.default_rng(8)
    counts, _ = expose(scene(rng, 256), mean, 0.2, rng)
    found = measure((counts * gain).astype(np.float32))
    assert found.gain == pytest.approx(gain, rel=0.1)
    assert found.offset == 0.0
    assert found.remark is not None and "units per count" in found.remark


@pytest.mark.parametrize(("dose", "contrast"), [(2.0, 0.3), (20.0, 1.0), (20.0, 0.3)])
def test_gain_and_pedestal_are_both_measured(dose: float, contrast: float) -> None:
    rng = np.random.default_rng(4)
    counts, _ = expose(scene(rng, 1024), dose, contrast, rng)
    found = measure((3 * counts + 100).astype(np.uint16))
    assert found.gain == pytest.approx(3.0, rel=0.1)
    assert found.offset == pytest.approx(100.0, abs=0.1 * 3 * dose)
    assert found.remark is not None and "zero counts" in found.remark


def test_an_image_of_one_brightness_leaves_gain_and_pedestal_open_and_reports_it() -> None:
    counts = np.random.default_rng(3).poisson(20, (512, 512))
    found = measure((2 * counts + 160).astype(np.float32))
    assert not found.determines_gain
    assert found.remark is not None and "the brightness varies too little to tell" in found.remark
    assert noise_of(found, 200) == pytest.approx(2 * np.sqrt(20), rel=0.03)


def test_noise_that_does_not_grow_with_the_signal_is_even() -> None:
    rng = np.random.default_rng(4)
    image = (1000 + 300 * scene(rng, 512) + rng.normal(0, 5, (512, 512))).astype(np.float32)
    found = measure(image)
    assert noise_of(found, float(image.mean())) == pytest.approx(5.0, rel=0.05)
    assert found.remark is not None and "even noise" in found.remark
    assert not found.dose_known and not found.determines_gain


def test_an_image_of_nothing_but_noise_around_zero_is_taken_for_even_noise() -> None:
    noise = np.random.default_rng(9).normal(0, 3.0, (256, 256)).astype(np.float32)
    found = measure(noise)
    mean = float(noise.mean(dtype=np.float64))
    assert (mean - found.offset) / found.gain == pytest.approx(gains.PEDESTAL_DOSE)
    assert noise_of(found, mean) == pytest.approx(3.0, rel=0.03)
    assert found.remark is not None and "even noise of" in found.remark and "dose is not known" in found.remark


def test_faint_noise_on_a_high_pedestal_is_taken_for_even_noise() -> None:
    image = (1e5 + np.random.default_rng(9).normal(0, 2.0, (128, 128))).astype(np.float32)
    assert noise_of(measure(image), float(image.mean(dtype=np.float64))) == pytest.approx(2.0, rel=0.05)


def test_negative_counts_are_read_as_counts_with_a_background_subtracted() -> None:
    rng = np.random.default_rng(6)
    counts, _ = expose(scene(rng, 512), 30, 1.0, rng)
    found = measure((2.5 * (counts - 30.0)).astype(np.float32))
    assert found.negative > 0.3
    assert found.gain == pytest.approx(2.5, rel=0.1)
    assert found.offset == pytest.approx(-75, rel=0.1)


def test_negative_counts_of_low_contrast_have_no_known_dose() -> None:
    """Proportional to counts they cannot be, and how much was subtracted no slope tells."""
    counts = np.random.default_rng(6).poisson(30, (512, 512))
    image = (counts - 25.0).astype(np.float32)
    found = measure(image)
    assert not found.dose_known
    assert noise_of(found, float(image.mean())) == pytest.approx(np.sqrt(30), rel=0.03)


@pytest.mark.parametrize("value", [0, 7, 65535])
@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_a_constant_image_is_refused_in_words(value: int, kind: type) -> None:
    with pytest.raises(MicrographError, match=r"no noise from pixel to pixel.*state gain and offset"):
        measure(np.full((64, 64), value, kind))


def test_saturated_patches_are_left_out_and_an_image_full_of_them_is_refused() -> None:
    rng = np.random.default_rng(2)
    counts, _ = expose(scene(rng, 512), 100, 1.0, rng)
    clipped = np.minimum(3 * counts, 400)
    found = measure(clipped)
    assert found.saturated == pytest.approx(float((clipped == 400).mean()), abs=0.02)
    assert found.saturated > 0.05
    assert found.gain == pytest.approx(3.0, rel=0.1)
    with pytest.raises(MicrographError, match=r"saturated: 9\d% of its pixels"):
        measure(np.minimum(counts, int(np.quantile(counts, 0.01))))


def test_hot_pixels_hits_and_gaps_do_not_count_as_noise() -> None:
    rng = np.random.default_rng(1)
    counts, _ = expose(scene(rng, 512), 50, 0.5, rng)
    image = counts.astype(np.float32)
    image[tuple(rng.integers(0, 512, (2, 300)))] = rng.uniform(1000, 60_000, 300)
    image[tuple(rng.integers(0, 512, (2, 300)))] = np.nan
    image[5, 5] = np.inf
    image[300:, :100] = np.nan
    found = measure(image)
    assert noise_of(found, 50) == pytest.approx(np.sqrt(50), rel=0.05)
    assert found.gain == pytest.approx(1.0, rel=3 * found.error)


def test_an_image_full_of_nan_or_too_small_is_refused() -> None:
    with pytest.raises(MicrographError, match="NaN"):
        measure(np.full((64, 64), np.nan))
    with pytest.raises(MicrographError, match="finite"):
        gains.finite_mean(np.full((64, 64), np.inf))
    with pytest.raises(MicrographError, match="too small"):
        measure(np.ones((8, 8)))
    image = np.arange(12.0).reshape(3, 4)
    image[0, 0], image[1, 1] = np.nan, -np.inf
    assert gains.finite_mean(image) == pytest.approx((66 - 0 - 5) / 10)


@pytest.mark.parametrize(
    "image",
    [
        np.indices((200, 200)).sum(0) % 2 * 100,
        np.arange(200) % 3 * np.ones((200, 1), np.uint8),
        np.random.default_rng(0).poisson(20, (200, 200)) * 1e-200,
        np.random.default_rng(0).poisson(20, (200, 200)) * 1e200,
        np.random.default_rng(0).integers(-(2**62), 2**62, (200, 200)),
        np.random.default_rng(0).random((200, 200)) > 0.5,
        np.where(np.random.default_rng(0).random((200, 200)) < 0.2, np.inf, 20.0),
        np.random.default_rng(0).poisson(20, (300, 16)),
    ],
    ids=["chequered", "striped", "tiny", "huge", "wide integers", "boolean", "holes", "narrow"],
)
def test_whatever_the_image_there_is_a_finite_answer_or_a_refusal(image: NDArray[Any]) -> None:
    try:
        found = measure(image)
    except MicrographError:
        return
    assert found.gain > 0
    assert np.isfinite([found.gain, found.offset, found.variance, found.mean, found.correlation]).all()


def blurred(image: NDArray[Any], share: float) -> NDArray[Any]:
    """Each pixel gives `share` to each of its two neighbours along either axis."""
    for axis in (0, 1):
        image = (1 - 2 * share) * image + share * (np.roll(image, 1, axis) + np.roll(image, -1, axis))
    return image


def test_noise_that_a_detector_spreads_is_measured_at_its_true_size() -> None:
    counts = np.random.default_rng(5).poisson(40, (1024, 1024)).astype(float)
    image = blurred(counts, 0.08)
    found = measure(image)
    assert found.correlation == pytest.approx(2 * 0.08 * 0.84 / (0.84**2 + 2 * 0.08**2), abs=0.03)
    assert noise_of(found, 40) == pytest.approx(float(image.std()), rel=0.1)
    assert found.dose_known


def test_an_enlarged_image_has_no_known_dose() -> None:
    counts = np.random.default_rng(5).poisson(40, (256, 256)).astype(float)
    found = measure(blurred(counts.repeat(2, 0).repeat(2, 1), 0.25))
    assert not found.dose_known
    assert found.remark is not None and "neighbouring pixels are alike" in found.remark


def moved(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """By half a pixel along both axes, by linear interpolation: as drift correction moves a frame."""
    down = (image[1:] + image[:-1]) / 2
    return (down[:, 1:] + down[:, :-1]) / 2


@pytest.mark.parametrize("seed", range(3))
def test_noise_that_interpolation_correlates_is_measured_at_its_true_size(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts, truth = expose(scene(rng, SIDE), 30, 0.3, rng)
    recorded = 4.0 * moved(counts.astype(float))
    found = measure(recorded.astype(np.float32))
    noise = float(np.std(recorded - 4.0 * moved(truth.astype(float))))
    assert found.correlation > 0.3 and not found.dose_known
    assert np.sqrt(found.variance) == pytest.approx(noise, rel=0.1)


def test_fine_texture_is_no_blurred_noise() -> None:
    rng = np.random.default_rng(2)
    texture = rng.standard_normal((SIDE, SIDE))
    for _ in range(6):
        texture = blurred(texture, 0.3)
    recorded = moved(rng.poisson(30 * (1 + 0.1 * texture / texture.std())).astype(float))
    noise = float(np.std(moved(rng.poisson(30, (SIDE, SIDE)).astype(float))))
    assert np.sqrt(measure(recorded).variance) < 1.1 * noise


def test_measuring_gives_plain_json() -> None:
    counts, _ = expose(scene(np.random.default_rng(0), 256), 20, 0.5, np.random.default_rng(0))
    record = measure(counts).as_json()
    assert record["gain"] == 1.0 and record["noise"] == pytest.approx(np.sqrt(20), rel=0.1)
    even = measure(np.random.default_rng(9).normal(0, 3.0, (256, 256))).as_json()
    assert even["gain"] is None and even["offset"] is None and even["gain_error"] is None


@pytest.mark.parametrize("fill", [0.0, None], ids=["zeros", "mean"])
@pytest.mark.parametrize(("scale", "pedestal"), [(1.0, 0.0), (3.0, 0.0), (7.0, 100.0)])
def test_the_empty_border_of_a_drift_corrected_image_does_not_change_the_gain(
    scale: float, pedestal: float, fill: float | None
) -> None:
    rng = np.random.default_rng(5)
    counts, _ = expose(scene(rng, SIDE), 20.0, 1.0, rng)
    image = (scale * counts + pedestal).astype(np.float32)
    bare = measure(image[70:-20, 50:])
    value = float(image.mean()) if fill is None else fill
    image[:70] = image[-20:] = image[:, :50] = value
    found = measure(image)
    assert (found.gain, found.offset) == (bare.gain, bare.offset)
    assert found.gain == pytest.approx(scale, rel=0.15)


def test_a_border_far_below_the_pedestal_leaves_an_image_that_can_still_be_scaled() -> None:
    rng = np.random.default_rng(6)
    counts, _ = expose(scene(rng, SIDE), 2.0, 1.0, rng)
    image = (7.0 * counts + 1000).astype(np.float32)
    image[:200] = 0
    found = measure(image)
    assert not found.dose_known
    assert float(image.mean()) > found.offset


def test_an_image_of_one_value_is_not_all_border() -> None:
    with pytest.raises(MicrographError, match="no noise"):
        measure(np.full((200, 200), 3, np.uint16))
