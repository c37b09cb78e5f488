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

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import log
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from daemon import spikes, tiling
from daemon.backends import OUT_OF_MEMORY, SLOTS
from daemon.errors import BackendError, MicrographError
from daemon.manifest import Manifest
from daemon.micrograph import Denoised, Image, Pixels, Plane, Prepared, Survey
from daemon.scaling import MINMAX_CROP, Scaling, minmax_crop

LENT = 4
"""Results that the caller may hold in page-locked memory; further ones are copied."""
SURVEYORS = 1 << 16
"""Threads of the survey; each leaves a partial sum."""
FINDS_PER_PIXEL = 1 / 64
LEAST_FINDS = 4096
LEAST_DETAILS = 1 << 16
"""Room for what the survey finds, and at first for the details, in bytes. An image where more is found is surveyed by
the processor: its noise is not Poisson's."""
MISSING = np.uint64(1) << np.uint64(63)
"""Marks the place of a pixel that is not finite."""
HEADER = 8 * (1 + SURVEYORS)
"""Bytes before the list of finds: their number, and the partial sums."""

SIGNATURES = {
    "survey": "PqqddffQPPP",
    "scale": "PPQdd",
    "fill": "PPPQ",
    "gather": "PqqPqqqff",
    "scatter": "PqqqqqPPPqqqff",
}
"""Arguments of the kernels in kernels.cu, in the letters of `struct`; survey and scale exist for each of CODES."""

CODES = {"uint8": "u1", "int8": "i1", "uint16": "u2", "int16": "i2", "uint32": "u4", "int32": "i4", "float32": "f4",
         "float64": "f8"}  # fmt: skip
"""Pixel type → its kernels' ending. What is not here is converted on the host."""


Scaled = tuple[tiling.Tile, Scaling]
"""A tile and the scaling it has for itself: the micrograph's, or, with the paper's scaling, its own."""


class OutOfMemoryError(BackendError):
    """The GPU, or the memory that can be page-locked, is full. Nothing else is lost."""


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
    """A network on the device, for `batch` tiles of `tile` × `tile` pixels at once."""

    @property
    def tile(self) -> int: ...
    @property
    def batch(self) -> int: ...
    def enqueue(self, units: Any, level: Any, result: Any, stream: Any) -> None:
        """Addresses of (batch, 1, tile, tile), (batch, 1, 1, 1) and (batch, 1, tile, tile) float32; always the same
        three but for `level`."""
        ...


class Pair:
    """A buffer on the host and its counterpart on the device."""

    def __init__(self, driver: Driver, nbytes: int) -> None:
        self._driver, self.nbytes = driver, nbytes
        self.host, self.device = self._allocate(nbytes)

    def grow(self, nbytes: int) -> None:
        """More room, empty. Only while nothing uses it. If there is none it stays as it was."""
        more = self._allocate(nbytes)
        self.free()
        self.nbytes, (self.host, self.device) = nbytes, more

    def _allocate(self, nbytes: int) -> tuple[HostMemory, DeviceMemory]:
        host = self._driver.host(nbytes)
        try:
            return host, self._driver.device(nbytes)
        except BackendError:
            self._driver.free(host)
            raise

    def upload(self, nbytes: int, stream: Any) -> None:
        self._driver.upload(self.host, self.device, nbytes, stream)

    def download(self, nbytes: int, stream: Any) -> None:
        self._driver.download(self.device, self.host, nbytes, stream)

    def free(self) -> None:
        self._driver.free(self.device)
        self._driver.free(self.host)


@dataclass(frozen=True, slots=True)
class Events:
    """What streams and host wait for."""

    surveyed: Any
    uploaded: Any
    computed: Any
    downloaded: Any


@dataclass(slots=True, eq=False)
class Slot:
    """What belongs to one micrograph in flight."""

    events: Events
    pixels: Pair
    finds: Pair
    details: Pair
    """Levels, spikes and the weights of cross-fading tiles, one after the other."""
    out: DeviceMemory
    prepared: Prepared | None = None
    result: HostMemory | None = None


@dataclass(slots=True, eq=False)
class Buffers:
    """Everything whose size depends on the largest micrograph so far: `pixels` of them, in `nbytes` bytes."""

    pixels: int = 0
    nbytes: int = 0
    slots: list[Slot] = field(default_factory=list)
    units: DeviceMemory | None = None
    unused: deque[HostMemory] = field(default_factory=deque)
    """For results; what is missing is in a slot or lent out."""
    pairs: list[Pair] = field(default_factory=list)
    single: list[HostMemory | DeviceMemory] = field(default_factory=list)
    """With `pairs`, everything there is to be freed."""


class Lease:
    """Keeps page-locked memory from its next use as long as an array, or a view of one, looks at it."""

    def __init__(self, memory: HostMemory, shape: tuple[int, int], unused: deque[HostMemory]) -> None:
        # An array made from this interface, and so every view of it, holds this object.
        self.__array_interface__ = {
            "shape": shape, "typestr": "<f4", "data": (memory.array.ctypes.data, False), "version": 3,
        }  # fmt: skip
        self.memory = memory
        weakref.finalize(self, unused.append, memory).atexit = False


class Pipeline:
    """Runs a network on a stream of micrographs; `denoise` is `Backend.denoise`. Used by one thread.

    Args:
        halo, blend: pixels, as in `tiling.plan`.
        lower: called when memory runs out: a network in place of the old one that needs less; None if there is none.
        progress: called after every micrograph.
        name: what to call the backend at the moment.
    """

    def __init__(
        self,
        driver: Driver,
        network: Network,
        weights: Manifest,
        *,
        halo: int,
        blend: int = 0,
        lower: Callable[[], Network | None] = lambda: None,
        progress: Callable[[], None] = lambda: None,
        name: Callable[[], str] = lambda: "pipeline",
    ) -> None:
        self._name = name
        self._driver, self._network, self._weights = driver, network, weights
        self._blend, self._lower, self._progress = blend, lower, progress
        self._upload, self._compute, self._download = (driver.stream() for _ in range(3))
        self._events = [Events(*(driver.event() for _ in range(4))) for _ in range(SLOTS)]
        self._plan = lru_cache(8)(lambda shape: tiling.plan(shape, self._network.tile, halo, weights.align, blend))
        self._buffers = Buffers()
        self._tiles = self._tile_buffer()
        self._next = 0

    def denoise(self, planes: Iterable[Plane | None]) -> Iterator[Denoised]:
        """See `Backend`. Reads up to `SLOTS` micrographs ahead."""
        flying: deque[Slot] = deque()
        try:
            for plane in planes:
                if plane is None or not self._has_room(plane.pixels):
                    while flying:
                        yield self._finish(flying)
                elif len(flying) == SLOTS:
                    yield self._finish(flying)
                if plane is None:
                    continue
                if not self._has_room(plane.pixels):
                    self._make_room(plane.pixels)
                slot = self._buffers.slots[self._next]
                try:
                    self._submit(slot, plane)
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
                    self._buffers.unused.append(slot.result)
                slot.prepared = slot.result = None

    def close(self) -> None:
        """Free every buffer. Images already given out stay as they are."""
        self._release()
        self._driver.free(self._tiles)

    # One micrograph

    def _submit(self, slot: Slot, plane: Plane) -> None:
        """Host work and everything the streams have to do for it; returns while they do."""
        driver, upload = self._driver, self._upload
        spikes.require_counts(plane.gain, plane.offset)
        pixels = as_uploaded(plane.pixels)
        np.copyto(slot.pixels.host.array[: pixels.nbytes].view(pixels.dtype).reshape(pixels.shape), pixels)
        slot.pixels.upload(pixels.nbytes, upload)
        prepared = plane.prepare(self._survey(slot, plane, pixels.dtype))
        slot.prepared = prepared
        plan = self._plan(pixels.shape)
        # All that may fail on the host comes before the first word to the compute stream.
        tiles = [(tile, self._scaling(prepared, tile)) for tile in plan]
        details = Details(slot, self._network.batch, prepared, plan if self._blend else None)
        if details.nbytes > slot.details.nbytes:
            try:
                slot.details.grow(details.nbytes)
            except OutOfMemoryError as error:
                raise too_large(pixels, error) from error
        details.write()
        slot.details.upload(details.nbytes, upload)
        driver.record(slot.events.uploaded, upload)
        driver.wait(self._compute, slot.events.uploaded)
        self._compute_all(slot, prepared, pixels, tiles, details)
        driver.record(slot.events.computed, self._compute)
        driver.wait(self._download, slot.events.computed)
        slot.result = self._buffers.unused.popleft()
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
        self, slot: Slot, prepared: Prepared, pixels: Pixels, tiles: Sequence[Scaled], details: "Details"
    ) -> None:
        driver, compute = self._driver, self._compute
        units, scaling = self._units, prepared.scaling
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
        for first in range(0, len(tiles), self._network.batch):
            self._batch(slot, prepared, tiles[first : first + self._network.batch], details)

    def _batch(self, slot: Slot, prepared: Prepared, tiles: Sequence[Scaled], details: "Details") -> None:
        driver, compute, side = self._driver, self._compute, self._network.tile
        height, width = prepared.pixels.shape
        for index, (tile, own) in enumerate(tiles):
            whole, row, column = prepared.scaling, tile.rows.origin, tile.columns.origin
            # From the micrograph's noise units to the tile's own: nothing to do unless each tile has its own scaling.
            add, multiply = (whole.zero - own.zero) / whole.unit, whole.unit / own.unit
            driver.launch(
                "gather",
                side * side,
                (self._units.at(0), height, width, self._tiles.at(4 * side * side * index), side, row, column,
                 add, multiply),
                compute,
            )  # fmt: skip
        outcomes = 4 * side * side * self._network.batch
        self._network.enqueue(self._tiles.at(0), slot.details.device.at(0), self._tiles.at(outcomes), compute)
        for index, (tile, own) in enumerate(tiles):
            rows, columns = tile.rows, tile.columns
            number = rows.core.stop - rows.core.start, columns.core.stop - columns.core.start
            weights = details.weights.get(id(rows)), details.weights.get(id(columns))
            addresses = (0 if offset is None else slot.details.device.at(offset) for offset in weights)
            outcome = self._tiles.at(outcomes + 4 * side * side * index)
            driver.launch(
                "scatter",
                number[0] * number[1],
                (outcome, side, rows.inner.start, columns.inner.start, *number, *addresses,
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
        prepared, memory, buffers = slot.prepared, slot.result, self._buffers
        assert prepared is not None
        assert memory is not None
        slot.prepared = slot.result = None
        height, width = prepared.pixels.shape
        # Enough must be left for the slots that may be filled before the next one is finished.
        if len(buffers.unused) >= SLOTS - len(flying):
            image: Image = np.asarray(Lease(memory, (height, width), buffers.unused))
        else:
            image = memory.array[: 4 * height * width].view(np.float32).reshape(height, width).copy()
            buffers.unused.append(memory)
        return Denoised(image, prepared, self._name())

    # Memory

    @property
    def _units(self) -> DeviceMemory:
        assert self._buffers.units is not None
        return self._buffers.units

    def _has_room(self, pixels: Pixels) -> bool:
        return pixels.size <= self._buffers.pixels and as_uploaded_bytes(pixels) <= self._buffers.nbytes

    def _make_room(self, pixels: Pixels) -> None:
        """Buffers for a micrograph larger than all before. Only while nothing is in flight.

        Raises MicrographError if the device cannot hold it.
        """
        size = max(pixels.size, self._buffers.pixels)
        nbytes = max(as_uploaded_bytes(pixels), self._buffers.nbytes)
        try:
            self._allocate(size, nbytes)
        except OutOfMemoryError:
            if (lower := self._lower()) is not None:
                self._network = lower
                self._plan.cache_clear()
                self._driver.free(self._tiles)
                self._tiles = self._tile_buffer()
            try:
                self._allocate(size, nbytes)
            except OutOfMemoryError as error:
                raise too_large(pixels, error) from error

    def _allocate(self, size: int, nbytes: int) -> None:
        self._release()
        driver, made = self._driver, Buffers(size, nbytes)
        self._buffers = made
        try:
            for events in self._events:
                for room in (nbytes, HEADER + 8 * finds_of(size), LEAST_DETAILS):
                    made.pairs.append(Pair(driver, room))
                made.single.append(out := driver.device(4 * size))
                pixels, finds, details = made.pairs[-3:]
                made.slots.append(Slot(events, pixels, finds, details, out))
            made.single.append(units := driver.device(4 * size))
            made.units = units
            for _ in range(SLOTS + LENT):
                made.single.append(memory := driver.host(4 * size))
                made.unused.append(memory)
        except OutOfMemoryError:
            self._release()
            raise
        self._next = 0

    def _release(self) -> None:
        gone, self._buffers = self._buffers, Buffers()
        for pair in gone.pairs:
            pair.free()
        for memory in gone.single:  # also what is lent out: that is ordinary memory from now on
            self._driver.free(memory)

    def _tile_buffer(self) -> DeviceMemory:
        """Room for a batch of tiles, and for what the network makes of them."""
        return self._driver.device(2 * 4 * self._network.batch * self._network.tile**2)


class Details:
    """What a slot's `details` hold of a micrograph, and where: offsets in bytes.

    Levels (batch,) float32, places (n,) uint64 and values (n,) float32 of spikes, and, where tiles cross-fade, the
    weights of every span of the plan.
    """

    def __init__(self, slot: Slot, batch: int, prepared: Prepared, plan: tiling.TilePlan | None) -> None:
        found, scaling = prepared.spikes, prepared.scaling
        self._slot, self._parts, self.nbytes = slot, list[tuple[int, NDArray[Any]]](), 0
        self.weights: dict[int, int] = {}
        self._add(np.full(batch, scaling.level, np.float32))
        self.places = self._add((found.rows * prepared.pixels.shape[1] + found.columns).astype(np.uint64))
        self.values = self._add(scaling.to_units(found.values))
        for span in (*plan.rows, *plan.columns) if plan else ():
            core = span.core.stop - span.core.start
            self.weights[id(span)] = self._add(np.ones(core, np.float32) if span.weight is None else span.weight)

    def write(self) -> None:
        """Into the slot's page-locked memory, which must have the room."""
        for offset, array in self._parts:
            self._slot.details.host.array[offset : offset + array.nbytes] = array.view(np.uint8)

    def _add(self, array: NDArray[Any]) -> int:
        offset = self.nbytes
        self._parts.append((offset, array))
        self.nbytes += -(-array.nbytes // 8) * 8
        return offset


def too_large(pixels: Pixels, error: OutOfMemoryError) -> MicrographError:
    """The error for a micrograph that the device cannot hold."""
    height, width = pixels.shape
    return MicrographError(
        f"this micrograph of {width} x {height} pixels does not fit into the GPU's memory ({error}); close other "
        "programs that use the GPU, or set backend.kind: cpu"
    )


def as_uploaded(pixels: Pixels) -> Pixels:
    """The pixels in a type that there are kernels for, C-contiguous or not."""
    if pixels.dtype == np.bool_:
        return pixels.view(np.uint8)
    if not pixels.dtype.isnative:
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    if pixels.dtype.name not in CODES:
        return pixels.astype(np.float32 if pixels.dtype == np.float16 else np.float64)
    return pixels


def as_uploaded_bytes(pixels: Pixels) -> int:
    """Bytes of `as_uploaded`."""
    return pixels.nbytes if pixels.dtype == np.bool_ or pixels.dtype.name in CODES else 8 * pixels.size


def finds_of(size: int) -> int:
    """How many finds are listed for an image of so many pixels."""
    return LEAST_FINDS + int(size * FINDS_PER_PIXEL)
