"""Micrographs through a GPU that never waits: upload, compute and download of neighbours overlap.

Three streams, one each for upload, compute and download, and a ring of slots. A slot is what belongs to one
micrograph in flight: page-locked host buffers, device buffers, four events. What happens to a micrograph:

    host      pixels into the slot's page-locked memory
    upload    to the device in the camera's own type; survey them; the finds back       → event `surveyed`
    host      wait for that; spikes, dose and scaling from the finds
    upload    those                                                                     → event `uploaded`
    compute   wait for that; noise units, spikes; per batch: gather, network, scatter   → event `computed`
    download  wait for that; the finished image                                         → event `downloaded`
    host      wait for that; the image is the caller's, the slot is free

The host touches a slot again only after its `downloaded`, which comes after everything else in it. Buffers that only
the compute stream uses are shared, because what is on one stream happens in order. Nothing is allocated for a
micrograph unless it is larger than all before it, and nothing ever waits for the whole device.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from math import log
from typing import Any

import numpy as np

from daemon.backends import tiling
from daemon.backends.gpu.buffers import (
    HEADER,
    SURVEYORS,
    Buffers,
    Details,
    Events,
    Lease,
    Slot,
    finds_of,
)
from daemon.backends.gpu.device import CODES, DeviceMemory, Driver, Network, Networks, OutOfMemoryError
from daemon.backends.manifest import Manifest
from daemon.backends.protocol import OUT_OF_MEMORY, SLOTS
from daemon.counts import spikes
from daemon.counts.plane import Denoised, Plane, Prepared, Survey
from daemon.counts.scaling import MINMAX_CROP, Scaling, minmax_crop
from daemon.errors import MicrographError
from daemon.memory import memory_available
from daemon.micrograph import Image, Pixels

MISSING = np.uint64(1) << np.uint64(63)
"""Marks the place of a pixel that is not finite."""
RECENT, _OVERSIZED, SMALL = 16, 2, 1 << 26
"""Buffers shrink after so many micrographs that need less than a half of them, unless they are of few pixels."""
Scaled = tuple[tiling.Tile, Scaling]
"""A tile and the scaling it has for itself: the micrograph's, or, with the paper's scaling, its own."""


class Pipeline:
    """Runs a network on a stream of micrographs; `denoise` is `Backend.denoise`. Used by one thread.

    Args:
        networks: which network runs on what; a single one as `Single`.
        halo, blend: pixels, as in `tiling.plan`.
        progress: called after every micrograph.
        name: of the backend that ran on a micrograph, given its network.
        available: bytes of memory that the computer has left.
    """

    def __init__(
        self,
        driver: Driver,
        networks: Networks,
        weights: Manifest,
        *,
        halo: int,
        blend: int = 0,
        progress: Callable[[], None] = lambda: None,
        name: Callable[[Network], str] = lambda _: "pipeline",
        available: Callable[[], int | None] = memory_available,
    ) -> None:
        self._name = name
        self._driver, self._networks, self._weights = driver, networks, weights
        self._blend, self._progress, self._available = blend, progress, available
        self._upload, self._compute, self._download = (driver.stream() for _ in range(3))
        self._events = [Events(*(driver.event() for _ in range(4))) for _ in range(SLOTS)]
        self._plan = lru_cache(8)(lambda shape, tile: tiling.plan(shape, tile, halo, weights.align, blend))
        self._buffers: Buffers | None = None
        self._recent: deque[tuple[int, int]] = deque(maxlen=RECENT)
        """Pixels and bytes of the latest micrographs."""
        self._tiles: DeviceMemory | None = None
        self._tiles_bytes = 0
        self._next = 0

    def denoise(self, planes: Iterable[Plane | None]) -> Iterator[Denoised]:
        """See `Backend`. Reads up to `SLOTS` micrographs ahead.

        Raises OutOfMemoryError when there is no memory for the micrograph read last; nothing is in flight then.
        """
        flying: deque[Slot] = deque()
        try:
            for plane in planes:
                if plane is None or not self._ready(plane.pixels):
                    while flying:
                        yield self._finish(flying)
                elif len(flying) == SLOTS:
                    yield self._finish(flying)
                if plane is None:
                    continue
                room = self._room(plane.pixels)
                slot = room.slots[self._next]
                try:
                    self._submit(slot, plane, self._networks.of(plane.pixels.shape))
                except (MicrographError, MemoryError) as error:
                    while flying:  # it is this one's turn to fail only after those before it
                        yield self._finish(flying)
                    raise error if isinstance(error, MicrographError) else MicrographError(OUT_OF_MEMORY) from error
                flying.append(slot)
                self._next = (self._next + 1) % SLOTS
            while flying:
                yield self._finish(flying)
        finally:
            for slot in flying:  # left in the middle: the next stream must find no slot in use
                self._driver.synchronise(slot.events.downloaded)
                if slot.result is not None:
                    slot.unused.append(slot.result)
                slot.prepared = slot.result = slot.network = None

    def close(self) -> None:
        """Free every buffer. Images already given out stay as they are."""
        if self._buffers is not None:
            self._buffers.free()
        if self._tiles is not None:
            self._driver.free(self._tiles)

    # One micrograph

    def _submit(self, slot: Slot, plane: Plane, network: Network) -> None:
        """Host work and everything the streams have to do for it; returns while they do."""
        driver, upload = self._driver, self._upload
        spikes.require_counts(plane.gain, plane.offset)
        pixels = _as_uploaded(plane.pixels)
        np.copyto(slot.pixels.host.array[: pixels.nbytes].view(pixels.dtype).reshape(pixels.shape), pixels)
        slot.pixels.upload(pixels.nbytes, upload)
        prepared = plane.prepare(self._survey(slot, plane, pixels.dtype))
        slot.prepared, slot.network = prepared, network
        plan = self._plan(pixels.shape, network.tile)
        # All that may fail on the host comes before the first word to the compute stream.
        tiles = [(tile, self._scaling(prepared, tile)) for tile in plan]
        details = Details(slot, network.batch, prepared, plan if self._blend else None)
        if details.nbytes > slot.details.nbytes:
            try:
                slot.details.grow(details.nbytes)
            except OutOfMemoryError as error:
                raise too_large(pixels, error) from error
        details.write()
        slot.details.upload(details.nbytes, upload)
        driver.record(slot.events.uploaded, upload)
        driver.wait(self._compute, slot.events.uploaded)
        self._compute_all(slot, network, pixels, tiles, details)
        driver.record(slot.events.computed, self._compute)
        driver.wait(self._download, slot.events.computed)
        slot.result = slot.unused.popleft()
        driver.download(slot.out, slot.result, 4 * pixels.size, self._download)
        driver.record(slot.events.downloaded, self._download)

    def _survey(self, slot: Slot, plane: Plane, dtype: np.dtype[Any]) -> Survey:
        """`spikes.survey` on the device; where it finds too much to list, on the host."""
        driver, upload, finds = self._driver, self._upload, slot.finds
        height, width = plane.pixels.shape
        limit = 0.999 * spikes.limit_of(plane.false_alarm)
        room = finds_of(plane.pixels.size)
        driver.clear(finds.device, HEADER, upload)
        driver.launch(
            f"survey_{CODES[dtype.name]}",
            SURVEYORS,
            (slot.pixels.device.at(0), height, width, plane.offset, 1 / plane.gain, limit, limit / log(9), room,
             finds.device.at(0), finds.device.at(8), finds.device.at(HEADER)),
            upload,
        )  # fmt: skip
        finds.download(HEADER + 8 * room, upload)
        driver.record(slot.events.surveyed, upload)
        driver.synchronise(slot.events.surveyed)
        number = int(finds.host.array[:8].view(np.uint64)[0])
        if number > room:
            return spikes.survey(plane.pixels, plane.gain, plane.offset, plane.false_alarm)
        found = np.sort(finds.host.array[HEADER : HEADER + 8 * number].view(np.uint64))
        suspects = int(np.searchsorted(found, MISSING))
        return Survey(
            total=float(finds.host.array[8:HEADER].view(np.float64).sum()),
            missing=(found[suspects:] ^ MISSING).astype(np.intp),
            suspects=found[:suspects].astype(np.intp),
        )

    def _compute_all(
        self, slot: Slot, network: Network, pixels: Pixels, tiles: Sequence[Scaled], details: Details
    ) -> None:
        driver, compute, prepared = self._driver, self._compute, slot.prepared
        assert prepared is not None
        units, scaling = slot.units, prepared.scaling
        driver.launch(
            f"scale_{CODES[pixels.dtype.name]}",
            pixels.size,
            (slot.pixels.device.at(0), units.at(0), pixels.size, scaling.zero, 1 / scaling.unit),
            compute,
        )
        if number := len(prepared.spikes):
            device = slot.details.device
            arguments = (units.at(0), device.at(details.places), device.at(details.values), number)
            driver.launch("fill", number, arguments, compute)
        if self._blend:
            driver.clear(slot.out, 4 * pixels.size, compute)
        for first in range(0, len(tiles), network.batch):
            self._batch(slot, network, prepared, tiles[first : first + network.batch], details)

    def _batch(
        self, slot: Slot, network: Network, prepared: Prepared, tiles: Sequence[Scaled], details: Details
    ) -> None:
        driver, compute, (side, across) = self._driver, self._compute, network.tile
        assert self._tiles is not None
        height, width = prepared.pixels.shape
        nbytes = 4 * side * across
        for index, (tile, own) in enumerate(tiles):
            whole, row, column = prepared.scaling, tile.rows.origin, tile.columns.origin
            # From the micrograph's noise units to the tile's own: nothing to do unless each tile has its own scaling.
            add, multiply = (whole.zero - own.zero) / whole.unit, whole.unit / own.unit
            driver.launch(
                "gather",
                side * across,
                (slot.units.at(0), height, width, self._tiles.at(nbytes * index), side, across, row, column,
                 add, multiply),
                compute,
            )  # fmt: skip
        outcomes = nbytes * network.batch
        network.enqueue(self._tiles.at(0), slot.details.device.at(0), self._tiles.at(outcomes), compute)
        for index, (tile, own) in enumerate(tiles):
            rows, columns = tile.rows, tile.columns
            number = rows.core.stop - rows.core.start, columns.core.stop - columns.core.start
            weights = details.weights.get(id(rows)), details.weights.get(id(columns))
            addresses = (0 if offset is None else slot.details.device.at(offset) for offset in weights)
            outcome = self._tiles.at(outcomes + nbytes * index)
            driver.launch(
                "scatter",
                number[0] * number[1],
                (outcome, across, rows.inner.start, columns.inner.start, *number, *addresses,
                 slot.out.at(0), width, rows.core.start, columns.core.start, own.unit, own.zero),
                compute,
            )  # fmt: skip

    def _scaling(self, prepared: Prepared, tile: tiling.Tile) -> Scaling:
        if self._weights.scaling != MINMAX_CROP:
            return prepared.scaling
        inside = spikes.within(prepared.spikes, *tile.window)
        return minmax_crop(spikes.infill(prepared.pixels[tile.window], inside))

    def _finish(self, flying: deque[Slot]) -> Denoised:
        """Wait for the first of the slots, free it, and give its image out."""
        slot = flying.popleft()
        self._driver.synchronise(slot.events.downloaded)
        self._progress()
        prepared, memory, network = slot.prepared, slot.result, slot.network
        assert prepared is not None
        assert memory is not None
        assert network is not None
        slot.prepared = slot.result = slot.network = None
        height, width = prepared.pixels.shape
        # Enough must be left for the slots that may be filled before the next one is finished.
        if len(slot.unused) >= SLOTS - len(flying):
            image: Image = np.asarray(Lease(memory, (height, width), slot.unused))
        else:
            image = memory.array[: 4 * height * width].view(np.float32).reshape(height, width).copy()
            slot.unused.append(memory)
        return Denoised(image, prepared, self._name(network))

    # Memory

    def _ready(self, pixels: Pixels) -> bool:
        """Whether it can be submitted while others are in flight."""
        shape = pixels.shape
        if not self._networks.ready(shape) or self._tiles_of(self._networks.of(shape)) > self._tiles_bytes:
            return False
        room = self._buffers
        return room is not None and _holds(room, pixels) and not self._oversized(room)

    def _oversized(self, room: Buffers) -> bool:
        """Whether the buffers are of a giant image's size, and only images of the usual size have followed it."""
        return (
            len(self._recent) == RECENT
            and room.pixels > SMALL
            and room.pixels > _OVERSIZED * max(size for size, _ in self._recent)
        )

    def _room(self, pixels: Pixels) -> Buffers:
        """Buffers that hold it, replaced if they are too small: then nothing is in flight. Raises OutOfMemoryError."""
        ready = self._ready(pixels)
        self._recent.append((pixels.size, _as_uploaded_bytes(pixels)))
        if ready and self._buffers is not None:
            return self._buffers
        needed = self._tiles_of(self._networks.of(pixels.shape))
        if needed > self._tiles_bytes:
            if self._tiles is not None:
                self._driver.free(self._tiles)
            self._tiles, self._tiles_bytes = None, 0
            self._tiles, self._tiles_bytes = self._driver.device(needed), needed
        room = self._buffers
        if room is None or not _holds(room, pixels) or self._oversized(room):
            self._buffers, self._next = None, 0
            sizes = list(self._recent)
            if room is not None:
                if not self._oversized(room):
                    sizes.append((room.pixels, room.nbytes))
                room.free()
            largest = max(size for size, _ in sizes), max(nbytes for _, nbytes in sizes)
            try:
                self._buffers = Buffers(self._driver, self._events, *largest, self._available)
            except OutOfMemoryError:
                self._recent.pop()  # or there would be no room for the smaller ones that follow
                raise
        assert self._buffers is not None
        return self._buffers

    @staticmethod
    def _tiles_of(network: Network) -> int:
        """Bytes for a batch of tiles, and for what the network makes of them."""
        return 2 * 4 * network.batch * network.tile[0] * network.tile[1]


def _holds(room: Buffers, pixels: Pixels) -> bool:
    return pixels.size <= room.pixels and _as_uploaded_bytes(pixels) <= room.nbytes


def too_large(pixels: Pixels, error: OutOfMemoryError) -> MicrographError:
    """The error for a micrograph that the device cannot hold."""
    height, width = pixels.shape
    return MicrographError(
        f"this micrograph of {width} x {height} pixels does not fit into the GPU's memory ({error}); close other "
        "programs that use the GPU, or set backend.kind: cpu"
    )


def _as_uploaded(pixels: Pixels) -> Pixels:
    """The pixels in a type that there are kernels for, C-contiguous or not."""
    if pixels.dtype == np.bool_:
        return pixels.view(np.uint8)
    if not pixels.dtype.isnative:
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    if pixels.dtype.name not in CODES:
        return pixels.astype(np.float32 if pixels.dtype == np.float16 else np.float64)
    return pixels


def _as_uploaded_bytes(pixels: Pixels) -> int:
    """Bytes of `_as_uploaded`."""
    return pixels.nbytes if pixels.dtype == np.bool_ or pixels.dtype.name in CODES else 8 * pixels.size
