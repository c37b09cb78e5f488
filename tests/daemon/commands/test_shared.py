"""Which settings and whose ledger a command uses."""

import os
import pwd
import shutil
from pathlib import Path

import pytest
from site_of_daemon import ROOT

from daemon.commands import command_line, shared, systemd_unit
from daemon.commands.main import main
from daemon.settings.config import default_config_path


@pytest.fixture
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the service's unit is installed; nothing yet."""
    path = tmp_path / "emdenoised.service"
    monkeypatch.setattr(systemd_unit, "UNIT", path)
    return path


def used(*command: str) -> Path:
    return shared.settings_file(command_line.parser().parse_args(command))


@pytest.mark.parametrize("command", [("status",), ("retry",), ("report", "last", "-o", "x"), ("assess", "a.tif")])
def test_the_settings_of_the_installed_service_are_found(unit: Path, command: tuple[str, ...]) -> None:
    assert used(*command) == default_config_path()
    shutil.copy(ROOT / "systemd" / "emdenoised.service", unit)
    assert used(*command) == Path("/etc/emdenoised/config.yaml")
    changed = unit.with_name("emdenoised.service.d") / "override.conf"
    changed.parent.mkdir()
    changed.write_text('[Service]\nExecStart=\nExecStart=/opt/emdenoised run "--config=/srv/my settings.yaml"\n')
    assert used(*command) == Path("/srv/my settings.yaml")
    assert used(*command, "--config", "mine.yaml") == Path("mine.yaml")


def test_the_packages_unit_with_what_the_administrator_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged, own = tmp_path / "lib/emdenoised.service", tmp_path / "etc/emdenoised.service"
    monkeypatch.setattr(systemd_unit, "_PACKAGED", packaged)
    monkeypatch.setattr(systemd_unit, "_OWN", own)
    monkeypatch.setattr(systemd_unit, "UNIT", packaged)
    changed = own.with_name("emdenoised.service.d") / "override.conf"
    for folder in (packaged.parent, changed.parent):
        folder.mkdir(parents=True)
    changed.write_text("[Service]\nUMask=0022\n")
    shutil.copy(ROOT / "systemd" / "emdenoised.service", packaged)
    assert used("status") == Path("/etc/emdenoised/config.yaml")
    found = systemd_unit.load(packaged)
    assert found is not None and found.settings["UMask"] == "0022"


@pytest.mark.parametrize("start", ["", "/opt/x run", "/opt/x run --config", "/opt/x '", "--config ~/x"])
def test_a_unit_that_does_not_name_its_settings_in_full(unit: Path, start: str) -> None:
    unit.write_text(f"[Service]\nExecStart={start}\n")
    assert used("status") == default_config_path()


def test_a_ledger_of_another_user_is_named_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state").mkdir()
    settings = tmp_path / "config.yaml"
    settings.write_text("folders: {drop: drop, output: output, state: state}\n")
    monkeypatch.setattr(shared.os, "access", lambda path, mode: Path(path) != tmp_path / "state")
    monkeypatch.setattr(shared.sys, "argv", ["/opt/emdenoised/bin/emdenoised", "status"])
    assert main(["status", "--config", str(settings)]) == 1
    owner = pwd.getpwuid(os.getuid()).pw_name
    assert f"type: sudo -u {owner} /opt/emdenoised/bin/emdenoised status" in capsys.readouterr().err
    assert systemd_unit.name_of(2**31 - 5) == str(2**31 - 5)
