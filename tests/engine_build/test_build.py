"""The real TensorRT-RTX builder: it needs no card. What runs on a card is in tests/gpu."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fake_cuda import Address, FakeCuda, Stream
from fake_gpu import FakeEngine
from onnx import TensorProto, helper, numpy_helper

from daemon.backends import manifest
from daemon.backends.gpu import nvidia, tensorrt
from daemon.backends.gpu.engine import OPTIONS, EngineManifest, Wanted, engine_path, load_manifest, manifest_of, stale
from daemon.backends.gpu.nvidia import RTX_CARDS, RTX_TARGETS, Gpu
from daemon.errors import ConfigError, WeightsError
from daemon.settings.config import EX_CONFIG
from engine_build import __main__ as command
from engine_build import build as builder
from engine_build import gate, on_card
from engine_build.__main__ import finish_gate, make_engine
from engine_build.build import build
from engine_build.export import to_onnx
from engine_build.half import half_body
from training.network import build as network

A4000 = Gpu("NVIDIA RTX A4000", "sm86", "CUDA 13.0")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engine(manifest.locate("fast"), tmp_path_factory.mktemp("engines"), "rtx", tile=256, batch=2)


@pytest.fixture
def copied(engine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(engine.parent, tmp_path / "copy")) / engine.name


def test_the_shipped_network_becomes_an_engine_for_every_card_that_users_have(engine: Path) -> None:
    about = load_manifest(engine)
    assert about.targets == RTX_TARGETS == ("sm80", "sm86", "sm89", "sm120", "sm121")
    assert about.onnx_sha256 == manifest.load(manifest.locate("fast")).sha256["model.onnx"]
    assert (about.flavour, about.tile, about.batch, about.gpu) == ("rtx", (256, 256), 2, None)
    assert about.layers > 100
    assert engine.stat().st_size > 4e6  # the weights in float16
    assert not about.gate.on_gpu
    assert about.gate.rms <= 0.01
    assert about.gate.largest <= 0.1
    assert about.gate.psnr_loss <= 0.02
    assert about.gate.cases >= 8
    name = f"{manifest.load(manifest.locate('fast')).name}-{about.onnx_sha256[:8]}.rtx.256x256x2"
    assert sorted(path.name for path in engine.parent.iterdir()) == [
        f"{name}.engine",
        f"{name}.engine.json",
        f"{name}.half.onnx",
    ]


def test_shapes_are_fixed_and_the_builders_log_tells_what_it_takes(tmp_path: Path) -> None:
    """In a process of its own: TensorRT keeps the first logger that it was given."""
    script = (
        "import re, sys, onnx\n"
        "from daemon.backends import manifest\n"
        "from engine_build.build import build\n"
        "from engine_build.half import half_body\n"
        "folder = manifest.locate('fast')\n"
        "half = half_body(onnx.load(folder / 'model.onnx')).SerializeToString()\n"
        "made = build(half, {'units': (1, 1, 1024, 1024), 'level': (1, 1, 1, 1)}, 'rtx', ['sm86'])\n"
        "said = '\\n'.join(made.remarks)\n"
        "print(*re.findall(r'^Layer\\(.*Tactic: \\w+, (.*)$', said, re.MULTILINE), sep=' | ')\n"
        "print(made.scratch / 1024**2)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    layer, scratch = done.stdout.splitlines()
    # One compiled sequence of kernels, every shape in it fixed; no more scratch memory than `Shapes` reckons with.
    assert layer == "units (Float[1,1,1024,1024]), level (Float[1,1,1,1]) -> denoised (Float[1,1,1024,1024])"
    assert 60 < float(scratch) <= tensorrt.SCRATCH


# For Turing (sm75) TensorRT-RTX stores depthwise convolutions as dense ones: 1.5 GB at full width, too much here.
@pytest.mark.slow
@pytest.mark.parametrize(("width", "targets"), [(1.0, RTX_TARGETS), (1 / 16, RTX_CARDS)])
def test_the_papers_network_becomes_an_engine_too(tmp_path: Path, width: float, targets: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    to_onnx(network("ede2018", {"width": width}), tmp_path / "model.onnx", 128)
    half = half_body(onnx.load(tmp_path / "model.onnx")).SerializeToString()
    phases: list[str] = []
    shapes = {"units": (1, 1, 128, 128), "level": (1, 1, 1, 1)}
    made = build(half, shapes, "rtx", targets, progress=phases.append)
    assert len(made.engine) > 0.9 * len(half)
    assert made.layers > 100
    assert phases


def test_the_command_tells_what_it_made_and_that_no_card_has_run_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "engine_build", "fast", "--tile", "256", "--targets", "sm86", "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "for sm86, tiles of 256" in done.stdout
    assert "not yet run on a GPU" in done.stdout
    assert "comparing float16 with float32" in done.stderr


def test_a_tile_that_the_halo_leaves_nothing_of_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="leaves nothing inside halo 96"):
        make_engine(manifest.locate("fast"), tmp_path, "rtx", tile=128)
    assert list(tmp_path.iterdir()) == []


def test_without_the_onnx_package_the_command_is_named(tmp_path: Path) -> None:
    (tmp_path / "onnx.py").write_text("raise ImportError(\"No module named 'onnx'\")")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "engine_build", "fast", "-o", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 78
    assert "pip install 'emdenoised[rtx]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_neither_torch_nor_training_is_imported() -> None:
    code = "import engine_build.__main__, sys; sys.exit(any(m in sys.modules for m in ('torch', 'training')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def model_of(operator: str, **attributes: object) -> bytes:
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["units", "w"], ["seen"], "first", kernel_shape=[1, 1]),
            helper.make_node(operator, ["seen"], ["denoised"], "second", **attributes),
        ],
        "odd",
        [helper.make_tensor_value_info("units", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("denoised", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("lab", 1)])
    model.ir_version = 10
    return bytes(model.SerializeToString())


def test_an_operator_it_does_not_know_is_named() -> None:
    with pytest.raises(WeightsError, match=r"cannot read this network: .*Wobble"):
        build(model_of("Wobble", domain="lab"), {"units": (1, 1, 8, 8)}, "rtx", ["sm86"])


def test_what_is_no_onnx_file_is_refused() -> None:
    with pytest.raises(WeightsError, match="cannot read this network"):
        build(b"not an ONNX file at all", {}, "rtx", ["sm86"])


def test_a_card_it_cannot_build_for_is_refused_with_those_it_can(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"builds for .*sm120.*sm86.*, not for sm90.*--flavour tensorrt"):
        make_engine(manifest.locate("fast"), tmp_path, "rtx", targets=("sm90",), tile=256)
    assert list(tmp_path.iterdir()) == []


def test_without_tensorrt_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(nvidia.MODULES, "tensorrt", "no_such_tensorrt")
    with pytest.raises(ConfigError, match=r"pip install 'emdenoised\[gpu\]'"):
        nvidia.load_tensorrt("tensorrt")


@pytest.mark.parametrize(
    ("said", "remedy"),
    [(["Error Code 2: OutOfMemory (Requested size was 99)"], "smaller --batch"), ([], "no reason")],
)
def test_a_failed_build_gives_reason_and_remedy(said: list[str], remedy: str) -> None:
    assert remedy in builder._failure(deque(said))


def test_an_engine_for_the_same_card_weights_and_version_is_fresh(engine: Path) -> None:
    assert stale(load_manifest(engine), wanted(load_manifest(engine))) == ()


def wanted(about: EngineManifest, **changes: object) -> Wanted:
    values = {
        "onnx_sha256": about.onnx_sha256, "flavour": about.flavour, "version": about.version, "gpu": A4000,
        "tile": about.tile, "batch": about.batch, "options": OPTIONS, **changes,
    }  # fmt: skip
    return Wanted(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"onnx_sha256": "0" * 64}, "other weights"),
        ({"flavour": "tensorrt"}, "flavour rtx, and this is tensorrt"),
        ({"version": "1.8.0"}, r"TensorRT 1\..*, and this is 1\.8\.0"),
        ({"gpu": Gpu("NVIDIA H200", "sm90", "CUDA 13.0")}, "cards of sm80, .*, sm121, and NVIDIA H200 is sm90"),
        ({"tile": (256, 512)}, "tiles of 256 x 256, and this is 256 x 512"),
        ({"batch": 8}, "batch 2, and this is 8"),
        ({"options": {}}, "options"),
    ],
)
def test_whatever_has_changed_makes_it_stale_and_is_named(engine: Path, change: dict[str, object], reason: str) -> None:
    (said,) = stale(load_manifest(engine), wanted(load_manifest(engine), **change))
    assert re.search(reason, said), said


def test_an_engine_of_tensorrt_is_for_its_own_card_and_driver_only(engine: Path) -> None:
    about = load_manifest(engine).model_copy(update={"flavour": "tensorrt", "gpu": A4000.name, "driver": "CUDA 13.0"})
    assert stale(about, wanted(about)) == ()
    assert "driver" in stale(about, wanted(about, gpu=Gpu(A4000.name, "sm86", "CUDA 13.1")))[0]
    assert "GPU" in stale(about, wanted(about, gpu=Gpu("NVIDIA RTX A5000", "sm86", "CUDA 13.0")))[0]


def test_rtx_on_another_card_names_the_right_flavour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_gpu", lambda device: Gpu("NVIDIA H200", "sm90", "CUDA 13.0"))
    with pytest.raises(ConfigError, match=r"NVIDIA H200 is sm90: use --flavour tensorrt .*backend\.flavour"):
        make_engine(manifest.locate("fast"), tmp_path, "rtx", targets=("current",), tile=256)


# The card itself


@contextmanager
def card(driver: FakeCuda, weights: str, about: EngineManifest) -> Iterator[gate.Network]:
    """An engine that computes what the ONNX file does, on a fake GPU."""
    folder = manifest.locate(weights)
    with on_card.runner(FakeEngine(folder, manifest.load(folder), about, driver), driver) as run:
        yield run


def test_the_first_start_on_the_card_finishes_the_gate(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeCuda(7)
    monkeypatch.setattr(command, "find_gpu", lambda device: A4000)
    monkeypatch.setattr(on_card, "loaded", lambda engine, about, device: card(driver, "fast", about))
    verdict = finish_gate(manifest.locate("fast"), copied)
    assert verdict.ran_on == str(A4000)
    assert verdict.on_gpu
    assert verdict.cases == 11
    assert verdict.rms < 1e-4  # the same arithmetic
    assert load_manifest(copied).gate == verdict
    assert not driver.live


def test_a_card_that_computes_nonsense_in_one_place_of_the_batch_is_refused(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(FakeEngine):
        def enqueue(self, units: Address, level: Address, result: Address, stream: Stream) -> None:
            super().enqueue(units, level, result, stream)
            self._driver.put(stream, lambda: np.add(second := result.floats(2, 1, 256, 256)[1], 3, out=second))

    @contextmanager
    def broken(engine: Path, about: EngineManifest, device: int) -> Iterator[gate.Network]:
        driver, folder = FakeCuda(), manifest.locate("fast")
        with on_card.runner(Wrong(folder, manifest.load(folder), about, driver), driver) as run:
            yield run

    monkeypatch.setattr(command, "find_gpu", lambda device: A4000)
    monkeypatch.setattr(on_card, "loaded", broken)
    before = manifest_of(copied).read_bytes()
    with pytest.raises(WeightsError, match=r"differs by .* σ"):
        finish_gate(manifest.locate("fast"), copied)
    assert manifest_of(copied).read_bytes() == before


def test_without_a_card_the_gate_stays_open_and_the_command_reports_it(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["engine_build", "fast", "--tile", "256", "--batch", "2", "--gate-only", "-o", str(copied.parent)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(command, "find_gpu", lambda device: None)
    assert command.main() == 1  # a driver may come: the service tries again
    assert "no NVIDIA driver answers" in capsys.readouterr().err


def test_what_a_person_must_change_ends_with_the_status_of_a_bad_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["engine_build", "fast", "--targets", "sm90", "-o", str(tmp_path)])
    assert command.main() == EX_CONFIG
    assert "not for sm90" in capsys.readouterr().err


def test_engines_of_other_weights_flavours_tiles_and_batches_lie_side_by_side(tmp_path: Path) -> None:
    weights = manifest.load(manifest.locate("fast"))
    others = weights.model_copy(update={"sha256": {weights.onnx: "f" * 64}})
    odd = weights.model_copy(update={"name": "../../etc/passwd"})
    paths = {
        engine_path(tmp_path, one, flavour, tile, batch)
        for one in (weights, others, odd)
        for flavour in ("rtx", "tensorrt")
        for tile in ((512, 512), (1024, 512))
        for batch in (1, 4)
    }
    assert len(paths) == 24
    assert {path.parent for path in paths} == {tmp_path}


@pytest.mark.parametrize(
    "damage", ["one bit", "cut short", "gone", "manifest gone", "manifest cut", "manifest of later"]
)
def test_a_damaged_engine_is_refused_before_anybody_reads_it(copied: Path, damage: str) -> None:
    content, about = bytearray(copied.read_bytes()), manifest_of(copied)
    match damage:
        case "one bit":
            content[len(content) // 2] ^= 1
            copied.write_bytes(content)
        case "cut short":
            copied.write_bytes(content[:-1])
        case "gone":
            copied.unlink()
        case "manifest gone":
            about.unlink()
        case "manifest cut":
            about.write_bytes(about.read_bytes()[:100])
        case _:
            about.write_text(json.dumps(json.loads(about.read_text()) | {"schema_version": 2}))
    with pytest.raises(WeightsError, match="build"):
        load_manifest(copied)
