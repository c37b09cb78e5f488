"""Where TensorRT refuses the card, PyTorch stands in for it behind the daemon's backend, and it is said."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from daemon.backends import manifest, open_backend
from daemon.backends.gpu import network as loading
from daemon.backends.gpu import provision
from daemon.backends.gpu import tensorrt as backend
from daemon.backends.gpu.cuda import Cuda
from daemon.backends.gpu.engine import EngineManifest, Gate
from daemon.backends.gpu.nvidia import find_gpu
from daemon.backends.gpu.provision import EngineOrder
from daemon.errors import EmdenoisedError
from daemon.settings.config import BackendConfig


@lru_cache
def why_tensorrt_does_not_run(engines: Path) -> str:
    """Why TensorRT does not build, load and prove an engine on this card; "" if it does."""
    try:
        opened = open_backend(BackendConfig(kind="tensorrt", tile=512), manifest.verified("fast"), engines)
    except EmdenoisedError as error:
        print(f"TensorRT does not run on this card, PyTorch stands in: {error}")
        return str(error)
    opened.close()
    return ""


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch in TensorRT's place behind the daemon's backend."""
    torch_network = pytest.importorskip("torch_network", reason="needs torch")
    card = find_gpu()
    assert card is not None

    def engine(order: EngineOrder, *rest: Any, **more: Any) -> Any:
        gate = Gate(ran_on=str(card), on_gpu=True, rms=0, largest=0, psnr_loss=0, cases=1)
        about = EngineManifest(
            weights=order.weights.name, network=order.weights.network, onnx_sha256="0" * 64, engine_sha256="0" * 64,
            precision="float16 by PyTorch", flavour="tensorrt", version="none", targets=(), gpu=card.name,
            driver=card.driver, tile=order.tile, batch=order.batch, options={}, layers=0,
            scratch=None, seconds=0, said=(), gate=gate,
        )  # fmt: skip
        return order.folder, about

    def network(folder: Path, about: EngineManifest, driver: Cuda) -> Any:
        model = torch_network.HalfNetwork(folder, manifest.load(folder), "cuda")
        return torch_network.TorchNetwork(model, about.tile, about.batch)

    monkeypatch.setattr(provision, "engine", engine)
    monkeypatch.setattr(provision, "existing", lambda order: None)
    monkeypatch.setattr(backend, "require_driver", lambda flavour, gpu: None)
    monkeypatch.setattr(backend, "choose", lambda asked, gpu: "tensorrt")
    monkeypatch.setattr(loading, "open_network", network)
