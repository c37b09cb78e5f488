"""One word for "a thing that runs the network": a stream of micrographs in, a stream out, in order."""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, Protocol

from daemon.backends import manifest
from daemon.micrograph import Denoised, Plane
from daemon.settings.config import BackendConfig

# Before ONNX Runtime is imported, which otherwise keeps a file in the home folder and reports to its makers.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


SLOTS = 3
"""Micrographs a GPU backend holds at once: one each in upload, compute and download."""


OUT_OF_MEMORY = (
    "there is not enough memory for this micrograph; lower backend.queue, or backend.max_pixels to refuse such files "
    "at once"
)


class Backend(Protocol):
    """Runs one network. Used by one thread, as a context manager; `close` frees what it holds."""

    @property
    def name(self) -> str:
        """What ran, for logs and provenance: e.g. "cpu: ONNX Runtime 1.32.0, float32, 2 threads"."""
        ...

    def denoise(self, planes: Iterable[Plane | None]) -> Iterator[Denoised]:
        """Yield one finished (H, W) float32 image, in the micrograph's own units, for each input, in order.

        May read ahead of what it has yielded (that is how a GPU overlaps); a None among the inputs says that
        nothing more is waiting just now, and is the moment to finish what was read ahead. Every image is the
        caller's to keep. Raises MicrographError for the first input not yet yielded (the stream is over then, and
        inputs read ahead of it must be given again), BackendError when the process can no longer denoise at all.
        """
        ...

    def close(self) -> None:
        """Free everything. Called once, by the thread that used it."""
        ...


def driver_answers() -> bool:
    """Whether an NVIDIA driver with at least one GPU is there. Asks libcuda itself: anything later may segfault."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def resolve(kind: Literal["auto", "cpu", "tensorrt"]) -> Literal["cpu", "tensorrt"]:
    """What `auto` means on this machine; decided once, at start."""
    return ("tensorrt" if driver_answers() else "cpu") if kind == "auto" else kind


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
