"""A fast backend for tests of the service: it smooths, and fails on request."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from daemon.counts import spikes
from daemon.counts.plane import Denoised, Plane, Prepared
from daemon.errors import MicrographError

CANARY = (256, 256)
"""Images of this shape are the canary's, and are left alone by `hook`."""


class FakeBackend:
    """Holds back up to `ahead` micrographs, as a GPU does; `hook` sees each micrograph first and may block or raise."""

    name = "fake: box filter"

    def __init__(self, ahead: int = 0, hook: Callable[[Prepared], None] = lambda one: None) -> None:
        self.ahead, self.hook = ahead, hook
        self.progress: Callable[[], None] = lambda: None
        self.given: list[Prepared] = []
        self.most_held = 0
        self.closed = threading.Event()

    def denoise(self, planes: Iterable[Plane | None]) -> Iterator[Denoised]:
        held: deque[Prepared] = deque()
        for one in planes:
            if one is not None:
                try:
                    held.append(one.prepare(spikes.survey(one.pixels, one.gain, one.offset, one.false_alarm)))
                except MicrographError:
                    while held:  # those before it come out first
                        yield self._smoothed(held.popleft())
                    raise
                self.most_held = max(self.most_held, len(held))
            while held and (one is None or len(held) > self.ahead):
                yield self._smoothed(held.popleft())
        while held:
            yield self._smoothed(held.popleft())

    def close(self) -> None:
        self.closed.set()

    def _smoothed(self, one: Prepared) -> Denoised:
        if one.pixels.shape != CANARY:
            self.given.append(one)
            self.hook(one)
        image = one.pixels.astype(np.float32)
        image[one.spikes.rows, one.spikes.columns] = one.spikes.values
        for axis in (0, 1):
            image = np.mean([np.roll(image, step, axis) for step in range(-2, 3)], axis=0, dtype=np.float32)
        self.progress()
        return Denoised(image, one, self.name)
