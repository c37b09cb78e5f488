"""What the doctor finds, and that every fault comes with a remedy."""

import errno
import grp
import os
import pwd
import shutil
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_gpu import CARD, plug_in
from site_of_daemon import ROOT

from daemon.commands.doctor import Finding, examine, folders
from daemon.commands.main import main
from daemon.settings.config import load


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
    assert "1 fault to fix" in capsys.readouterr().out


def test_a_driver_that_does_not_answer_is_distinguished_from_none(
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
    shutil.copytree(ROOT / "weights/fast-3", tmp_path / "mine")
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
    assert "cannot be used (Address already in use)" in text and f"http://{address}/" in text and "another port" in text
    free = findings(settings(tmp_path, monitor={"listen": address}))
    assert "is free" in "\n".join(finding.text for finding in free)


def test_a_socket_and_a_token_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"listen": str(tmp_path / "run/page.sock"), "group": "no-such-group", "token_file": str(tmp_path / "no")}
    text = faults(settings(tmp_path, monitor=missing))
    assert f"{tmp_path / 'run'} is missing -> make the folder" in text
    assert "there is no group no-such-group -> sudo groupadd no-such-group" in text
    assert "monitor.token_file" in text and "openssl rand" in text
    lab, file = grp.getgrgid(os.getegid()).gr_name, tmp_path / "token"
    file.write_text("0123456789abcdef")
    file.chmod(0o600)
    good = {"listen": str(tmp_path / "page.sock"), "group": lab, "token_file": str(file)}
    assert "monitor" not in faults(settings(tmp_path, monitor=good))
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setattr(os, "getegid", lambda: 1234)
    monkeypatch.setattr(os, "getgroups", list)
    assert f"is not a member of {lab} -> sudo usermod -aG {lab}" in faults(settings(tmp_path, monitor=good))


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
        ([], "it is hidden from the service (PrivateTmp=yes"),
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
    assert "it is hidden from the service (ProtectHome=tmpfs" in faults(settings(tmp_path))


# The kernel decides who may do what: mode bits alone are not the answer

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can try what another user may do")
NOBODY = pwd.getpwnam("nobody")
EVERYBODY = 0xFFFFFFFF


def allow(folder: Path, rights: int, kind: str = "access") -> None:
    """What `setfacl -m u:nobody:RIGHTS` does (with -d, of `kind` default), as acl(5) and the kernel have it."""
    entries = [(1, 7, EVERYBODY), (2, rights, NOBODY.pw_uid), (4, 0, EVERYBODY), (16, rights, EVERYBODY)]
    packed = [struct.pack("<HHI", *entry) for entry in (*entries, (32, 0, EVERYBODY))]
    try:
        os.setxattr(folder, f"system.posix_acl_{kind}", struct.pack("<I", 2) + b"".join(packed))
    except OSError as error:
        pytest.skip(f"{folder}: no access control lists here ({error.strerror})")


@pytest.fixture
def private(tmp_path: Path) -> Iterator[Path]:
    """A folder that only its owner may enter, with the three folders in it; all may enter what is above it."""
    with tempfile.TemporaryDirectory(prefix="emdenoised-test-") as name:
        place = Path(name)
        for folder in ("drop", "output", "state"):
            (place / folder).mkdir()
            (place / folder).chmod(0o777)
        yield place


@as_root
def test_a_folder_the_services_user_cannot_reach(installed: Any, private: Path) -> None:
    installed("PrivateTmp=no")
    text = faults(settings(private))
    assert f"may not read it; the obstacle is {private} -> sudo setfacl -m u:nobody:x {private}" in text
    private.chmod(0o755)
    (private / "output").chmod(0o755)
    (private / "drop").chmod(0o711)
    text = faults(settings(private))
    assert f"-> sudo setfacl -m u:nobody:rwx {private / 'output'}" in text
    assert f"-> sudo setfacl -m u:nobody:rx {private / 'drop'}" in text
    assert "state folder" not in text


@as_root
def test_what_the_recommended_access_control_list_allows_is_no_fault(installed: Any, private: Path) -> None:
    installed("PrivateTmp=no")
    for folder in ("drop", "output", "state"):
        (private / folder).chmod(0o700)
        allow(private / folder, 0o5 if folder == "drop" else 0o7)
    assert f"the obstacle is {private} ->" in faults(settings(private))
    allow(private, 0o1)
    assert not private.stat().st_mode & 0o7, "the mode bits still shut everybody out"
    assert "the obstacle is" not in faults(settings(private))


@as_root
def test_an_access_control_list_that_shuts_out_is_a_fault_whatever_the_mode_bits_allow(
    installed: Any, private: Path
) -> None:
    installed("PrivateTmp=no")
    private.chmod(0o755)
    assert "the obstacle is" not in faults(settings(private))
    allow(private / "state", 0o5)
    (private / "state").chmod(0o757)
    assert f"may not write it; the obstacle is {private / 'state'}" in faults(settings(private))


@as_root
def test_the_groups_of_the_unit_count(installed: Any, private: Path) -> None:
    private.chmod(0o755)
    one, other = [group for group in grp.getgrall() if group.gr_gid not in (0, NOBODY.pw_gid)][:2]
    for folder, group in (("drop", one), ("output", other), ("state", other)):
        os.chown(private / folder, 0, group.gr_gid)
        (private / folder).chmod(0o770)
    installed("PrivateTmp=no", f"Group={one.gr_name}")
    text = faults(settings(private))
    assert f"the obstacle is {private / 'output'}" in text and "drop folder" not in text
    installed("PrivateTmp=no", f"Group={one.gr_name}", f"SupplementaryGroups=nosuchgroup {other.gr_name}")
    assert "the obstacle is" not in faults(settings(private))


def test_only_root_and_the_user_itself_can_find_out(
    installed: Any, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("PrivateTmp=no")
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY.pw_uid + 1)
    notes = [one for one in findings(settings(private)) if one.verdict == "note" and "can find out" in one.text]
    assert [one.text.split()[0] for one in notes] == ["drop", "output", "state"]
    assert {one.remedy for one in notes} == {"run the doctor as that user: sudo -u nobody emdenoised doctor"}


def test_a_folder_behind_a_wall_is_a_fault_and_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, **_: Any) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = settings(tmp_path)
    config = load(path)
    monkeypatch.setattr(Path, "stat", refused)
    monkeypatch.setattr(os, "access", lambda *_: False)
    causes = [one.text.split(": ")[1] for one in folders(config)]
    assert causes == [f"this user may not {verb} it" for verb in ("read", "write", "write")]


def test_a_default_access_control_list_decides_who_can_read_results(installed: Any, tmp_path: Path) -> None:
    installed("PrivateTmp=no", user=pwd.getpwuid(os.getuid()).pw_name)
    output = tmp_path / "output"
    output.mkdir()
    output.chmod(0o770)
    assert "and by nobody else" in faults(settings(tmp_path))
    allow(output, 0o5, "default")
    assert "results can be read" not in faults(settings(tmp_path))


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


def test_the_reader_of_vendors_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = settings(tmp_path)
    (row,) = [one for one in findings(path) if "RosettaSciIO" in one.text]
    assert row.verdict == "ok" and row.text.startswith("reader of .dm3, .dm4, .ser, .emd, .hspy files: RosettaSciIO 0.")
    monkeypatch.setattr("daemon.formats.rosettasciio.find_spec", lambda name: None)
    (row,) = [one for one in findings(path) if "RosettaSciIO" in one.text]
    assert row.verdict == "note" and "files wait" in row.text
    assert row.remedy.startswith(f"{sys.executable} -m pip install 'rosettasciio[hdf5]>=0.7'")
    path = settings(tmp_path, arrival={"extensions": [".tif"]})
    assert not [one for one in findings(path) if "RosettaSciIO" in one.text], "nobody asks for it"
