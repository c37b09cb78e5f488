"""CUDA as the pipeline asks for it, by pycuda. Imported only where libcuda has answered.

One thread makes it, uses it and closes it. It retains the device's primary context, which other libraries in the
process share, and never initialises anything at import.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.backends.pipeline import CODES, SIGNATURES, DeviceMemory, HostMemory, OutOfMemoryError
from daemon.errors import BackendError

PAGE = 4096
THREADS = 256
"""Of a block."""
MOST_BLOCKS = 1 << 14
"""Kernels walk their elements with the stride of the grid, so a grid that fills the card is enough."""


class Host:
    """Page-locked memory of ordinary kind: it is locked by registering it, and outlives that."""

    def __init__(self, array: NDArray[np.uint8], registered: Any) -> None:
        self.array, self.registered = array, registered


class Device:
    """Memory on the device."""

    def __init__(self, allocation: Any) -> None:
        self.allocation, self._address = allocation, int(allocation)

    def at(self, offset: int) -> int:
        return self._address + offset


class Cuda:
    """`pipeline.Driver` on card number `device`. Raises BackendError if pycuda or the card cannot be used."""

    def __init__(self, device: int) -> None:
        try:
            import pycuda.driver as cuda
        except ImportError as error:
            raise BackendError(
                f"pycuda cannot be imported ({error}); pip install 'emdenoised[rtx]' (it is compiled then, which needs "
                "the CUDA toolkit), or install from the offline bundle, which holds it ready"
            ) from error
        self._cuda = cuda
        with self._told():
            cuda.init()
            self._context = cuda.Device(device).retain_primary_context()
            self._context.push()
            module = cuda.module_from_buffer(files("daemon").joinpath("backends/kernels.ptx").read_bytes())
            self._kernels = {name: module.get_function(name) for name in kernel_names()}
            for name, kernel in self._kernels.items():
                kernel.prepare(SIGNATURES[name.split("_")[0]])

    def close(self) -> None:
        """Give the context back; everything made with it must be gone."""
        self._kernels.clear()
        self._context.pop()
        del self._context

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._cuda.MemoryError as error:
            raise OutOfMemoryError(f"CUDA is out of memory: {error}") from error
        except self._cuda.Error as error:
            raise BackendError(
                f"CUDA failed: {error}; the process ends, because nothing on the card can be trusted after that; if "
                "it repeats, restart the computer and look at `nvidia-smi`"
            ) from error

    def host(self, nbytes: int) -> Host:
        with self._told():
            array = self._cuda.aligned_empty((-(-nbytes // PAGE) * PAGE,), np.uint8, alignment=PAGE)
            registered = self._cuda.register_host_memory(array)
        return Host(array, registered.base)

    def device(self, nbytes: int) -> Device:
        with self._told():
            return Device(self._cuda.mem_alloc(nbytes))

    def free(self, memory: Any) -> None:
        with self._told():
            if isinstance(memory, Host):
                memory.registered.unregister()
            else:
                memory.allocation.free()

    def stream(self) -> Any:
        with self._told():
            return self._cuda.Stream()

    def event(self, timing: bool = False) -> Any:
        """`timing`: it keeps the time, for measurements."""
        flags = self._cuda.event_flags.BLOCKING_SYNC  # a thread that waits must leave its core to the camera's software
        with self._told():
            return self._cuda.Event(flags if timing else flags | self._cuda.event_flags.DISABLE_TIMING)

    def upload(self, source: HostMemory, target: DeviceMemory, nbytes: int, stream: Any) -> None:
        with self._told():
            self._cuda.memcpy_htod_async(target.at(0), source.array[:nbytes], stream)

    def download(self, source: DeviceMemory, target: HostMemory, nbytes: int, stream: Any) -> None:
        with self._told():
            self._cuda.memcpy_dtoh_async(target.array[:nbytes], source.at(0), stream)

    def clear(self, target: DeviceMemory, nbytes: int, stream: Any) -> None:
        with self._told():
            self._cuda.memset_d8_async(target.at(0), 0, nbytes, stream)

    def record(self, event: Any, stream: Any) -> None:
        with self._told():
            event.record(stream)

    def wait(self, stream: Any, event: Any) -> None:
        with self._told():
            stream.wait_for_event(event)

    def synchronise(self, event: Any) -> None:
        with self._told():
            event.synchronize()

    def launch(self, kernel: str, threads: int, arguments: Sequence[Any], stream: Any) -> None:
        blocks = min(-(-threads // THREADS), MOST_BLOCKS)
        with self._told():
            self._kernels[kernel].prepared_async_call((blocks, 1, 1), (THREADS, 1, 1), stream, *arguments)


def kernel_names() -> list[str]:
    """All kernels of kernels.ptx."""
    typed = {"survey", "scale"}
    return [
        name
        for kind in SIGNATURES
        for name in ([f"{kind}_{code}" for code in CODES.values()] if kind in typed else [kind])
    ]
