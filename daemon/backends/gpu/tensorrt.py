"""Micrographs on an NVIDIA GPU: a TensorRT engine behind the pipeline. Used by the one thread that opened it."""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from daemon.backends import tiling
from daemon.backends.gpu import provision
from daemon.backends.gpu.cuda import Cuda
from daemon.backends.gpu.device import DeviceMemory, Network, OutOfMemoryError
from daemon.backends.gpu.driver import why_no_gpu
from daemon.backends.gpu.engine import EngineManifest, tile_of
from daemon.backends.gpu.nvidia import choose, find_gpu, listen, load_tensorrt, require_driver, told
from daemon.backends.gpu.pipeline import Pipeline
from daemon.backends.manifest import Manifest
from daemon.counts.plane import Denoised, Plane
from daemon.errors import BackendError
from daemon.files import save
from daemon.settings.config import BackendConfig

log = logging.getLogger(__name__)


class EngineNetwork:
    """`pipeline.Network` by an engine that has been checked against its manifest.

    `cache`: file that keeps what TensorRT-RTX compiles for this card. Raises BackendError if TensorRT refuses it.
    """

    def __init__(self, engine: Path, about: EngineManifest, driver: Cuda, cache: Path) -> None:
        trt = load_tensorrt(about.flavour)
        self.tile, self.batch = about.tile, about.batch
        self._driver, self._cache = driver, cache
        self._scratch: DeviceMemory | None = None
        self._bound: dict[str, Any] = {}
        self._logger = listen(trt)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine.read_bytes())
        if self._engine is None:
            raise self._failure(f"{engine}: TensorRT cannot load it")
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
                log.info("%s: of another version or card, and made anew", cache)
            config.set_runtime_cache(self._compiled)
            self._context = self._engine.create_execution_context(config)
        else:  # versions of TensorRT that are still in use, on Jetson for instance, have no such thing as above
            self._context = self._engine.create_execution_context(managed)
        if self._context is None:
            raise self._failure(f"{engine}: TensorRT cannot prepare it")
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
        if not self._context.execute_async_v3(stream.handle):
            raise self._failure("TensorRT could not run the network")

    def keep_compiled(self) -> None:
        """Save what TensorRT-RTX compiled at the first run, so that the next start is quick."""
        if self._compiled is None:
            return
        content = bytes(self._compiled.serialize())
        if not self._cache.is_file() or self._cache.read_bytes() != content:
            save(self._cache, content)

    def close(self) -> None:
        """In the order that TensorRT needs: context, engine, runtime."""
        for name in ("_context", "_compiled", "_engine", "_runtime"):
            if hasattr(self, name):
                delattr(self, name)
        if self._scratch is not None:
            self._driver.free(self._scratch)
            self._scratch = None

    def _failure(self, what: str) -> BackendError:
        said, memory = told(self._logger.errors)
        if memory:
            return OutOfMemoryError(f"{what}: {said}")
        return BackendError(f"{what}: {said}; remove the engine to have it built again, or set backend.kind: cpu")


class TensorRtBackend:
    """`Backend` on a GPU.

    Args:
        settings: `device`, `flavour`, `rebuild`, `tile` and `batch` are used.
        folder, manifest: the weights.
        engines: folder of engines, which are built there if need be.
        halo, blend: pixels, as for the CPU backend.
        progress: called after every micrograph, and now and then while an engine is built.

    `driver` and `network` are what runs; to be looked at and measured, not to be used beside it.

    Raises BackendError if the GPU cannot be used now, ConfigError if it never can as things are set.
    """

    def __init__(
        self,
        settings: BackendConfig,
        folder: Path,
        manifest: Manifest,
        engines: Path,
        *,
        halo: int | None = None,
        blend: int = 0,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings, self._folder, self._manifest = settings, folder, manifest
        self._engines, self._progress, self._batch = engines, progress, settings.batch
        self._halo, self._blend = manifest.halo if halo is None else halo, blend
        tiling.require(folder, manifest, tile_of(manifest, settings.tile), self._halo, blend)
        gpu = find_gpu(settings.device)
        if gpu is None:
            raise BackendError(
                f"no NVIDIA driver answers for GPU {settings.device}: {why_no_gpu(settings.device)}; after start-up "
                "this may take a while, and it is tried again; backend.device chooses a card, backend.kind: cpu does "
                "without"
            )
        self._gpu = gpu
        require_driver(choose(settings.flavour, gpu), gpu)
        self.network: EngineNetwork | None = None
        self.driver = open_driver(settings.device)
        try:
            try:
                self._pipeline = self._piped(self._open())
            except OutOfMemoryError:
                lowered = self._lower()
                if lowered is None:
                    raise
                self._pipeline = self._piped(lowered)
        except BaseException:
            self._close_network()
            self.driver.close()
            raise

    @property
    def name(self) -> str:
        """See `Backend`."""
        about = self._about
        kind = "TensorRT-RTX" if about.flavour == "rtx" else "TensorRT"
        return (
            f"tensorrt: {kind} {about.version}, {about.precision}, {self._gpu.name}, tiles of {about.tile}, "
            f"{about.batch} at once, engine {about.engine_sha256[:12]}"
        )

    def denoise(self, planes: Iterable[Plane | None]) -> Iterator[Denoised]:
        """See `Backend`. Reads ahead."""
        return self._pipeline.denoise(planes)

    def close(self) -> None:
        """See `Backend`."""
        try:
            self._pipeline.close()
            self._close_network()
        except BackendError as error:  # on a card that has failed nothing can be freed any more
            log.warning("%s", error)
        finally:
            self.driver.close()

    def _piped(self, network: Network) -> Pipeline:
        return Pipeline(
            self.driver,
            network,
            self._manifest,
            halo=self._halo,
            blend=self._blend,
            lower=self._lower,
            progress=self._progress,
            name=lambda: self.name,
        )

    def _lower(self) -> Network | None:
        """One tile at once, if it was more; the old network is freed first."""
        if self._batch == 1:
            return None
        self._close_network()
        log.warning(
            "the GPU's memory is full with %d tiles at once; going on with 1: set backend.batch: 1, or close other "
            "programs that use the GPU",
            self._batch,
        )
        self._batch = 1
        return self._open()

    def _open(self) -> EngineNetwork:
        settings = self._settings.model_copy(update={"batch": self._batch})
        engine, self._about = provision.engine(
            settings, self._folder, self._manifest, self._engines, self._gpu, self._progress
        )
        self.network = open_network(engine, self._about, self.driver)
        self.network.keep_compiled()
        return self.network

    def _close_network(self) -> None:
        if self.network is not None:
            self.network.close()
            self.network = None


def open_driver(device: int) -> Cuda:
    """The card. A place of its own for tests."""
    return Cuda(device)


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
    nbytes = 4 * network.batch * network.tile**2
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
