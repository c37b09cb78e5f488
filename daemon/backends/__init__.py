"""A thing that runs the network: a stream of planes in, a stream of denoised images out, in order.

In: a weights folder and `counts.plane.Plane`s. Out: `Denoised` images; the processor here, NVIDIA's cards in `gpu`.
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

# Before ONNX Runtime is imported, which otherwise keeps a file in the home folder and reports to its makers.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def resolve(kind: Literal["auto", "cpu", "tensorrt"], patience: float = 0.0) -> Literal["cpu", "tensorrt"]:
    """What `auto` means on this machine; decided once, at start.

    Raises BackendError for a card that is there and does not answer, after so many seconds of `patience`. Whatever
    asks libcuda in this process comes after it: a refusal there would last as long as the process.
    """
    if kind == "cpu":
        return kind
    return "tensorrt" if driver_answers(patience) or kind == "tensorrt" else "cpu"


def build_engine(
    settings: BackendConfig, weights: Weights, engines: Path, progress: Callable[[], None] = lambda: None
) -> None:
    """Build the engine that `open_backend` loads, where it is missing. Arguments and errors as there.

    For all networks before the first is opened: the builder needs the card's memory and, in exclusive mode, the card
    itself. On the processor there is nothing to build.
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
    """Load verified weights into the backend the configuration asks for; there is no silent second choice.

    Args:
        engines: folder where engines for a GPU are kept; not used on the processor.
        progress: called now and then while micrographs are computed or an engine is built, so that a watchdog can
            tell slow from stuck. If it raises, so does what called it.

    Raises WeightsError for weights that do not load, ConfigError if what was asked for can never run here as things are
    set, BackendError if it cannot now.
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
        case "tensorrt":
            from daemon.backends.gpu.tensorrt import TensorRtBackend

            return Passes(TensorRtBackend(settings, weights.folder, weights.manifest, engines, progress=progress))
