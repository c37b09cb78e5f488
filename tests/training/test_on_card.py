"""Batches drawn on the device: other samples than NumPy's, by the same laws."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from daemon.counts.scaling import sharing
from training.data import exposure, simulate
from training.data.exposure import IDEAL, Detector, Image
from training.data.samples import Batch, Draw, batch, regrade
from training.data.truths import Truth
from training.on_card import (
    CardBatch,
    Dice,
    Stock,
    batch_on_card,
    draw_cameras,
    draw_crops,
    expose,
    in_noise_units,
    mean_doses,
    smear,
)
from training.on_card import regrade as regrade_on_card
from training.presets import FAST
from training.supply import drawn_on_card

CPU = torch.device("cpu")
CAMERA = Detector(readout=3, psf=1.2, gain=3, offset=-20, hot_pixels=0.002, x_rays=0.002)
USUAL = Draw(side=64, simulated=0.4, real_detector=0.5, worst_detector=CAMERA, misjudged=0.05, flat=0.1)


def smooth(height: int = 256, width: int = 0) -> Image:
    wave = np.sin(np.arange(max(height, width)) / 20)
    return (0.5 + 0.5 * wave[:height, None] * wave[: width or height]).astype(np.float32)


TRUTHS = [
    Truth("a", "a", (smooth(200), smooth(100)), (1, 2)),
    Truth("b", "b", (smooth(96, 120) ** 2,), (1,)),
    Truth("c", "c", (smooth(50),), (1,)),
]
SCENES = simulate.bank(3, 14, 96)


def on_card(draw: Draw, count: int, seed: int = 1) -> dict[str, Image]:
    stock = Stock.of(TRUTHS, SCENES, CPU)
    batches = [batch_on_card(draw, stock, seed, step, range(100)) for step in range(count // 100)]
    return {name: torch.cat([getattr(one, name) for one in batches]).numpy() for name in CardBatch.__slots__}


def by_numpy(draw: Draw, count: int, seed: int = 1) -> dict[str, Image]:
    drawn = batch(draw, TRUTHS, SCENES, seed, 0, range(count))
    return {name: getattr(drawn, name) for name in Batch.__slots__}


def statistics(noisy: Image, truth: Image, level: Image, weight: Image) -> dict[str, Image]:
    """What tells one law from another, a number for each sample."""
    error = (noisy - truth) * weight
    rest = error - error.mean((1, 2, 3), keepdims=True)
    power = np.square(rest).mean((1, 2, 3)) + 1e-9
    return {
        "level": level.ravel(),
        "weight": weight.ravel(),
        "contrast": truth.std((1, 2, 3)),
        "darkest": truth.min((1, 2, 3)),
        "brightest": truth.max((1, 2, 3)),
        "detail across": np.square(np.diff(truth, axis=3)).mean((1, 2, 3)),
        "detail down": np.square(np.diff(truth, axis=2)).mean((1, 2, 3)),
        "upper half": (truth[:, :, :32] - truth.mean((1, 2, 3), keepdims=True)).mean((1, 2, 3)),
        "noise": error.std((1, 2, 3)),
        "noise of the mean": error.mean((1, 2, 3)),
        "spikes": noisy.max((1, 2, 3)),
        "correlation across": (rest[..., 1:] * rest[..., :-1]).mean((1, 2, 3)) / power,
        "correlation down": (rest[..., 1:, :] * rest[..., :-1, :]).mean((1, 2, 3)) / power,
    }


@pytest.mark.slow
def test_samples_follow_the_laws_of_the_host() -> None:
    number = 6000  # so many that another law stands out though 12 % of the crops have sparse doses anyway
    host, card = (statistics(**drawn(USUAL, number, seed=2)) for drawn in (by_numpy, on_card))
    chances = {name: ks_2samp(host[name], card[name]).pvalue for name in host}
    assert min(chances.values()) > 0.01, chances
    # The test sees what it is there for: other doses, cameras and contrasts.
    for other, name in (
        (replace(USUAL, low=0.7), "level"),
        (replace(USUAL, real_detector=0.2), "correlation down"),
        (replace(USUAL, full_contrast=0.9), "contrast"),
    ):
        assert ks_2samp(statistics(**on_card(other, number))[name], host[name]).pvalue < 0.01, name


def test_a_batch_is_in_noise_units_and_its_shares_are_those_of_the_draw() -> None:
    draw = replace(USUAL, real_detector=0, misjudged=0, low=0, ordinary=1, simulated=0)
    drawn = on_card(draw, 1000)
    assert drawn["noisy"].shape == drawn["truth"].shape == (1000, 1, 64, 64)
    assert drawn["level"].shape == drawn["weight"].shape == (1000, 1, 1, 1)
    assert {values.dtype for values in drawn.values()} == {np.dtype(np.float32)}
    unit = 0.5 / drawn["level"]
    counts = drawn["noisy"] * unit + (unit**2 - 3 / 8)
    assert np.abs(counts - counts.round()).max() < 0.02
    dose = np.square(unit / drawn["weight"]) - 3 / 8
    assert np.allclose(counts.mean((1, 2, 3), keepdims=True), dose, rtol=0.01)
    noise = ((drawn["noisy"] - drawn["truth"]) * drawn["weight"]).std((1, 2, 3))
    assert np.median(noise) == pytest.approx(1, abs=0.01)
    flat = np.ptp(drawn["truth"], axis=(1, 2, 3)) == 0
    assert flat.mean() == pytest.approx(0.1, abs=0.03)
    assert np.mean(drawn["weight"] == 1) == pytest.approx(1 - draw.stranger, abs=0.05)


def test_doses_are_shared_out_as_on_the_host() -> None:
    real, simulated = torch.zeros(8000, dtype=torch.bool), torch.ones(8000, dtype=torch.bool)
    doses = mean_doses(Draw(), Dice(CPU, 8000, 0), torch.full((8000,), 0.4).double(), real).numpy()
    wide = 0.35
    assert doses.min() >= 0.5
    assert np.mean(doses < 10) == pytest.approx(wide * np.log(10 / 0.5) / np.log(10_000), abs=0.015)
    assert np.mean(doses > 1000) == pytest.approx(wide * np.log(5) / np.log(10_000), abs=0.015)
    low = mean_doses(Draw(low=1), Dice(CPU, 8000, 1), torch.ones(8000).double(), real)
    assert float(low.min()) >= 25
    assert float(low.mean()) == pytest.approx(100, abs=3)
    sparse = mean_doses(Draw(low=1, sparse=0.3), Dice(CPU, 8000, 2), torch.ones(8000).double(), simulated).numpy()
    assert np.mean(sparse < 25) == pytest.approx(0.3, abs=0.02)
    assert np.median(sparse[sparse < 25]) == pytest.approx(np.sqrt(0.5 * 20), rel=0.1)


def test_a_batch_is_a_pure_function_of_seed_step_and_first_index() -> None:
    stock = Stock.of(TRUTHS, SCENES, CPU)
    draw = partial(batch_on_card, USUAL, stock)
    first = draw(7, 30, range(6))
    torch.manual_seed(3)
    again = draw(7, 30, range(6))
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in CardBatch.__slots__)
    for other in (draw(8, 30, range(6)), draw(7, 31, range(6)), draw(7, 30, range(1, 12, 2))):
        assert other.noisy.shape == first.noisy.shape
        assert not torch.equal(first.noisy, other.noisy)


def test_errors_at_marked_defects_weigh_more_as_on_the_host() -> None:
    scenes = simulate.marked_bank(3, 14, 96)
    draw = replace(USUAL, simulated=1.0, emphasis=15.0)
    host = batch(draw, (), scenes, 1, 0, range(400)).weight
    card = batch_on_card(draw, Stock.of([], scenes, CPU), 1, 0, range(400)).weight.numpy()
    assert card.shape == host.shape == (400, 1, 64, 64)
    heavier = [(weight / weight.min((2, 3), keepdims=True)) ** 2 for weight in (host, card)]
    assert all(8 < one.max() < 16.01 for one in heavier)
    shares = [np.mean(one > 4) for one in heavier]
    assert shares[1] == pytest.approx(shares[0], rel=0.3)
    assert np.mean(heavier[1].max((1, 2, 3)) < 1.01) == pytest.approx(
        np.mean(heavier[0].max((1, 2, 3)) < 1.01), abs=0.1
    )


def test_crops_come_in_eight_symmetries_and_small_images_are_mirrored_as_on_the_host() -> None:
    small = np.arange(12, dtype=np.float32).reshape(3, 4)
    stock = Stock.of([Truth("s", "s", (small,), (1,))], [], CPU)
    mirrored = np.pad(small, [(0, 5), (0, 4)], mode="reflect")
    expected = {
        np.ascontiguousarray(np.rot90(image, turns)).tobytes()
        for image in (mirrored, mirrored[:, ::-1])
        for turns in range(4)
    }
    crops = draw_crops(Dice(CPU, 200, 5), Draw(side=8), stock)[0].numpy()
    assert {crop.tobytes() for crop in crops} == expected


def test_crops_come_from_everywhere_and_as_often_as_a_micrograph_is_listed() -> None:
    ramp = np.linspace(0, 0.4, 20 * 30, dtype=np.float32).reshape(20, 30)
    truths = [Truth("r", "r", (ramp,), (1,)), grey := Truth("g", "g", (np.full((40, 16), 0.75, np.float32),), (1,))]
    stock = Stock.of([truths[0], grey, grey, grey], [np.ones((9, 9), np.float32)], CPU)
    crops, _, simulated = draw_crops(Dice(CPU, 20_000, 0), Draw(side=8, simulated=0.3), stock)
    assert torch.equal((crops == 1).all(2).all(1), simulated)
    assert float(simulated.float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float((crops == 0.75).all(2).all(1).float().mean()) == pytest.approx(0.7 * 0.75, abs=0.02)
    of_ramp = crops[(crops < 0.5).all(2).all(1)]
    assert float(of_ramp.min()) == ramp[0, 0]
    assert float(of_ramp.max()) == ramp[-1, -1]
    assert len(torch.unique(of_ramp.amin((1, 2)))) == 13 * 23


def test_grey_scales_are_changed_as_on_the_host() -> None:
    crop = smooth(32) * 0.5
    rng = np.random.default_rng(0)
    host = np.stack([regrade(rng, crop) for _ in range(3000)])
    card = regrade_on_card(Dice(CPU, 3000, 0), torch.from_numpy(crop).expand(3000, 32, 32)).numpy()
    for of in (np.min, np.max, np.mean):
        assert ks_2samp(of(host, axis=(1, 2)), of(card, axis=(1, 2))).pvalue > 0.01


def test_the_truth_is_what_the_detector_shows_on_average_without_spikes() -> None:
    count = 1500
    draw = replace(USUAL, real_detector=1.0)
    dice = Dice(CPU, count, 2)
    one = replace(draw_cameras(draw, dice), psf=torch.full((count,), 0.8).double())
    crop = torch.from_numpy(smooth(24)).expand(count, 24, 24)
    dose, contrast = torch.full((count,), 50.0).double(), torch.full((count,), 0.5).double()
    quiet = replace(one, hot_pixels=0 * dose, x_rays=0 * dose)
    pixels, truth = expose(dice, crop, dose, contrast, quiet)
    assert float((pixels.mean(0) - truth[0]).abs().max()) < 5 * float(pixels.std(0).max()) / count**0.5
    expected = 50 * (1 + 0.5 * (smooth(24) / smooth(24).mean() - 1))
    smeared = exposure.smear(expected.astype(np.float32), 0.8) * 3 - 20
    assert np.allclose(truth[0].numpy(), smeared, rtol=1e-5)
    struck, same = expose(dice, crop, dose, contrast, one)
    assert torch.allclose(same, truth)
    assert float((struck - truth).max()) > 50 * 3


@pytest.mark.parametrize("sigma", [0.0, 0.3, 0.8, 1.2])
def test_smearing_and_its_share_of_the_variance_are_those_of_the_host(sigma: float) -> None:
    image = np.random.default_rng(0).random((2, 20, 31)).astype(np.float32)
    dice = Dice(CPU, 2, 0)
    cameras = draw_cameras(replace(USUAL, real_detector=1.0, worst_detector=replace(CAMERA, psf=1.5)), dice)
    cameras = replace(cameras, psf=torch.tensor([sigma, 1.5]).double())
    smeared = smear(torch.from_numpy(image), cameras.taps).numpy()
    assert np.allclose(smeared[0], exposure.smear(image[0], sigma) if sigma else image[0], atol=1e-6)
    assert np.allclose(smeared[1], exposure.smear(image[1], 1.5), atol=1e-6)
    assert cameras.sharing.tolist() == pytest.approx([sharing(sigma), sharing(1.5)])


def test_noise_of_a_smeared_camera_is_1_in_its_units() -> None:
    count = 300
    dice = Dice(CPU, count, 4)
    worst = replace(CAMERA, hot_pixels=0, x_rays=0)
    cameras = draw_cameras(replace(USUAL, real_detector=1.0, worst_detector=worst), dice)
    dose, frame = dice.log_uniform((2, 2000)), torch.ones(count).double()
    pixels, truth = expose(dice, torch.full((count, 64, 64), 0.5), dose, frame, cameras)
    drawn = in_noise_units(pixels, truth, frame, cameras, frame)
    noise = (drawn.noisy - drawn.truth).std((1, 2, 3))
    assert float(noise.mean()) == pytest.approx(1, abs=0.01)
    assert torch.allclose(drawn.weight.ravel().square(), cameras.sharing.float(), rtol=1e-5)


def test_a_detector_that_only_counts_gives_whole_counts() -> None:
    dice = Dice(CPU, 4, 0)
    cameras = draw_cameras(replace(USUAL, real_detector=0.0), dice)
    assert cameras.worst == IDEAL
    pixels, truth = expose(dice, torch.ones(4, 8, 8), *(2 * [torch.ones(4).double()]), cameras)
    assert torch.equal(pixels, pixels.round())
    assert torch.equal(truth, torch.ones(4, 8, 8))


def test_without_truths_or_without_scenes_the_other_is_drawn_and_without_both_nothing() -> None:
    for truths, scenes in (([], SCENES), (TRUTHS, [])):
        drawn = batch_on_card(USUAL, Stock.of(truths, scenes, CPU), 0, 0, range(20))
        assert torch.isfinite(drawn.noisy).all()
    with pytest.raises(ValueError, match="neither a truth nor a scene"):
        Stock.of([], [], CPU)


def test_crops_are_drawn_on_the_card_where_there_is_one() -> None:
    cuda = torch.device("cuda")
    assert drawn_on_card(None, FAST, cuda)
    assert not drawn_on_card(None, FAST, CPU)
    assert not drawn_on_card("host", FAST, cuda)
    assert drawn_on_card("card", FAST, CPU)
