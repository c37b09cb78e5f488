"""The pipeline's memory, on the card and page-locked (pinned) on the host: slots for micrographs, and lent results."""

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.backends import tiling
from daemon.backends.gpu.device import DeviceMemory, Driver, HostMemory, Network, OutOfMemoryError
from daemon.backends.protocol import SLOTS
from daemon.counts.plane import Prepared
from daemon.errors import BackendError

LENT = 4
"""Results that the caller may hold in page-locked memory; further ones are copied."""
SURVEYORS = 1 << 16
"""Threads of the survey; each leaves a partial sum."""
_FINDS_PER_PIXEL = 1 / 64
LEAST_FINDS = 4096
LEAST_DETAILS = 1 << 16
"""Room for what the survey finds, and at first for the details, in bytes. An image where more is found is surveyed by
the processor: its noise is not Poisson's."""
HEADER = 8 * (1 + SURVEYORS)
"""Bytes before the list of finds: their number, and the partial sums."""


class BufferPair:
    """A buffer on the host and its counterpart on the device."""

    def __init__(self, driver: Driver, nbytes: int) -> None:
        self._driver, self.nbytes = driver, nbytes
        self.host, self.device = self._allocate(nbytes)

    def grow(self, nbytes: int) -> None:
        """Replace both by larger ones, without their contents; nothing may use them. Unchanged if memory is short.

        Raises BackendError if it is.
        """
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
    pixels: BufferPair
    finds: BufferPair
    details: BufferPair
    """Levels, spikes and the weights of cross-fading tiles, one after the other."""
    out: DeviceMemory
    units: DeviceMemory
    """The micrograph in noise units. Shared by all slots: only the compute stream uses it."""
    unused: deque[HostMemory]
    """For results, shared by all slots; what is missing is in a slot or lent out."""
    prepared: Prepared | None = None
    result: HostMemory | None = None
    network: Network | None = None


class Buffers:
    """All memory whose size depends on the largest micrograph so far: `pixels` of them, in `nbytes` bytes.

    `available`: bytes of memory that the computer has left; half of them may be page-locked. With less, fewer results
    are lent out. Raises OutOfMemoryError, and has then freed what it had already.
    """

    def __init__(
        self,
        driver: Driver,
        events: Sequence[Events],
        pixels: int,
        nbytes: int,
        available: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.pixels, self.nbytes = pixels, nbytes
        results = results_within(available(), len(events), pixels, nbytes)
        self.slots: list[Slot] = []
        self._driver = driver
        self._pairs: list[BufferPair] = []
        self._single: list[HostMemory | DeviceMemory] = []
        unused: deque[HostMemory] = deque()
        try:
            self._single.append(units := driver.device(4 * pixels))
            for own in events:
                for room in (nbytes, HEADER + 8 * finds_of(pixels), LEAST_DETAILS):
                    self._pairs.append(BufferPair(driver, room))
                self._single.append(out := driver.device(4 * pixels))
                raw, finds, details = self._pairs[-3:]
                self.slots.append(Slot(own, raw, finds, details, out, units, unused))
            for _ in range(results):
                self._single.append(memory := driver.host(4 * pixels))
                unused.append(memory)
        except OutOfMemoryError:
            self.free()
            raise

    def free(self) -> None:
        """Free all memory. Results that a caller still holds stay readable, in memory that is no longer page-locked."""
        for pair in self._pairs:
            pair.free()
        for memory in self._single:
            self._driver.free(memory)


class Lease:
    """Keeps page-locked memory from being used again as long as an array, or a view of one, refers to it."""

    def __init__(self, memory: HostMemory, shape: tuple[int, int], unused: deque[HostMemory]) -> None:
        # An array made from this interface, and so every view of it, holds this object.
        self.__array_interface__ = {
            "shape": shape, "typestr": "<f4", "data": (memory.array.ctypes.data, False), "version": 3,
        }  # fmt: skip
        self.memory = memory
        weakref.finalize(self, unused.append, memory).atexit = False


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


def results_within(available: int | None, slots: int, pixels: int, nbytes: int) -> int:
    """How many results fit into half of `available` bytes beside the slots; at least one for each slot.

    Raises OutOfMemoryError if not even those do.
    """
    wanted = SLOTS + LENT
    if available is None:
        return wanted
    fixed = slots * (nbytes + HEADER + 8 * finds_of(pixels) + LEAST_DETAILS)
    number = int(min(wanted, (available / 2 - fixed) // (4 * pixels)))
    if number < slots:
        needed = fixed + 4 * pixels * slots
        raise OutOfMemoryError(
            f"{needed / 2**20:.0f} MiB of memory would have to be page-locked, and the computer has "
            f"{available / 2**20:.0f} MiB left, of which half may be: close other programs, or lower backend.max_pixels"
        )
    return number


def finds_of(size: int) -> int:
    """How many finds are listed for an image of so many pixels."""
    return LEAST_FINDS + int(size * _FINDS_PER_PIXEL)
