"""The network by PyTorch in float16, behind the daemon's own slots and streams.

Where TensorRT refuses the card this shows that the pipeline is right; it is never part of the daemon.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from daemon.backends.manifest import Manifest
from training.network import build


class HalfNetwork(nn.Module):
    """The network of a weights folder with its convolutions in `dtype`; the arithmetic around them stays float32."""

    def __init__(self, folder: Path, weights: Manifest, device: str, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.network = build(weights.network, weights.arguments)
        state = safetensors.torch.load_file(folder / weights.safetensors)
        self.network.load_state_dict({name: value.float() for name, value in state.items()})
        self.network.eval().to(device=device, memory_format=torch.channels_last)
        self._kind, self._dtype = device.split(":")[0], dtype

    @torch.inference_mode()
    def forward(self, units: Tensor, level: Tensor) -> Tensor:
        lower = torch.autocast(self._kind, self._dtype) if self._dtype != torch.float32 else nullcontext()
        with lower:
            return self.network(units, level).float()


class TorchNetwork:
    """`daemon.backends.gpu.device.Network`: `model` on what lies at the addresses, on the pipeline's own stream."""

    def __init__(self, model: nn.Module, tile: tuple[int, int], batch: int) -> None:
        self.tile, self.batch, self._model = tile, batch, model
        self._streams: dict[int, torch.cuda.ExternalStream] = {}

    def enqueue(self, units: int, level: int, result: int, stream: Any) -> None:
        shape = (self.batch, 1, *self.tile)
        handle = int(stream.handle)
        if handle not in self._streams:
            self._streams[handle] = torch.cuda.ExternalStream(handle)
        with torch.cuda.stream(self._streams[handle]):
            seen = self._model(at(units, shape), at(level, (self.batch, 1, 1, 1)))
            at(result, shape).copy_(seen)

    def keep_compiled(self) -> None:
        pass

    def close(self) -> None:
        del self._model


def at(address: int, shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor on the device that lies at an address."""

    class Memory:
        __cuda_array_interface__ = {  # noqa: RUF012
            "shape": shape, "typestr": "<f4", "data": (address, False), "version": 3, "strides": None,
        }  # fmt: skip

    return torch.as_tensor(Memory(), device="cuda")
