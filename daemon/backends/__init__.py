"""Runs the network, on the processor, on a Triton server or (in `gpu`) on an NVIDIA card.

In: a weights folder and a stream of `counts.plane.Plane`. Out: a stream of `Denoised` images, in the same order.
Front door: `open_backend`, `build_engine` and `protocol.Backend`; `manifest` loads and checks a folder of weights.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from daemon.backends.gpu.driver import driver_answers
from daemon.backends.manifest import Weights
from daemon.backends.passes import Passes
from daemon.settings.config import BackendConfig

# Set before ONNX Runtime is imported, which otherwise sends telemetry and keeps a file in the home folder.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

BackendKind = Literal["auto", "cpu", "tensorrt", "server"]
Resolved = Literal["cpu", "tensorrt", "server"]


def resolve(kind: BackendKind, patience: float = 0.0, progress: Callable[[], None] = lambda: None) -> Resolved:
    """The backend that `auto` means on this machine; decided once, at start.

    Raises BackendError for a card that is present but does not answer, after so many seconds of `patience`, in which
    `progress` is called for a watchdog. Whatever asks libcuda in this process comes after it: a refusal there would
    last as long as the process.
    """
    if kind in ("cpu", "server"):
        return kind
    return "tensorrt" if driver_answers(patience, progress) or kind == "tensorrt" else "cpu"


def build_engine(
    settings: BackendConfig, weights: Weights, engines: Path, progress: Callable[[], None] = lambda: None
) -> None:
    """Build the engine that `open_backend` loads, where it is missing. Arguments and errors as there.

    For all networks before the first is opened: the builder needs the card's memory and, in exclusive mode, the card
    itself. On the processor and on a server there is nothing to build.
    """
    if resolve(settings.kind) == "tensorrt":
        from daemon.backends.gpu import provision, tensorrt

        provision.engine(tensorrt.order_of(settings, weights.folder, weights.manifest, engines), progress)


def open_backend(
    settings: BackendConfig,
    weights: Weights,
    engines: Path,
    progress: Callable[[], None] = lambda: None,
) -> Passes:
    """Load verified weights into the backend that the settings name; no other backend ever replaces it.

    Args:
        engines: folder where engines for a GPU are kept; not used on the processor.
        progress: called regularly while micrographs are computed or an engine is built, for a watchdog. Its exceptions
            pass through.

    Raises WeightsError for weights that do not load, ConfigError if the backend cannot run with these settings,
    BackendError if it cannot run now. A server is not asked before the first micrograph.
    """
    match resolve(settings.kind):
        case "cpu":
            from daemon.backends.cpu import CpuBackend

            return Passes(
                CpuBackend(
                    weights.folder,
                    weights.manifest,
                    threads=settings.threads,
                    tile=settings.tile,
                    batch=settings.batch,
                    progress=progress,
                )
            )
        case "server":
            from daemon.backends.server import ServerBackend

            return Passes(ServerBackend(settings, weights.folder, weights.manifest, progress))
        case "tensorrt":
            from daemon.backends.gpu.tensorrt import TensorRtBackend

            return Passes(TensorRtBackend(settings, weights.folder, weights.manifest, engines, progress=progress))
