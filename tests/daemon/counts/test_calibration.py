"""A camera measured from flat fields and darks: known cameras are found again, and what is no flat is refused."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from daemon.commands import main
from daemon.counts import profiles
from daemon.counts.calibration import Calibrated, Frames, calibrate
from daemon.counts.scaling import Noise
from daemon.errors import ConfigError, MicrographError
from daemon.micrograph import Acquisition, Micrograph
from daemon.settings import camera_file, config
from daemon.settings.profile import Profile
from training.data.exposure import Detector, expose, smear

SIDE = 256
HOT, DEAD = (17, 200), (90, 33)


def frame(rng: np.random.Generator, camera: Noise, level: float) -> NDArray[np.float32]:
    """One exposure of even light, with a hot pixel, a dead one and 1 % of fixed pattern."""
    pattern = 1 + 0.01 * np.random.default_rng(99).standard_normal((SIDE, SIDE))
    counts = rng.poisson(level, (SIDE, SIDE)).astype(np.float32)
    if camera.psf:
        counts = smear(counts, camera.psf)
    counts = counts * pattern
    counts[DEAD] = 0
    counts[HOT] += 500
    return (camera.offset + camera.gain * (counts + camera.readout * rng.standard_normal(counts.shape))).astype(
        np.float32
    )


def taken(
    camera: Noise, levels: tuple[float, ...] = (20, 80, 300), darks: int = 6, number: int = 6, drift: float = 0.0
) -> Frames:
    rng, frames = np.random.default_rng(5), Frames()
    for _ in range(darks):
        frames.add(frame(rng, camera, 0.0), "dark", dark=True)
    for level in levels:
        for place in range(number):
            frames.add(frame(rng, camera, level * (1 + drift * place)), f"flat {level}", dark=False)
    return frames


def found(camera: Noise, **how: Any) -> Calibrated:
    return calibrate(taken(camera, **how), "today")


@pytest.mark.parametrize(
    "camera",
    [
        Noise(gain=2.0, offset=100.0, readout=1.5, psf=0.0),
        Noise(gain=5.0, offset=0.0, readout=2.0, psf=0.3),
        Noise(gain=0.3, offset=10.0, readout=1.0, psf=0.6),
        Noise(gain=10.0, offset=1000.0, readout=2.0, psf=0.8),
        Noise(gain=3.0, offset=100.0, readout=0.5, psf=1.2),
    ],
    ids=lambda one: f"psf {one.psf}",
)
def test_a_known_camera_is_found_again(camera: Noise) -> None:
    one = found(camera).camera
    assert one.gain == pytest.approx(camera.gain, rel=0.02)
    assert one.psf == pytest.approx(camera.psf, abs=0.05)
    assert one.readout == pytest.approx(camera.readout, rel=0.1)
    assert one.offset == pytest.approx(camera.offset, abs=0.1 * camera.gain)
    assert abs(one.gain / camera.gain - 1) < 4 * one.gain_error
    assert one.fixed_pattern == pytest.approx(0.01, rel=0.2)
    assert one.linear_to is None and len(one.curve) == 4 and len(one.spectrum) > 8


def test_hot_and_dead_pixels_are_listed_and_leave_the_gain_alone() -> None:
    one = found(Noise(gain=2.0, offset=100.0, readout=1.0)).camera
    assert (one.defects.hot, one.defects.dead) == (1, 1)
    assert set(one.defects.places) == {HOT, DEAD}
    assert one.defects.rows == one.defects.columns == ()


def test_a_lamp_that_drifts_between_frames_is_corrected_and_remarked_upon() -> None:
    drifting = found(Noise(gain=2.0, offset=0.0, readout=1.0), drift=0.003)
    assert drifting.camera.gain == pytest.approx(2.0, rel=0.02)
    assert any("the light changed by up to" in remark for remark in drifting.remarks)


def test_without_darks_read_out_is_in_the_offset() -> None:
    one = found(Noise(gain=2.0, offset=100.0, readout=3.0), darks=0)
    assert one.camera.gain == pytest.approx(2.0, rel=0.02) and one.camera.readout == 0
    assert one.camera.offset == pytest.approx(100 - 2 * 9, abs=2)
    assert any("--dark" in remark for remark in one.remarks)


def test_a_camera_that_clips_and_bends_is_linear_to_the_last_good_level() -> None:
    rng, frames = np.random.default_rng(3), Frames()
    for level in (20.0, 100.0, 400.0, 900.0):
        for _ in range(4):
            counts = rng.poisson(level, (SIDE, SIDE)).astype(np.float64)
            frames.add(np.where(counts > 500, 500 + 0.7 * (counts - 500), counts), "bent", dark=False)
    for _ in range(2):
        frames.add(np.minimum(rng.poisson(2000, (SIDE, SIDE)), 1900), "full", dark=False)
    one = calibrate(frames, "today")
    assert one.camera.linear_to == pytest.approx(400, rel=0.01) and one.camera.gain == pytest.approx(1, rel=0.02)
    assert any("2 saturated frame(s) were left out" in remark for remark in one.remarks)


def test_frames_that_cannot_calibrate_are_refused_in_words() -> None:
    rng, camera = np.random.default_rng(0), Noise()
    frames = Frames()
    frames.add(frame(rng, camera, 50.0), "a", dark=False)
    with pytest.raises(MicrographError, match=r"too few frames.*at least two flats at each of two brightnesses"):
        calibrate(frames, "today")
    with pytest.raises(MicrographError, match="128 x 128 pixels, where the frames before it have 256 x 256"):
        frames.add(frame(rng, camera, 50.0)[:128, :128], "b", dark=False)
    with pytest.raises(MicrographError, match="no flat field"):
        frames.add(frame(rng, camera, 50.0) * np.linspace(1, 3, SIDE), "c", dark=False)
    with pytest.raises(MicrographError, match="the same value"):
        frames.add(np.full((SIDE, SIDE), 3.0), "d", dark=False)
    with pytest.raises(MicrographError, match="not finite numbers"):
        frames.add(np.full((SIDE, SIDE), np.nan), "e", dark=True)
    even = Frames()
    for level in (100.0, 200.0):
        for _ in range(2):
            even.add(level + rng.normal(0, 3, (SIDE, SIDE)), "f", dark=False)
    with pytest.raises(MicrographError, match="does not grow with their brightness"):
        calibrate(even, "today")


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A settings folder with the camera of `emdenoised calibrate`, from files of one frame and of many."""
    home = tmp_path_factory.mktemp("home")
    rng, camera = np.random.default_rng(8), Noise(gain=4.0, offset=100.0, readout=1.0, psf=0.7)
    for name, level in (("dark", 0.0), ("faint", 20.0), ("bright", 200.0)):
        stack = np.stack([frame(rng, camera, level) for _ in range(4)])
        tifffile.imwrite(home / f"{name}.tif", stack, photometric="minisblack")
    flats = [str(home / f"{name}.tif") for name in ("faint", "bright")]
    arguments = ["calibrate", *flats, "--dark", str(home / "dark.tif"), "-o", str(home / "cameras" / "mine.yaml")]
    assert main.main(arguments) == 0
    return home


def test_the_command_writes_a_file_that_explains_itself_and_a_page(calibrated: Path) -> None:
    path = calibrated / "cameras" / "mine.yaml"
    one = camera_file.load(path)
    assert one.gain == pytest.approx(4, rel=0.02) and one.psf == pytest.approx(0.7, abs=0.05)
    text = path.read_text()
    assert re.search(r"# Units of pixel value per detected count.*\ngain: 4|gain: 3\.9", text)
    page = path.with_suffix(".html").read_text()
    assert "Photon transfer" in page and page.count("<svg") == 2 and "<script" not in page


def settings(calibrated: Path, profile: str) -> config.Config:
    path = calibrated / "config.yaml"
    path.write_text(
        f"folders: {{drop: drop, output: out, state: state}}\nprofiles: {{mine: {profile}}}\ndefault_profile: mine\n"
    )
    return config.load(path)


def shot(level: float, camera: Detector, **stated: Any) -> Micrograph:
    pixels, _ = expose(np.random.default_rng(2), np.ones((SIDE, SIDE), np.float32), level, 1.0, camera)
    return Micrograph(pixels, Path("a.tif"), "tiff", acquisition=Acquisition(**stated))


def test_a_profile_takes_everything_from_its_camera(calibrated: Path) -> None:
    profile = settings(calibrated, "{camera: mine}").profiles["mine"]
    one = shot(50.0, Detector(gain=4.0, offset=100.0, readout=1.0, psf=0.7))
    choice = profiles.scaled(profile, "", one, profiles.dose_evidence(one))
    assert choice.dose_evidence.gain_from == "camera" and choice.warnings == ()
    assert choice.counts(float(one.pixels.mean())) == pytest.approx(50, rel=0.02)
    assert (choice.psf, choice.readout) == (pytest.approx(0.7, abs=0.05), pytest.approx(1, rel=0.1))


def test_an_image_of_another_camera_is_reported(calibrated: Path) -> None:
    profile = settings(calibrated, "{camera: mine}").profiles["mine"]
    other = shot(50.0, Detector(gain=12.0, offset=100.0))
    (warning,) = profiles.scaled(profile, "", other, profiles.dose_evidence(other)).warnings
    assert "times the variance" in warning and "calibrate the camera again" in warning
    small = Micrograph(other.pixels[:200], Path("a.tif"), "tiff")
    assert (
        "256 x 200 pixels and camera mine was calibrated at 256 x 256"
        in profiles.scaled(profile, "", small, profiles.dose_evidence(small)).warnings[0]
    )


def test_the_high_tension_is_compared_where_both_state_it(calibrated: Path) -> None:
    path = calibrated / "cameras" / "volts.yaml"
    camera_file.save(
        path, camera_file.load(calibrated / "cameras" / "mine.yaml").model_copy(update={"voltage_kv": 300.0})
    )
    profile = settings(calibrated, "{camera: volts}").profiles["mine"]
    for volts, warned in ((300.0, False), (120.0, True)):
        one = shot(50.0, Detector(gain=4.0, offset=100.0, readout=1.0, psf=0.7), voltage_kv=volts)
        warnings = profiles.scaled(profile, "", one, profiles.dose_evidence(one)).warnings
        assert any("it was taken at 120 kV" in warning for warning in warnings) == warned


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ("{camera: nobody}", "nobody.yaml: this camera's calibration cannot be read.*emdenoised calibrate"),
        ("{camera: broken}", "broken.yaml.*gain.*must be greater than 0"),
        ("{camera: mine, gain: 2}", "remove the lines `gain` and `offset`"),
    ],
)
def test_a_camera_that_cannot_be_used_is_an_error_with_its_remedy(calibrated: Path, profile: str, words: str) -> None:
    good = (calibrated / "cameras" / "mine.yaml").read_text()
    (calibrated / "cameras" / "broken.yaml").write_text(re.sub(r"(?m)^gain: .*$", "gain: -1", good))
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        settings(calibrated, profile)


def test_another_calibration_of_the_camera_makes_other_results(calibrated: Path) -> None:
    path = calibrated / "cameras" / "again.yaml"
    prints = []
    for gain in (4.0, 5.0):
        camera_file.save(path, camera_file.load(calibrated / "cameras" / "mine.yaml").model_copy(update={"gain": gain}))
        prints.append(settings(calibrated, "{camera: again}").fingerprint())
    assert prints[0] != prints[1]


def test_a_target_that_is_no_yaml_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["calibrate", "a.tif", "-o", str(tmp_path / "mine")]) == main.EX_USAGE
    assert "must end in .yaml" in capsys.readouterr().err
    assert Profile(name="x").camera is None
