"""CUDA by pycuda: allocates memory on the card and page-locked (pinned) host memory, copies, launches kernels.

Imported only where libcuda has answered. One thread makes it, uses it and closes it. It retains the device's primary
context, which other libraries in the process share, and never initialises anything at import.
"""

import atexit
import contextlib
import ctypes
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.backends.gpu import probe
from daemon.backends.gpu.device import CODES, SIGNATURES, DeviceMemory, HostMemory, OutOfMemoryError, Room
from daemon.errors import BackendError

_NO_MEMORY, _OPERATING_SYSTEM_REFUSES = 2, 304
"""CUDA's numbers for them."""
_THREADS = 256
"""Of a block."""
_CAPTURE_THREAD = 1
"""CUDA's number: only what this thread does meanwhile is restricted."""
_MOST_BLOCKS = 1 << 14
"""Kernels walk their elements with the stride of the grid, so a grid that fills the card is enough."""


class Host:
    """Ordinary memory, (n,) uint8 of whole pages, which is page-locked by registering it and outlives that."""

    def __init__(self, nbytes: int) -> None:
        self.array: NDArray[np.uint8] = np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)


class Device:
    """Memory on the device."""

    def __init__(self, allocation: Any, nbytes: int) -> None:
        self.allocation, self.nbytes, self._address = allocation, nbytes, int(allocation)

    def at(self, offset: int) -> int:
        return self._address + offset


class Graph:
    """The recorded work of a stream, as one launch. By libcuda itself: pycuda has no graphs."""

    def __init__(self, libcuda: Any, executable: ctypes.c_void_p) -> None:
        self._libcuda, self._executable = libcuda, executable

    def launch(self, stream: Any) -> None:
        require(self._libcuda.cuGraphLaunch(self._executable, ctypes.c_void_p(stream.handle)), "launch a graph")

    def free(self) -> None:
        self._libcuda.cuGraphExecDestroy(self._executable)


def require(status: int, what: str) -> None:
    """Raises BackendError for a status of libcuda's that is not success."""
    if status:
        raise BackendError(
            f"CUDA could not {what} (CUDA error {status}); the process ends, because nothing on the card can be "
            "trusted after that"
        )


def load_pycuda() -> Any:
    """pycuda's driver module, without a context on the card. Raises BackendError naming the remedy if there is none."""
    try:
        import pycuda.driver
    except ImportError as error:
        raise BackendError(
            f"pycuda cannot be imported ({error}); `make gpu`, or `python systemd/gpu.py`, compiles and installs it "
            "with all that the card needs; the offline bundle holds it ready"
        ) from error
    return pycuda.driver


class Cuda:
    """`device.Driver` on card number `device`. Raises BackendError if pycuda or the card cannot be used.

    `most`: bytes of its memory that may be allocated, as for `Room`.
    """

    def __init__(self, device: int, most: int | None = None) -> None:
        self._room = Room(most)
        self._cuda = cuda = load_pycuda()
        self._libcuda = ctypes.CDLL(probe.LIBRARY)
        with self._translated():
            cuda.init()
            self._context: Any = cuda.Device(device).retain_primary_context()
            self._context.push()
            self._kernels: dict[str, Any] = {}
            try:
                module = cuda.module_from_buffer(files("daemon").joinpath("backends/gpu/kernels.ptx").read_bytes())
                for name in kernel_names():
                    self._kernels[name] = module.get_function(name)
                    self._kernels[name].prepare(SIGNATURES[name.split("_")[0]])
            except cuda.Error:
                self.close()
                raise

        # A process that forgets to close it would be aborted by pycuda at its end.
        atexit.register(self.close)

    def close(self) -> None:
        """Give the context back; everything made with it must be gone. Only the first time matters."""
        context, self._context = self._context, None
        if context is not None:
            atexit.unregister(self.close)
            self._kernels.clear()
            with contextlib.suppress(self._cuda.Error):
                context.pop()

    @contextmanager
    def _translated(self) -> Iterator[None]:
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
        # Not by pycuda: its register_host_memory crashes with numpy 2, and what its pagelocked_empty gives must be
        # freed by this thread, though a result may be dropped by any.
        memory = Host(nbytes)
        address, length = ctypes.c_void_p(memory.array.ctypes.data), ctypes.c_size_t(memory.array.nbytes)
        if status := self._libcuda.cuMemHostRegister_v2(address, length, 0):
            what = f"{nbytes / 2**20:.0f} MiB of memory could not be page-locked (CUDA error {status})"
            if status in (_NO_MEMORY, _OPERATING_SYSTEM_REFUSES):
                raise OutOfMemoryError(f"{what}: close other programs, or lower backend.max_pixels")
            raise BackendError(f"{what}: the process ends, because nothing on the card can be trusted after that")
        return memory

    def device(self, nbytes: int) -> Device:
        self._room.take(nbytes)
        try:
            with self._translated():
                return Device(self._cuda.mem_alloc(nbytes), nbytes)
        except BaseException:
            self._room.give(nbytes)
            raise

    def free(self, memory: Any) -> None:
        with self._translated():
            if not isinstance(memory, Host):
                memory.allocation.free()
                self._room.give(memory.nbytes)
            elif status := self._libcuda.cuMemHostUnregister(ctypes.c_void_p(memory.array.ctypes.data)):
                raise BackendError(f"memory could not be unlocked (CUDA error {status}); the process ends")

    def stream(self) -> Any:
        with self._translated():
            return self._cuda.Stream()

    def event(self, timing: bool = False) -> Any:
        """`timing`: it keeps the time, for measurements."""
        flags = self._cuda.event_flags.BLOCKING_SYNC  # a thread that waits must leave its core to the camera's software
        with self._translated():
            return self._cuda.Event(flags if timing else flags | self._cuda.event_flags.DISABLE_TIMING)

    def upload(self, source: HostMemory, target: DeviceMemory, nbytes: int, stream: Any) -> None:
        with self._translated():
            self._cuda.memcpy_htod_async(target.at(0), source.array[:nbytes], stream)

    def download(self, source: DeviceMemory, target: HostMemory, nbytes: int, stream: Any) -> None:
        with self._translated():
            self._cuda.memcpy_dtoh_async(target.array[:nbytes], source.at(0), stream)

    def clear(self, target: DeviceMemory, nbytes: int, stream: Any) -> None:
        with self._translated():
            self._cuda.memset_d8_async(target.at(0), 0, nbytes, stream)

    def record(self, event: Any, stream: Any) -> None:
        with self._translated():
            event.record(stream)

    def wait(self, stream: Any, event: Any) -> None:
        with self._translated():
            stream.wait_for_event(event)

    def synchronise(self, event: Any) -> None:
        with self._translated():
            event.synchronize()

    def captured(self, stream: Any, work: Callable[[], None]) -> Graph:
        """Record what `work` puts on a stream as a graph, without running it. TensorRT must have run once before."""
        cuda, handle = self._libcuda, ctypes.c_void_p(stream.handle)
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        require(cuda.cuStreamBeginCapture_v2(handle, _CAPTURE_THREAD), "capture a stream")
        try:
            work()
        finally:
            status = cuda.cuStreamEndCapture(handle, ctypes.byref(graph))
        require(status, "end the capture of a stream")
        made = cuda.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        require(made, "make a graph")
        require(cuda.cuGraphDestroy(graph), "free a graph")
        return Graph(cuda, executable)

    def launch(self, kernel: str, threads: int, arguments: Sequence[Any], stream: Any) -> None:
        blocks = min(-(-threads // _THREADS), _MOST_BLOCKS)
        with self._translated():
            self._kernels[kernel].prepared_async_call((blocks, 1, 1), (_THREADS, 1, 1), stream, *arguments)


def kernel_names() -> list[str]:
    """All kernels of kernels.ptx."""
    typed = {"survey", "scale"}
    return [
        name
        for kind in SIGNATURES
        for name in ([f"{kind}_{code}" for code in CODES.values()] if kind in typed else [kind])
    ]
