"""ONNX in float32 → ONNX whose convolutions compute in float16, between float32 inputs, outputs and residuals.

TensorRT from version 11 on takes precisions from the graph only. Needs `onnx`, not torch: it converts the shipped
file, on the microscope PC.
"""

from collections.abc import Iterable, MutableSequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

_CONVOLUTIONS = {"Conv", "ConvTranspose"}
FLOAT_ARGUMENTS = {"Resize": {1, 2}}
"""Inputs that stay float32 by the operator's definition: sizes and scales."""
LARGEST_HALF = 65_504.0


def half_body(model: ModelProto) -> ModelProto:
    """A copy of the model in which everything between its first and its last convolution is float16.

    The body is all nodes that depend on a convolution and on which a convolution depends. Tensors that enter it are
    cast to float16, those that leave it to float32. So the mean, the square root and the residual around it keep
    float32's digits. Weights stored as float16 are used as they are. Raises ValueError for a weight that float16 cannot
    hold, and for a model without a convolution.
    """
    model = ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    body = body_of(graph.node)
    inside = {output for node in body for output in node.output}
    halves = _Halves(graph, inside)
    for node in body:
        keep = FLOAT_ARGUMENTS.get(node.op_type, set())
        for index, name in enumerate(node.input):
            if index not in keep:
                node.input[index] = halves.of(name)
    outside = [node for node in graph.node if not inside & set(node.output)]
    leaving = {name for node in outside for name in node.input} | {output.name for output in graph.output}
    casts = halves.casts
    for name in sorted(leaving & inside):
        for node in body:
            _rename(node.output, name, f"{name}.half")
            _rename(node.input, name, f"{name}.half")
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], f"{name}.to_float", to=TensorProto.FLOAT))
    _reorder(graph, [*graph.node, *casts])
    onnx.checker.check_model(model, full_check=False)
    return model


class _Halves:
    """Names of tensors in float16, and casts for those that are neither weights nor outputs `inside` the body."""

    def __init__(self, graph: onnx.GraphProto, inside: set[str]) -> None:
        self.casts: list[NodeProto] = []
        self._graph, self._inside = graph, inside
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._widened = {
            node.output[0]: node.input[0]
            for node in graph.node
            if node.op_type == "Cast" and node.input[0] in self._weights and _target(node) == TensorProto.FLOAT
        }
        self._known: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The name of the same tensor in float16."""
        if not name or name in self._inside:
            return name
        if name not in self._known:
            stored = self._widened.get(name, name)
            if stored in self._weights:
                self._known[name] = _half_initialiser(self._graph, self._weights[stored])
            else:
                self._known[name] = half = f"{name}.to_half"
                self.casts.append(helper.make_node("Cast", [name], [half], half, to=TensorProto.FLOAT16))
        return self._known[name]


def finite(model: ModelProto) -> None:
    """Raises ValueError naming the first weight that is not a finite number: builders do not check."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{tensor.name}: a weight is NaN or infinite; train again, or export again")


def body_of(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """Nodes that depend on a convolution and on which a convolution depends, with the convolutions, in graph order."""
    nodes = list(nodes)
    after: set[str] = set()
    before: set[str] = set()
    for node in nodes:  # in topological order, as ONNX requires
        if node.op_type in _CONVOLUTIONS or after & set(node.input):
            after |= set(node.output)
    for node in reversed(nodes):
        if node.op_type in _CONVOLUTIONS or before & set(node.output):
            before |= set(node.input) | set(node.output)
    body = [node for node in nodes if after & before & set(node.output)]
    if not body:
        raise ValueError("the model has no convolution")
    return body


def _target(node: NodeProto) -> int:
    return next(int(attribute.i) for attribute in node.attribute if attribute.name == "to")


def _half_initialiser(graph: onnx.GraphProto, tensor: TensorProto) -> str:
    values = numpy_helper.to_array(tensor)
    if values.dtype != np.float32:
        return tensor.name  # float16 already, or whole numbers such as a shape
    if not (np.abs(values) <= LARGEST_HALF).all():
        raise ValueError(
            f"{tensor.name}: a weight is not finite in float16; its network must be scaled or trained again"
        )
    name = f"{tensor.name}.as_half"
    graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), name))
    return name


def _rename(names: MutableSequence[str], old: str, new: str) -> None:
    for index, name in enumerate(names):
        if name == old:
            names[index] = new


def _reorder(graph: onnx.GraphProto, nodes: list[NodeProto]) -> None:
    """Set the graph's nodes in topological order, without unused nodes and initialisers."""
    producer = {output: node for node in nodes for output in node.output}
    ordered: list[NodeProto] = []
    done: set[int] = set()
    stack = [(producer[output.name], False) for output in graph.output if output.name in producer]
    while stack:
        node, ready = stack.pop()
        if id(node) in done:
            continue
        if ready:
            done.add(id(node))
            ordered.append(node)
            continue
        stack.append((node, True))
        stack += [(producer[name], False) for name in node.input if name in producer]
    used = {name for node in ordered for name in node.input}
    replace_nodes(graph, ordered)
    kept = [TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Replace the graph's nodes by these, some of which may be its own."""
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    del graph.value_info[:]  # types of inner tensors have changed
