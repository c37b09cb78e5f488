"""One noise model: training and service make the same units of the same crop, whatever the camera."""

from pathlib import Path

import numpy as np
import pytest

from daemon.backends import manifest
from daemon.counts import spikes
from daemon.counts.prepare import plane
from daemon.counts.profiles import Choice, dose_evidence, scaled
from daemon.counts.scaling import Scaling
from daemon.micrograph import Micrograph
from daemon.settings.profile import Profile
from training.data.exposure import Detector, Image, expose
from training.data.samples import in_noise_units

WEIGHTS = manifest.load(manifest.locate("fast"))
CAMERAS = {
    "plain counts": Detector(),
    "gain and pedestal": Detector(gain=3.2, offset=100),
    "read-out": Detector(readout=2.5, gain=0.7, offset=50),
    "smeared": Detector(psf=0.8, gain=5),
    "smeared, read-out, pedestal": Detector(psf=0.6, readout=1.0, gain=12, offset=-30),
}


def exposed(detector: Detector) -> tuple[Image, Image]:
    """Pixels and truth (512, 512) in the detector's units: dark and bright, smooth over tens of pixels."""
    wave = np.sin(np.arange(512) / 60)
    scene = (0.5 + 0.45 * wave[:, None] * wave).astype(np.float32)
    return expose(np.random.default_rng(4), scene, 120.0, 1.0, detector)


def served(pixels: Image, choice: Choice) -> Scaling:
    """The scaling of the service for these pixels."""
    gain, offset = choice.noise.effective_gain, choice.noise.effective_offset
    made = plane(pixels, choice, WEIGHTS.dose_range, find_spikes=False)
    return made.prepare(spikes.survey(pixels, gain, offset, false_alarm=0.0)).scaling


@pytest.mark.parametrize("name", CAMERAS)
def test_a_known_camera_gives_the_same_units_in_training_and_service(name: str) -> None:
    detector = CAMERAS[name]
    pixels, truth = exposed(detector)
    drawn = in_noise_units(pixels, truth, camera=detector.noise)
    profile = Profile(name="p")
    camera = Choice(profile, "", detector.gain, detector.offset, readout=detector.readout, psf=detector.psf)
    scaling = served(pixels, camera)
    assert scaling.to_units(pixels) == pytest.approx(drawn.noisy[0, 0], abs=2e-4)
    assert scaling.level == pytest.approx(drawn.level.item(), rel=1e-5)
    noise = drawn.noisy - drawn.truth
    assert noise.std() == pytest.approx(1, abs=0.06), "whatever the camera, the noise of an average pixel is 1"


@pytest.mark.parametrize("name", CAMERAS)
def test_a_measured_camera_gives_nearly_the_units_of_training(name: str) -> None:
    detector = CAMERAS[name]
    pixels, truth = exposed(detector)
    drawn = in_noise_units(pixels, truth, camera=detector.noise)
    micrograph = Micrograph(pixels, Path("x.tif"), "tiff")
    scaling = served(pixels, scaled(Profile(name="auto", gain="auto"), "", micrograph, dose_evidence(micrograph)))
    noise = scaling.to_units(pixels) - scaling.to_units(truth)
    assert noise.std() == pytest.approx(float((drawn.noisy - drawn.truth).std()), rel=0.06)
    assert scaling.level == pytest.approx(drawn.level.item(), rel=0.1)


def test_a_weight_counts_errors_in_the_noise_of_unsmeared_counts() -> None:
    detector = CAMERAS["smeared"]
    pixels, truth = exposed(detector)
    drawn = in_noise_units(pixels, truth, camera=detector.noise)
    slow = (drawn.noisy - drawn.truth)[0, 0].reshape(32, 16, 32, 16).mean((1, 3)) * drawn.weight.item()
    assert slow.std() == pytest.approx(1 / 16, rel=0.1), "of 256 pixels' mean, a sixteenth"
    assert drawn.weight.item() < 0.5
