"""Is the result believed for the right reasons, and doubted for the right ones?"""

import numpy as np
import pytest
from numpy.typing import NDArray

from daemon import trust
from daemon.config import Profile
from daemon.denoise import NO_SPIKES
from daemon.dose import Choice
from daemon.errors import MicrographError
from daemon.micrograph import Spikes
from daemon.scaling import noise_units

DOSE = 50.0
SHAPE = (130, 200)


def judge(
    raw: NDArray[np.generic],
    out: NDArray[np.float32],
    gain: float = 1.0,
    offset: float = 0.0,
    spikes: Spikes = NO_SPIKES,
) -> trust.Verdict:
    choice = Choice(Profile(name="p", gain=gain, offset=offset), "test", gain, offset)
    return trust.judge(raw, out, spikes, choice, noise_units(DOSE, gain, offset))


@pytest.fixture
def raw() -> NDArray[np.float64]:
    return np.random.default_rng(0).poisson(DOSE, SHAPE).astype(float)


@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.0), (30.0, 1e5), (0.01, -3.0)])
def test_the_true_image_is_believed_in_any_units(raw: NDArray[np.float64], gain: float, offset: float) -> None:
    verdict = judge(raw * gain + offset, np.full(SHAPE, DOSE * gain + offset, np.float32), gain, offset)
    assert verdict.warnings == ()
    assert verdict.removed_noise == pytest.approx(1.0, abs=0.03)
    assert verdict.mean_raw == pytest.approx(float(raw.mean()) * gain + offset, rel=1e-6)
    assert verdict.mean_denoised == pytest.approx(DOSE * gain + offset, rel=1e-6)
    assert verdict.worst_block_counting_errors < 4


def test_a_shifted_mean_is_noticed(raw: NDArray[np.float64]) -> None:
    verdict = judge(raw, np.full(SHAPE, DOSE * 1.02, np.float32))
    assert verdict.mean_shift == pytest.approx(0.02 - (raw.mean() / DOSE - 1), rel=1e-3)
    assert verdict.mean_shift_counting_errors > 3
    assert any("the mean changed" in warning for warning in verdict.warnings)


def test_a_shifted_block_is_noticed_though_the_mean_is_kept(raw: NDArray[np.float64]) -> None:
    out = np.full(SHAPE, raw.mean(), np.float32)
    out[:64, :64] += 8
    out[64:128, :64] -= 8
    verdict = judge(raw, out)
    assert any("64 x 64 block" in warning for warning in verdict.warnings)
    assert not any("the mean changed" in warning for warning in verdict.warnings)


def test_removing_more_than_noise_is_noticed(raw: NDArray[np.float64]) -> None:
    structured = raw + 30 * np.sin(np.arange(SHAPE[1]))
    verdict = judge(structured, np.full(SHAPE, structured.mean(), np.float32))
    assert verdict.removed_noise > 2
    assert any("gain or offset may be wrong" in warning for warning in verdict.warnings)


def test_spikes_do_not_count(raw: NDArray[np.float64]) -> None:
    raw[3, 4], raw[100, 199] = 30_000, np.nan
    spikes = Spikes(np.array([3, 100]), np.array([4, 199]), np.full(2, DOSE, np.float32))
    verdict = judge(raw, np.full(SHAPE, DOSE, np.float32), spikes=spikes)
    assert verdict.warnings == ()
    assert verdict.mean_raw == pytest.approx(DOSE, rel=0.01)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_result_that_is_not_finite_is_thrown_away(raw: NDArray[np.float64], value: float) -> None:
    out = np.full(SHAPE, DOSE, np.float32)
    out[-1, -1] = value
    with pytest.raises(MicrographError, match="thrown away"):
        judge(raw, out)


def test_small_images_are_judged_too() -> None:
    small = np.random.default_rng(0).poisson(DOSE, (32, 33)).astype(np.uint16)
    verdict = judge(small, np.full((32, 33), DOSE, np.float32))
    assert verdict.warnings == () and verdict.worst_block_counting_errors == 0.0
    assert set(verdict.as_json()) >= {"mean_raw", "mean_denoised", "removed_noise", "warnings"}
