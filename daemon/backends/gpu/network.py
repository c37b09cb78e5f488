"""A TensorRT engine that is loaded on the card: `device.Network`, for TensorRT and TensorRT-RTX alike."""

import logging
from pathlib import Path
from typing import Any

from daemon.backends.gpu.cuda import Cuda, Graph
from daemon.backends.gpu.device import DeviceMemory, Network, OutOfMemoryError
from daemon.backends.gpu.engine import EngineManifest, Sides
from daemon.backends.gpu.nvidia import last_errors, listen, load_tensorrt
from daemon.errors import BackendError
from daemon.files import write_atomically

log = logging.getLogger(__name__)


class UnreadableError(BackendError):
    """An engine whose manifest fits but which TensorRT does not load: it is built again, once."""

    def __init__(self, why: str, tile: Sides) -> None:
        super().__init__(why)
        self.tile = tile


class EngineNetwork:
    """`device.Network` by an engine that has been checked against its manifest.

    `cache`: file that keeps what TensorRT-RTX compiles for this card. Raises BackendError if TensorRT refuses it.
    """

    def __init__(self, engine: Path, about: EngineManifest, driver: Cuda, cache: Path) -> None:
        trt = load_tensorrt(about.flavour)
        self.tile, self.batch = about.tile, about.batch
        self._driver, self._cache = driver, cache
        self._graphs: dict[int, Graph] = {}
        self._captures = about.flavour == "tensorrt" and about.batch > 1
        self._scratch: DeviceMemory | None = None
        self._bound: dict[str, Any] = {}
        self._logger = listen(trt)
        self._logger.forget()
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine.read_bytes())
        if self._engine is None:
            why, _ = last_errors(self._logger.errors)
            raise UnreadableError(f"{engine}: TensorRT cannot load it: {why}", about.tile)
        tensors = {self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)}
        if not {"units", "denoised"} <= tensors <= {"units", "level", "denoised"}:
            raise BackendError(f"{engine}: takes and gives {', '.join(sorted(tensors))}: it is no denoising engine")
        self._takes_level = "level" in tensors
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._compiled: Any = None
        if about.flavour == "rtx":
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(managed)
            self._compiled = config.create_runtime_cache()
            if cache.is_file() and not self._compiled.deserialize(cache.read_bytes()):
                log.info("%s: of another version or card; it is replaced", cache)
            config.set_runtime_cache(self._compiled)
            if about.batch > 1:  # many small launches: all of them as one
                config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._context = self._engine.create_execution_context(config)
        else:  # versions of TensorRT that are still in use, on Jetson for instance, have no such thing as above
            self._context = self._engine.create_execution_context(managed)
        if self._context is None:
            raise self._failure(f"{engine}: TensorRT cannot prepare it")
        rows, columns = about.tile
        for name, shape in (("units", (about.batch, 1, rows, columns)), ("level", (about.batch, 1, 1, 1))):
            if name in tensors and not self._context.set_input_shape(name, shape):
                raise self._failure(f"{engine}: TensorRT refuses {name} of {shape}")
        # Scratch memory of ours: it counts where all other memory does, and never grows while micrographs pass.
        nbytes = int(self._engine.device_memory_size_v2)
        if nbytes:
            self._scratch = driver.device(nbytes)
            self._context.set_device_memory(self._scratch.at(0), nbytes)

    def enqueue(self, units: int, level: int, result: int, stream: Any) -> None:
        """See `Network`."""
        addresses = {"units": units, "denoised": result} | ({"level": level} if self._takes_level else {})
        for name, address in addresses.items():
            if self._bound.get(name) != address:
                self._context.set_tensor_address(name, address)
                self._bound[name] = address
        if self._captures and level in self._graphs:
            self._graphs[level].launch(stream)
            return
        self._execute(stream)
        if self._captures:  # after a run that set everything up; the next with this level is one launch
            self._graphs[level] = self._driver.captured(stream, lambda: self._execute(stream))

    def _execute(self, stream: Any) -> None:
        if not self._context.execute_async_v3(stream.handle):
            raise self._failure("TensorRT could not run the network")

    def keep_compiled(self) -> None:
        """Save what TensorRT-RTX compiled at the first run, so that the next start is quick."""
        if self._compiled is None:
            return
        content = bytes(self._compiled.serialize())
        if not self._cache.is_file() or self._cache.read_bytes() != content:
            try:
                write_atomically(self._cache, lambda stream: stream.write(content))
            except OSError as error:
                log.warning("%s: cannot be written (%s); the next start compiles it again", self._cache, error.strerror)

    def close(self) -> None:
        """In the order that TensorRT needs: context, engine, runtime."""
        for graph in self._graphs.values():
            graph.free()
        self._graphs.clear()
        for name in ("_context", "_compiled", "_engine", "_runtime"):
            if hasattr(self, name):
                delattr(self, name)
        if self._scratch is not None:
            self._driver.free(self._scratch)
            self._scratch = None

    def _failure(self, what: str) -> BackendError:
        said, memory = last_errors(self._logger.errors)
        if memory:
            return OutOfMemoryError(f"{what}: {said}")
        return BackendError(f"{what}: {said}; remove the engine to have it built again, or set backend.kind: cpu")


def open_network(engine: Path, about: EngineManifest, driver: Cuda) -> EngineNetwork:
    """Load an engine and run it once: TensorRT-RTX compiles then, which must not cost the first micrograph."""
    network = EngineNetwork(engine, about, driver, engine.with_suffix(".cache"))
    try:
        warm_up(network, driver)
    except BaseException:
        network.close()
        raise
    return network


def warm_up(network: Network, driver: Cuda) -> None:
    """One run on zeros, waited for."""
    nbytes = 4 * network.batch * network.tile[0] * network.tile[1]
    stream, event, memory = driver.stream(), driver.event(), list[Any]()
    try:
        memory.extend(driver.device(nbytes) for _ in range(2))
        memory.append(driver.device(4 * network.batch))
        for one, size in zip(memory, (nbytes, nbytes, 4 * network.batch), strict=True):
            driver.clear(one, size, stream)
        network.enqueue(memory[0].at(0), memory[2].at(0), memory[1].at(0), stream)
        driver.record(event, stream)
        driver.synchronise(event)
    finally:
        for one in memory:
            driver.free(one)
