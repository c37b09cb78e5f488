"""What the doctor finds, and that every fault comes with a remedy."""

import errno
import grp
import os
import pwd
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_gpu import CARD, plug_in
from site_of_daemon import ROOT

from daemon.commands.doctor import Finding, examine
from daemon.commands.main import main


def settings(tmp_path: Path, **sections: object) -> Path:
    path = tmp_path / "config.yaml"
    folders = {name: str(tmp_path / name) for name in ("drop", "output", "state")}
    path.write_text(
        yaml.safe_dump({"folders": folders, "backend": {"kind": "cpu"}, "monitor": {"listen": None}, **sections})
    )
    return path


def findings(path: Path) -> list[Finding]:
    found = list(examine(path, {}))
    assert all(one.remedy for one in found if one.verdict != "ok")
    return found


def test_a_sound_installation(tmp_path: Path) -> None:
    for name in ("drop", "output", "state"):
        (tmp_path / name).mkdir()
    found = findings(settings(tmp_path))
    assert not [one for one in found if one.verdict == "fault"]
    text = "\n".join(one.text for one in found)
    assert "canary tile came out right" in text and "checksums right" in text and str(tmp_path / "drop") in text


def test_missing_folders_are_noted_and_not_made(tmp_path: Path) -> None:
    notes = [one.text for one in findings(settings(tmp_path)) if one.verdict == "note"]
    assert sum("does not exist yet" in note for note in notes) == 3
    assert not (tmp_path / "drop").exists()


def test_weights_that_are_not_there_are_a_fault(tmp_path: Path) -> None:
    path = settings(tmp_path, profiles={"auto": {"gain": "auto", "weights": "./nowhere"}})
    faults = [one.text for one in findings(path) if one.verdict == "fault"]
    assert any("nowhere" in fault for fault in faults)


def test_a_bad_configuration_is_the_one_fault_that_hides_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = settings(tmp_path, colour="red")
    assert findings(path)[-1].verdict == "fault"
    assert main(["doctor", "--config", str(path)]) == 1
    assert "1 fault to mend" in capsys.readouterr().out


def test_a_driver_that_is_loaded_and_does_not_answer_is_told_from_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.backends.gpu.driver.LOADED", tmp_path)
    monkeypatch.setattr("daemon.backends.gpu.driver.ask", lambda: 999)
    for kind, verdict in (("cpu", "note"), ("tensorrt", "fault")):
        found = findings(settings(tmp_path, backend={"kind": kind}))
        assert verdict in {one.verdict for one in found if "CUDA error 999): the module nvidia-uvm" in one.text}


def test_a_graphics_card_that_is_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch)
    monkeypatch.setattr("daemon.commands.doctor.find_gpu", lambda device: CARD)
    found = findings(settings(tmp_path, backend={"kind": "tensorrt"}))
    assert not [one for one in found if one.verdict == "fault"]
    text = "\n".join(one.text for one in found)
    assert "GPU 0: NVIDIA RTX A4000, driver CUDA 13.0 (sm86)" in text
    assert "TensorRT-RTX 1.7.1.116" in text


def test_a_graphics_card_that_cannot_be_used_is_a_fault(tmp_path: Path) -> None:
    path = settings(tmp_path, backend={"kind": "tensorrt"})
    assert [one.text for one in findings(path) if one.verdict == "fault" and "backend.kind: cpu" in one.text]


# The likeliest faults of an installation, each caused


def faults(path: Path) -> str:
    return "\n".join(f"{one.text} -> {one.remedy}" for one in findings(path) if one.verdict != "ok")


def test_damaged_weights(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "weights/fast", tmp_path / "mine")
    model = tmp_path / "mine/model.onnx"
    model.write_bytes(model.read_bytes()[:-100])
    text = faults(settings(tmp_path, profiles={"auto": {"gain": "auto", "weights": "./mine"}}))
    assert "model.onnx" in text and "reinstall" in text


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "output").mkdir()
    real = os.access  # root may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: "output" not in str(path) and real(path, mode))
    text = faults(settings(tmp_path))
    assert f"output folder {tmp_path / 'output'}: this user may not write it -> give the user" in text


def test_a_state_folder_on_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.settings.folders.filesystem_type", lambda path: "cifs")
    assert "`state`" in faults(settings(tmp_path)) and "local disk" in faults(settings(tmp_path))


def test_a_disk_that_is_almost_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "output").mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1 << 29})())
    assert "only 0.5 GiB are free -> free some space soon" in faults(settings(tmp_path))


def test_a_foreign_daemon_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.__file__", str(tmp_path / "daemon/__init__.py"))
    assert "is not emdenoised's" in faults(settings(tmp_path)) and "virtual environment" in faults(settings(tmp_path))


def test_no_watches_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "drop").mkdir()

    def start(observer: Any) -> None:
        raise OSError(errno.ENOSPC, "inotify watch limit reached")

    monkeypatch.setattr("daemon.commands.doctor.Observer.start", start)
    text = faults(settings(tmp_path))
    assert "inotify watch limit reached" in text and "sysctl fs.inotify.max_user_watches" in text


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        address = f"127.0.0.1:{one.getsockname()[1]}"
        text = faults(settings(tmp_path, monitor={"listen": address}))
    assert "cannot be listened on (Address already in use)" in text and "another port" in text
    free = findings(settings(tmp_path, monitor={"listen": address}))
    assert "is free" in "\n".join(finding.text for finding in free)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The shipped unit, with lines added as `systemctl edit` does, for a user of this computer."""
    unit = tmp_path / "emdenoised.service"
    monkeypatch.setattr("daemon.commands.doctor.UNIT", unit)

    def install(*lines: str, user: str = "nobody") -> None:
        shutil.copy(ROOT / "systemd/emdenoised.service", unit)
        (tmp_path / "emdenoised.service.d").mkdir(exist_ok=True)
        text = "\n".join(["[Service]", f"User={user}", *lines])
        (tmp_path / "emdenoised.service.d/mine.conf").write_text(text + "\n")

    return install


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["MemoryDenyWriteExecute=yes"], "MemoryDenyWriteExecute stops the network runtimes"),
        (["PrivateDevices=yes"], "PrivateDevices hides the graphics card"),
        ([], "the service does not see it (PrivateTmp=yes"),
    ],
)
def test_a_unit_that_hides_what_the_service_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: Any, lines: list[str], said: str
) -> None:
    installed(*lines)
    monkeypatch.setattr("daemon.backends.gpu.driver.LOADED", tmp_path)
    monkeypatch.setattr("daemon.commands.systemd_unit._HIDDEN_BY", {"PrivateTmp": (tmp_path / "drop",)})
    text = faults(settings(tmp_path))
    assert said in text and "systemctl edit emdenoised" in text


def test_a_home_folder_behind_protect_home(installed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed("PrivateTmp=no", "ProtectHome=tmpfs")
    monkeypatch.setattr("daemon.commands.systemd_unit._HIDDEN_BY", {"ProtectHome": (tmp_path,)})
    assert "the service does not see it (ProtectHome=tmpfs" in faults(settings(tmp_path))


def test_a_folder_the_services_user_cannot_reach(installed: Any, tmp_path: Path) -> None:
    installed("PrivateTmp=no")
    for name in ("drop", "output", "state"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    (tmp_path / "drop").chmod(0o700)
    closed = next(
        one for one in (*reversed((tmp_path / "drop").parents), tmp_path / "drop") if not one.stat().st_mode & 1
    )
    text = faults(settings(tmp_path))
    assert f"the service's user nobody may not read it; the obstacle is {closed} -> sudo setfacl -m u:nobody:" in text


def test_a_user_who_is_not_there(installed: Any, tmp_path: Path) -> None:
    installed(user="nobody-at-all")
    assert "there is no user nobody-at-all -> sudo useradd --system nobody-at-all" in faults(settings(tmp_path))


def test_results_that_only_the_service_can_read(installed: Any, tmp_path: Path) -> None:
    installed("PrivateTmp=no", user=pwd.getpwuid(os.getuid()).pw_name)
    output = tmp_path / "output"
    output.mkdir()
    output.chmod(0o770)
    assert "and by nobody else -> give the folder to your users' group: sudo chgrp GROUP" in faults(settings(tmp_path))
    output.chmod(0o2770)
    group = grp.getgrgid(output.stat().st_gid).gr_name
    assert f"can be read by the group {group}" in "\n".join(one.text for one in findings(settings(tmp_path)))
    installed("PrivateTmp=no", "UMask=0022", user=pwd.getpwuid(os.getuid()).pw_name)
    assert "results can be read" not in "\n".join(one.text for one in findings(settings(tmp_path)))
