"""What the difference between raw and denoised tells, on images whose truth is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.backends.canary import NO_SPIKES
from daemon.counts.plane import Spikes
from daemon.counts.profiles import Choice
from daemon.counts.scaling import noise_units
from daemon.settings.profile import Profile
from daemon.verdict import residual
from daemon.verdict.residual import Residual

DOSE = 100.0
Image = NDArray[np.float64]


def truth(side: int = 512) -> Image:
    """A specimen of broad shapes with a lattice of 6.4 pixels in its left half."""
    y, x = np.indices((side, side)) / 40
    lattice = np.where(np.arange(side) < side // 2, np.sin(2 * np.pi * np.arange(side) / 6.4), 0)
    return DOSE * (1 + 0.3 * np.sin(y) * np.cos(x) + 0.2 * lattice)


def examine(raw: Image, result: Image, gain: float = 1.0, offset: float = 0.0, spikes: Spikes = NO_SPIKES) -> Residual:
    choice = Choice(Profile(name="p", gain=gain, offset=offset), "test", gain, offset)
    good = np.isfinite(raw)
    good[spikes.rows, spikes.columns] = False
    dose = (float(raw[good].mean()) - offset) / gain
    removed = float(np.square(raw - result)[good].mean()) / gain**2 / dose
    found = residual.examine(raw, result.astype(np.float32), spikes, choice, noise_units(dose, gain, offset), removed)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def raw() -> Image:
    return np.random.default_rng(0).poisson(truth()).astype(float)


@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.0), (30.0, 1e4), (0.02, -3.0)])
def test_a_perfect_result_has_no_error_in_any_units(raw: Image, gain: float, offset: float) -> None:
    found = examine(raw * gain + offset, truth() * gain + offset, gain, offset)
    assert found.noise == pytest.approx(1, abs=0.1)
    assert found.removed == pytest.approx(1, abs=0.05)
    assert found.error_ratio < 0.12
    assert abs(found.detector_correlation) < 0.05 and abs(found.residual_correlation) < 0.02
    assert found.structure_removed < 0.05 and found.line_share < 0.1


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_the_error_is_estimated_where_noise_was_kept(raw: Image, share: float) -> None:
    """What a filter that keeps a share of the noise leaves of its squared error is that share squared."""
    found = examine(raw, truth() + share * (raw - truth()))
    assert found.error_ratio == pytest.approx(share**2, abs=0.12)


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_the_error_is_estimated_where_something_was_made_up(raw: Image, strength: float) -> None:
    invented = np.random.default_rng(1).normal(0, strength * np.sqrt(DOSE), raw.shape)
    # Chance makes some of it look like noise that was kept, which counts twice.
    assert strength**2 - 0.05 < examine(raw, truth() + invented).error_ratio < 1.4 * strength**2 + 0.15


@pytest.mark.parametrize("step", [0.5, 1.5])
def test_a_shift_of_the_mean_that_only_some_tiles_have_is_an_error_too(raw: Image, step: float) -> None:
    tiles = (np.indices(raw.shape) // 64).sum(axis=0) % 2 - 0.5
    found = examine(raw, truth() + 2 * step * np.sqrt(DOSE) * tiles)
    assert found.error_ratio == pytest.approx(step**2, rel=0.25, abs=0.1)


def test_a_lattice_that_was_lost_is_found_with_its_spacing_and_share(raw: Image) -> None:
    smooth = DOSE * (1 + 0.3 * np.sin(np.indices(raw.shape)[0] / 40) * np.cos(np.indices(raw.shape)[1] / 40))
    half = (smooth + truth()) / 2
    for result, lost in ((smooth, 1.0), (half, 0.5)):
        found = examine(raw, result)
        assert found.line_removed > 20
        assert found.line_spacing == pytest.approx(6.4, rel=0.03)
        assert found.line_share == pytest.approx(lost, abs=0.1)
    assert examine(raw, half).structure_removed == pytest.approx(1.0, rel=0.15)  # as much is missing as is left


@pytest.mark.parametrize(("gain", "expected"), [(0.25, 4.0), (4.0, 0.25)])
def test_a_wrong_gain_shows_in_the_noise(raw: Image, gain: float, expected: float) -> None:
    assert examine(raw, truth(), gain).noise == pytest.approx(expected, rel=0.1)


def test_the_noise_behind_a_point_spread_is_estimated_from_the_raw_image() -> None:
    sigma, side = 0.7, 512
    kernel = np.exp(-(np.arange(-4, 5) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    counts = np.random.default_rng(2).poisson(DOSE, (side, side)).astype(float)
    smeared = np.apply_along_axis(np.convolve, 0, counts, kernel, "same")
    smeared = np.apply_along_axis(np.convolve, 1, smeared, kernel, "same")[8:-8, 8:-8]
    expected = float((kernel[:-1] * kernel[1:]).sum() / (kernel**2).sum())
    found = examine(smeared, np.full(smeared.shape, DOSE))
    assert found.detector_correlation == pytest.approx(expected, abs=0.06)
    assert found.residual_correlation == pytest.approx(expected, abs=0.06)
    assert found.noise == pytest.approx(float((kernel**2).sum() ** 2), rel=0.25)


def test_spikes_and_missing_pixels_are_no_evidence(raw: Image) -> None:
    spiked = raw.copy()
    places = np.sort(np.random.default_rng(3).choice(raw.size, 200, replace=False))
    spikes = Spikes(places // raw.shape[1], places % raw.shape[1], np.zeros(200, np.float32))
    spiked[spikes.rows[::2], spikes.columns[::2]] = 30_000
    spiked[spikes.rows[1::2], spikes.columns[1::2]] = np.nan
    found = examine(spiked, truth(), spikes=spikes)
    assert found.error_ratio < 0.12 and found.kept_most < 0.1


@pytest.mark.parametrize("shape", [(32, 32), (63, 500), (64, 64), (1030, 65)])
def test_any_size_is_examined(shape: tuple[int, int]) -> None:
    raw = np.random.default_rng(4).poisson(DOSE, shape).astype(np.uint16)
    assert examine(raw, np.full(shape, DOSE)).noise == pytest.approx(1, abs=0.4)


def test_an_image_without_noise_gives_no_estimate() -> None:
    flat = np.full((256, 256), 7.0)
    choice = Choice(Profile(name="p"), "test", 1.0, 0.0)
    assert residual.examine(flat, flat.astype(np.float32), NO_SPIKES, choice, noise_units(7.0), 0.0) is None


def halo(known: Image) -> Image:
    """A result that is right but for a hundredth of the noise, also where there is no light at all."""
    return known + 0.01 * np.sqrt(DOSE)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_the_empty_border_of_a_drift_corrected_image_is_no_evidence(share: float, fill: float) -> None:
    known = truth()
    known[: int(share * 512)] = known[:, -40:] = 0
    raw = np.random.default_rng(7).poisson(known).astype(float)
    places = np.flatnonzero(known == 0) if np.isnan(fill) else np.empty(0, np.intp)
    raw.flat[places] = fill
    spikes = Spikes(places // 512, places % 512, np.zeros(len(places), np.float32))
    found = examine(raw, halo(known), spikes=spikes)
    assert found.noise == pytest.approx(1, abs=0.1)
    assert found.error_ratio < 0.2
    assert abs(found.residual_correlation) < 0.05 and found.line_share == 0 and found.kept_most < 0.5


def test_a_round_aperture_and_vignetting_are_no_error() -> None:
    y, x = np.indices((512, 512)) - 256
    for light in (np.hypot(y, x) < 200, np.exp(-(x**2 + y**2) / 150**2)):
        known = truth() * light
        found = examine(np.random.default_rng(8).poisson(known).astype(float), halo(known))
        assert found.noise == pytest.approx(1, abs=0.1)
        assert found.error_ratio < 0.2


def test_the_error_is_that_of_the_whole_image_and_not_of_its_dark_parts(raw: Image) -> None:
    known = truth() * np.where(np.arange(512) < 256, 1, 0.02)
    bad = known + np.where(np.arange(512) < 256, 0, 2)
    counts = np.random.default_rng(9).poisson(known).astype(float)
    true = float(np.square(bad - known).mean() / np.square(counts - known).mean())
    assert examine(counts, bad).error_ratio == pytest.approx(true, abs=0.12)


def test_an_error_between_the_patches_counts_too() -> None:
    known = np.full((3000, 64), DOSE)
    raw = np.random.default_rng(10).poisson(known).astype(float)
    bad = known.copy()
    bad[80:170] += 10 * np.sqrt(DOSE)  # sixteen patches leave 131 rows between them
    true = float(np.square(bad - known).mean() / np.square(raw - known).mean())
    assert true > 2 and examine(raw, bad).error_ratio == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_noise_that_was_kept_is_distinguished_from_structure(raw: Image, share: float) -> None:
    assert examine(raw, truth() + share * (raw - truth())).kept_alone == pytest.approx(share, abs=0.05)
    assert examine(raw, truth()).kept_alone < 0.05


def test_a_tile_that_was_left_as_it_was_is_found(raw: Image) -> None:
    some = truth()
    some[128:256, 256:384] = raw[128:256, 256:384]
    assert examine(raw, some).kept_most == pytest.approx(1, abs=0.05)
    assert examine(raw, truth()).kept_most < 0.15


def blurred(image: Image, width: float) -> Image:
    """A Gaussian blur, by its transfer function, on an image that repeats."""
    y, x = np.fft.fftfreq(image.shape[0])[:, None], np.fft.rfftfreq(image.shape[1])[None, :]
    passed = np.exp(-2 * np.pi**2 * width**2 * (np.square(y) + np.square(x)))
    return np.fft.irfft2(np.fft.rfft2(image) * passed, s=image.shape)


def broad(side: int = 512) -> Image:
    y, x = np.indices((side, side)) * 2 * np.pi / 128
    return DOSE * (1 + 0.3 * np.sin(y) * np.cos(x))


@pytest.mark.parametrize("width", residual.GAUSSIANS)
def test_the_error_of_a_gaussian_is_estimated(width: float) -> None:
    raw = np.random.default_rng(3).poisson(broad()).astype(float)
    best = min(residual.GAUSSIANS, key=lambda one: np.square(blurred(raw, one) - broad()).mean())
    found = examine(raw, blurred(raw, width))
    true = np.square(blurred(raw, width) - broad()).mean() - np.square(blurred(raw, best) - broad()).mean()
    assert found.gaussian == best
    assert found.over_gaussian == pytest.approx(true / DOSE, abs=0.03)


def test_a_result_that_a_gaussian_beats_is_found_also_where_noise_is_correlated() -> None:
    rng = np.random.default_rng(4)
    raw = broad() + 3 * blurred(rng.normal(0, np.sqrt(DOSE), (512, 512)), 0.8)
    noise = raw - broad()
    hardly, well = examine(raw, broad() + 0.9 * noise), examine(raw, blurred(raw, 3.0))
    assert hardly.over_gaussian > 0.3 and well.over_gaussian == pytest.approx(0, abs=0.04)


@pytest.mark.parametrize("amplitude", [0.5, 1.0, 2.0])
def test_what_is_in_the_result_alone_is_measured(raw: Image, amplitude: float) -> None:
    added = amplitude * np.sqrt(DOSE) * np.sin(2 * np.pi * np.arange(512) / 4.7)
    assert examine(raw, truth() + added).invented == pytest.approx(amplitude**2 / 2, rel=0.15)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_noise_that_was_kept_or_contrast_that_was_lost_is_not_invented(raw: Image, share: float) -> None:
    assert examine(raw, truth() + share * (raw - truth())).invented == 0
    assert examine(raw, DOSE + 0.7 * (truth() - DOSE)).invented == 0
    assert examine(raw, DOSE + 1.05 * (truth() - DOSE)).invented == 0, "a little stronger, but not invented"
