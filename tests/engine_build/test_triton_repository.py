"""The folder of a Triton server, read as the server reads it. A real one loads it in tests/field/test_server.py."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `server` is not installed")
import numpy as np
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from daemon.backends import manifest
from daemon.backends.contract import FLOAT32, HALF, Contract
from daemon.backends.gpu.engine import Gate
from daemon.backends.gpu.nvidia import Gpu
from daemon.errors import ConfigError
from daemon.settings.config import EX_CONFIG
from engine_build import __main__ as command
from engine_build import triton_repository
from engine_build.__main__ import make_repository
from engine_build.build import Built, build

FOLDER = manifest.locate("fast")
WEIGHTS = manifest.load(FOLDER)


def configuration(model: Path) -> Any:
    """As Triton parses it."""
    return text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def contract(config: Any) -> Contract:
    return Contract.read({name: one.string_value for name, one in config.parameters.items()})


def test_the_weights_own_network_is_served_as_it_is(tmp_path: Path) -> None:
    model = make_repository(FOLDER, tmp_path, "onnxruntime", tile=1000, batch=3, instances=2)
    assert model == tmp_path / WEIGHTS.name
    assert (model / "1" / "model.onnx").read_bytes() == (FOLDER / WEIGHTS.onnx).read_bytes()
    found = configuration(model)
    assert (found.name, found.backend, found.max_batch_size) == (WEIGHTS.name, "onnxruntime", 3)
    assert {one.name: list(one.dims) for one in (*found.input, *found.output)} == {
        "units": [1, -1, -1], "level": [1, 1, 1], "denoised": [1, -1, -1],
    }  # fmt: skip
    (group,) = found.instance_group
    assert (group.count, group.kind) == (2, group.KIND_GPU)
    side = WEIGHTS.tile_of(1000)
    assert contract(found).other_network(WEIGHTS) is None and contract(found).precision == FLOAT32
    assert contract(found).tile == str(side)
    assert [(one.batch_size, list(one.inputs["units"].dims)) for one in found.model_warmup] == [
        (number, [1, side, side]) for number in (1, 2, 3)
    ]


def test_live_micrographs_go_first_without_delay_and_no_queue_is_endless(tmp_path: Path) -> None:
    queues = configuration(make_repository(FOLDER, tmp_path, "onnxruntime")).dynamic_batching
    assert (queues.max_queue_delay_microseconds, queues.priority_levels, queues.default_priority_level) == (0, 2, 2)
    assert set(queues.priority_queue_policy) == {1, 2}
    for policy in queues.priority_queue_policy.values():
        assert policy.timeout_action == policy.REJECT and policy.allow_timeout_override
        assert policy.default_timeout_microseconds == 50_000_000 and policy.max_queue_size == 256


def test_a_plan_states_precision_gate_and_its_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def fake(content: bytes, shapes: Any, flavour: str, *arguments: Any, **options: Any) -> Built:
        asked.update(shapes=shapes, flavour=flavour, **options)
        return Built(b"a plan", 100, 1.0, ())

    monkeypatch.setattr(command, "load_tensorrt", lambda flavour: type("TensorRT", (), {"__version__": "10.9"}))
    monkeypatch.setattr(command, "find_gpu", lambda device: Gpu("NVIDIA L40S", "sm89", "CUDA 13.0"))
    monkeypatch.setattr(command, "build", fake)
    gate = Gate(ran_on="cpu: test", on_gpu=False, rms=0.002, largest=0.05, psnr_loss=0.001, cases=11)
    monkeypatch.setattr(command, "_halved", lambda *arguments: (b"half", gate))
    (tmp_path / WEIGHTS.name / "1").mkdir(parents=True)
    (tmp_path / WEIGHTS.name / "1" / "model.onnx").write_bytes(b"of an earlier repository")
    model = make_repository(FOLDER, tmp_path, "tensorrt", tile=256, batch=2)
    assert [one.name for one in (model / "1").iterdir()] == ["model.plan"]
    assert asked["shapes"]["units"] == (2, 1, 256, 256) and asked["flavour"] == "tensorrt" and asked["up_to"]
    found = configuration(model)
    assert found.platform == "tensorrt_plan" and list(found.input[0].dims) == [1, 256, 256]
    assert contract(found).precision == HALF and contract(found).other_network(WEIGHTS) is None
    assert json.loads(contract(found).gate) == gate.model_dump()
    assert found.parameters["tensorrt"].string_value == "10.9"


def test_an_engine_for_up_to_so_many_tiles_is_built_by_the_real_builder() -> None:
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1, 64, 64]) for name in ("units", "denoised")
    ]
    weight = numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "weight")
    node = helper.make_node("Conv", ["units", "weight"], ["denoised"], pads=[1, 1, 1, 1])
    model = helper.make_model(
        helper.make_graph([node], "small", tensors[:1], tensors[1:], [weight]),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=10,
    )  # fmt: skip
    built = build(model.SerializeToString(), {"units": (3, 1, 64, 64)}, "rtx", ("sm86",), up_to=True)
    assert len(built.engine) > 1000 and not [line for line in built.said if "profile" in line.lower()]


def test_names_and_values_cannot_break_out_of_the_text() -> None:
    odd = 'a"} }\nname: "b'
    model = triton_repository.Model(odd, "onnxruntime", b"", Contract(odd, "1", "2", odd, odd), 64, fixed=False)
    found = text_format.Parse(triton_repository.configuration(model), model_config_pb2.ModelConfig())
    assert found.name == odd and contract(found) == model.contract


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--backend", "tensorrt", "--flavour", "rtx"], "an engine of TensorRT-RTX is none"),
        (["--flavour", "rtx"], "an engine of TensorRT-RTX is none"),
        (["--targets", "sm86"], "leave out --flavour rtx and --targets"),
        (["--gate-only"], "--gate-only is for engines"),
        (["--tile", "512x256"], "tiles are square"),
        (["--tile", "64"], "leaves nothing inside halo"),
    ],
)
def test_options_that_make_nothing_a_server_can_load_are_refused_with_the_reason(
    words: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["engine_build", "fast", "--triton", str(tmp_path), *words])
    assert command.main() == EX_CONFIG
    assert why in capsys.readouterr().err and not (tmp_path / WEIGHTS.name).exists()


@pytest.mark.parametrize("processor", ["gpu", "cpu"])
def test_a_plan_without_a_card_is_refused(processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "load_tensorrt", lambda flavour: None)
    monkeypatch.setattr(command, "find_gpu", lambda device: None)
    with pytest.raises(ConfigError, match="--backend onnxruntime"):
        make_repository(FOLDER, tmp_path, "tensorrt", processor=processor)
