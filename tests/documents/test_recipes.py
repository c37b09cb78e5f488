"""The settings that docs/acquisition.md recommends are settings, and choose what they say."""

import re
from pathlib import Path, PurePath

import numpy as np
import pytest
import yaml

from daemon.arrival import rules
from daemon.counts import profiles
from daemon.micrograph import Micrograph
from daemon.settings import config as settings

PAGE = (Path(__file__).parents[2] / "docs" / "acquisition.md").read_text("utf-8")
RECIPES = dict(re.findall(r"```yaml\n# (SerialEM|EPU|DigitalMicrograph|JEOL)\b.*\n((?:.*\n)*?)```", PAGE))
FOLDERS = "folders: {drop: drop, output: out, state: state}\n"


@pytest.mark.parametrize(
    ("software", "file", "wanted", "profile"),
    [
        ("SerialEM", "grid/image.mrc", True, "serialem"),
        ("SerialEM", "tilt.st", True, "serialem"),
        ("SerialEM", "in the root.tif", True, "serialem"),
        ("EPU", "Images-Disc1/GridSquare_1/Data/FoilHole_1_Data_2.mrc", True, "auto"),
        ("EPU", "Images-Disc1/GridSquare_1/Data/FoilHole_1_Data_2_Fractions.tiff", False, ""),
        ("EPU", "Images-Disc1/GridSquare_1/Data/FoilHole_1_Data_2_EER.eer", False, ""),
        ("DigitalMicrograph", "session/image.dm4", True, "camera"),
        ("DigitalMicrograph", "counted/image.dm4", True, "counted"),
        ("DigitalMicrograph", "session/image.tif", False, ""),
        ("JEOL", "jeol/image.tif", True, "jeol"),
        ("JEOL", "image.tif", True, "jeol"),
    ],
)
def test_a_recipe(tmp_path: Path, software: str, file: str, wanted: bool, profile: str) -> None:
    assert set(RECIPES) == {"SerialEM", "EPU", "DigitalMicrograph", "JEOL"}
    path = tmp_path / "config.yaml"
    path.write_text(FOLDERS + RECIPES[software], "utf-8")
    assert len(RECIPES[software].splitlines()) <= 10
    config = settings.load(path)
    assert rules.wants(config.arrival, file) == wanted
    if wanted:
        counts = np.random.default_rng(0).poisson(50, (256, 256)).astype(np.uint16)
        choice = profiles.choose(config, PurePath(file), Micrograph(counts, Path(file), "tiff"))
        assert choice.profile.name == profile and choice.gain == 1
    assert rules.by_section(config.arrival, "tilt.st")
    assert yaml.safe_load(RECIPES[software])
