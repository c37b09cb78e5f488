"""A computer with a GPU, as far as the daemon can tell: a card, a driver, and an engine that ONNX Runtime computes."""

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
from fake_cuda import Address, FakeCuda, Stream

from daemon.backends.gpu import network as loading
from daemon.backends.gpu import provision, tensorrt
from daemon.backends.gpu.engine import EngineManifest, Gate, Sides
from daemon.backends.gpu.nvidia import Gpu
from daemon.backends.gpu.provision import EngineOrder
from daemon.backends.manifest import Manifest

CARD = Gpu("NVIDIA RTX A4000", "sm86", "CUDA 13.0")


class FakeEngine:
    """`network.EngineNetwork` by the ONNX file in a folder of weights."""

    def __init__(self, folder: Path, weights: Manifest, about: EngineManifest, driver: FakeCuda) -> None:
        self.tile, self.batch, self._driver, self.closed = about.tile, about.batch, driver, False
        self._session = onnxruntime.InferenceSession(folder / weights.onnx, providers=["CPUExecutionProvider"])

    def enqueue(self, units: Address, level: Address, result: Address, stream: Stream) -> None:
        shape = (self.batch, 1, *self.tile)

        def act() -> None:
            feeds = {"units": units.floats(*shape).copy(), "level": level.floats(self.batch, 1, 1, 1).copy()}
            result.floats(*shape)[:] = self._session.run(["denoised"], feeds)[0]

        self._driver.put(stream, act)

    def keep_compiled(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def manifest_of_engine(weights: Manifest, tile: int | Sides, batch: int, **changes: object) -> EngineManifest:
    """A manifest as the builder and the gate write it on `CARD`."""
    gate = Gate(ran_on=str(CARD), on_gpu=True, rms=0.003, largest=0.03, psnr_loss=0.001, cases=11)
    values = {
        "weights": weights.name, "network": weights.network, "onnx_sha256": weights.sha256[weights.onnx],
        "engine_sha256": "0" * 64, "precision": "float16 body, float32 around it", "flavour": "rtx",
        "version": "1.7.1.116", "targets": ("sm86",), "gpu": CARD.name, "driver": CARD.driver,
        "tile": (tile, tile) if isinstance(tile, int) else tile,
        "batch": batch, "options": {}, "layers": 100, "scratch": None, "seconds": 1.0, "said": (), "gate": gate,
        **changes,
    }  # fmt: skip
    return EngineManifest.model_validate(values)


def plug_in(monkeypatch: pytest.MonkeyPatch, seed: int | None = 0) -> list[FakeCuda]:
    """Put the card into this computer; returns the drivers that are opened on it."""
    drivers: list[FakeCuda] = []
    served: dict[Path, tuple[Path, Manifest]] = {}

    def driver(device: int, most: int | None) -> FakeCuda:
        drivers.append(FakeCuda(seed, most=most))
        return drivers[-1]

    def engine(
        order: EngineOrder, progress: Callable[[], None] = lambda: None, *, rebuild_because: str = ""
    ) -> tuple[Path, EngineManifest]:
        about = manifest_of_engine(order.weights, order.tile, order.batch)
        path = order.engines / f"{order.weights.name}.{order.tile}.{order.batch}.engine"
        served[path] = order.folder, order.weights
        return path, about

    def network(path: Path, about: EngineManifest, driver: FakeCuda) -> FakeEngine:
        return FakeEngine(*served[path], about, driver)

    monkeypatch.setattr("daemon.backends.driver_answers", lambda *_: True)
    monkeypatch.setattr("daemon.backends.gpu.engine.TILE", 256)  # on a processor, large tiles take their time
    monkeypatch.setattr(tensorrt, "find_gpu", lambda device: CARD)
    monkeypatch.setattr(tensorrt, "load_pycuda", lambda: None)
    monkeypatch.setattr(tensorrt, "open_driver", driver)
    monkeypatch.setattr(loading, "open_network", network)
    monkeypatch.setattr(provision, "engine", engine)
    monkeypatch.setattr(provision, "existing", lambda order: None)
    monkeypatch.setattr(tensorrt, "require_driver", lambda flavour, gpu: None)
    return drivers
