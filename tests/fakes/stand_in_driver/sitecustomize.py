"""With this folder on PYTHONPATH every Python has networks that ONNX Runtime computes, on the tests' stand-in libcuda.

TensorRT's runtime needs a card; all else is real: pycuda, the builder, its child process, the gate and the manifests.
The memory of the stand-in's "device" is ordinary memory, so an address is all that is needed.
"""

import ctypes
import importlib.abc
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

NETWORK = "daemon.backends.gpu.network"


class OnAddresses:
    """`device.Network` by the float16 graph that the builder left beside the engine."""

    def __init__(self, engine: Path, about: Any) -> None:
        import onnxruntime

        assert engine.stat().st_size > 100_000, "the real builder's"
        self.tile, self.batch = about.tile, about.batch
        graph = engine.with_suffix(".half.onnx")
        self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self._inputs = [given.name for given in self._session.get_inputs()]

    def enqueue(self, units: int, level: int, result: int, stream: Any) -> None:
        assert int(stream.handle)
        shapes = {"units": (self.batch, 1, *self.tile), "level": (self.batch, 1, 1, 1)}
        addresses = {"units": units, "level": level}
        feeds = {name: at(addresses[name], shapes[name]).copy() for name in self._inputs}
        at(result, shapes["units"])[:] = self._session.run(["denoised"], feeds)[0]

    def keep_compiled(self) -> None:
        pass

    def close(self) -> None:
        pass


def at(address: int, shape: tuple[int, ...]) -> Any:
    import numpy as np

    number = int(np.prod(shape))
    return np.frombuffer((ctypes.c_float * number).from_address(int(address)), np.float32).reshape(shape)


class Patched(importlib.abc.MetaPathFinder):
    """Loads the module as it is, and puts these networks in the place of TensorRT's."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != NETWORK:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        loaded = spec.loader.exec_module

        def execute(module: ModuleType) -> None:
            loaded(module)
            module.open_network = lambda engine, about, driver: OnAddresses(engine, about)  # type: ignore[attr-defined]

        spec.loader.exec_module = execute  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Patched())
