"""Whether a card answers: what `auto` makes of a driver that is there, away, or not ready yet."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from daemon import backends
from daemon.backends import manifest
from daemon.backends.gpu import driver
from daemon.commands.main import main
from daemon.errors import BackendError
from daemon.service.service import Service
from daemon.settings.config import BackendConfig, Config


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The kernel's module is loaded."""
    monkeypatch.setattr(driver, "LOADED", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def wait(self, seconds: float) -> None:
        self.time += seconds


def answers(monkeypatch: pytest.MonkeyPatch, *codes: int) -> list[int]:
    """libcuda gives these codes, one after another, the last repeatedly; returns those it gave."""
    given: list[int] = []

    def tell() -> Iterator[int]:
        yield from codes
        while True:
            yield codes[-1]

    source = tell()
    monkeypatch.setattr(driver, "ask", lambda: given.append(next(source)) or given[-1])
    return given


def test_a_card_that_is_not_ready_yet_is_waited_for(loaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, clock = answers(monkeypatch, 100, 999, 0), Clock()
    beats: list[float] = []
    assert driver.driver_answers(60, lambda: beats.append(clock.time), now=clock.now, wait=clock.wait)
    assert given == [100, 999, 0]
    assert clock.time == 104
    assert beats == [100, 102, 104], "a watchdog hears of each attempt"


@pytest.mark.parametrize("kind", ["auto", "tensorrt"])
def test_a_card_that_answers_later_is_opened_by_the_same_process(
    loaded: Path, monkeypatch: pytest.MonkeyPatch, kind: Literal["auto", "tensorrt"]
) -> None:
    refusals = iter([999, 0])
    asked_here: list[int] = []
    monkeypatch.setattr(driver, "ask", lambda: next(refusals))
    monkeypatch.setattr("daemon.backends.gpu.tensorrt.find_gpu", asked_here.append)
    weights = manifest.verified("fast")
    with pytest.raises(BackendError, match="CUDA error 999"):
        backends.open_backend(BackendConfig(kind=kind), weights, loaded)
    assert not asked_here, "libcuda keeps its first answer for the life of a process"
    monkeypatch.setattr("daemon.backends.gpu.tensorrt.why_no_gpu", lambda device: "there is no GPU 0")
    with pytest.raises(BackendError, match="there is no GPU 0"):
        backends.open_backend(BackendConfig(kind=kind), weights, loaded)
    assert asked_here == [0]


@pytest.mark.parametrize(("code", "remedy"), [(100, "emdenoised-gpu.service"), (999, "nvidia-modprobe"),
                                              (803, "restart the computer"), (5, "nvidia-smi")])  # fmt: skip
def test_one_that_never_answers_is_an_error_after_a_bounded_time_with_code_and_remedy(
    loaded: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    given, clock = answers(monkeypatch, code), Clock()
    with pytest.raises(BackendError, match=rf"CUDA error {code}\): .*{remedy}.*backend\.kind: cpu"):
        driver.driver_answers(60, now=clock.now, wait=clock.wait)
    assert clock.time == 160
    assert len(given) == 31


def test_nothing_is_waited_for_where_there_is_no_library_or_the_cards_are_hidden(
    loaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = answers(monkeypatch, driver.NO_LIBRARY)
    assert not driver.driver_answers(60)
    assert len(given) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert backends.resolve("auto", 60) == "cpu"
    assert len(given) == 1


def library(folder: Path, code: int, count: int) -> None:
    """A libcuda.so.1 that answers so."""
    source = folder / "libcuda.c"
    source.write_text(
        f"int cuInit(unsigned flags) {{ return {code}; }}\n"
        f"int cuDeviceGetCount(int *count) {{ *count = {count}; return 0; }}\n"
    )
    command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1", source]
    subprocess.run(command, check=True, timeout=60)


@pytest.mark.parametrize(("code", "count", "answer"), [(0, 1, 0), (0, 0, 100), (999, 1, 999)])
def test_libcuda_is_asked_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, count: int, answer: int
) -> None:
    library(tmp_path, code, count)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert driver.ask() == answer
    maps = Path("/proc/self/maps").read_text()
    assert str(tmp_path) not in maps, "it was loaded here"


def test_one_that_crashes_or_hangs_is_one_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "probe.py"
    monkeypatch.setattr(driver, "PROBE", program)
    program.write_text("import os; os.kill(os.getpid(), 11)")
    assert driver.ask() == 999
    program.write_text("import sys; sys.stdin.close(); import time; time.sleep(60)")
    monkeypatch.setattr(driver, "PROBE_SECONDS", 0.2)
    assert driver.ask() == 999


def test_the_service_does_not_start_on_the_processor_instead(
    loaded: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, 999)
    monkeypatch.setattr("daemon.service.service.CARD_SECONDS", 0.0)
    for name in ("drop", "output", "state"):
        (tmp_path / name).mkdir()
    settings = tmp_path / "config.yaml"
    settings.write_text("folders: {drop: drop, output: output, state: state}\nmonitor: {listen: null}\n")
    assert main(["once", "--config", str(settings)]) == 1
    assert "CUDA error 999" in capsys.readouterr().err


def test_a_service_whose_card_does_not_answer_leaves_the_ledger_to_one_with_the_old_settings(
    loaded: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers(monkeypatch, 999)
    monkeypatch.setattr("daemon.service.service.CARD_SECONDS", 0.0)
    folders = {name: str(tmp_path / name) for name in ("drop", "output", "state")}
    new, old = (Config.model_validate({"folders": folders, "backend": {"kind": kind}}) for kind in ("auto", "cpu"))
    beats: list[str] = []
    with pytest.raises(BackendError, match="CUDA error 999"):
        Service(new, progress=lambda: beats.append("watchdog"))
    assert beats == ["watchdog"]
    service = Service(old)
    service.stop()
    assert service.failure is None


def test_why_there_is_no_gpu_is_explained(loaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, 0)
    assert "no GPU 3" in driver.why_no_gpu(3)
    answers(monkeypatch, driver.NO_LIBRARY)
    assert "libcuda.so.1 is not installed" in driver.why_no_gpu(0)
    monkeypatch.setattr(driver, "LOADED", loaded / "away")
    assert driver.why_no_gpu(0).startswith("no NVIDIA driver is loaded on this computer: install one of version 580")
