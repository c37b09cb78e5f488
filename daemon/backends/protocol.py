"""What every backend is, and what all of them share."""

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
