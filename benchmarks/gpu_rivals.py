"""Rivals of the engine: the same tiles by PyTorch and ONNX Runtime, and the card's own rates."""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch.utils.flop_counter import FlopCounterMode
from torch_network import HalfNetwork

from daemon.backends.manifest import Manifest
from training.network import build


class Rivals:
    """Measures on `device`; on "cpu" (a dry run) with the smallest sizes."""

    def __init__(self, device: str) -> None:
        self.device, self.dry = device, device == "cpu"

    def seconds(self, run: Callable[[], object], warm: int, number: int) -> list[float]:
        """Elapsed seconds of each of some runs, synchronised."""
        for _ in range(1 if self.dry else warm):
            run()
        self._wait()
        found = []
        for _ in range(2 if self.dry else number):
            begin = time.perf_counter()
            run()
            self._wait()
            found.append(time.perf_counter() - begin)
        return found

    def torch_variants(self, folder: Path, weights: Manifest, tile: int, batch: int) -> dict[str, Any]:
        """One batch by PyTorch in float16, channels last."""
        model = HalfNetwork(folder, weights, self.device, torch.bfloat16 if self.dry else torch.float16)
        units = torch.randn(batch, 1, tile, tile, device=self.device).contiguous(memory_format=torch.channels_last)
        level = torch.full((batch, 1, 1, 1), 0.1, device=self.device)
        variants: dict[str, Callable[[], Callable[[], object]]] = {"eager": lambda: lambda: model(units, level)}
        if not self.dry:
            variants["compiled"] = lambda: compiled(model, units, level)
            variants["graphed"] = lambda: graphed(model, units, level)
        found: dict[str, Any] = {}
        for name, make in variants.items():
            try:
                found[name] = self.seconds(make(), 5, 30)
            except Exception as error:  # the others run nevertheless
                found[name] = f"did not run: {error!r}"[:300]
        return found

    def onnx_runtime(self, folder: Path, weights: Manifest, tile: int, batch: int) -> dict[str, Any]:
        """One batch by ONNX Runtime's CUDA provider in float32, from and to host memory, if it is installed."""
        provider = "CPUExecutionProvider" if self.dry else "CUDAExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            return {"float32": "did not run: this ONNX Runtime has no CUDA"}
        session = onnxruntime.InferenceSession(folder / weights.onnx, providers=[provider])
        feeds = {
            "units": np.random.default_rng(0).normal(size=(batch, 1, tile, tile)).astype(np.float32),
            "level": np.full((batch, 1, 1, 1), 0.1, np.float32),
        }
        feeds = {given.name: feeds[given.name] for given in session.get_inputs()}
        return {"float32": self.seconds(lambda: session.run(None, feeds), 2, 10)}

    def card_rates(self) -> dict[str, float]:
        """Float16 matrix products, and copies within the card's memory (bytes read and written)."""
        side, length = (256, 1 << 20) if self.dry else (8192, 1 << 28)
        dtype = torch.float32 if self.dry else torch.float16
        a, b = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))
        source = torch.randn(length, device=self.device)
        target = torch.empty_like(source)
        products, copies = self.seconds(lambda: a @ b, 3, 10), self.seconds(lambda: target.copy_(source), 3, 10)
        return {
            "float16_matrix_flop_per_s": 2.0 * side**3 / min(products),
            "copy_bytes_per_s": 8.0 * length / min(copies),
        }

    def release(self) -> None:
        """What PyTorch keeps of the card's memory would be missing for the next measurement."""
        gc.collect()
        if not self.dry:
            torch._dynamo.reset()  # noqa: SLF001
            torch.cuda.empty_cache()

    def _wait(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()


def compiled(model: torch.nn.Module, units: torch.Tensor, level: torch.Tensor) -> Callable[[], object]:
    fast = torch.compile(model, mode="max-autotune")
    return lambda: fast(units, level)


def graphed(model: torch.nn.Module, units: torch.Tensor, level: torch.Tensor) -> Callable[[], object]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(units, level)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(units, level)
    return graph.replay


def flop_of(weights: Manifest, tile: int) -> float:
    """Operations of one tile; a multiply-add counts as two, as in PyTorch."""
    network = build(weights.network, weights.arguments).eval()
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        network(torch.zeros(1, 1, tile, tile), torch.ones(1, 1, 1, 1))
    return float(counter.get_total_flops())
