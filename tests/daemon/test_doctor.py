"""What the doctor finds, and that every fault comes with a remedy."""

from pathlib import Path

import pytest
import yaml
from fake_gpu import CARD, plug_in

from daemon.cli import main
from daemon.doctor import Finding, examine


def settings(tmp_path: Path, **sections: object) -> Path:
    path = tmp_path / "config.yaml"
    folders = {name: str(tmp_path / name) for name in ("drop", "output", "state")}
    path.write_text(yaml.safe_dump({"folders": folders, "backend": {"kind": "cpu"}, **sections}))
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
    monkeypatch.setattr("daemon.doctor.NVIDIA", tmp_path)
    (note,) = (one for one in findings(settings(tmp_path)) if "does not answer" in one.text)
    assert note.verdict == "note"
    assert "modprobe nvidia-uvm" in note.remedy
    (fault,) = (
        one for one in findings(settings(tmp_path, backend={"kind": "tensorrt"})) if "does not answer" in one.text
    )
    assert fault.verdict == "fault"


def test_a_graphics_card_that_is_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch)
    monkeypatch.setattr("daemon.doctor.find_gpu", lambda device: CARD)
    found = findings(settings(tmp_path, backend={"kind": "tensorrt"}))
    assert not [one for one in found if one.verdict == "fault"]
    text = "\n".join(one.text for one in found)
    assert "GPU 0: NVIDIA RTX A4000, driver CUDA 13.0 (sm86)" in text
    assert "TensorRT-RTX 1.7.1.116" in text


def test_a_graphics_card_that_cannot_be_used_is_a_fault(tmp_path: Path) -> None:
    path = settings(tmp_path, backend={"kind": "tensorrt"})
    assert [one.text for one in findings(path) if one.verdict == "fault" and "backend.kind: cpu" in one.text]
