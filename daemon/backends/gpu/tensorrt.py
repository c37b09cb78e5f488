"""Micrographs on an NVIDIA GPU: TensorRT engines behind the pipeline. Used by the one thread that opened it."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from daemon.backends import tiling
from daemon.backends.gpu import network, provision
from daemon.backends.gpu.cuda import Cuda, load_pycuda
from daemon.backends.gpu.device import Network, OutOfMemoryError
from daemon.backends.gpu.driver import why_no_gpu
from daemon.backends.gpu.engine import EngineManifest, Sides, batch_of, tile_of
from daemon.backends.gpu.network import EngineNetwork, UnreadableError
from daemon.backends.gpu.nvidia import choose, find_gpu, require_driver
from daemon.backends.gpu.pipeline import Pipeline, too_large
from daemon.backends.gpu.provision import EngineOrder
from daemon.backends.gpu.shapes import Serving, Shapes
from daemon.backends.manifest import Manifest
from daemon.counts.plane import Denoised, Plane
from daemon.errors import BackendError, EmdenoisedError
from daemon.settings.config import BackendConfig

log = logging.getLogger(__name__)

MOST_OPEN = 3
"""Engines loaded at once."""
SCRATCH = 160
"""Bytes for each pixel of a tile that a network is taken to need if its builder did not report it."""


class TensorRtBackend:
    """`Backend` on a GPU.

    Args:
        settings: `device`, `gpu_memory`, `flavour`, `rebuild`, `tile` and `batch` are used.
        folder, manifest: the weights.
        engines: folder of engines, which are built there if need be.
        halo, blend: pixels, as for the CPU backend.
        progress: called after every micrograph, and now and then while an engine is built.

    `driver` and `network` are for tests and measurements; nothing else may use them. It is `Networks` to its pipeline.
    Engines are built by a child process while nothing is open on the card.

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
        self._settings, self._manifest, self._progress = settings, manifest, progress
        self._halo, self._blend = manifest.halo if halo is None else halo, blend
        self._base = order_of(settings, folder, manifest, engines, halo, blend)
        base, gpu = self._base.tile, self._base.gpu
        self._engines: dict[Sides, tuple[Path, EngineManifest]] = {}
        self._networks: dict[Sides, EngineNetwork] = {}
        """Those that are open, the latest used last."""
        self._chosen: dict[Sides, Sides] = {}
        """Shape of a frame → tiles."""
        self._rebuilt: set[Sides] = set()
        self._pipeline: Pipeline | None = None
        self._opened = False
        try:
            self._open()
        except OutOfMemoryError:
            if not self._lower():
                raise
        scratch = self._about(base).scratch or SCRATCH * base[0] * base[1] * self._base.batch
        self._shapes = Shapes(
            base,
            Serving(self._halo, blend, manifest.align),
            min(filter(None, (gpu.memory, settings.gpu_bytes)), default=0),
            scratch / (base[0] * base[1]) + 8 * self._base.batch,
            fixed=bool(settings.tile) or manifest.scaling == "minmax_crop",
        )

    @property
    def name(self) -> str:
        """See `Backend`."""
        return self._name(self._base.tile)

    @property
    def network(self) -> EngineNetwork:
        """The one of the tiles that always exist."""
        return self._networks[self._base.tile]

    def denoise(self, planes: Iterable[Plane | None]) -> Iterator[Denoised]:
        """See `Backend`. Reads ahead; pauses for an engine to be built when frames of a new shape keep coming."""
        waiting, latest, again = iter(planes), None, False
        missing: Sides | None = None

        def source() -> Iterator[Plane | None]:
            nonlocal latest, missing
            for plane in chain((latest,) if again else (), waiting):
                latest = plane
                if plane is not None and (tile := self._tile_for(plane)) not in self._engines:
                    missing = tile
                    return
                yield plane

        while True:
            assert self._pipeline is not None
            missing = None
            try:
                yield from self._pipeline.denoise(source())
            except UnreadableError as error:
                self._build(error.tile, rebuild_because=str(error))
            except OutOfMemoryError as error:
                assert latest is not None
                if not self._lower():
                    raise too_large(latest.pixels, error) from error
            else:
                if missing is None:
                    return
                self._build(missing)
            again = True

    def close(self) -> None:
        """See `Backend`."""
        try:
            self._close_card()
        except BackendError as error:  # on a card that has failed nothing can be freed any more
            log.warning("%s", error)

    # `Networks`, for the pipeline

    def ready(self, shape: Sides) -> bool:
        """See `Networks`."""
        return self._chosen[shape] in self._networks

    def of(self, shape: Sides) -> Network:
        """See `Networks`."""
        tile = self._chosen[shape]
        if tile not in self._networks:
            while len(self._networks) >= MOST_OPEN:
                oldest = next(one for one in self._networks if one != self._base.tile)
                self._networks.pop(oldest).close()
            self._networks[tile] = self._load(tile)
        else:
            self._networks[tile] = self._networks.pop(tile)
        return self._networks[tile]

    # Engines

    def _tile_for(self, plane: Plane) -> Sides:
        """The tiles for a frame, whose engine may have to be built first."""
        shape = plane.pixels.shape[0], plane.pixels.shape[1]
        if shape not in self._chosen:
            best = self._shapes.best(shape)
            if best not in self._engines and (found := provision.existing(replace(self._base, tile=best))):
                self._engines[best] = found
        tile = self._shapes.choose(shape, self._engines)
        if tile in self._engines and self._chosen.get(shape) != tile:
            log.info("%s", self._shapes.described(shape, tile))
            self._chosen[shape] = tile
        return tile

    def _build(self, tile: Sides, rebuild_because: str = "") -> None:
        """An engine for such tiles, or the reason why there is none in the log; the card is closed meanwhile."""
        if rebuild_because and tile in self._rebuilt:
            raise BackendError(f"{rebuild_because}, though it was just rebuilt; set backend.kind: cpu, and report this")
        self._close_card()
        try:
            self._engines[tile] = provision.engine(
                replace(self._base, tile=tile), self._progress, rebuild_because=rebuild_because
            )
        except EmdenoisedError as error:
            if tile == self._base.tile:
                raise
            log.warning("there is no engine for tiles of %d x %d, smaller ones serve: %s", tile[1], tile[0], error)
            self._shapes.refuse(tile)
            self._engines.pop(tile, None)
            self._chosen.clear()
        if rebuild_because:
            self._rebuilt.add(tile)
        self._open()

    def _lower(self) -> bool:
        """Memory ran out: no more large tiles, then one tile at once. False if there is nothing left to lower."""
        large = any(tile != self._base.tile for tile in self._chosen.values())
        if large:
            self._shapes.lower()
            self._chosen.clear()
            log.warning("the GPU's memory is full; continuing with tiles of %d x %d", *reversed(self._base.tile))
        elif self._base.batch > 1:
            log.warning(
                "the GPU's memory is full with %d tiles at once; now 1: set backend.batch: 1, or close other "
                "programs that use the GPU",
                self._base.batch,
            )
            self._base = replace(self._base, batch=1)
            self._engines.clear()
        else:
            return False
        self._close_card()
        try:
            self._open()
        except OutOfMemoryError:
            return self._lower()
        return True

    # The card

    def _open(self) -> None:
        """Driver, the network of the base tiles and the pipeline; the engine is there before the card is opened."""
        base = self._base.tile
        if base not in self._engines:
            self._engines[base] = provision.engine(self._base, self._progress)
        self.driver = open_driver(self._settings.device, self._settings.gpu_bytes)
        self._opened = True
        try:
            self._networks[base] = self._load(base)
            self._pipeline = Pipeline(
                self.driver,
                self,
                self._manifest,
                halo=self._halo,
                blend=self._blend,
                progress=self._progress,
                name=lambda network: self._name(network.tile),
            )
        except BaseException as error:
            self._close_card()
            if not isinstance(error, UnreadableError):
                raise
            self._build(base, rebuild_because=str(error))

    def _close_card(self) -> None:
        """In the order that TensorRT needs. Engines and choices stay."""
        pipeline, self._pipeline = self._pipeline, None
        if not self._opened:
            return
        self._opened = False
        try:
            if pipeline is not None:
                pipeline.close()
            while self._networks:
                self._networks.popitem()[1].close()
        finally:
            self._networks.clear()
            self.driver.close()

    def _load(self, tile: Sides) -> EngineNetwork:
        path, about = self._engines[tile]
        loaded = network.open_network(path, about, self.driver)
        loaded.keep_compiled()
        return loaded

    def _about(self, tile: Sides) -> EngineManifest:
        return self._engines[tile][1]

    def _name(self, tile: Sides) -> str:
        about = self._about(tile)
        kind = "TensorRT-RTX" if about.flavour == "rtx" else "TensorRT"
        return (
            f"tensorrt: {kind} {about.version}, {about.precision}, {self._base.gpu.name}, tiles of "
            f"{tile[1]} x {tile[0]}, {about.batch} at once, engine {about.engine_sha256[:12]}"
        )


def order_of(
    settings: BackendConfig, folder: Path, manifest: Manifest, engines: Path, halo: int | None = None, blend: int = 0
) -> EngineOrder:
    """The engine for the tiles that always exist. Nothing is opened on the card. Errors as `TensorRtBackend`."""
    base = tile_of(manifest, settings.tile)
    tiling.require(folder, manifest, base, manifest.halo if halo is None else halo, blend)
    gpu = find_gpu(settings.device)
    if gpu is None:
        raise BackendError(
            f"no NVIDIA driver answers for GPU {settings.device}: {why_no_gpu(settings.device)}; after start-up "
            "this may take a while, and it is tried again; backend.device chooses a card, backend.kind: cpu does "
            "without"
        )
    require_driver(choose(settings.flavour, gpu), gpu)
    load_pycuda()  # before minutes go into an engine that could not run
    return EngineOrder(settings, folder, manifest, engines, gpu, base, batch_of(manifest, settings.batch))


def open_driver(device: int, most: int | None) -> Cuda:
    """The card, of whose memory `most` bytes may be used. A place of its own for tests."""
    return Cuda(device, most)
