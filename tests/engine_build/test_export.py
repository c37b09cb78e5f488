"""Export: what the daemon serves computes what was trained, from weights stored in half the space.

The paper's network is exported in `tests/daemon/backends/test_tiled_networks.py`, where its tilings are compared.
"""

import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file
from torch import Tensor

from daemon.backends import manifest
from daemon.backends.manifest import Manifest
from daemon.counts.scaling import MINMAX_CROP, minmax_crop
from daemon.errors import ConfigError, WeightsError
from emdenoised import Denoiser
from engine_build.export import HALO_MAX, HALO_RMS, PAPER_DOSES, as_half, export, measure_halo, store_as_half
from training.levelling import KNOTS
from training.network import FastDenoiser, build
from training.presets import Doses

ARGUMENTS = {"widths": [8, 16], "blocks": [1, 1]}
SERVED = ARGUMENTS | {"levelled": True, "knots": list(KNOTS)}


def finished_run(folder: Path, **changes: Tensor) -> Path:
    """What a training leaves behind, with random weights."""
    folder.mkdir(parents=True)
    torch.manual_seed(3)
    weights = {**build("fast", ARGUMENTS).state_dict(), **changes}
    save_file(weights, folder / "model.safetensors")
    (folder / "record.json").write_text(json.dumps({"steps": 5, "recipe": {"arguments": ARGUMENTS}}))
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("export")
    return folder / "weights", export(finished_run(folder / "run"), "tiny", folder / "weights", tile=256, flats=1)


@pytest.fixture(scope="module")
def session(exported: tuple[Path, Manifest]) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(exported[0] / "model.onnx"), providers=["CPUExecutionProvider"])


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 256, 256), (1, 32, 32), (3, 96, 64), (2, 160, 416)])
def test_the_onnx_file_computes_what_torch_computes(
    exported: tuple[Path, Manifest], session: onnxruntime.InferenceSession, shape: tuple[int, int, int]
) -> None:
    network = build("fast", SERVED).eval()
    network.load_state_dict(load_file(exported[0] / "model.safetensors"))
    rng = np.random.default_rng(0)
    number, height, width = shape
    units = rng.normal(0, 1, (number, 1, height, width)).astype(np.float32)
    level = rng.uniform(0.01, 0.5, (number, 1, 1, 1)).astype(np.float32)
    (served,) = session.run(["denoised"], {"units": units, "level": level})
    expected = network(torch.from_numpy(units), torch.from_numpy(level)).numpy()
    assert served.dtype == np.float32
    assert np.abs(expected - units).std() > 0.01
    np.testing.assert_allclose(served, expected, atol=1e-4)


def test_nothing_of_the_computer_it_was_made_on_is_in_the_file(exported: tuple[Path, Manifest]) -> None:
    content = (exported[0] / "model.onnx").read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content
    assert b"network.py" not in content


def test_every_side_and_number_of_tiles_is_free(session: onnxruntime.InferenceSession) -> None:
    units, level = session.get_inputs()
    assert (units.name, level.name) == ("units", "level")
    assert [isinstance(side, int) for side in units.shape] == [False, True, False, False]
    assert units.shape[1] == 1
    assert level.shape[1:] == [1, 1, 1]


def test_weights_are_stored_as_float16_and_nothing_else_is(exported: tuple[Path, Manifest]) -> None:
    model = onnx.load(exported[0] / "model.onnx")
    halves = [i for i in model.graph.initializer if i.data_type == TensorProto.FLOAT16]
    stored = sum(numpy_helper.to_array(i).size for i in halves)
    assert stored == sum(p.numel() for p in build("fast", SERVED).state_dict().values() if p.numel() >= 64)
    floats = [i for i in model.graph.initializer if i.data_type == TensorProto.FLOAT]
    assert all(numpy_helper.to_array(i).size < 64 for i in floats)
    assert {i.type.tensor_type.elem_type for i in [*model.graph.input, *model.graph.output]} == {TensorProto.FLOAT}
    # Arithmetic stays float32: halves are cast as soon as they are read.
    names = {i.name for i in halves}
    assert {node.op_type for node in model.graph.node if names & set(node.input)} == {"Cast"}
    assert all(t.dtype == torch.float16 for t in load_file(exported[0] / "model.safetensors").values())


def test_the_manifest_is_one_the_daemon_accepts_and_the_folder_denoises(exported: tuple[Path, Manifest]) -> None:
    folder, made = exported
    assert manifest.load(folder) == made
    assert (made.name, made.network, made.arguments, made.tile) == ("tiny", "fast", SERVED, 256)
    assert made.align == FastDenoiser.stride
    assert made.halo % 32 == 0
    assert made.training["steps"] == 5
    assert set(made.sha256) == {"model.onnx", "model.safetensors"}
    image = np.random.default_rng(0).poisson(20, (100, 130)).astype(np.uint16)
    with Denoiser(str(folder), backend="cpu") as denoiser:
        assert denoiser.denoise(image).shape == image.shape


@pytest.mark.parametrize("verdict", ["worse", "mixed"])
def test_what_a_fine_tuning_made_worse_is_exported_by_force_only(tmp_path: Path, verdict: str) -> None:
    run = finished_run(tmp_path / "run")
    record = json.loads((run / "record.json").read_text()) | {"before_after": {"verdict": verdict}}
    (run / "record.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"run: on held-out files this fine-tuning made the weights .*worse.*--force"):
        export(run, "tiny", tmp_path / "weights", flats=1)
    assert not (tmp_path / "weights").exists()
    assert export(run, "tiny", tmp_path / "weights", flats=1, force=True).name == "tiny"


def test_a_network_of_the_papers_protocol_is_served_with_the_papers_scaling(tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {"width": 1 / 32}
    run = tmp_path / "run"
    run.mkdir()
    save_file(build("ede2018", arguments).state_dict(), run / "model.safetensors")
    recipe = {"network": "ede2018", "arguments": arguments, "protocol": "paper", "doses": "low", "crop": 96}
    (run / "record.json").write_text(json.dumps({"steps": 5, "recipe": recipe}))
    with pytest.raises(ConfigError, match="tiles of 120 pixels do not fit its network; give a multiple of 16"):
        export(run, "paper", tmp_path / "weights", tile=120)
    made = export(run, "paper", tmp_path / "weights", tile=128, only_served=True)
    assert (made.network, made.scaling, made.tile, made.halo) == ("ede2018", MINMAX_CROP, 128, 32)
    assert (made.dose_range, made.contrast_range) == ((8, 250), (1, 1))
    assert made.safetensors is None and set(made.sha256) == {"model.onnx"}
    assert not (tmp_path / "weights" / "model.safetensors").exists()
    assert set(PAPER_DOSES) == set(get_args(Doses))
    network = build("ede2018", arguments).eval()
    network.load_state_dict({key: value.float() for key, value in load_file(run / "model.safetensors").items()})
    counts = np.random.default_rng(0).poisson(20, (128, 128)).astype(np.float32)
    scaling = minmax_crop(counts)
    with torch.no_grad():
        expected = network(torch.from_numpy(scaling.to_units(counts))[None, None])[0, 0].numpy()
    with Denoiser(str(tmp_path / "weights"), backend="cpu", gain=1.0) as denoiser:
        served = denoiser.denoise(counts)
    expected += scaling.to_units(counts).mean() - expected.mean()
    np.testing.assert_allclose(scaling.to_units(served), expected, atol=0.02)  # weights rounded to float16
    assert served.mean() == pytest.approx(counts.mean(), rel=1e-5)


def test_an_export_that_fails_leaves_what_was_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished_run(tmp_path / "run")
    served = tmp_path / "weights"
    export(run, "tiny", served, tile=256, flats=1)
    before = {path.name: path.read_bytes() for path in served.iterdir()}

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine_build.export.to_onnx", broken)
    with pytest.raises(OSError, match="No space"):
        export(run, "tiny", served, tile=256, flats=1)
    assert {path.name: path.read_bytes() for path in served.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "weights"]


def test_released_weights_are_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: tuple[Path, Manifest]
) -> None:
    released = tmp_path / "fast-1"
    shutil.copytree(exported[0], released)
    monkeypatch.setattr("engine_build.export.shipped_weights", lambda: tmp_path)
    before = (released / "manifest.json").read_bytes()
    with pytest.raises(ConfigError, match=r"fast-1: released weights never change.*choose a new name"):
        export(finished_run(tmp_path / "run"), "fast-1", released)
    assert (released / "manifest.json").read_bytes() == before


def test_tiles_that_the_halo_would_eat_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave nothing inside a halo"):
        export(finished_run(tmp_path / "run"), "tiny", tmp_path / "weights", tile=64, flats=1)


@pytest.mark.parametrize("record", [None, "{}", "no json", '{"recipe": {"arguments": {"depth": 3}}}'])
def test_what_is_no_finished_run_is_refused_in_words(tmp_path: Path, record: str | None) -> None:
    if record is not None:
        (tmp_path / "record.json").write_text(record)
    with pytest.raises(ConfigError, match="not a finished training run"):
        export(tmp_path, "none", tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors"])
@pytest.mark.parametrize("damage", ["one bit", "cut short", "gone"])
def test_a_damaged_file_is_refused_by_its_name(
    exported: tuple[Path, Manifest], tmp_path: Path, name: str, damage: str
) -> None:
    folder = Path(shutil.copytree(exported[0], tmp_path / "weights"))
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    match damage:
        case "one bit":
            (folder / name).write_bytes(content)
        case "cut short":
            (folder / name).write_bytes(content[:-1])
        case _:
            (folder / name).unlink()
    with pytest.raises(WeightsError, match=f"{name}: .*reinstall"):
        manifest.load(folder)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 70_000.0, -70_000.0])
def test_a_weight_float16_cannot_hold_is_refused_and_the_old_export_is_kept(tmp_path: Path, value: float) -> None:
    weight = build("fast", ARGUMENTS).state_dict()["body.tail.weight"].clone()
    weight[0, 0, 0, 0] = value
    run = finished_run(tmp_path / "run", **{"body.tail.weight": weight})
    out = tmp_path / "weights"
    out.mkdir()
    (out / "model.safetensors").write_text("the old one")
    with pytest.raises(ValueError, match=r"body\.tail\.weight.*float16"):
        export(run, "bad", out)
    assert [path.name for path in out.iterdir()] == ["model.safetensors"]
    assert (out / "model.safetensors").read_text() == "the old one"


def test_counters_stay_whole_numbers() -> None:
    # BatchNorm counts its batches; the paper's 168 553 would be infinite in float16.
    assert as_half("counter", torch.tensor(168_553)).item() == 168_553
    assert as_half("weight", torch.tensor([65_504.0])).dtype == torch.float16


def graph_of(values: np.ndarray) -> onnx.GraphProto:  # type: ignore[type-arg]
    shape = list(values.shape)
    return helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(values, "w")],
    )


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 65_520.0])
def test_storing_as_half_refuses_what_would_become_infinite(value: float) -> None:
    values = np.ones(100, np.float32)
    values[50] = value
    with pytest.raises(ValueError, match="w: a weight is not finite in float16"):
        store_as_half(graph_of(values))


def test_storing_as_half_keeps_the_result_and_small_or_whole_numbers_as_they_are() -> None:
    values = np.linspace(-3, 3, 100, dtype=np.float32)
    graph = graph_of(values)
    store_as_half(graph)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 9
    onnx.checker.check_model(model, full_check=True)
    (result,) = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": np.zeros(100, np.float32)}
    )
    assert np.array_equal(result, values.astype(np.float16).astype(np.float32))
    for untouched in (np.ones(63, np.float32), np.arange(100)):
        graph = graph_of(untouched)
        before = graph.SerializeToString()
        store_as_half(graph)
        assert graph.SerializeToString() == before


class Reaching(FastDenoiser):
    """Adds a pixel from `reach` pixels away, on both axes: its context is known."""

    def __init__(self, reach: int) -> None:
        super().__init__((8,), (1,))
        self.reach = reach

    def forward(self, units: Tensor, level: Tensor) -> Tensor:
        if not self.reach:
            return units
        reach = self.reach
        padded = torch.nn.functional.pad(units, (reach,) * 4)
        return units + 0.1 * (
            padded[..., reach : reach + units.shape[2], 2 * reach :] + padded[..., : -2 * reach, reach:-reach]
        )


@pytest.mark.parametrize(("reach", "halo"), [(0, 32), (30, 32), (32, 32), (33, 64), (70, 96), (97, 128)])
def test_the_halo_is_the_context(reach: int, halo: int) -> None:
    assert measure_halo(Reaching(reach)) == halo


def test_a_reach_too_faint_to_matter_costs_no_halo() -> None:
    class Faint(Reaching):
        def forward(self, units: Tensor, level: Tensor) -> Tensor:
            return units + 0.002 * (super().forward(units, level) - units)

    assert measure_halo(Faint(100)) == 32
    assert (HALO_RMS, HALO_MAX) <= (0.01, 0.1)


def test_a_network_that_looks_at_everything_has_no_halo() -> None:
    class Everywhere(Reaching):
        def forward(self, units: Tensor, level: Tensor) -> Tensor:
            return units * units[..., :64, :64].std()

    with pytest.raises(ConfigError, match="no halo"):
        measure_halo(Everywhere(0))
