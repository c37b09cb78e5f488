"""Which profile a micrograph gets, and whether its own noise tells how its values became counts."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from daemon import dose
from daemon.camera import expose, scene
from daemon.config import Config, Profile
from daemon.errors import MicrographError
from daemon.micrograph import Micrograph

MakeConfig = Callable[..., Config]
PROFILES = {
    "low": {"dose": [0.5, 100], "match": {"folder": "low"}},
    "named": {"dose": [0.5, 100], "gain": 2.0, "offset": 10.0, "match": {"name": "*_fast_*"}},
    "measured": {"dose": [400, 600], "match": {"measured": True}},
    "auto": {"gain": "auto"},
}


def micrograph(pixels: Any) -> Micrograph:
    return Micrograph(np.asarray(pixels), Path("a.tif"), "tiff")


@pytest.mark.parametrize(
    ("path", "mean", "expected", "why"),
    [
        ("low/a.tif", 20, "low", "folder low"),
        ("low/deeper/a.tif", 20, "low", "folder low"),
        ("other/x_FAST_1.tif", 20, "named", "name *_fast_*"),
        ("low/x_fast_1.tif", 20, "low", "folder low"),
        ("a.tif", 500, "measured", "measured 5"),
        ("a.tif", 20, "auto", "default, no rule fits"),
    ],
)
def test_the_first_profile_whose_rules_hold(
    config: MakeConfig, path: str, mean: float, expected: str, why: str
) -> None:
    image = micrograph(np.random.default_rng(0).poisson(mean, (64, 64)).astype(np.uint16))
    choice = dose.choose(config(profiles=PROFILES), PurePosixPath(path), image)
    assert choice.profile.name == expected
    assert choice.why.startswith(f"{expected}: ") and why in choice.why


def test_a_profile_asked_for_by_name_overrides_the_rules(config: MakeConfig) -> None:
    image = micrograph(np.full((64, 64), 50, np.uint16))
    choice = dose.choose(config(profiles=PROFILES), PurePosixPath("low/a.tif"), image, named="named")
    assert (choice.profile.name, choice.gain, choice.offset) == ("named", 2.0, 10.0)
    assert choice.counts(50) == 20.0


@pytest.mark.parametrize("mean", [0.1, 1.0, 20.0, 1000.0])
@pytest.mark.parametrize("contrast", [0.05, 0.5])
def test_counts_are_recognised_as_counts(mean: float, contrast: float) -> None:
    rng = np.random.default_rng(7)
    counts, _ = expose(scene(rng, 256), mean, contrast, rng)
    assert dose.measure(counts) == (1.0, 0.0, None, True)


@pytest.mark.parametrize("mean", [1.0, 20.0, 1000.0])
@pytest.mark.parametrize("gain", [0.02, 37.5])
def test_the_gain_of_scaled_counts_is_measured(mean: float, gain: float) -> None:
    rng = np.random.default_rng(8)
    counts, _ = expose(scene(rng, 256), mean, 0.2, rng)
    measured, offset, remark, _ = dose.measure((counts * gain).astype(np.float32))
    assert measured == pytest.approx(gain, rel=0.15)
    assert offset == 0.0
    assert remark is not None and "units per count" in remark


@pytest.mark.parametrize(("dose_", "contrast"), [(2.0, 0.3), (20.0, 1.0), (20.0, 0.3)])
def test_gain_and_pedestal_are_both_measured(dose_: float, contrast: float) -> None:
    rng = np.random.default_rng(4)
    counts, _ = expose(scene(rng, 512), dose_, contrast, rng)
    gain, offset, remark, _ = dose.measure((3 * counts + 100).astype(np.uint16))
    assert gain == pytest.approx(3.0, rel=0.15)
    assert offset == pytest.approx(100.0, abs=0.15 * 3 * dose_)
    assert remark is not None and "zero counts" in remark


def test_noise_that_does_not_grow_with_the_signal_is_even() -> None:
    rng = np.random.default_rng(4)
    image = 1000 + 300 * scene(rng, 512) + rng.normal(0, 5, (512, 512))
    gain, offset, remark, _ = dose.measure(image.astype(np.float32))
    assert gain * np.sqrt((float(image.mean()) - offset) / gain) == pytest.approx(5.0, rel=0.1)
    assert remark is not None and "even noise" in remark
    profile = Profile(name="auto", gain="auto")
    assert not dose.scaled(profile, "", micrograph(image.astype(np.float32))).dose_known


def test_a_sum_of_frames_has_the_offset_of_each() -> None:
    summed = Micrograph(np.full((64, 64), 500, np.uint16), Path("a.mrc"), "mrc", metadata={"frames": 10})
    choice = dose.scaled(Profile(name="camera", gain=2.0, offset=30.0), "", summed)
    assert choice.counts(500) == pytest.approx(100.0)


def test_values_around_zero_are_taken_for_even_noise() -> None:
    noise = np.random.default_rng(9).normal(0, 3.0, (256, 256)).astype(np.float32)
    gain, offset, remark, _ = dose.measure(noise)
    mean = (float(noise.mean()) - offset) / gain
    assert mean == pytest.approx(dose.PEDESTAL_DOSE)
    assert gain * np.sqrt(mean) == pytest.approx(3.0, rel=0.03)
    assert remark is not None and "even noise of" in remark


def test_faint_noise_on_a_high_pedestal_is_taken_for_even_noise() -> None:
    image = (1e5 + np.random.default_rng(9).normal(0, 2.0, (128, 128))).astype(np.float32)
    gain, offset, *_ = dose.measure(image)
    assert gain * np.sqrt((float(image.mean()) - offset) / gain) == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_an_image_without_noise_is_refused_in_words(value: int) -> None:
    with pytest.raises(MicrographError, match=r"no noise from pixel to pixel.*state gain and offset"):
        dose.measure(np.full((64, 64), value, np.uint16))


def test_nan_is_passed_over_and_an_image_full_of_it_refused() -> None:
    image = np.random.default_rng(1).poisson(20, (128, 128)).astype(np.float32)
    image[5, 5], image[70, 70] = np.nan, np.inf
    gain, offset, *_ = dose.measure(image)
    assert gain == pytest.approx(1.0, rel=0.1) and offset == 0.0
    assert dose.finite_mean(image) == pytest.approx(20, rel=0.02)
    with pytest.raises(MicrographError, match="NaN"):
        dose.measure(np.full((64, 64), np.nan))
    with pytest.raises(MicrographError, match="finite"):
        dose.finite_mean(np.full((64, 64), np.inf))


def test_an_image_too_small_to_measure_says_so() -> None:
    with pytest.raises(MicrographError, match="too small"):
        dose.measure(np.ones((8, 8)))
