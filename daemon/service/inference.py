"""The network thread: owns the backends and feeds them a stream of micrographs.

A server that cannot be used is waited for: all micrographs go back to the queue, and it is tried again after 5 s, then
at growing intervals up to 10 min (`retry` in the settings).
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from daemon.backends import build_engine, open_backend
from daemon.backends.canary import canary
from daemon.backends.manifest import Weights
from daemon.backends.protocol import Backend
from daemon.counts.plane import Denoised, Plane
from daemon.errors import BackendError, ConfigError, MicrographError, ServerError, WeightsError
from daemon.ledger.job import Job
from daemon.service.steps import Work
from daemon.settings.config import BackendConfig, Retry

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
"""Between two beats while a server is waited for, at most; `stop` is seen as often."""
IDLE_SECONDS = 30.0
"""While there is nothing to do, a server is asked this often whether it still works, so that the page knows it."""


class _GivenUpError(Exception):
    """The service stops while the networks are being opened."""


@dataclass(frozen=True, slots=True, eq=False)
class Claimed:
    """A running job and its micrograph."""

    job: Job
    work: Work


class Inference:
    """Runs the networks of `weights` on the micrographs that are `put`, in order, until `stop` is set.

    `run` is its thread's body. It calls there `delivered` with each result; `refused` if one micrograph cannot be
    denoised (others can); `lost` for each micrograph in the network when that failed, perhaps because of it; `returned`
    for each that waits for a server; `resumed` when that works again. `retry` has the pauses between the attempts.
    """

    def __init__(
        self,
        settings: BackendConfig,
        weights: Iterable[Weights],
        engines: Path,
        stop: threading.Event,
        delivered: Callable[[Claimed, Denoised], None],
        refused: Callable[[Claimed, MicrographError], None],
        lost: Callable[[Claimed, BaseException], None],
        returned: Callable[[Claimed], None],
        resumed: Callable[[], None],
        retry: Retry,
        idle_canary_seconds: float | None = None,
    ) -> None:
        self.backend_name = ""
        self.beats = 0
        """Counts tiles and canaries: as long as it grows, the thread is alive."""
        self.opened = threading.Event()
        """Set once every network has passed the canary tile; with a server at once."""
        self.away = ""
        """Why the server cannot be used; empty while it can, or before the first attempt."""
        self._settings, self._weights, self._engines, self._stop = settings, list(weights), engines, stop
        self._delivered, self._refused, self._lost = delivered, refused, lost
        self._returned, self._resumed, self._retry = returned, resumed, retry
        self._failures = 0
        """Of the server, since it last delivered a micrograph."""
        self._canary_seconds = idle_canary_seconds or (IDLE_SECONDS if settings.kind == "server" else None)
        self._ready: queue.SimpleQueue[Claimed | None] = queue.SimpleQueue()
        self._again: deque[Claimed] = deque()

    def put(self, claimed: Claimed | None) -> None:
        """Queue a micrograph; None only wakes the thread, which then checks `stop`. Called by any thread."""
        self._ready.put(claimed)

    def run(self) -> None:
        """Open the backends, check them on the canary tile, denoise. Raises the error that ends the service.

        Opening may take minutes if an engine is built for a GPU; `stop` interrupts that, too.
        """
        backends: dict[Path, Backend] = {}
        try:
            for weights in self._weights:
                build_engine(self._settings, weights, self._engines, self._beat)
            for weights in self._weights:
                if weights.folder not in backends:
                    backends[weights.folder] = open_backend(self._settings, weights, self._engines, self._beat)
            if self._settings.kind == "server":
                self.opened.set()
            self._attempt(lambda: self._check(backends), backends)
            self.opened.set()
            while not self._stop.is_set():
                claimed = self._next()
                if claimed is not None:
                    self._again.appendleft(claimed)
                    weights = claimed.work.weights
                    del claimed  # or its pixels would stay in memory until the next one comes
                    self._attempt(partial(self._stream, weights, backends[weights.folder]), backends)
                elif not self._stop.is_set():
                    self._attempt(lambda: self._check(backends), backends)
        except _GivenUpError:
            return
        finally:
            for backend in backends.values():
                backend.close()

    def _check(self, backends: dict[Path, Backend]) -> None:
        """The canary tile on every network; one that a server computes wrongly is the server's failure."""
        for backend in backends.values():
            try:
                canary(backend)
            except BackendError as error:
                if self._settings.kind != "server" or isinstance(error, ServerError):
                    raise
                raise ServerError(str(error)) from error
            self.backend_name = backend.name

    def _attempt(self, step: Callable[[], None], backends: dict[Path, Backend]) -> None:
        """Run a step; where a server fails in it, wait until that works again."""
        try:
            step()
            return
        except ServerError as error:
            why = str(error)  # and not its traceback, which holds pixels
        while not self._stop.is_set():
            self._failures += 1
            pause = self._retry.pause(self._failures)
            self.away = why
            log.error("%s; the queue is kept and everything waits %.0f s", why, pause)
            self._give_back(pause)
            if self._stop.is_set():
                return
            try:
                self._check(backends)
            except ServerError as error:
                why = str(error)
            else:
                self.away = ""
                log.info("%s can be used again", self.backend_name)
                self._resumed()
                return

    def _give_back(self, seconds: float) -> None:
        """Return everything to the ledger's queue, also what readers put here in the next seconds."""
        end = time.monotonic() + seconds
        if self._again:
            names = [repr(claimed.job.path) for claimed in self._again]
            log.info("back in the queue: %s", ", ".join(names))
        while self._again:
            self._returned(self._again.popleft())
        while not self._stop.is_set() and (left := end - time.monotonic()) > 0:
            self.beats += 1
            with suppress(queue.Empty):
                if (claimed := self._ready.get(timeout=min(left, BEAT_SECONDS))) is not None:
                    self._returned(claimed)

    def _beat(self) -> None:
        self.beats += 1
        if self._stop.is_set() and not self.opened.is_set():
            raise _GivenUpError

    def _next(self, wait: bool = True) -> Claimed | None:
        """The next micrograph; None after `idle_canary_seconds` without one, or if `put` was called with None."""
        if self._again:
            return self._again.popleft()
        try:
            return self._ready.get(wait, self._canary_seconds if wait else None)
        except queue.Empty:
            return None

    def _stream(self, weights: Weights, backend: Backend) -> None:
        """Feed the backend as long as micrographs for these weights are waiting."""
        flying: deque[Claimed] = deque()
        begin = time.perf_counter()

        def source() -> Iterator[Plane | None]:
            while True:
                claimed = None if self._stop.is_set() else self._next(wait=False)
                if claimed is not None and claimed.work.weights != weights:
                    self._again.appendleft(claimed)
                    claimed = None
                if claimed is not None:
                    flying.append(claimed)
                    yield replace(claimed.work.plane, live=claimed.job.live)
                elif flying:
                    yield None
                else:
                    return

        try:
            for denoised in backend.denoise(source()):
                claimed = flying.popleft()
                now = time.perf_counter()
                claimed.work.seconds["network"] = round(now - begin, 4)
                begin = now
                self._failures = 0
                self._delivered(claimed, denoised)
                del claimed, denoised  # or their pixels would stay in memory until the next ones are there
            if flying:
                raise BackendError(f"{backend.name}: {len(flying)} micrographs went in and never came out; restart")
        except MicrographError as error:
            claimed = flying.popleft()
            self._again.extendleft(reversed(flying))
            flying.clear()
            self._refused(claimed, error)
        except (ServerError, ConfigError, WeightsError):  # of the server: no micrograph is the cause
            self._again.extendleft(reversed(flying))
            raise
        except BaseException as error:
            for claimed in flying:
                self._lost(claimed, error)
            raise
