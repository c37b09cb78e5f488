"""The float16 body: convolutions in half precision, everything around them in float32, and the same answers."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper, shape_inference

from daemon.backends import manifest
from engine_build.export import to_onnx
from engine_build.half import body_of, finite, half_body
from training.network import build


def types(model: ModelProto) -> dict[str, int]:
    """Tensor → element type, inferred anew."""
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    known = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.output, *graph.value_info]}
    return known | {tensor.name: tensor.data_type for tensor in graph.initializer}


@pytest.fixture(scope="module", params=["fast", "ede2018"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelProto, ModelProto]:
    if request.param == "fast":
        model = onnx.load(manifest.locate("fast") / "model.onnx")
    else:
        path = tmp_path_factory.mktemp("ede2018") / "model.onnx"
        torch.manual_seed(0)
        to_onnx(build("ede2018", {"width": 1 / 16}), path, 128)
        model = onnx.load(path)
    return model, half_body(model)


def test_every_convolution_is_half_and_inputs_and_output_are_not(models: tuple[ModelProto, ModelProto]) -> None:
    _, half = models
    kinds = types(half)
    convolutions = [node for node in half.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert len(convolutions) > 20
    for node in convolutions:
        assert {kinds[name] for name in [*node.input, *node.output] if name} == {TensorProto.FLOAT16}, node.name
    for value in [*half.graph.input, *half.graph.output]:
        assert kinds[value.name] == TensorProto.FLOAT


def test_it_is_cast_once_on_the_way_in_and_once_on_the_way_out(models: tuple[ModelProto, ModelProto]) -> None:
    original, half = models
    # The pattern that fast-2 subtracts on its own way from the noise level is cast like the body.
    parts = 1 + any(tensor.name == "pattern.half" for tensor in original.graph.initializer)
    assert sum(node.op_type == "Cast" for node in half.graph.node) == 2 * parts
    assert [n.op_type for n in original.graph.node if n.op_type != "Cast"].count("Conv") == [
        n.op_type for n in half.graph.node
    ].count("Conv")


def test_batch_normalisation_is_folded_into_the_convolutions(models: tuple[ModelProto, ModelProto]) -> None:
    assert not any(node.op_type == "BatchNormalization" for node in models[1].graph.node)


def test_the_residual_and_the_square_roots_stay_float32() -> None:
    half = half_body(onnx.load(manifest.locate("fast") / "model.onnx"))
    kinds = types(half)
    for node in half.graph.node:
        if node.op_type in ("Sqrt", "AveragePool", "Div", "Sub", "Reciprocal"):
            assert kinds[node.output[0]] == TensorProto.FLOAT, node.name
    (last,) = (node for node in half.graph.node if "denoised" in node.output)
    assert last.op_type == "Add"


def test_the_model_it_was_made_from_is_untouched(models: tuple[ModelProto, ModelProto]) -> None:
    original, _ = models
    before = original.SerializeToString()
    half_body(original)
    assert original.SerializeToString() == before


def small(weight: NDArray[np.float32]) -> ModelProto:
    """One convolution of (1, 1, 8, 8)."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["units", "w"], ["denoised"], "only", kernel_shape=[1, 1])],
        "small",
        [helper.make_tensor_value_info("units", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("denoised", TensorProto.FLOAT, [1, 1, 8, 8])],
        [numpy_helper.from_array(weight.reshape(1, 1, 1, 1), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    return model


@pytest.mark.parametrize("value", [65_520.0, -1e6, float("inf"), float("nan")])
def test_a_weight_float16_cannot_hold_is_refused_by_name(value: float) -> None:
    with pytest.raises(ValueError, match="w: a weight is not finite in float16"):
        half_body(small(np.array([value], np.float32)))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_are_no_numbers_are_found(value: float) -> None:
    finite(small(np.ones(1, np.float32)))
    with pytest.raises(ValueError, match="w: a weight is NaN or infinite"):
        finite(small(np.array([value], np.float32)))


def test_a_model_without_convolutions_is_refused() -> None:
    model = small(np.ones(1, np.float32))
    model.graph.node[0].CopyFrom(helper.make_node("Mul", ["units", "w"], ["denoised"]))
    with pytest.raises(ValueError, match="no convolution"):
        half_body(model)


def test_a_body_that_is_the_whole_model_still_has_float32_ends(tmp_path: Path) -> None:
    model = half_body(small(np.ones(1, np.float32)))
    assert [node.op_type for node in model.graph.node] == ["Cast", "Conv", "Cast"]
    assert len(body_of(model.graph.node)) == 1
