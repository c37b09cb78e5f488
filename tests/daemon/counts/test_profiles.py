"""Which profile a micrograph gets, whose word its gain is taken from, and what is said where they disagree."""

import json
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.counts import gain, profiles
from daemon.counts.profiles import Choice
from daemon.demo.specimen import expose, scene
from daemon.errors import MicrographError
from daemon.micrograph import Acquisition, Micrograph
from daemon.settings.config import Config
from daemon.settings.profile import Profile

MakeConfig = Callable[..., Config]
PROFILES = {
    "low": {"dose": [0.5, 100], "match": {"folder": "low"}},
    "named": {"dose": [0.5, 100], "gain": 2.0, "offset": 10.0, "match": {"name": "*_fast_*"}},
    "measured": {"dose": [400, 600], "match": {"measured": True}},
    "auto": {"gain": "auto"},
}


AUTO, PLAIN = Profile(name="auto", gain="auto"), Profile(name="plain")


def micrograph(pixels: Any, **stated: float) -> Micrograph:
    return Micrograph(np.asarray(pixels), Path("a.tif"), "tiff", acquisition=Acquisition(**stated))


def counts(dose_: float, contrast: float = 1.0, seed: int = 1, side: int = 512) -> NDArray[np.uint16]:
    rng = np.random.default_rng(seed)
    return expose(scene(rng, side), dose_, contrast, rng)[0]


def chosen(profile: Profile, one: Micrograph) -> Choice:
    return profiles.scaled(profile, "", one, profiles.dose_evidence(one))


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
    choice = profiles.choose(config(profiles=PROFILES), PurePosixPath(path), image)
    assert choice.profile.name == expected
    assert choice.why.startswith(f"{expected}: ") and why in choice.why


def test_a_profile_asked_for_by_name_overrides_the_rules(config: MakeConfig) -> None:
    image = micrograph(np.full((64, 64), 50, np.uint16))
    choice = profiles.choose(config(profiles=PROFILES), PurePosixPath("low/a.tif"), image, named="named")
    assert (choice.profile.name, choice.gain, choice.offset) == ("named", 2.0, 10.0)
    assert choice.counts(50) == 20.0


def test_a_sum_of_frames_has_the_offset_of_each() -> None:
    summed = Micrograph(np.full((64, 64), 500, np.uint16), Path("a.mrc"), "mrc", metadata={"frames": 10})
    assert chosen(Profile(name="camera", gain=2.0, offset=30.0), summed).counts(500) == pytest.approx(100.0)


def test_a_micrograph_is_measured_once_whatever_is_chosen(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(profiles, "measure", lambda pixels, *_: calls.append(1) or gain.measure(pixels))
    settings = config(
        profiles={
            name: {"gain": "auto", "dose": [low, 2 * low], "match": {"measured": True}}
            for name, low in (("one", 1), ("two", 10), ("three", 1000))
        }
        | {"auto": {"gain": "auto"}}
    )
    choice = profiles.choose(settings, PurePosixPath("a.tif"), micrograph(counts(200)))
    assert choice.profile.name == "auto" and len(calls) == 1


def test_a_rule_on_the_measured_dose_never_holds_for_a_dose_that_is_not_known(config: MakeConfig) -> None:
    """Even noise is served as if it were 1000 counts, and is not."""
    ordinary = {"gain": "auto", "dose": [100, 3000], "match": {"measured": True}}
    settings = config(profiles={"ordinary": ordinary, "auto": {"gain": "auto"}})
    for pixels, name in (
        (np.random.default_rng(0).normal(0, 3, (256, 256)), "auto"),
        (np.full((64, 64), 500, np.uint16), None),
        (counts(500), "ordinary"),
    ):
        if name is None:
            with pytest.raises(MicrographError, match="shows no noise"):
                profiles.choose(settings, PurePosixPath("a.tif"), micrograph(pixels))
        else:
            assert profiles.choose(settings, PurePosixPath("a.tif"), micrograph(pixels)).profile.name == name


def test_counts_that_are_counts_by_all_accounts_raise_no_warning() -> None:
    one = micrograph(counts(30), electrons_per_unit=1.0, electrons_per_pixel=30.0)
    for profile in (AUTO, PLAIN):
        choice = chosen(profile, one)
        assert (choice.gain, choice.offset, choice.warnings) == (1.0, 0.0, ())
    assert chosen(AUTO, one).dose_evidence.gain_from == "file"
    assert chosen(PLAIN, one).dose_evidence.gain_from == "profile"


def test_an_image_without_metadata_is_served_from_its_own_noise_and_nothing_is_made_up() -> None:
    choice = chosen(AUTO, micrograph((7.0 * counts(30)).astype(np.float32)))
    assert choice.gain == pytest.approx(7.0, rel=0.1) and choice.dose_evidence.gain_from == "image"
    assert choice.dose_evidence.units_per_electron is None and choice.dose_evidence.stated_dose is None
    assert [warning for warning in choice.warnings if "the file states" in warning] == []


@pytest.mark.parametrize("contrast", [0.02, 1.0])
def test_the_file_resolves_what_the_image_leaves_open(contrast: float) -> None:
    """A pedestal under an image of almost one brightness: the image alone would read too many counts."""
    pixels = 2 * counts(20, contrast) + 100
    alone, stated = chosen(AUTO, micrograph(pixels)), chosen(AUTO, micrograph(pixels, electrons_per_unit=0.5))
    assert stated.dose_evidence.gain_from == "file" and stated.gain == 2.0 and stated.warnings == ()
    assert stated.offset == pytest.approx(100, abs=4)
    assert stated.counts(140) == pytest.approx(20, rel=0.1)
    assert (alone.counts(140) > 100) == (contrast == 0.02)


def test_a_file_that_lies_about_its_gain_is_not_believed() -> None:
    choice = chosen(AUTO, micrograph(7 * counts(30), electrons_per_unit=1.0))
    assert choice.dose_evidence.gain_from == "image" and choice.gain == pytest.approx(7, rel=0.1)
    assert any("states 1 units per electron, but the noise of its image fits 7" in one for one in choice.warnings)


@pytest.mark.parametrize(("stated", "warns"), [(30.0, False), (50.0, False), (300.0, True), (10.0, True)])
def test_a_dose_stated_and_a_dose_found_are_compared(stated: float, warns: bool) -> None:
    """A camera may miss some electrons; it does not see three times as many, nor a tenth."""
    for profile in (AUTO, PLAIN):
        choice = chosen(profile, micrograph(counts(30), electrons_per_pixel=stated))
        warned = [one for one in choice.warnings if f"states {stated:.3g} electrons per pixel, but 30" in one]
        assert len(warned) == len(choice.warnings) == warns


def test_a_camera_that_detects_half_of_the_electrons_explains_its_noise() -> None:
    """Each detected electron gives twice the units, so that the mean is as stated and the variance is twice that."""
    choice = chosen(AUTO, micrograph(2 * counts(15), electrons_per_unit=1.0, electrons_per_pixel=30.0))
    assert choice.dose_evidence.gain_from == "image" and choice.gain == pytest.approx(2, rel=0.1)
    assert [one for one in choice.warnings if "the file states" in one] == []


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (7 * counts(30), r"not plain counts: their noise has 7(\.\d+)? times .* gain 1 and offset 0 of profile plain"),
        (counts(30) + 300, r"not plain counts: their noise has 0\.09\d* times .* fits (0\.9|1\.0)\d* units per count"),
        (300 + np.random.default_rng(0).normal(0, 2, (512, 512)), "not plain counts.*nor does it grow"),
    ],
    ids=["scaled", "pedestal", "even"],
)
def test_a_profile_whose_gain_the_noise_contradicts_is_reported(pixels: NDArray[Any], words: str) -> None:
    choice = chosen(PLAIN, micrograph(pixels))
    assert (choice.gain, choice.offset) == (1.0, 0.0)
    (warning,) = choice.warnings
    assert re.search(words, warning), warning
    assert "gain: auto" in warning


def test_the_profile_that_is_right_is_not_contradicted() -> None:
    choice = chosen(Profile(name="camera", gain=7.0, offset=50.0), micrograph(7 * counts(30) + 50))
    assert choice.warnings == () and choice.counts(260) == pytest.approx(30)


def test_a_constant_image_is_refused_where_it_must_be_measured_and_served_where_it_need_not() -> None:
    one = micrograph(np.full((64, 64), 50, np.uint16))
    with pytest.raises(MicrographError, match="shows no noise"):
        chosen(AUTO, one)
    choice = chosen(PLAIN, one)
    assert choice.dose_evidence.measured is None
    assert choice.dose_evidence.unmeasured is not None and "shows no noise" in choice.dose_evidence.unmeasured


def test_a_float_image_with_negative_counts_is_denoised_with_a_remark() -> None:
    """A background was subtracted: counts below none."""
    choice = chosen(AUTO, micrograph((counts(30) - 30.0).astype(np.float32)))
    assert choice.offset == pytest.approx(-30, rel=0.1) and choice.counts(0.0) == pytest.approx(30, rel=0.1)
    (warning,) = choice.warnings
    assert "units at zero counts, which were used" in warning
    (warning,) = chosen(PLAIN, micrograph((counts(30) - 25.0).astype(np.float32))).warnings
    assert "not plain counts" in warning and "gain: auto" in warning


def test_a_saturated_image_is_reported() -> None:
    for profile in (AUTO, PLAIN):
        choice = chosen(profile, micrograph(np.minimum(counts(100), 130)))
        assert any("share the highest value: the camera or the file is saturated" in one for one in choice.warnings)


def test_what_was_measured_and_stated_goes_into_the_record() -> None:
    one = micrograph((7 * counts(30)).astype(np.float32), electrons_per_unit=0.25, electrons_per_pixel=8.0)
    record = json.loads(json.dumps(chosen(AUTO, one).dose_evidence.as_json(), allow_nan=False))
    assert record["gain_from"] == "image" and record["unmeasured"] is None
    assert (record["stated_gain"], record["stated_dose"]) == (4.0, 8.0)
    assert record["measured"]["gain"] == pytest.approx(7, rel=0.1)
    blank = json.loads(
        json.dumps(chosen(PLAIN, micrograph(np.zeros((64, 64)))).dose_evidence.as_json(), allow_nan=False)
    )
    assert blank["measured"] is blank["stated_gain"] is blank["stated_dose"] is None
    assert "no noise" in blank["unmeasured"]
