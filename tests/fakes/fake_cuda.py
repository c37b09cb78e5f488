"""CUDA without a GPU, as unkind as the real one may be: bytes move late, streams overtake one another.

Every operation on a stream is done in two steps, which the seed of a schedule puts among the steps of the other
streams: first what it writes is poisoned, later it reads its sources as they are then, and writes. Nothing runs before
the host's calls let it, and the host is never waited for. Memory is poisoned when it is new, and watched when it is
freed. The kernels are the real ones (`compiled_kernels`). Without a seed everything happens at once, in order.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from compiled_kernels import C_TYPES, library
from numpy.typing import NDArray

from daemon.backends.gpu.device import SIGNATURES, DeviceMemory, HostMemory, OutOfMemoryError, Room

POISON = 0xFF
"""Bytes of which every float is NaN and every integer odd."""


class Memory:
    """Of the host or of the device."""

    def __init__(self, nbytes: int) -> None:
        self.array = np.full(nbytes, POISON, np.uint8)
        self.freed = False

    def at(self, offset: int) -> "Address":
        return Address(self, offset)


@dataclass(frozen=True)
class Address:
    memory: Memory
    offset: int

    def bytes(self, nbytes: int) -> NDArray[np.uint8]:
        assert not self.memory.freed, "memory was used after it was freed"
        assert self.offset + nbytes <= len(self.memory.array), "beyond the end of the memory"
        return self.memory.array[self.offset : self.offset + nbytes]

    def floats(self, *shape: int) -> NDArray[np.float32]:
        return self.bytes(4 * int(np.prod(shape))).view(np.float32).reshape(shape)


@dataclass
class Marker:
    """A point in a stream's work."""

    reached: bool = False
    at: float = 0.0

    def reach(self) -> None:
        self.reached, self.at = True, time.perf_counter()


@dataclass
class Operation:
    """`poison` is done first, `act` later; `blocked_by` holds it back."""

    poison: Callable[[], object] = lambda: None
    act: Callable[[], object] = lambda: None
    blocked_by: Marker | None = None
    begun: bool = False


@dataclass
class Stream:
    queue: deque[Operation] = field(default_factory=deque)
    eagerness: float = 1.0

    @property
    def ready(self) -> bool:
        return bool(self.queue) and (self.queue[0].blocked_by is None or self.queue[0].blocked_by.reached)


@dataclass
class Event:
    latest: Marker | None = None

    def time_since(self, other: "Event") -> float:
        """Milliseconds."""
        assert self.latest is not None
        assert other.latest is not None
        return 1e3 * (self.latest.at - other.latest.at)


class FakeCuda:
    """`device.Driver`. `room`: bytes on the device, beyond which memory is out; `most`: as for `Room`."""

    def __init__(self, seed: int | None = None, room: float = float("inf"), most: int | None = None) -> None:
        self._allowed, self._on_device = Room(most), dict[int, int]()
        self._rng = None if seed is None else np.random.default_rng(seed)
        self._streams: list[Stream] = []
        self._pace = 1.0 if self._rng is None else float(self._rng.choice([0.0, 0.5, 3.0, 30.0]))
        """Steps of the device for each call of the host: from far behind to always done."""
        self.room, self.allocations, self.launched = room, 0, list[str]()
        self.live: list[Memory] = []
        self.closed = False

    # Memory

    def host(self, nbytes: int) -> Memory:
        return self._allocate(nbytes)

    def device(self, nbytes: int) -> Memory:
        if nbytes > self.room:
            raise OutOfMemoryError("the fake device is full")
        self._allowed.take(nbytes)
        self.room -= nbytes
        memory = self._allocate(nbytes)
        self._on_device[id(memory)] = nbytes
        return memory

    def free(self, memory: Any) -> None:
        assert not memory.freed, "freed twice"
        memory.freed = True
        self._allowed.give(self._on_device.pop(id(memory), 0))
        self.live.remove(memory)

    def _allocate(self, nbytes: int) -> Memory:
        assert nbytes > 0
        self.allocations += 1
        self.live.append(Memory(nbytes))
        return self.live[-1]

    def close(self) -> None:
        assert not self.live, "closed with memory in use"
        self.closed = True

    # Streams

    def stream(self) -> Stream:
        eagerness = 1.0 if self._rng is None else float(self._rng.choice([0.05, 1.0, 20.0]))
        self._streams.append(Stream(eagerness=eagerness))
        return self._streams[-1]

    def event(self, timing: bool = False) -> Event:
        return Event()

    def upload(self, source: HostMemory, target: DeviceMemory, nbytes: int, stream: Stream) -> None:
        self._copy(Address(source, 0), target.at(0), nbytes, stream)  # type: ignore[arg-type]

    def download(self, source: DeviceMemory, target: HostMemory, nbytes: int, stream: Stream) -> None:
        self._copy(source.at(0), Address(target, 0), nbytes, stream)  # type: ignore[arg-type]

    def clear(self, target: DeviceMemory, nbytes: int, stream: Stream) -> None:
        self.put(stream, lambda: target.at(0).bytes(nbytes).fill(0), lambda: target.at(0).bytes(nbytes).fill(POISON))

    def record(self, event: Event, stream: Stream) -> None:
        marker = event.latest = Marker()
        self.put(stream, marker.reach)

    def wait(self, stream: Stream, event: Event) -> None:
        if event.latest is not None:  # CUDA does not wait for what was never recorded
            self.put(stream, blocked_by=event.latest)

    def synchronise(self, event: Event) -> None:
        while event.latest is not None and not event.latest.reached:
            assert self._step(), "the host waits for what never comes"
        self._run()

    def launch(self, kernel: str, threads: int, arguments: Sequence[Any], stream: Stream) -> None:
        self.launched.append(kernel)
        function, letters = getattr(library(), kernel), SIGNATURES[kernel.split("_")[0]]
        assert len(letters) == len(arguments)
        assert threads > 0

        def act() -> None:
            if kernel == "fill":  # on a real card this is a wild write as well, but there the test would not survive it
                units, places, _, number = arguments
                last = int(places.bytes(8 * number).view(np.uint64).max())
                assert units.offset + 4 * (last + 1) <= len(units.memory.array), "a wild write"
            function(*(C_TYPES[letter](self._value(value)) for letter, value in zip(letters, arguments, strict=True)))

        poison = lambda: None  # noqa: E731
        if kernel.startswith(("scale", "gather")):
            scales = kernel.startswith("scale")
            target, count = (arguments[1:3]) if scales else (arguments[3], arguments[4] * arguments[5])
            poison = lambda: target.bytes(4 * count).fill(POISON)  # noqa: E731
        self.put(stream, act, poison)

    def put(
        self,
        stream: Stream,
        act: Callable[[], object] = lambda: None,
        poison: Callable[[], object] = lambda: None,
        blocked_by: Marker | None = None,
    ) -> None:
        """Add an operation to a stream, and let the device go on as far as it likes."""
        stream.queue.append(Operation(poison, act, blocked_by))
        self._run()

    @staticmethod
    def _value(value: Any) -> Any:
        if not isinstance(value, Address):
            return value
        return value.bytes(1).ctypes.data

    def _copy(self, source: Address, target: Address, nbytes: int, stream: Stream) -> None:
        def act() -> None:
            target.bytes(nbytes)[:] = source.bytes(nbytes)

        self.put(stream, act, lambda: target.bytes(nbytes).fill(POISON))

    def _run(self) -> None:
        steps = 1 << 30 if self._rng is None else int(self._rng.poisson(self._pace))
        while steps and self._step():
            steps -= 1

    def _step(self) -> bool:
        """One step of one stream that can take one; whether there was any."""
        ready = [stream for stream in self._streams if stream.ready]
        if not ready:
            return False
        stream = ready[0]
        if self._rng is not None and len(ready) > 1:
            weights = np.array([one.eagerness for one in ready])
            stream = ready[int(self._rng.choice(len(ready), p=weights / weights.sum()))]
        operation = stream.queue[0]
        if not operation.begun:
            operation.poison()
            operation.begun = True
        else:
            operation.act()
            stream.queue.popleft()
        return True


class FakeNetwork:
    """`device.Network` that mixes a pixel with its neighbours and the level: cheap, and nothing in it is lost."""

    def __init__(self, driver: FakeCuda, tile: int | tuple[int, int], batch: int) -> None:
        self.tile = (tile, tile) if isinstance(tile, int) else tile
        self.batch, self._driver = batch, driver

    def enqueue(self, units: Address, level: Address, result: Address, stream: Stream) -> None:
        shape = (self.batch, 1, *self.tile)

        def act() -> None:
            with np.errstate(all="ignore"):  # what is left of an earlier batch may be anything
                result.floats(*shape)[:] = self.compute(units.floats(*shape), level.floats(self.batch, 1, 1, 1))

        self._driver.put(stream, act, lambda: result.floats(*shape).fill(np.nan))

    @staticmethod
    def compute(units: NDArray[np.float32], level: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, 1, S, T) and (N, 1, 1, 1) → (N, 1, S, T). Needs a halo of 1."""
        mixed = (units + np.roll(units, 1, -1) + np.roll(units, -1, -2)) / np.float32(3)
        return np.asarray(mixed + np.float32(8) * level, np.float32)
