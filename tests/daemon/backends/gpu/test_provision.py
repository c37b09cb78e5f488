"""Which engine is loaded, when one is built, and what is said when none can be."""

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import CARD, manifest_of_engine

from daemon.backends import manifest
from daemon.backends.gpu import provision
from daemon.backends.gpu.engine import OPTIONS, EngineManifest, Gate, engine_path, load_manifest, manifest_of
from daemon.backends.gpu.nvidia import Gpu, choose, require_driver
from daemon.backends.gpu.provision import EngineOrder
from daemon.errors import BackendError, ConfigError
from daemon.settings.config import BackendConfig

FOLDER = manifest.locate("fast")
WEIGHTS = manifest.load(FOLDER)
TILE = 1024, 896
UNPROVEN = Gate(ran_on="cpu: ONNX Runtime", on_gpu=False, rms=0.003, largest=0.03, psnr_loss=0.001, cases=11)


class Workshop:
    """A folder of engines, and a builder that is only asked what it would do."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.commands = folder, list[list[str]]()
        self.gate = manifest_of_engine(WEIGHTS, TILE, 1).gate
        self.version = "1.7.1.116"
        self.path = engine_path(folder, WEIGHTS, "rtx", TILE, 1)
        monkeypatch.setattr(provision, "run", self._run)
        monkeypatch.setattr(provision, "load_tensorrt", lambda flavour: self)

    @property
    def __version__(self) -> str:
        return self.version

    def put(self, **changes: Any) -> None:
        self.path.write_bytes(b"an engine")
        values = {"engine_sha256": hashlib.sha256(b"an engine").hexdigest(), "options": OPTIONS, **changes}
        about = manifest_of_engine(WEIGHTS, TILE, 1, **values)
        manifest_of(self.path).write_text(about.model_dump_json())

    def get(self, **settings: Any) -> tuple[Path, EngineManifest]:
        return provision.engine(self.order(**settings))

    def order(self, **settings: Any) -> EngineOrder:
        chosen = BackendConfig(kind="tensorrt", flavour="rtx", **settings)
        return EngineOrder(chosen, FOLDER, WEIGHTS, self.folder, CARD, TILE, 1)

    def _run(self, command: list[str], progress: Callable[[], None]) -> None:
        self.commands.append(command)
        if "--gate-only" in command:
            about = load_manifest(self.path)
            manifest_of(self.path).write_text(about.model_copy(update={"gate": self.gate}).model_dump_json())
        else:
            self.put(gate=UNPROVEN)


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    return Workshop(tmp_path, monkeypatch)


def test_an_engine_that_fits_and_has_run_on_this_card_is_taken_as_it_is(workshop: Workshop) -> None:
    workshop.put()
    path, about = workshop.get()
    assert path == workshop.path
    assert about.gate.ran_on == str(CARD)
    assert workshop.commands == []


def test_the_first_start_builds_it_and_runs_the_gate_on_the_card(workshop: Workshop) -> None:
    workshop.get()
    build, gate = workshop.commands
    assert build[1:4] == ["-m", "engine_build", str(FOLDER)]
    assert build[4:] == [
        "--flavour", "rtx", "--targets", "sm86", "--tile", "1024x896", "--batch", "1", "--device", "0", "-o",
        str(workshop.folder),
    ]  # fmt: skip
    assert gate == [*build, "--gate-only"]


def test_an_engine_built_elsewhere_is_only_proven_here(workshop: Workshop) -> None:
    workshop.put(gate=UNPROVEN, gpu=None, driver=None, targets=("sm75", "sm86"))
    _, about = workshop.get()
    (gate,) = workshop.commands
    assert "--gate-only" in gate
    assert about.gate.on_gpu


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"onnx_sha256": "f" * 64}, "other weights"),
        ({"version": "1.6.0"}, "TensorRT 1.6.0, and this is 1.7.1"),
        ({"targets": ("sm89",)}, "sm89"),
        ({"options": {}}, "options"),
        ({"engine_sha256": "f" * 64}, "damaged"),
    ],
)
def test_a_stale_engine_is_built_again_and_the_reason_logged(
    workshop: Workshop, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], reason: str
) -> None:
    caplog.set_level("INFO")
    workshop.put(**changes)
    workshop.get()
    assert len(workshop.commands) == 2
    assert reason in caplog.text


def test_unless_that_is_not_wanted_which_is_an_error_with_the_command(workshop: Workshop) -> None:
    with pytest.raises(
        ConfigError, match=r"no such engine yet; backend\.rebuild is false.*python -m engine_build .*fast"
    ):
        workshop.get(rebuild=False)
    workshop.put(version="1.6.0")
    with pytest.raises(ConfigError, match=r"TensorRT 1\.6\.0, and this is 1\.7\.1.*python -m engine_build"):
        workshop.get(rebuild=False)
    assert workshop.commands == []


def test_a_builder_that_builds_the_wrong_thing_is_not_believed(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provision, "run", lambda command, progress: workshop.put(version="1.6.0"))
    with pytest.raises(BackendError, match=r"was just built, and yet .*1\.6\.0"):
        workshop.get()
    workshop.put(gate=UNPROVEN)
    monkeypatch.setattr(provision, "run", lambda command, progress: None)
    with pytest.raises(BackendError, match="was just compared on cpu"):
        workshop.get()


@pytest.mark.parametrize(
    ("asked", "capability", "installed", "chosen"),
    [
        ("auto", "sm86", {"rtx", "tensorrt"}, "rtx"),
        ("auto", "sm90", {"rtx", "tensorrt"}, "tensorrt"),
        ("auto", "sm86", {"tensorrt"}, "tensorrt"),
        ("auto", "sm80", {"rtx", "tensorrt"}, "rtx"),
        ("auto", "sm121", {"rtx", "tensorrt"}, "rtx"),
        ("tensorrt", "sm86", set(), "tensorrt"),
        ("rtx", "sm90", set(), "rtx"),
    ],
)
def test_the_flavour_is_the_cards_among_those_installed(
    monkeypatch: pytest.MonkeyPatch, asked: Any, capability: str, installed: set[str], chosen: str
) -> None:
    modules = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
    there = {modules[name] for name in installed}
    monkeypatch.setattr(
        "daemon.backends.gpu.nvidia.importlib.util.find_spec", lambda name: name if name in there else None
    )
    assert choose(asked, Gpu("NVIDIA X", capability, "CUDA 13.0")) == chosen


@pytest.mark.parametrize(("capability", "installed", "extra"), [("sm86", "", "rtx"), ("sm90", "tensorrt_rtx", "gpu")])
def test_without_tensorrt_the_command_to_install_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capability: str, installed: str, extra: str
) -> None:
    there = "daemon.backends.gpu.nvidia.importlib.util.find_spec"
    monkeypatch.setattr(there, lambda name: name if name == installed else None)
    with pytest.raises(ConfigError, match=rf"NVIDIA X, but no TensorRT that .* `make gpu`.*emdenoised\[{extra}\]"):
        choose("auto", Gpu("NVIDIA X", capability, "CUDA 13.0"))


@pytest.mark.parametrize(("owner", "driver", "fits"), [
    ("tensorrt-rtx-cu13", "580.95.05 (CUDA 13.0)", True), ("tensorrt-rtx-cu13", "550.54 (CUDA 12.4)", False),
    ("tensorrt-cu12", "CUDA 12.6", True), ("tensorrt", "CUDA 12.6", True),
])  # fmt: skip
def test_a_driver_too_old_for_the_installed_tensorrt_is_named(
    monkeypatch: pytest.MonkeyPatch, owner: str, driver: str, fits: bool
) -> None:
    monkeypatch.setattr("daemon.backends.gpu.nvidia.packages_distributions", lambda: {"tensorrt_rtx": [owner]})
    card = Gpu("NVIDIA X", "sm86", driver)
    if fits:
        require_driver("rtx", card)
    else:
        with pytest.raises(ConfigError, match=r"driver is too old: 550\.54 .*needs CUDA 13; update the driver"):
            require_driver("rtx", card)


def test_one_that_is_there_and_proven_is_found_without_a_builder(workshop: Workshop) -> None:
    assert provision.existing(workshop.order()) is None
    workshop.put(gate=UNPROVEN)
    assert provision.existing(workshop.order()) is None
    workshop.put()
    found = provision.existing(workshop.order())
    assert found is not None and found[0] == workshop.path
    assert workshop.commands == []


def test_one_that_fits_and_cannot_be_loaded_is_built_anew(workshop: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    workshop.put()
    provision.engine(workshop.order(), rebuild_because="TensorRT cannot load it")
    assert len(workshop.commands) == 2
    assert "TensorRT cannot load it; it is built now" in caplog.text


# The child process


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_builders_output_is_logged_and_progress_is_reported(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level("INFO")
    beats = 0

    def beat() -> None:
        nonlocal beats
        beats += 1
        if beats == 3:
            (tmp_path / "enough").touch()

    enough = f"pathlib.Path({str(tmp_path / 'enough')!r})"
    wait = f"import pathlib\nprint('one tactic')\nwhile not {enough}.exists(): pass"
    provision.run(python(wait), beat)
    assert beats >= 3
    assert "builder: one tactic" in caplog.text


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        ("print('no operator Wobble'); raise SystemExit(78)", ConfigError, "no operator Wobble"),
        ("print('the card is full'); raise SystemExit(1)", BackendError, "builder failed: the card is full"),
        ("import os; os.kill(os.getpid(), 11)", BackendError, "killed by signal 11: it said nothing"),
    ],
)
def test_the_builders_exit_status_decides_the_error(code: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        provision.run(python(code))


def test_an_abandoned_builder_is_ended(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        provision.run(python("import time; time.sleep(3600)"), stop)
    assert time.monotonic() - begin < 60


def test_a_module_of_the_same_name_in_the_working_folder_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engine_build.py").write_text("raise SystemExit(99)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[4]))
    provision.run([sys.executable, "-m", "engine_build", "--help"])
