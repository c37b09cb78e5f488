"""The Protocols of CUDA and of a network, for pycuda and for tests without a card; the limit of GPU memory."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from daemon.errors import BackendError

SIGNATURES = {
    "survey": "PqqddffQPPP",
    "scale": "PPQdd",
    "fill": "PPPQ",
    "gather": "PqqPqqqqff",
    "scatter": "PqqqqqPPPqqqff",
}
"""Arguments of the kernels in kernels.cu, in the letters of `struct`; survey and scale exist for each of CODES."""

CODES = {"uint8": "u1", "int8": "i1", "uint16": "u2", "int16": "i2", "uint32": "u4", "int32": "i4", "float32": "f4",
         "float64": "f8"}  # fmt: skip
"""Pixel type → its kernels' ending. What is not here is converted on the host."""


class OutOfMemoryError(BackendError):
    """The GPU, or the memory that can be page-locked, is full. Nothing else is lost."""


class Room:
    """What may be taken of a card that others use, too. `most`: bytes; None: as many as the card has."""

    def __init__(self, most: int | None) -> None:
        self._most, self._taken = most, 0

    def take(self, nbytes: int) -> None:
        """Raises OutOfMemoryError if it would be more than `most`."""
        if self._most is not None and self._taken + nbytes > self._most:
            raise OutOfMemoryError(
                f"{(self._taken + nbytes) / 2**30:.2f} GiB of the GPU's memory are needed, and backend.gpu_memory "
                f"allows {self._most / 2**30:.2f} GiB: raise it, or lower backend.tile or backend.max_pixels"
            )
        self._taken += nbytes

    def give(self, nbytes: int) -> None:
        """Give bytes back."""
        self._taken -= nbytes


class HostMemory(Protocol):
    """Page-locked memory: `array` (n,) uint8. It stays readable after it is freed."""

    @property
    def array(self) -> NDArray[np.uint8]: ...


class DeviceMemory(Protocol):
    """Memory on the device."""

    def at(self, offset: int) -> Any:
        """The address of a byte, as kernels and networks take it."""
        ...


class Driver(Protocol):
    """What the pipeline asks of CUDA. All but `synchronise`, `host`, `device` and `free` return at once.

    `host` and `device` raise OutOfMemoryError, everything BackendError if the device failed.
    """

    def host(self, nbytes: int) -> HostMemory: ...
    def device(self, nbytes: int) -> DeviceMemory: ...
    def free(self, memory: Any) -> None: ...
    def stream(self) -> Any: ...
    def event(self) -> Any: ...
    def upload(self, source: HostMemory, target: DeviceMemory, nbytes: int, stream: Any) -> None: ...
    def download(self, source: DeviceMemory, target: HostMemory, nbytes: int, stream: Any) -> None: ...
    def clear(self, target: DeviceMemory, nbytes: int, stream: Any) -> None: ...
    def record(self, event: Any, stream: Any) -> None: ...
    def wait(self, stream: Any, event: Any) -> None: ...
    def synchronise(self, event: Any) -> None: ...
    def launch(self, kernel: str, threads: int, arguments: Sequence[Any], stream: Any) -> None: ...


class Network(Protocol):
    """A network on the device, for `batch` tiles of `tile` (rows, columns) pixels at once."""

    @property
    def tile(self) -> tuple[int, int]: ...
    @property
    def batch(self) -> int: ...
    def enqueue(self, units: Any, level: Any, result: Any, stream: Any) -> None:
        """Addresses of (batch, 1, *tile), (batch, 1, 1, 1) and (batch, 1, *tile) float32; always the same three but
        for `level`."""
        ...


class Networks(Protocol):
    """Which network runs on frames of a shape (H, W)."""

    def ready(self, shape: tuple[int, int]) -> bool:
        """Whether `of` answers at once; if not, ask while nothing is in flight."""
        ...

    def of(self, shape: tuple[int, int]) -> Network:
        """May load one and close another. Raises OutOfMemoryError."""
        ...


class Single:
    """`Networks` of one."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def ready(self, shape: tuple[int, int]) -> bool:
        return True

    def of(self, shape: tuple[int, int]) -> Network:
        return self._network
