"""What a user installs: a wheel, not editable, in an environment of its own, run from somewhere else."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from daemon import __version__
from daemon.backends import manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
PACKAGES = {"daemon", "emdenoised", "engine_build", "training", "weights"}


def run(*command: str | Path, cwd: Path, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Nothing of this process' Python may help: neither its path nor its virtual environment."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clean environment's folder of programs."""
    folder = tmp_path_factory.mktemp("user")
    made = run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    assert made.returncode == 0, made.stderr
    programs = folder / "venv" / "bin"
    done = run(programs / "python", "-m", "pip", "install", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    return programs


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory outside the repository, and a home folder that is not the developer's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_wheel_holds_all_it_needs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
    inside = {str(name) for name in names}
    assert wheel.name == f"emdenoised-{__version__}-py3-none-any.whl"
    site = {f"daemon/live_page/site/{file.name}" for file in (ROOT / "daemon" / "live_page" / "site").iterdir()}
    assert "daemon/live_page/site/index.html" in site and site <= inside
    assert {"daemon/config.yaml", *(f"{name}/py.typed" for name in PACKAGES - {"weights"})} <= inside
    assert manifest.names() and "weights/aliases.yaml" in inside
    for weights in manifest.names():
        about = manifest.load(manifest.locate(weights))
        for file in (manifest.MANIFEST, "README.md", *about.sha256):
            assert f"weights/{weights}/{file}" in inside
    information = f"emdenoised-{__version__}"
    assert {name.parts[0] for name in names} == PACKAGES | {f"{information}.dist-info", f"{information}.data"}
    for file in ("emdenoised.service", "emdenoised-gpu.service", "emdenoised.slice", "gpu-nodes.sh", "setup.sh"):
        assert f"{information}.data/data/share/emdenoised/{file}" in inside
    assert f"{information}.dist-info/licenses/LICENSE" in inside
    kinds = {name.suffix for name in names if name.parts[0] in PACKAGES and str(name) not in site}
    assert kinds <= {".py", ".typed", ".yaml", ".json", ".md", ".onnx", ".safetensors", ".cu", ".ptx", ".sh"}
    assert not [name for name in names if "__pycache__" in name.parts or name.name.startswith(".")]
    source = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {name for name in inside if name.endswith(".py")} == source


def test_the_installed_package_is_the_wheels_and_has_no_torch(binaries: Path, elsewhere: Path) -> None:
    where = "import daemon, weights; print(daemon.__file__); print(weights.__file__)"
    done = run(binaries / "python", "-c", where, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.split():
        assert Path(line).is_relative_to(binaries.parent)
        assert "site-packages" in Path(line).parts
    done = run(binaries / "python", "-c", "import torch", cwd=elsewhere)
    assert done.returncode == 1
    assert "No module named 'torch'" in done.stderr


def test_the_service_file_and_the_version_come_along(binaries: Path, elsewhere: Path) -> None:
    assert (binaries.parent / "share" / "emdenoised" / "emdenoised.service").is_file()
    done = run(binaries / "emdenoised", "--version", cwd=elsewhere)
    assert done.stdout.split() == ["emdenoised", __version__]


def test_doctor_finds_the_installation_sound(binaries: Path, elsewhere: Path) -> None:
    done = run(binaries / "emdenoised", "doctor", cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(binaries.parent) in done.stdout
    assert "canary" in done.stdout


def test_the_demo_runs_to_its_end(binaries: Path, elsewhere: Path) -> None:
    done = run(binaries / "emdenoised", "demo", cwd=elsewhere)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert (elsewhere / "demo-output" / "before-after.png").stat().st_size > 10_000
    assert "PROBLEM" not in done.stdout
