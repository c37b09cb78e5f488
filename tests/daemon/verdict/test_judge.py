"""Is the result believed for the right reasons, and doubted for the right ones?"""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from daemon.backends.canary import NO_SPIKES
from daemon.counts.plane import Prepared, Spikes
from daemon.counts.profiles import Choice
from daemon.counts.reason import SESSION, Code, Reason
from daemon.counts.scaling import noise_units
from daemon.errors import MicrographError
from daemon.settings.profile import Profile
from daemon.verdict import judge as trust

DOSE = 50.0
SHAPE = (130, 200)


def judge(
    raw: NDArray[np.generic],
    out: NDArray[np.float32],
    gain: float = 1.0,
    offset: float = 0.0,
    spikes: Spikes = NO_SPIKES,
    doubts: tuple[Reason, ...] = (),
) -> trust.Verdict:
    choice = Choice(Profile(name="p", gain=gain, offset=offset), "test", gain, offset)
    return trust.judge(out, Prepared(raw, spikes, noise_units(DOSE, gain, offset), DOSE, doubts), choice)


@pytest.fixture
def raw() -> NDArray[np.float64]:
    return np.random.default_rng(0).poisson(DOSE, SHAPE).astype(float)


@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.0), (30.0, 1e5), (0.01, -3.0)])
def test_the_true_image_is_believed_in_any_units(raw: NDArray[np.float64], gain: float, offset: float) -> None:
    verdict = judge(raw * gain + offset, np.full(SHAPE, DOSE * gain + offset, np.float32), gain, offset)
    assert verdict.reasons == ()
    assert verdict.removed_noise == pytest.approx(1.0, abs=0.03)
    assert verdict.mean_raw == pytest.approx(float(raw.mean()) * gain + offset, rel=1e-6)
    assert verdict.mean_denoised == pytest.approx(DOSE * gain + offset, rel=1e-6)
    assert verdict.worst_block_counting_errors < 4


def test_what_was_doubted_before_the_network_ran_is_a_reason_to_check(raw: NDArray[np.float64]) -> None:
    verdict = judge(raw, np.full(SHAPE, DOSE, np.float32), doubts=(Reason("dose", "the dose is outside"),))
    assert verdict.word == "check" and verdict.reasons == ("the dose is outside",)


def test_a_shifted_mean_is_noticed(raw: NDArray[np.float64]) -> None:
    verdict = judge(raw, np.full(SHAPE, DOSE * 1.02, np.float32))
    assert verdict.mean_shift == pytest.approx(0.02 - (raw.mean() / DOSE - 1), rel=1e-3)
    assert verdict.mean_shift_counting_errors > 3
    assert any("the mean changed" in warning for warning in verdict.reasons)


def test_a_shifted_block_is_noticed_though_the_mean_is_kept(raw: NDArray[np.float64]) -> None:
    out = np.full(SHAPE, raw.mean(), np.float32)
    out[:64, :64] += 8
    out[64:128, :64] -= 8
    verdict = judge(raw, out)
    assert any("64 x 64 block" in warning for warning in verdict.reasons)
    assert not any("the mean changed" in warning for warning in verdict.reasons)


def test_what_a_network_makes_of_no_light_at_all_is_not_held_against_it(raw: NDArray[np.float64]) -> None:
    known = np.full(SHAPE, DOSE, np.float32)
    raw[:, :70], known[:, :70] = 0, 0.001 * DOSE
    raw[:, 70:] *= 1 + 0.001 * 70 / 130
    assert judge(raw, known).worst_block_counting_errors < 4


@pytest.mark.parametrize("share", [0.0, 1.0, 2.0])
def test_one_wrong_tile_among_many_is_noticed(share: float) -> None:
    """Left as it was, or with other noise; the mean of each block is right."""
    rng = np.random.default_rng(3)
    counts = rng.poisson(DOSE, (512, 512)).astype(float)
    out = np.full((512, 512), DOSE, np.float32)
    tile = slice(128, 256), slice(256, 384)
    noise = np.tile(rng.normal(0, 1, (8, 8)), (16, 16)) if share else (counts[tile] - DOSE) / np.sqrt(DOSE)
    out[tile] += (share or 1.0) * np.sqrt(DOSE) * (noise - noise.mean() if share else noise)
    verdict = judge(counts, out)
    assert verdict.word == "check"
    said = "times the noise was removed from a 64 x 64 block" if share else "of the noise is still there"
    assert any(said in reason for reason in verdict.reasons)


def test_a_network_that_leaves_half_of_the_noise_is_noticed(raw: NDArray[np.float64]) -> None:
    verdict = judge(raw, ((raw + DOSE) / 2).astype(np.float32))
    assert verdict.word == "check" and "about 50% of the noise is still in it" in verdict.reasons[0]


def smeared(noise: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    y, x = (np.fft.fftfreq(side) for side in noise.shape)
    passed = np.exp(-2 * (np.pi * width) ** 2 * (y[:, None] ** 2 + x**2))
    return np.fft.ifft2(np.fft.fft2(noise) * passed).real


@pytest.mark.parametrize(("kept", "codes"), [(0.0, []), (0.6, ["noise-left", "gaussian"])])
def test_correlated_noise_is_a_remark_and_doubtful_only_where_a_blur_is_better(kept: float, codes: list[str]) -> None:
    noise = smeared(np.random.default_rng(6).normal(0, 2.5 * np.sqrt(DOSE), (512, 512)), 0.6)
    out = (DOSE + kept * noise).astype(np.float32)
    verdict = judge(DOSE + noise, out)
    assert [reason.code for reason in verdict.why if reason.code != "block-mean"] == codes
    assert [remark.code for remark in verdict.remarks] == ["correlated"]


def test_a_lattice_that_is_in_the_result_alone_is_noticed(raw: NDArray[np.float64]) -> None:
    lattice = 0.4 * np.sqrt(DOSE) * np.sin(2 * np.pi * np.arange(SHAPE[1]) / 5.1)
    verdict = judge(raw, (np.full(SHAPE, DOSE) + lattice).astype(np.float32))
    assert verdict.word == "check" and verdict.why[0].code == "invented"
    assert "structure that the raw image does not (30%" in verdict.reasons[0]


def test_removing_more_than_noise_is_noticed(raw: NDArray[np.float64]) -> None:
    structured = raw + 30 * np.sin(np.arange(SHAPE[1]))
    verdict = judge(structured, np.full(SHAPE, structured.mean(), np.float32))
    assert verdict.removed_noise > 2
    assert verdict.word == "reject" and "times the raw image's" in verdict.reasons[0]


def test_spikes_do_not_count(raw: NDArray[np.float64]) -> None:
    raw[3, 4], raw[100, 199] = 30_000, np.nan
    spikes = Spikes(np.array([3, 100]), np.array([4, 199]), np.full(2, DOSE, np.float32))
    verdict = judge(raw, np.full(SHAPE, DOSE, np.float32), spikes=spikes)
    assert verdict.reasons == ()
    assert verdict.mean_raw == pytest.approx(DOSE, rel=0.01)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_result_that_is_not_finite_is_thrown_away(raw: NDArray[np.float64], value: float) -> None:
    out = np.full(SHAPE, DOSE, np.float32)
    out[-1, -1] = value
    with pytest.raises(MicrographError, match="was discarded"):
        judge(raw, out)


def test_small_images_are_judged_too() -> None:
    small = np.random.default_rng(0).poisson(DOSE, (32, 33)).astype(np.uint16)
    verdict = judge(small, np.full((32, 33), DOSE, np.float32))
    assert verdict.word == "check" and verdict.worst_block_counting_errors == 0.0
    assert verdict.reasons == ("33 x 32 pixels are fewer than the network was trained on",)
    assert set(verdict.as_json()) >= {"mean_raw", "mean_denoised", "removed_noise", "word", "reasons"}


def plainly(
    raw: NDArray[np.generic], out: NDArray[np.float32], spikes: Spikes, dose: float, gain: float, offset: float
) -> tuple[float, float, float, float]:
    """Mean shift and worst block in counting errors, the most that a block lost, removed noise: as one writes them."""
    counts, result = ((image.astype(np.float64) - offset) / gain for image in (raw, out))
    counts[spikes.rows, spikes.columns] = result[spikes.rows, spikes.columns]
    difference = counts - result
    number = raw.size - len(spikes)
    shift = difference.sum() / number
    blocks, most = [0.0], [0.0]
    height, width = raw.shape
    if min(height, width) >= 64:
        for top in {*range(0, height - 63, 64), height - 64}:
            for left in {*range(0, width - 63, 64), width - 64}:
                block = slice(top, top + 64), slice(left, left + 64)
                expected = max(counts[block].mean(), 0.05 * dose, 1 / 64**2)
                blocks.append(abs(difference[block].mean()) / np.sqrt(expected) * 64)
                most.append((difference[block] ** 2).mean() / expected)
    noise = np.sqrt(max((difference**2).sum() / number - shift**2, 0) / dose)
    return abs(shift) * np.sqrt(number / dose), max(blocks), max(most), noise


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["u1", "i2", "u2", "u4", "i4", "f4", "f8"]),
    st.sampled_from([0.05, 2.0, 60.0, 5000.0]),
    st.sampled_from([(1.0, 0.0), (1.0, 100.0), (0.01, 0.0), (1000.0, -50.0), (1.0, 1e9)]),
    st.sampled_from([(64, 64), (130, 200), (40, 300), (257, 70), (33, 32)]),
    st.integers(0, 5),
    st.integers(0, 100),
)
def test_every_figure_agrees_with_plain_arithmetic(
    dtype: str, dose: float, units: tuple[float, float], shape: tuple[int, int], spiked: int, seed: int
) -> None:
    gain, offset = units
    rng = np.random.default_rng(seed)
    truth = dose * (1 + 0.5 * np.sin(np.arange(shape[1]) / 30)) + np.zeros(shape)
    raw = rng.poisson(truth) * gain + offset
    limits = np.iinfo(dtype) if dtype[0] in "ui" else np.finfo(dtype)
    assume(limits.min <= raw.min() and raw.max() <= limits.max)
    raw = raw.astype(dtype)
    out = (truth * gain + offset + rng.normal(0, 0.1, shape) * gain).astype(np.float32)
    places = np.sort(rng.choice(raw.size, spiked, replace=False))
    spikes = Spikes(places // shape[1], places % shape[1], np.zeros(spiked, np.float32))
    if dtype == "f8":
        raw[spikes.rows, spikes.columns] = np.nan
    scaling = noise_units(dose, gain, offset)
    choice = Choice(Profile(name="p", gain=gain, offset=offset), "test", gain, offset)
    verdict = trust.judge(out, Prepared(raw, spikes, scaling, dose), choice)
    mean, block, most, noise = plainly(raw, out, spikes, dose, gain, offset)
    assert verdict.mean_shift_counting_errors == pytest.approx(mean, abs=1e-3, rel=1e-3)
    assert verdict.worst_block_counting_errors == pytest.approx(block, abs=1e-3, rel=1e-3)
    assert verdict.worst_block_removed == pytest.approx(most, abs=1e-3, rel=1e-3)
    assert verdict.removed_noise == pytest.approx(noise, rel=1e-4, abs=1e-9)


def test_numbers_too_large_for_float32_sums_are_no_reason_to_throw_a_result_away() -> None:
    raw = np.full(SHAPE, 3e37, np.float32)
    raw[::2] = 1e37
    choice = Choice(Profile(name="p", gain=1e36), "test", 1e36, 0.0)
    prepared = Prepared(raw, NO_SPIKES, noise_units(20.0, 1e36), 20.0)
    verdict = trust.judge(np.full(SHAPE, 2e37, np.float32), prepared, choice)
    assert verdict.mean_shift == pytest.approx(0, abs=1e-6)
    assert np.isfinite(verdict.removed_noise)


def test_where_neighbours_correlate_the_limit_is_lower() -> None:
    """The estimate is less certain there."""
    known = {field.name: 0.0 for field in fields(trust.Residual)}
    for correlation, rejected in ((0.0, False), (0.6, True)):
        found = trust.Residual(**{**known, "error_ratio": 0.9, "detector_correlation": correlation})
        assert any(trust._against(found)) == rejected


def test_every_code_is_explained() -> None:
    document = (Path(__file__).parents[3] / "docs" / "verdict.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in document.splitlines() if line.startswith("| `")]
    explained = [code for row in rows for code in re.findall(r"`([a-z-]+)`", row)]
    assert sorted(explained) == sorted(get_args(Code)) and set(get_args(Code)) > SESSION


def test_the_record_has_headline_details_codes_and_remarks(raw: NDArray[np.float64]) -> None:
    doubts = (Reason("dose", "too low"), Reason("bar", "a bar"))
    prepared = Prepared(raw, NO_SPIKES, noise_units(DOSE), DOSE, doubts, (Reason("gain", "measured"),))
    choice = Choice(Profile(name="p"), "test", 1.0, 0.0)
    record = trust.judge(np.full(SHAPE, DOSE, np.float32), prepared, choice).as_json()
    assert (record["word"], record["headline"], record["details"]) == ("check", "too low", ["a bar"])
    assert record["codes"] == ["dose", "bar"] and record["reasons"] == ["too low", "a bar"]
    assert record["remarks"] == [{"code": "gain", "text": "measured"}]
    json.dumps(record)
