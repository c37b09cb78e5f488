"""Profiles: their rules, and the settings that influence pixels."""

import re
from pathlib import Path, PurePath
from typing import Any

import pytest
from settings_file import FOLDERS

from daemon.settings import folders
from daemon.settings.config import Config, load
from daemon.settings.profile import Match, Profile


@pytest.mark.parametrize(
    ("folder", "name", "path", "fits"),
    [
        (None, None, "a.mrc", True),
        ("low", None, "low/a.mrc", True),
        ("low", None, "Low/grid 1/a.mrc", True),
        ("low", None, "lower/a.mrc", False),
        ("low", None, "low.mrc", False),
        ("low/", None, "low/a.mrc", True),
        ("*_low", None, "day/7_low/x/a.mrc", True),
        ("grid?", None, "grid12/a.mrc", False),
        (None, "*_lowdose_*", "x/a_LowDose_1.mrc", True),
        (None, "*_lowdose_*", "x_lowdose_/a.mrc", False),
        ("low", "*.tif", "low/a.mrc", False),
        ("low", "*.tif", "low/a.tif", True),
    ],
)
def test_rules_on_folder_and_name(folder: str | None, name: str | None, path: str, fits: bool) -> None:
    assert Match(folder=folder, name=name).path_fits(PurePath(path)) is fits


def test_a_profile_without_rules_is_described_so() -> None:
    assert not Match().states_a_rule
    assert all(rule.states_a_rule for rule in (Match(folder="a"), Match(name="a"), Match(measured=True)))


def test_the_fingerprint_follows_pixels_and_nothing_else(write: Any, tmp_path: Path) -> None:
    plain = load(write(FOLDERS)).fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", plain)
    same = [
        "log: {level: debug}",
        "arrival: {settle_seconds: 3}",
        "backend: {threads: 1, queue: 3}",
        "output: {format: mrc}",
        "profiles:\n  low: {dose: [0.5, 100], match: {folder: low}}\n"
        "  ordinary: {dose: [100, 3000], match: {folder: ordinary}}\n  auto: {gain: auto}\n",
    ]
    other = [
        "spikes: {find: false}",
        "backend: {tile: 256}",
        "default_profile: low",
        "profiles: {auto: {gain: 2}}",
        "profiles: {auto: {offset: 2}}",
        "profiles: {auto: {}, b: {}}",
        "profiles: {b: {}, auto: {}}",
    ]
    assert {load(write(FOLDERS + text)).fingerprint() for text in same} == {plain}
    assert len({load(write(FOLDERS + text)).fingerprint() for text in other} | {plain}) == len(other) + 1
    moved = load(write(FOLDERS), {"drop": tmp_path / "elsewhere"})
    assert moved.fingerprint() == plain


def test_profiles_can_be_built_in_code(tmp_path: Path) -> None:
    built = Config(
        folders=folders.Folders(drop=tmp_path / "a", output=tmp_path / "b", state=tmp_path / "c"),
        profiles={"mine": Profile(name="mine", gain=2)},
        default_profile="mine",
    )
    assert built.profiles["mine"].gain == 2.0
    assert Config.model_validate(built.model_dump()) == built
