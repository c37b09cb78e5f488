"""A thing that runs the network: a stream of planes in, a stream of denoised images out, in order.

In: a weights folder and `counts.plane.Plane`s. Out: `Denoised` images; the processor here, NVIDIA's cards in `gpu`.
Front door: `open_backend` and `protocol.Backend`; `manifest` loads and checks a folder of weights.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from daemon.backends import manifest
from daemon.backends.gpu.driver import driver_answers
from daemon.backends.protocol import Backend
from daemon.settings.config import BackendConfig

# Before ONNX Runtime is imported, which otherwise keeps a file in the home folder and reports to its makers.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def resolve(kind: Literal["auto", "cpu", "tensorrt"], patience: float = 0.0) -> Literal["cpu", "tensorrt"]:
    """What `auto` means on this machine; decided once, at start.

    Raises BackendError for a card that is there and does not answer, after so many seconds of `patience`.
    """
    return ("tensorrt" if driver_answers(patience) else "cpu") if kind == "auto" else kind


def open_backend(
    settings: BackendConfig,
    weights: Path,
    engines: Path,
    progress: Callable[[], None] = lambda: None,
    *,
    halo: int | None = None,
    blend: int = 0,
) -> Backend:
    """Load the weights folder into the backend the configuration asks for; there is no silent second choice.

    Args:
        engines: folder where engines for a GPU are kept; not used on the processor.
        progress: called now and then while micrographs are computed or an engine is built, so that a watchdog can
            tell slow from stuck. If it raises, so does what called it.
        halo: pixels at each edge of a tile that are thrown away; None for what was measured for the weights.
        blend: pixels over which neighbouring tiles cross-fade; 0 cuts.

    Raises WeightsError for damaged weights, ConfigError if what was asked for can never run here as things are set,
    BackendError if it cannot now.
    """
    match resolve(settings.kind):
        case "cpu":
            from daemon.backends.cpu import CpuBackend

            return CpuBackend(
                weights,
                manifest.load(weights),
                threads=settings.threads,
                tile=settings.tile,
                halo=halo,
                batch=settings.batch,
                blend=blend,
                progress=progress,
            )
        case "tensorrt":
            from daemon.backends.gpu.tensorrt import TensorRtBackend

            return TensorRtBackend(
                settings, weights, manifest.load(weights), engines, halo=halo, blend=blend, progress=progress
            )
