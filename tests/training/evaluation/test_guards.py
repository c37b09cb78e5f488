"""What the guards catch: detail lost, noise left, structure invented, counts moved. And what they let pass."""

import json

import cv2
import numpy as np
import pytest

from daemon.counts.scaling import sharing
from daemon.micrograph import Image
from training.data import simulate
from training.evaluation import guards, metrics, spectrum
from training.evaluation.guards import Guard

SCENES = simulate.bank(5, 4, 128, simulate.HELD_OUT)
KINDS = list(simulate.HELD_OUT)


def identity(counts: Image) -> Image:
    return counts


def constant(counts: Image) -> Image:
    return np.full_like(counts, counts.mean())


def blurred(sigma: float) -> guards.Denoise:
    return lambda counts: np.asarray(cv2.GaussianBlur(counts, (0, 0), sigma), np.float32)


def flattened(pattern: Image, strength: float) -> guards.Denoise:
    """A perfect denoiser of flat fields that adds a pattern, in units of the noise."""
    return lambda counts: (constant(counts) + strength * np.sqrt(counts.mean()) * pattern).astype(np.float32)


def waves(side: int, row: int, column: int) -> Image:
    y, x = np.mgrid[:side, :side]
    return np.cos(2 * np.pi * (row * y + column * x) / side).astype(np.float32)


def named(found: tuple[Guard, ...], word: str) -> Guard:
    (guard,) = (guard for guard in found if word in guard.name)
    return guard


def test_doing_nothing_does_not_pass() -> None:
    found = guards.run_all(identity, quick=True)
    assert [guard.name for guard in found if not guard.ok] == [
        "noise of a flat field removed",
        "noise of a camera's flat field removed",
        "few false objects",
        "few missed objects",
    ]
    assert named(found, "noise of a flat").worst == pytest.approx(1)


def test_a_constant_does_not_pass() -> None:
    assert not guards.rings(constant, SCENES, KINDS).ok
    assert not guards.block_bias(constant, SCENES)[0].ok
    assert all(guard.ok for guard in guards.flat_fields(constant, seeds=2, side=64)), "nothing is what it does best"


def test_the_same_denoiser_gets_the_same_verdict() -> None:
    first, second = (guards.flat_fields(blurred(2), seeds=2, side=64) for _ in range(2))
    assert [guard.as_json() for guard in first] == [guard.as_json() for guard in second]


@pytest.mark.parametrize("bad", [lambda counts: counts[:-1], lambda counts: counts * np.nan])
def test_a_broken_denoiser_is_named(bad: guards.Denoise) -> None:
    with pytest.raises(ValueError, match="denoiser gave"):
        guards.flat_fields(bad, seeds=1, side=64)


def test_a_verdict_is_plain_json() -> None:
    for guard in (*guards.flat_fields(blurred(1), seeds=2, side=64), guards.rings(constant, SCENES, KINDS)):
        written = json.loads(json.dumps(guard.as_json(), allow_nan=False))
        assert written["ok"] == guard.ok
        assert written["statistic"]


def test_a_goal_whose_figure_is_nan_is_not_reached() -> None:
    guard = Guard("x", float("nan"), "<=", 1.0, "x", {})
    assert not guard.ok
    assert guard.as_json()["worst"] is None


# Rings


def correlations(scenes: int, change: float = 0.02) -> tuple[guards.Real, guards.Real]:
    """(scenes, 4 exposures, rings) before and after, with a little noise of the exposures in both."""
    rng = np.random.default_rng(0)
    before = rng.uniform(0.5, 0.9, (scenes, 1, metrics.RINGS)) + rng.normal(0, 0.002, (scenes, 4, metrics.RINGS))
    return before, before + change + rng.normal(0, 0.002, before.shape)


def test_a_ring_that_is_worse_everywhere_is_found() -> None:
    before, after = correlations(8)
    kinds = ["gold", "sheet"] * 4
    assert guards.judge_rings(before, after, kinds).ok
    after[..., 7] = before[..., 7] - 0.01 + np.random.default_rng(1).normal(0, 0.002, (8, 4))
    guard = guards.judge_rings(before, after, kinds)
    assert not guard.ok
    assert guard.numbers["worst_ring_per_px"] == pytest.approx(metrics.frequencies()[7])
    assert guard.numbers["rings_worse"] == {"gold": 1, "sheet": 1}
    assert guard.numbers["worst_change"] == pytest.approx(-0.01, abs=0.002)


def test_one_specimen_that_loses_everything_is_not_hidden_by_the_others() -> None:
    before, after = correlations(24)
    kinds = [str(index % 4) for index in range(24)]
    after[5, :, 9] = np.random.default_rng(1).normal(0, 0.002, 4)
    guard = guards.judge_rings(before, after, kinds)
    assert not guard.ok
    assert guard.numbers["worst_kind"] == "1"


def test_an_invisible_change_counts_as_none() -> None:
    before, _ = correlations(4)
    assert guards.judge_rings(before, before - 0.5 * guards.UNNOTICED, ["gold"] * 4).ok
    assert not guards.judge_rings(before, before - 2 * guards.UNNOTICED, ["gold"] * 4).ok


def test_rings_beyond_half_of_nyquist_may_be_given_up() -> None:
    before = np.full((4, 2, metrics.RINGS), 0.5)
    after = before.copy()
    after[..., metrics.RINGS // 2 :] = 0
    assert guards.judge_rings(before, after, ["gold"] * 4).ok
    after[..., metrics.RINGS // 2 - 1] = 0
    assert not guards.judge_rings(before, after, ["gold"] * 4).ok


def test_rings_need_more_than_one_exposure() -> None:
    with pytest.raises(ValueError, match="two exposures"):
        guards.judge_rings(np.ones((3, 1, metrics.RINGS)), np.ones((3, 1, metrics.RINGS)), ["gold"] * 3)


# Flat fields


def test_smoothing_alone_leaves_too_much_noise_but_invents_nothing() -> None:
    noise, spots, rings = guards.flat_fields(blurred(1.5), seeds=4, side=128, means=(10,))
    assert not noise.ok
    assert noise.worst == pytest.approx(1 / (2 * np.sqrt(np.pi) * 1.5), rel=0.1)
    assert spots.ok
    assert rings.ok


@pytest.mark.parametrize(("row", "column"), [(0, 32), (32, 32), (0, 64), (64, 64), (64, 32), (17, -5)])
def test_a_faint_grid_is_a_spot_in_the_spectrum(row: int, column: int) -> None:
    """1 % of the noise: far too little for the limit on noise, and invisible in one image."""
    noise, spots, _ = guards.flat_fields(flattened(waves(128, row, column), 0.01), seeds=2, side=128, means=(100,))
    assert noise.ok
    assert not spots.ok
    found = spots.numbers["fields"]["100"]
    away = np.abs(np.outer([1, -1], found["frequency_per_px"]) - [row / 128, column / 128])
    assert np.minimum(away, 1 - away).max(1).min() < 0.01, "+1/2 and -1/2 are the same frequency"
    if 64 not in (row, column):  # at Nyquist's frequency both halves of the line fall together
        assert found["amplitude_over_noise"] == pytest.approx(0.01, rel=0.25)


@pytest.mark.parametrize("sigma", [0.0, 0.8, 3.0])
@pytest.mark.parametrize("seeds", [2, 8])
def test_noise_without_spots_has_none(sigma: float, seeds: int) -> None:
    over = []
    for repetition in range(4):
        power = np.zeros((127, 127))
        for seed in range(seeds):
            noise = np.random.default_rng([repetition, seed]).standard_normal((128, 128)).astype(np.float32)
            image = blurred(sigma)(noise) if sigma else noise
            power += spectrum.periodogram(image[:-1, :-1]) / seeds
        over.append(spectrum.spot(power, seeds)["over_trend"])
        assert spectrum.bump(power, seeds)["over_valley"] < 2
    assert max(over) < spectrum.spot_threshold(seeds, 127, 4)


def test_the_power_of_white_noise_is_its_variance() -> None:
    noise = np.random.default_rng(0).normal(0, 3, (255, 255)).astype(np.float32)
    assert spectrum.periodogram(noise).mean() == pytest.approx(9, rel=0.02)


def test_a_preferred_spacing_in_any_direction_is_a_ring_in_the_spectrum() -> None:
    def mottled(counts: Image) -> Image:
        frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(128)[None, :])
        band = 0.02 * np.exp(-(((frequency - 0.2) / 0.03) ** 2)) + 0.3 * (frequency < 0.02)
        noise = np.fft.irfft2(np.fft.rfft2(counts - counts.mean()) * band, s=counts.shape)
        return (counts.mean() + noise).astype(np.float32)

    noise, spots, rings = guards.flat_fields(mottled, seeds=4, side=128, means=(100,))
    assert noise.ok
    assert spots.ok
    assert not rings.ok
    assert rings.numbers["fields"]["100"]["frequency_per_px"] == pytest.approx(0.2, abs=0.03)


def test_rounding_errors_are_not_structure() -> None:
    tiny = flattened(waves(64, 0, 16), 1e-5)
    assert all(guard.ok for guard in guards.flat_fields(tiny, seeds=2, side=64, means=(100,)))


# Camera's flat fields


def test_a_camera_that_smears_counts_is_served_in_effective_counts() -> None:
    means, variances = [], []

    def listening(counts: Image) -> Image:
        means.append(counts.mean(dtype=np.float64))
        variances.append(counts.var(dtype=np.float64))
        return counts

    guard = guards.camera_fields(listening, seeds=2, side=128)
    assert np.array(variances) == pytest.approx(np.array(means), rel=0.1), "a pixel's variance is its mean"
    assert not guard.ok
    assert guard.worst == pytest.approx(sharing(0.5) ** 0.5, rel=0.15), "nothing is removed but by the camera itself"
    assert len(guard.numbers["noise_left"]) == len(guards.CAMERAS) * 3


def test_smoothing_leaves_as_much_of_a_camera_s_noise_as_of_counting_noise() -> None:
    counting = guards.flat_fields(blurred(3), seeds=2, side=128)[0]
    camera = guards.camera_fields(blurred(3), seeds=2, side=128)
    assert camera.worst == pytest.approx(counting.worst, rel=0.1)
    assert guards.camera_fields(constant, seeds=1, side=64).ok


# Blocks


def test_counts_moved_out_of_one_block_are_found() -> None:
    def moved(counts: Image) -> Image:
        counts[:64, :64] *= 0.9
        return counts

    assert all(guard.ok for guard in guards.block_bias(identity, SCENES))
    assert not guards.block_bias(moved, SCENES)[0].ok


def test_a_bias_of_all_blocks_alike_is_found_where_no_single_block_shows_it() -> None:
    scenes = simulate.bank(6, 24, 128, simulate.HELD_OUT)
    blocks, together = guards.block_bias(lambda counts: counts * np.float32(1.02), scenes, [(1, 1.0)])
    assert blocks.ok
    assert not together.ok


def test_blocks_are_judged_in_counting_errors() -> None:
    guard, _ = guards.block_bias(identity, SCENES, [(100, 1.0)])
    assert guard.numbers["blocks"] == 4 * len(SCENES)
    assert guard.numbers["rms"]["100 counts, contrast 1"] == pytest.approx(1, abs=0.5)
