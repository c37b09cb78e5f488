"""`make gpu`: which packages a card gets, and what is reported where they cannot be had."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu
import pycuda_wheel
import pytest
from pycuda_wheel import BuildError

from daemon.backends.gpu.nvidia import Gpu
from daemon.errors import ConfigError

ROOT = Path(__file__).parents[2]
DRIVER = "580.95.05 (CUDA 13.0)"


class Index:
    """A package index and an environment: what is installed, and what cannot be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, card: Gpu | None, lacks: str = "") -> None:
        self.installed: list[str] = []
        self.lacks = lacks
        monkeypatch.setattr(gpu, "find_gpu", lambda device: card)
        monkeypatch.setattr(gpu, "_imports", lambda module: False)
        monkeypatch.setattr(gpu, "run", self._run)
        monkeypatch.setattr(pycuda_wheel, "build", lambda cache: cache / "pycuda.whl")

    def _run(self, *command: Any, failing: str, **_: Any) -> None:
        wanted = [str(word) for word in command[5:] if not str(word).startswith("-")]
        if self.lacks and any(self.lacks in word for word in wanted):
            raise BuildError(failing)
        self.installed += [Path(word).name for word in wanted]


@pytest.mark.parametrize(
    ("name", "capability", "package"),
    [
        ("NVIDIA RTX A4000", "sm86", "tensorrt-rtx-cu13"),
        ("NVIDIA GeForce RTX 5090", "sm120", "tensorrt-rtx-cu13"),
        ("NVIDIA H200", "sm90", "tensorrt-cu13"),
        ("NVIDIA B200", "sm100", "tensorrt-cu13"),
    ],
)
def test_a_card_gets_the_tensorrt_that_is_made_for_it_and_emdenoised_stays_as_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, capability: str,
    package: str,
) -> None:  # fmt: skip
    index = Index(monkeypatch, Gpu(name, capability, DRIVER))
    assert gpu.install(0, tmp_path, stand_in=False) == f"{package} and pycuda are installed for {name}"
    assert [one.partition(">=")[0] for one in index.installed] == [
        "pycuda.whl", "nvidia-ml-py", "onnx", "pycuda", package,
    ]  # fmt: skip
    assert f"{name}, driver {DRIVER} ({capability}): {package} and pycuda" in capsys.readouterr().out


def test_where_tensorrt_cannot_be_had_it_is_an_error_but_for_the_tests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Index(monkeypatch, Gpu("NVIDIA H200", "sm90", DRIVER), lacks="tensorrt-")
    with pytest.raises(BuildError, match=r"tensorrt-cu13 cannot be installed.*NVIDIA's own index"):
        gpu.install(0, tmp_path, stand_in=False)
    assert "PyTorch stands in for tensorrt-cu13" in gpu.install(0, tmp_path, stand_in=True)


def test_without_a_card_or_with_an_old_driver_nothing_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index = Index(monkeypatch, None)
    with pytest.raises(ConfigError, match="no NVIDIA driver is loaded"):
        gpu.install(0, tmp_path, stand_in=True)
    index = Index(monkeypatch, Gpu("NVIDIA RTX A4000", "sm86", "550.54 (CUDA 12.4)"))
    with pytest.raises(ConfigError, match=r"driver is too old: 550\.54.*580"):
        gpu.install(0, tmp_path, stand_in=True)
    assert index.installed == []


def test_as_a_command_it_ends_with_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "systemd" / "gpu.py", "--device", "63"],
        capture_output=True, text=True, timeout=60, env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("gpu: no NVIDIA driver") and done.stderr.count("\n") == 1


# pycuda's wheel


def test_headers_come_from_cuda_home_the_index_or_a_toolkit_in_this_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, number in (("stated", 13010), ("toolkit", 12080)):
        (tmp_path / name / "include").mkdir(parents=True)
        (tmp_path / name / "include/cuda.h").write_text(f"#define CUDA_VERSION {number}\n")

    def unreachable(*command: Any, failing: str, **_: Any) -> None:
        raise BuildError(failing)

    def index(*command: Any, **_: Any) -> None:
        place = Path(command[command.index("--target") + 1])
        (place / "nvidia/cu13/include").mkdir(parents=True)
        (place / "nvidia/cu13/include/cuda.h").write_text("#define CUDA_VERSION 13000\n")
        assert {word.partition("==")[0] for word in command[-3:]} == set(pycuda_wheel.PACKAGES)

    monkeypatch.setattr(pycuda_wheel, "run", unreachable)
    monkeypatch.setattr(pycuda_wheel.shutil, "which", lambda name: str(tmp_path / "toolkit/bin/nvcc"))
    assert pycuda_wheel.headers(tmp_path / "cache").version == "12.8"
    monkeypatch.setattr(pycuda_wheel, "run", index)
    assert pycuda_wheel.headers(tmp_path / "cache").version == "13.0"
    monkeypatch.setattr(pycuda_wheel, "run", unreachable)
    assert pycuda_wheel.headers(tmp_path / "cache").root.parent == tmp_path / "cache", "they are kept"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "stated"))
    assert pycuda_wheel.headers(tmp_path / "cache").version == "13.1"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(BuildError, match=r"has no include/cuda\.h: correct it"):
        pycuda_wheel.headers(tmp_path / "cache")


def test_where_pycuda_cannot_be_compiled_the_missing_thing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pycuda_wheel.shutil, "which", lambda name: None)
    with pytest.raises(BuildError, match=r"no C\+\+ compiler: apt install build-essential"):
        pycuda_wheel.build(tmp_path)
    monkeypatch.setattr(pycuda_wheel.shutil, "which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr(pycuda_wheel.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(BuildError, match=r"no headers \(Python\.h\): apt install python3-dev"):
        pycuda_wheel.build(tmp_path)
    tag, machine = sys.implementation.cache_tag, pycuda_wheel.platform.machine()
    kept = tmp_path / f"pycuda-{pycuda_wheel.PYCUDA}-{tag}-{machine}-cuda13.0"
    kept.mkdir()
    (kept / "pycuda-1.whl").touch()
    assert pycuda_wheel.build(tmp_path) == kept / "pycuda-1.whl"
