"""Cameras whose counts reach several pixels: what the noise's spectrum tells of them, and what is made of it."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.backends.canary import NO_SPIKES
from daemon.counts import profiles
from daemon.counts.gain import Measured, measure
from daemon.counts.noise import patch_spectra
from daemon.counts.plane import Prepared
from daemon.counts.point_spread import smear
from daemon.counts.scaling import Noise, neighbours, sharing
from daemon.counts.spectrum_model import Cells
from daemon.micrograph import Acquisition, Micrograph
from daemon.settings.profile import Profile
from daemon.verdict import judge
from training.data.exposure import Detector, expose
from training.data.simulate import HELD_OUT, TRAINING

KINDS = {**TRAINING, **HELD_OUT}
SIDE = 512
AUTO = Profile(name="auto", gain="auto")


@cache
def specimen(kind: str) -> NDArray[np.float32]:
    return KINDS[kind](np.random.default_rng([78, *kind.encode()]), SIDE)


def taken(kind: str, level: float, contrast: float, camera: Detector, seed: int = 1) -> NDArray[np.float32]:
    return expose(np.random.default_rng(seed), specimen(kind), level, contrast, camera)[0]


def noise_ratio(found: Measured, camera: Detector, mean: float) -> float:
    """Variance of an average pixel, as found over as it is."""
    truth = Noise(camera.gain, camera.offset, camera.readout, camera.psf)
    sizes = [one.effective_gain * (mean - one.effective_offset) for one in (found.noise, truth)]
    return sizes[0] / sizes[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("psf", "readout"), [(0.5, 0.0), (0.8, 1.0), (1.1, 0.0)])
def test_gain_and_noise_of_a_camera_that_smears_its_counts_are_measured(kind: str, psf: float, readout: float) -> None:
    camera = Detector(readout=readout, gain=3.0, psf=psf)
    image = taken(kind, 60.0, 0.3, camera)
    found = measure(image)
    assert found.smear is not None
    assert found.psf == pytest.approx(psf, abs=max(0.03, 3 * found.smear.psf.error))
    mean = float(image.mean(dtype=np.float64))
    assert noise_ratio(found, camera, mean) == pytest.approx(1, abs=max(0.1, 3 * found.smear.error))
    assert found.gain == pytest.approx(3.0, rel=max(0.1, 3 * found.error))


def test_the_dose_that_is_recorded_is_of_detected_counts() -> None:
    image = taken("membranes", 100.0, 0.3, Detector(gain=5.0, psf=0.8))
    choice = profiles.scaled(AUTO, "", one := Micrograph(image, Path("a.tif"), "tiff"), profiles.dose_evidence(one))
    mean = float(image.mean(dtype=np.float64))
    assert choice.counts(mean) == pytest.approx(100, rel=0.08)
    assert choice.effective_counts(mean) == pytest.approx(100 / sharing(0.8), rel=0.08)
    assert choice.noise.scaling(mean).unit == pytest.approx(5 * np.sqrt(100 * sharing(0.8)), rel=0.05)
    (warning,) = choice.warnings
    assert "each smeared by a Gaussian of 0.8" in warning


@pytest.mark.parametrize("stated", ["profile", "file"])
def test_the_point_spread_measured_applies_to_a_gain_that_is_stated(stated: str) -> None:
    image = taken("thickness_fringes", 40.0, 0.5, Detector(gain=2.0, offset=100.0, psf=0.7))
    acquisition = Acquisition(electrons_per_unit=0.5) if stated == "file" else Acquisition()
    profile = AUTO if stated == "file" else Profile(name="camera", gain=2.0, offset=100.0)
    one = Micrograph(image, Path("a.tif"), "tiff", acquisition=acquisition)
    choice = profiles.scaled(profile, "", one, profiles.dose_evidence(one))
    assert (choice.gain, choice.dose_evidence.gain_from) == (2.0, stated)
    assert choice.psf == pytest.approx(0.7, abs=0.02) and choice.warnings == ()
    assert choice.offset == pytest.approx(100, abs=4)
    assert choice.noise.effective_gain == pytest.approx(2 * sharing(0.7), rel=0.05)


def test_a_stated_gain_that_contradicts_the_noise_gets_no_point_spread() -> None:
    image = taken("thickness_fringes", 40.0, 0.5, Detector(gain=2.0, psf=0.7))
    one = Micrograph(image, Path("a.tif"), "tiff")
    choice = profiles.scaled(Profile(name="wrong", gain=20.0), "", one, profiles.dose_evidence(one))
    assert choice.psf == 0.0 and any("do not fit the profile" in warning for warning in choice.warnings)


@pytest.mark.parametrize("kind", KINDS)
def test_white_noise_is_never_taken_for_smeared(kind: str) -> None:
    for contrast, readout in ((0.3, 0.0), (1.0, 2.0)):
        found = measure(taken(kind, 50.0, contrast, Detector(gain=2.0, readout=readout)))
        assert found.smear is None and found.psf == 0.0 and found.readout.value == 0.0


def test_read_out_is_estimated_where_smearing_separates_it() -> None:
    found = measure(taken("membranes", 80.0, 0.2, Detector(gain=2.0, psf=0.9, readout=1.5)))
    assert found.noise.readout == pytest.approx(1.5, rel=0.1)
    bare = measure(taken("membranes", 80.0, 0.2, Detector(gain=2.0, psf=0.9)))
    assert bare.noise.readout < 0.1


def test_interpolated_pixels_are_still_no_plain_camera() -> None:
    """Half a pixel's shift, bilinear, leaves nothing at the finest frequency: no Gaussian does that."""
    image = np.random.default_rng(5).poisson(60, (700, 700)).astype(np.float64)
    for axis in (0, 1):
        image = (image + np.roll(image, 1, axis)) / 2
    found = measure(image.astype(np.float32))
    assert not found.dose_known
    assert found.remark is not None and "neighbouring pixels are alike" in found.remark


def test_the_record_has_what_was_measured_and_null_for_what_was_not() -> None:
    smeared = json.loads(json.dumps(measure(taken("capsids", 80.0, 0.2, Detector(psf=0.9, readout=1.0))).as_json()))
    assert smeared["psf"] == pytest.approx(0.9, abs=0.03) and smeared["readout"] == pytest.approx(1, rel=0.1)
    assert smeared["effective_gain"] == pytest.approx(sharing(0.9), rel=0.15)
    white = measure(taken("capsids", 80.0, 0.2, Detector())).as_json()
    assert white["psf"] is white["psf_error"] is white["readout"] is None
    assert (white["effective_gain"], white["effective_offset"]) == (white["gain"], white["offset"])


def test_few_or_small_patches_say_nothing_of_a_point_spread() -> None:
    assert smear(patch_spectra(np.random.default_rng(0).poisson(20, (40, 40)))) is None
    assert len(Cells.of((16, 16)).radius) < len(Cells.of((64, 64)).radius)


@pytest.mark.parametrize("psf", [0.4, 0.8, 1.3])
def test_the_transfer_and_its_derivative_are_those_of_the_sampled_gaussian(psf: float) -> None:
    cells = Cells.of((64, 64))
    everything = np.ones(len(cells.radius), bool)
    value, slope = cells.transfer(psf**2, everything)
    near, _ = cells.transfer(psf**2 + 1e-5, everything)
    assert (near - value) / 1e-5 == pytest.approx(slope, abs=1e-3)
    fine = np.exp(-4 * np.pi**2 * psf**2 * cells.radius**2)
    if psf >= 0.8:  # a narrow one is not sampled finely enough to be like the continuous one
        assert value.mean(axis=1)[cells.radius < 0.2] == pytest.approx(fine[cells.radius < 0.2], abs=0.02)
    counts = np.random.default_rng(0).poisson(1000, (400, 400)).astype(np.float32)
    smeared = expose(np.random.default_rng(1), np.ones((400, 400), np.float32), 1000, 1.0, Detector(psf=psf))[0]
    pairs = np.corrcoef(smeared[:, 1:].ravel(), smeared[:, :-1].ravel())[0, 1]
    assert neighbours(psf) == pytest.approx(pairs, abs=0.01)
    assert sharing(psf) == pytest.approx(float(smeared.var() / counts.var()), rel=0.03)


def test_the_mean_of_smeared_counts_has_the_counting_error_of_the_counts() -> None:
    """Smearing leaves single pixels a tenth of the variance, and the mean of many all of it."""
    camera = Detector(psf=0.9)
    image = taken("membranes", 80.0, 0.3, camera)
    one = Micrograph(image, Path("a.tif"), "tiff")
    choice = profiles.scaled(Profile(name="counted"), "", one, profiles.dose_evidence(one))
    assert choice.psf == pytest.approx(0.9, abs=0.03)
    mean = float(image.mean(dtype=np.float64))
    prepared = Prepared(image, NO_SPIKES, choice.noise.scaling(mean), choice.counts(mean))
    shifted = (image + 0.02 * mean).astype(np.float32)
    verdict = judge.judge(shifted, prepared, choice)
    assert verdict.mean_shift == pytest.approx(0.02, rel=0.01)
    assert verdict.mean_shift_counting_errors == pytest.approx(0.02 * mean / np.sqrt(mean / image.size), rel=0.1)
