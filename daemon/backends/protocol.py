"""The interface of backends, and constants that they share."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from daemon.counts.plane import Denoised, Plane

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
        """For logs and records, such as "cpu: ONNX Runtime 1.32.0, float32, 2 threads"."""
        ...

    def denoise(self, planes: Iterable[Plane | None]) -> Iterator[Denoised]:
        """Yield one finished (H, W) float32 image, in the micrograph's own units, for each input, in order.

        May read ahead of the results, so that a GPU overlaps copying and computing; a None among the inputs means
        that no further one is waiting, and inputs read ahead should be finished. The caller owns every image. Raises
        MicrographError for the first input without a result (the stream ends, and inputs read ahead must be passed
        again), BackendError if the process can no longer denoise, ServerError if its server cannot now.
        """
        ...

    def close(self) -> None:
        """Free everything. Called once, by the thread that used it."""
        ...
