"""The shipped config.yaml and the unit: complete, explained, and what the defaults are."""

import configparser
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from settings_file import FOLDERS

from daemon.backends import manifest
from daemon.counts.scaling import MINMAX_CROP
from daemon.settings import config, yaml_file
from daemon.settings.config import EX_CONFIG, default_config_path, load

REPOSITORY = Path(__file__).parents[3]
SHIPPED = REPOSITORY / "config.yaml"


def leaves(values: Any, key: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every key of nested mappings that holds something other than further keys."""
    if isinstance(values, dict):
        return {k: v for name, value in values.items() for k, v in leaves(value, (*key, name)).items()}
    return {key: values}


def test_the_shipped_file_loads_as_it_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load() == load(SHIPPED) == load(default_config_path())
    assert load().folders.drop == tmp_path / "emdenoised/drop"
    assert load().folders.output == tmp_path / "emdenoised/denoised"
    assert load().folders.state == tmp_path / ".local/state/emdenoised"


def test_the_shipped_values_are_the_defaults(write: Any) -> None:
    shipped, defaults = load(SHIPPED), load(write(FOLDERS))
    assert shipped.model_dump(exclude={"folders"}) == defaults.model_dump(exclude={"folders"})
    assert list(shipped.profiles) == list(defaults.profiles) == ["low", "ordinary", "auto"]
    assert shipped.fingerprint() == defaults.fingerprint()


def test_no_setting_is_missing_from_the_shipped_file() -> None:
    stated = set(leaves(yaml_file.read(SHIPPED).values))
    dumped = set(leaves(load(SHIPPED).model_dump()))
    assert stated == {key for key in dumped if not (key[0] == "profiles" and key[-1] == "name" and len(key) == 3)}


def test_the_profiles_of_the_paper_work_once_their_signs_are_removed(tmp_path: Path) -> None:
    text = SHIPPED.read_text("utf-8")
    paper = re.search(r"(  # paper-low:\n(?:  # .*\n)+)\n", text)
    assert paper is not None
    path = tmp_path / "config.yaml"
    path.write_text(text.replace(paper[1], re.sub(r"^  # ", "  ", paper[1], flags=re.MULTILINE)), "utf-8")
    found, shipped = load(path), load(SHIPPED)
    assert list(found.profiles) == [*shipped.profiles, "paper-low", "paper-ordinary"]
    assert found.model_dump(exclude={"profiles", "folders"}) == shipped.model_dump(exclude={"profiles", "folders"})
    for dose in ("low", "ordinary"):
        profile = found.profiles[f"paper-{dose}"]
        assert profile.match is not None and profile.match.folder == f"paper/{dose}"
        weights = manifest.load(manifest.locate(profile.weights))
        assert weights.name == f"ede2018-{dose}" and weights.scaling == MINMAX_CROP
        assert profile.dose == weights.dose_range and profile.gain == 1.0


def test_every_key_of_the_shipped_file_is_explained_in_place() -> None:
    lines = SHIPPED.read_text().splitlines()
    for key, number in yaml_file.read(SHIPPED).lines.items():
        if key and isinstance(key[-1], str):
            line, above = lines[number - 1], lines[number - 2].strip()
            beside = line.partition(" # ")[2]
            assert beside or above.startswith("#"), f"line {number}, {yaml_file.dotted(key)}: no comment"


def test_every_comment_states_the_true_default() -> None:
    lines = SHIPPED.read_text().splitlines()
    document = yaml_file.read(SHIPPED)
    for key, value in leaves(document.values).items():
        if key[0] not in ("folders", "profiles"):
            number, comment = document.lines[key] - 1, ""
            while lines[number - 1].strip().startswith("#"):
                number -= 1
                comment = lines[number].strip(" #") + " " + comment
            if isinstance(value, list):
                assert "This list is the default." in comment, key
            else:
                said = re.search(r"Default (\S+)\.(?= |$)", comment)
                written = lines[document.lines[key] - 1].split(": ")[1]
                assert said and said[1] == written, key


GROUPS = [
    value
    for value in vars(config).values()
    if isinstance(value, type) and issubclass(value, yaml_file.Group) and value is not yaml_file.Group
]


@pytest.mark.parametrize("group", GROUPS)
def test_every_setting_has_a_description(group: type[BaseModel]) -> None:
    assert group.__doc__
    for name, field in group.model_fields.items():
        # What a whole group is for stands in its class.
        assert field.description or getattr(field.annotation, "__doc__", None), name


def test_the_unit_does_not_restart_on_a_configuration_error() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[method-assign,assignment]
    unit.read(REPOSITORY / "systemd/emdenoised.service")
    service = unit["Service"]
    assert int(service["RestartPreventExitStatus"]) == EX_CONFIG
    assert service["Type"] == "notify"
    assert service["Restart"] == "on-failure"
    assert service["KillMode"] == "mixed"
    assert service["ExecStart"].endswith("emdenoised run --config /etc/emdenoised/config.yaml")
