"""The scaling: invertible, centred, σ = 1 whatever the dose, and blind to the units a micrograph is stored in."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import DTypeLike

from daemon.counts.scaling import ANSCOMBE, minmax_crop, noise_units
from daemon.errors import MicrographError

doses = st.floats(0.05, 1e6)
gains = st.floats(1e-3, 1e3)


@given(doses, gains, st.floats(-1e4, 1e4), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_scaling_and_back_is_exact_to_rounding_and_keeps_the_mean(
    dose: float, gain: float, offset: float, seed: int
) -> None:
    counts = np.random.default_rng(seed).poisson(dose, (32, 32))
    pixels = offset + gain * counts.astype(np.float64)
    scaling = noise_units(dose, gain, offset)
    units = scaling.to_units(pixels)
    back = scaling.to_pixels(units)
    assert units.dtype == back.dtype == np.float32
    largest = float(np.abs(pixels).max()) + abs(scaling.zero)
    assert float(np.abs(back - pixels).max()) <= 1e-6 * largest
    assert float(back.mean(dtype=np.float64)) == pytest.approx(float(pixels.mean()), abs=1e-6 * largest)


@given(doses, gains, st.floats(-1e4, 1e4))
@settings(max_examples=100, deadline=None)
def test_the_network_cannot_tell_in_which_units_a_micrograph_is_stored(dose: float, gain: float, offset: float) -> None:
    counts = np.random.default_rng(0).poisson(dose, (32, 32)).astype(np.float64)
    plain, stored = noise_units(dose), noise_units(dose, gain, offset)
    expected = plain.to_units(counts)
    assert stored.level == plain.level
    np.testing.assert_allclose(
        stored.to_units(offset + gain * counts), expected, rtol=1e-5, atol=1e-5 + 1e-9 * abs(offset) / gain
    )


@pytest.mark.parametrize("dose", [1, 20, 2500, 1e6])
def test_noise_is_centred_and_has_standard_deviation_1(dose: float) -> None:
    counts = np.random.default_rng(0).poisson(dose, (256, 256))
    units = noise_units(dose).to_units(counts)
    assert abs(float(units.mean())) < 0.02
    assert float(units.std()) == pytest.approx(math.sqrt(dose / (dose + ANSCOMBE)), rel=0.02)


def test_the_level_tells_the_dose() -> None:
    # With it the network recovers counts over dose: 1 + 2 level u = (counts + 3/8) / (dose + 3/8).
    scaling = noise_units(20)
    assert scaling.level == pytest.approx(0.5 / math.sqrt(20.375))
    counts = np.arange(60)
    assert 1 + 2 * scaling.level * scaling.to_units(counts) == pytest.approx((counts + ANSCOMBE) / 20.375, abs=1e-6)


def test_a_faint_image_on_a_high_pedestal_keeps_its_contrast_in_half_precision() -> None:
    wave = 1 + 0.02 * np.sin(np.arange(256) / 9)
    scaling = noise_units(1e5)
    units = scaling.to_units(1e5 * wave)
    rounded = units.astype(np.float16).astype(np.float32)
    assert float(np.abs(units - rounded).max()) < 0.01
    assert float(np.ptp(units)) == pytest.approx(0.04 * 1e5 / math.sqrt(1e5), rel=0.01)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", ">u2", "i2", "u4", "i4", "u8", "f2", "f4", ">f4", "f8"])
def test_every_dtype_gives_the_same_units_and_is_only_read(dtype: DTypeLike) -> None:
    pixels = np.random.default_rng(0).poisson(20, (16, 16)).astype(dtype)
    before = pixels.copy()
    pixels.flags.writeable = False
    units = noise_units(20).to_units(pixels)
    np.testing.assert_allclose(units, (before.astype(np.float64) - 20) / math.sqrt(20.375), rtol=1e-6, atol=1e-6)
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.float64])
def test_neighbouring_counts_on_a_pedestal_float32_cannot_resolve_stay_apart(dtype: DTypeLike) -> None:
    pedestal = 2**30
    units = noise_units(20, 1, pedestal).to_units(np.array([pedestal + 20, pedestal + 21], dtype))
    assert units == pytest.approx([0, 1 / math.sqrt(20.375)], rel=1e-5)


@pytest.mark.parametrize("dose", [0.0, -3.0, math.nan, math.inf])
def test_a_dose_that_cannot_be_is_refused_with_what_to_correct(dose: float) -> None:
    with pytest.raises(MicrographError, match=r"gain 2 and offset 100.*correct the profile"):
        noise_units(dose, 2, 100)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_the_papers_scaling_fills_0_to_1(dtype: DTypeLike) -> None:
    crop = np.array([[3, 5], [7, 11]], dtype)
    scaling = minmax_crop(crop)
    assert scaling.to_units(crop).tolist() == [[0, 0.25], [0.5, 1]]
    assert scaling.to_pixels(scaling.to_units(crop)) == pytest.approx(crop)
    assert scaling.level == 0


def test_the_papers_scaling_of_a_constant_crop_is_0() -> None:
    crop = np.full((4, 4), 7)
    assert not minmax_crop(crop).to_units(crop).any()
    assert (minmax_crop(crop).to_pixels(np.zeros((4, 4), np.float32)) == 7).all()
