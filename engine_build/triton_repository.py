"""The folder of a model from which a Triton server serves it: the network, and how requests to it are queued.

DIR/NAME/1/model.onnx or model.plan     the network
DIR/NAME/config.pbtxt                   its configuration, written last
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daemon.backends.contract import INPUTS, OUTPUT, PRIORITY_BACKLOG, PRIORITY_LIVE, Contract
from daemon.files import save

Backend = Literal["onnxruntime", "tensorrt"]
Processor = Literal["gpu", "cpu"]

FILES: dict[Backend, str] = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}
_QUEUE_SECONDS = 50
"""A request that waits longer in the server's queue is refused, and one whose client gives it up earlier, then."""
_QUEUE_LENGTH = 256
"""Requests of each priority that may wait; further ones are refused, so that the server's memory stays bounded."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model to be served. `tile` is the side of the largest tiles, pixels, of the only ones if `fixed`."""

    name: str
    backend: Backend
    content: bytes
    contract: Contract
    tile: int
    fixed: bool
    batch: int = 1
    """Tiles computed at once, at most: those of several clients, too."""
    instances: int = 1
    """Copies that compute at the same time, on each card."""
    processor: Processor = "gpu"
    remarks: tuple[tuple[str, str], ...] = ()
    """Further parameters: name and value."""


def write(repository: Path, model: Model) -> Path:
    """Write the model's folder below `repository`; returns it. A running server does not read it automatically."""
    folder = repository / model.name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    for name in FILES.values():
        if name != FILES[model.backend]:
            (folder / "1" / name).unlink(missing_ok=True)
    save(folder / "1" / FILES[model.backend], model.content)
    save(folder / "config.pbtxt", configuration(model).encode())
    return folder


def configuration(model: Model) -> str:
    """The text of config.pbtxt."""
    side = str(model.tile) if model.fixed else "-1"
    kind = "KIND_GPU" if model.processor == "gpu" else "KIND_CPU"
    runs_on = 'platform: "tensorrt_plan"' if model.backend == "tensorrt" else 'backend: "onnxruntime"'
    units, level = INPUTS
    parts = [
        f"name: {_quoted(model.name)}\n{runs_on}\nmax_batch_size: {model.batch}",
        f"input [\n  {_tensor(units, f'1, {side}, {side}')},\n  {_tensor(level, '1, 1, 1')}\n]",
        f"output [ {_tensor(OUTPUT, f'1, {side}, {side}')} ]",
        f"instance_group [ {{ count: {model.instances} kind: {kind} }} ]",
        _queues(),
        *(_warm_up(model, number) for number in range(1, model.batch + 1)),
        *(
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
            for key, value in (*model.contract.as_parameters().items(), *model.remarks)
        ),
    ]
    return "\n".join(parts) + "\n"


def _queues() -> str:
    """Dynamic batching without delay: tiles that wait are computed together, none waits for others."""
    policies = [
        f"  priority_queue_policy {{\n    key: {level}\n    value {{ timeout_action: REJECT "
        f"default_timeout_microseconds: {_QUEUE_SECONDS * 10**6} allow_timeout_override: true "
        f"max_queue_size: {_QUEUE_LENGTH} }}\n  }}"
        for level in (PRIORITY_LIVE, PRIORITY_BACKLOG)
    ]
    head = f"  max_queue_delay_microseconds: 0\n  priority_levels: 2\n  default_priority_level: {PRIORITY_BACKLOG}"
    return "\n".join(["dynamic_batching {", head, *policies, "}"])


def _warm_up(model: Model, number: int) -> str:
    units, level = INPUTS
    return (
        f'model_warmup {{\n  name: "{number} at once"\n  batch_size: {number}\n'
        f"  {_zeros(units, f'1, {model.tile}, {model.tile}')}\n  {_zeros(level, '1, 1, 1')}\n}}"
    )


def _tensor(name: str, dimensions: str) -> str:
    return f'{{ name: "{name}" data_type: TYPE_FP32 dims: [ {dimensions} ] }}'


def _zeros(name: str, dimensions: str) -> str:
    return f'inputs {{ key: "{name}" value {{ data_type: TYPE_FP32 dims: [ {dimensions} ] zero_data: true }} }}'


def _quoted(text: str) -> str:
    return json.dumps(text)
