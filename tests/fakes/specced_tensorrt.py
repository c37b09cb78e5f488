"""A TensorRT whose classes have the real attributes and no more, and whose objects do nothing.

`python specced_tensorrt.py MODULE` runs all the daemon's and the builder's calls against the bindings of that module.
"""

import importlib
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec, patch

from fake_cuda import FakeCuda
from fake_gpu import manifest_of_engine

from daemon.backends import manifest
from daemon.backends.gpu import network as backend
from daemon.backends.gpu.nvidia import Flavour
from engine_build import build as builder


class Capturing(FakeCuda):
    """Counts the launches of graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs, self.graph_launches = 0, 0

    def captured(self, stream: Any, work: Any) -> Any:
        work()
        self.graphs += 1
        return SimpleNamespace(launch=self._launch, free=lambda: setattr(self, "graphs", self.graphs - 1))

    def _launch(self, stream: Any) -> None:
        self.graph_launches += 1


WEIGHTS = manifest.load(manifest.locate("fast"))


class Specced:
    """The real module, but for what would need its libraries or a driver."""

    def __init__(self, trt: Any) -> None:
        self._trt = trt

        def instance(kind: str, **returns: Any) -> Any:
            """An object of a class: methods return, and properties are, what is given."""
            made = create_autospec(getattr(trt, kind), instance=True)
            for name, value in returns.items():
                if callable(getattr(getattr(trt, kind), name)):
                    getattr(made, name).return_value = value
                else:
                    setattr(made, name, value)
            return made

        self.config = instance("IRuntimeConfig")
        if hasattr(trt, "IRuntimeCache"):  # TensorRT-RTX's
            compiled = instance("IRuntimeCache", serialize=b"compiled", deserialize=True)
            self.config.create_runtime_cache.return_value = compiled
        self.context = instance("IExecutionContext", execute_async_v3=True, set_input_shape=True)
        self.engine = instance(
            "ICudaEngine", create_runtime_config=self.config, create_execution_context=self.context,
            num_io_tensors=3, device_memory_size_v2=4096,
        )  # fmt: skip
        self.engine.get_tensor_name.side_effect = ["units", "level", "denoised"]
        self.runtime = instance("Runtime", deserialize_cuda_engine=self.engine)
        given = self.given = [instance("ITensor", name=name) for name in ("units", "level")]
        network = instance("INetworkDefinition", num_inputs=2, num_layers=9)
        builder_config = instance("IBuilderConfig", get_timing_cache=instance("ITimingCache", serialize=b"timings"))
        profile = instance("IOptimizationProfile")
        self.builder = instance(
            "Builder", create_network=network, create_builder_config=builder_config,
            create_optimization_profile=profile, build_serialized_network=b"engine",
        )  # fmt: skip
        network.get_input.side_effect = given
        self.parser = instance("OnnxParser", parse=True)

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        assert isinstance(logger, self._trt.ILogger)
        return self.runtime

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        assert isinstance(logger, self._trt.ILogger)
        return self.builder

    def OnnxParser(self, network: Any, logger: Any) -> Any:  # noqa: N802
        return self.parser

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trt, name)


def run(trt: Any, flavour: Flavour, folder: Path) -> Specced:
    """Load an engine, run it, build one; AttributeError where an API is used that is not there."""
    fake, driver = Specced(trt), Capturing()
    about = manifest_of_engine(WEIGHTS, 64, 2, flavour=flavour)
    engine, cache = folder / "x.engine", folder / "x.cache"
    engine.write_bytes(b"engine")
    with patch.object(backend, "load_tensorrt", lambda _: fake):
        network = backend.EngineNetwork(engine, about, driver, cache)
        stream = SimpleNamespace(handle=7)
        for level in (3, 4, 4):
            network.enqueue(1, level, 2, stream)
        network.keep_compiled()
        network.close()
    assert not driver.live
    assert (driver.graphs, driver.graph_launches) == (0, 1 if flavour == "tensorrt" else 0)
    with patch.object(builder, "load_tensorrt", lambda _: fake):
        shapes = {"units": (2, 1, 64, 64), "level": (2, 1, 1, 1)}
        targets = ["sm86", "current"] if flavour == "rtx" else []
        made = builder.build(b"onnx", shapes, flavour, targets, folder / "timing.cache")
    assert made.engine == b"engine"
    assert [tensor.shape for tensor in fake.given] == [(2, 1, 64, 64), (2, 1, 1, 1)]
    return fake


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        module = importlib.import_module(sys.argv[1])
        run(module, "tensorrt", Path(folder))
        assert (Path(folder) / "timing.cache").read_bytes() == b"timings"
    print("every call is in", module.__version__)
