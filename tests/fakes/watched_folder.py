"""A watcher whose clock, hints and events belong to the test."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from watchdog.events import FileCreatedEvent

from daemon.arrival.watcher import Watcher
from daemon.settings.config import Arrival

RULES = Arrival()
LIMIT = 20.0


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeHint(threading.Event):
    """An event whose `wait` moves the clock instead of waiting; `at` are the times at which hints come."""

    clock: Clock
    at: list[float] = field(default_factory=list)
    event: Callable[[], None] = lambda: None
    """What the operating system's events call."""

    def __post_init__(self) -> None:
        super().__init__()

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        if self.is_set():
            return True
        end = self.clock.now + max(timeout, 1e-9)  # a real clock moves on by itself
        if self.at and self.at[0] <= end:
            self.clock.now = max(self.clock.now, self.at.pop(0))
            self.event()
            return True
        self.clock.now = end
        return False

    __hash__ = object.__hash__


class FakeObserver:
    """Stands for a watchdog observer that sends no events."""

    made: "list[FakeObserver]"
    fails = False

    def __init__(self) -> None:
        self.alive = False
        self.emitters: set[object] = set()
        FakeObserver.made.append(self)

    def schedule(self, *args: object, **options: object) -> None:
        if FakeObserver.fails:
            raise OSError(28, "inotify watch limit reached")

    def start(self) -> None:
        self.alive = True

    def stop(self) -> None:
        self.alive = False

    def join(self, timeout: float) -> None:
        assert not self.alive

    def is_alive(self) -> bool:
        return self.alive


def fake(drop: Path, clock: Clock, **options: object) -> Watcher:
    hint = options.pop("hint", None) or FakeHint(clock)
    stated = {name: options.pop(name) for name in Arrival.model_fields if name in options}
    options = {"filesystem": lambda path: "ext4", **options}
    arrival = Arrival.model_validate(stated)
    watcher = Watcher(drop, arrival, clock=clock, observer=FakeObserver, hint=hint, **options)  # type: ignore[arg-type]
    if isinstance(hint, FakeHint):
        hint.event = lambda: watcher._events.on_any_event(FileCreatedEvent(str(drop)))
    return watcher


def write(path: Path, content: bytes = b"II*\0") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def names(watcher: Watcher) -> list[str]:
    found = watcher.scan()
    assert found is not None
    return sorted(one.path for one in found.listing.sightings)


def state(watcher: Watcher) -> str:
    return watcher.health.state
