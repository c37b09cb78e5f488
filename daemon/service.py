"""The running service: reading, network and writing overlap through bounded queues, one ledger keeps account.

    arrival thread    watch → tracker → ledger → dispatch
    reader threads    hash, read, prepare
    network thread    owns the backend and nothing else touches it
    writer thread     judge, preview, JSON, image, ledger
    main thread       signals, watchdog, status

At most `backend.queue` + 2 micrographs are in memory, however many wait in the folder.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from daemon import formats, report, work
from daemon.arrival import Lanes, Tracker
from daemon.backends import Backend, open_backend
from daemon.config import Config
from daemon.denoise import canary
from daemon.errors import BackendError, EmdenoisedError, MicrographError, StorageError, TransientError
from daemon.ledger import Backoff, Job, Ledger
from daemon.micrograph import Image, Prepared
from daemon.rules import Rules
from daemon.watch import Watcher
from daemon.work import Outcome, Work

log = logging.getLogger(__name__)

READERS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Claimed:
    """A job on its way and the micrograph it brought."""

    job: Job
    work: Work


def rules(config: Config) -> Rules:
    """The arrival settings as the tracker wants them."""
    arrival = config.arrival
    return Rules(
        settle_seconds=arrival.settle_seconds,
        suspicious_tail_seconds=arrival.suspicious_tail_seconds,
        extensions=arrival.extensions,
        ignore=arrival.ignore,
        require_sidecar=arrival.require_sidecar,
        recursive=arrival.recursive,
    )


def describe(job: Job, outcome: Outcome) -> str:
    """The log's one line about a finished micrograph."""
    seconds = ", ".join(f"{step} {value:.2f}" for step, value in outcome.seconds.items())
    spikes = f", {outcome.spikes} spikes filled in" if outcome.spikes else ""
    revision = f" (revision {job.revision})" if job.revision > 1 else ""
    adopted = "adopted" if outcome.written.adopted else "denoised"
    text = (
        f"{adopted} {job.path!r}{revision}: {outcome.dose:.3g} counts per pixel, profile {outcome.profile}{spikes}, "
        f"{sum(outcome.seconds.values()):.2f} s ({seconds})"
    )
    return text + "".join(f"; warning: {warning}" for warning in outcome.warnings)


class Service:
    """Runs until `stop`; `failure` then says whether it had to. Made, started and stopped by one thread.

    Raises, when made: LedgerError, ConfigError (state folder), WeightsError.
    """

    def __init__(self, config: Config, idle_canary_seconds: float | None = None) -> None:
        self.config = config
        self.failure: BaseException | None = None
        self.backend_name = ""
        self.beats = 0
        """Counts tiles and canaries: as long as it grows, the network thread is alive."""
        self.unsuccessful = 0
        """Micrographs quarantined or given up for now since the start."""
        retry = config.retry
        backoff = Backoff(
            first=retry.first_seconds, factor=retry.factor, longest=retry.longest_seconds, attempts=retry.attempts
        )
        self._weights = work.load_weights(config)
        self.ledger = Ledger(config.folders.state, backoff=backoff)
        self._lanes = Lanes(config.order.backlog_every)
        wanted = rules(config)
        self._tracker = Tracker(
            wanted,
            lambda path: formats.probe(config.folders.drop / path),
            lambda seen: self.ledger.known(seen.path, seen.size, seen.mtime_ns),
        )
        self.watcher = Watcher(
            config.folders.drop,
            wanted,
            rescan_seconds=config.arrival.rescan_seconds,
            polling=config.arrival.polling,
            poll_seconds=config.arrival.poll_seconds,
        )
        self._canary_seconds = idle_canary_seconds
        self._opened, self._stopping = threading.Event(), threading.Event()
        self._ready: queue.SimpleQueue[Claimed | None] = queue.SimpleQueue()
        self._again: deque[Claimed] = deque()
        self._places = threading.BoundedSemaphore(config.backend.queue + 2)
        self._dispatching = threading.Lock()
        self._in_hand: dict[int, Job] = {}
        self._blocked_until, self._pause = 0.0, 0.0
        self._settled = False
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._threads = [
            threading.Thread(target=self._guarded, args=(body,), name=name)
            for name, body in (("network", self._network), ("arrival", self._arrive))
        ]

    def start(self) -> None:
        """Load the weights, prove them on a canary tile, then watch. Returns when ready; raises what went wrong."""
        for path in (self.config.folders.output,):
            if removed := report.clean_temporary(path):
                log.info("%s: %d half-written files of an interrupted run removed", path, removed)
        for job in self.ledger.recover():
            log.info("%r was in hand when the service last stopped; %s", job.path, job.error or "it is done again")
        self._threads[0].start()
        self._opened.wait()
        if self.failure is not None:
            self.stop()
            raise self.failure
        self._threads[1].start()

    @property
    def blocked(self) -> bool:
        """Whether everything waits because results cannot be written, or the drop folder is away."""
        return time.monotonic() < self._blocked_until or self.watcher.health.state == "degraded"

    @property
    def idle(self) -> bool:
        """Whether everything that lay in the folder at the last look is done with, one way or another."""
        counts = self.ledger.counts()
        return self._settled and not counts["pending"] and not counts["running"]

    def stop(self) -> None:
        """Finish the micrograph in hand, leave the rest for the next start, and free everything."""
        self._stopping.set()
        with self._dispatching:  # whoever was handing out jobs has done so
            pass
        self.watcher.wake()
        self._ready.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self._readers.shutdown(cancel_futures=True)
        self._writer.shutdown()
        for job in self._in_hand.values():
            self._account(self.ledger.release, job)
        self.watcher.close()
        self.ledger.close()

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:
            # The main thread must learn of it, or the service would look alive and do nothing.
            log.critical("the %s thread ended: %s", threading.current_thread().name, error)
            log.debug("traceback", exc_info=True)
            self.failure = self.failure or error
        finally:
            self._opened.set()

    # Arrival

    def _arrive(self) -> None:
        while not self._stopping.is_set():
            self.watcher.wait(self._next_look())
            if found := self.watcher.scan():
                self._tracker.observe(
                    found.listing.sightings, found.ended, began=found.began, interrupted=found.interrupted
                )
            now = time.monotonic()
            while arrived := self._tracker.ready(now):
                for one in arrived:
                    self._register(
                        one.sighting.path,
                        one.sighting.size,
                        one.sighting.mtime_ns,
                        one.live,
                        one.warning,
                        one.truncated,
                        now,
                    )
                self._dispatch()
            for held in self._tracker.take_news():
                log.info("waiting for %r: %s", held.path, held.reason)
            self._settled = found is not None and self._tracker.unfinished == 0
            self._dispatch()

    def _next_look(self) -> float | None:
        """Monotonic time of the next thing that is due without an event: a file settles, or a failed job's turn comes."""
        retry, settled = self.ledger.next_retry(), self._tracker.next_due()
        due = [
            moment for moment in (settled, None if retry is None else time.monotonic() + retry) if moment is not None
        ]
        return max(min(due), self._blocked_until) if due else None

    def _register(
        self, path: str, size: int, mtime_ns: int, live: bool, warning: str | None, truncated: str | None, now: float
    ) -> None:
        try:
            job = self.ledger.register(path, size, mtime_ns, live=live, warning=warning)
            if job is not None and truncated is not None:
                self._quarantine(job, truncated)
        except TransientError as error:
            log.error("%s; %r is taken in later", error, path)
            self._tracker.offer_again(path, now)

    def _dispatch(self) -> None:
        """Hand jobs to the readers while there is room in memory. Called by any thread."""
        with self._dispatching:
            while not self._stopping.is_set() and not self.blocked and self._places.acquire(blocking=False):
                try:
                    job = self.ledger.claim(self._lanes.live_next())
                except TransientError as error:
                    log.error("%s; tried again", error)
                    job = None
                if job is None:
                    self._places.release()
                    return
                self._in_hand[job.id] = job
                self._readers.submit(self._step, job, self._read, job)

    # One micrograph

    def _step(self, job: Job, step: Callable[..., None], *arguments: object) -> None:
        """Run one step; whatever goes wrong with this file is this file's fate, and the queue goes on."""
        try:
            step(*arguments)
            return
        except MicrographError as error:
            self._account(self._quarantine, job, str(error))
        except StorageError as error:
            retry = self.config.retry
            self._pause = min(self._pause * retry.factor or retry.first_seconds, retry.longest_seconds)
            self._blocked_until = time.monotonic() + self._pause
            log.error("%s; the queue is kept and everything waits %.0f s", error, self._pause)
            self._account(self.ledger.release, job)
        except TransientError as error:
            if self.blocked or not self.config.folders.drop.is_dir():
                self._account(self.ledger.release, job)
            else:
                self._account(self._postpone, job, str(error))
        except MemoryError:
            self._account(
                self._quarantine,
                job,
                f"{job.path}: not enough memory for this micrograph; lower backend.queue, "
                "or backend.max_pixels to refuse such files at once",
            )
        except Exception as error:
            # A defect of ours must cost one micrograph and not the session; the attempts are limited.
            log.debug("traceback", exc_info=True)
            self._account(self._postpone, job, f"{job.path}: internal error, please report it: {error!r}")
        self._leave(job)

    def _account(self, note: Callable[..., object], *arguments: object) -> None:
        """Tell the ledger. If its disk refuses, the job stays "running" and is done again after a restart."""
        try:
            note(*arguments)
        except EmdenoisedError as error:
            log.error("%s", error)

    def _leave(self, job: Job) -> None:
        del self._in_hand[job.id]
        self._places.release()
        self._dispatch()

    def _quarantine(self, job: Job, reason: str) -> None:
        self.unsuccessful += 1
        self.ledger.quarantine(job, reason)
        log.error("quarantined %r: %s", job.path, reason)

    def _postpone(self, job: Job, error: str) -> None:
        self.unsuccessful += 1
        after = self.ledger.fail_transient(job, error)
        what = "quarantined" if after.state == "quarantined" else "put off"
        log.warning("%s %r: %s", what, job.path, after.error)

    def _read(self, job: Job) -> None:
        path = self.config.folders.drop / job.path
        raw = work.fingerprint(path)
        if (raw["size"], raw["mtime_ns"]) != (job.size, job.mtime_ns):
            raise MicrographError(f"{path}: changed after it had settled; the new version is processed on its own")
        relative = PurePosixPath(job.path)
        same = self.ledger.same_content(job, raw["sha256"])
        if same is not None and same.output is not None:
            self.ledger.finish(job, same.output)
            log.info("unchanged %r: same bytes as revision %d, whose result stands", job.path, same.revision)
            self._leave(job)
            return
        adopted = report.find_adoptable(self.config.folders.output, relative, job.revision, raw["sha256"])
        if adopted is not None:
            self.ledger.finish(job, str(adopted.image))
            log.info("adopted %r: its result was finished before the service last stopped", job.path)
            self._leave(job)
            return
        one = work.read(self.config, self._weights, path, relative, raw, job.warning)
        self._ready.put(Claimed(job, one))

    def _write(self, claimed: Claimed, denoised: Image) -> None:
        job = claimed.job
        outcome = work.finish(
            self.config, claimed.work, denoised, self.backend_name, self.config.folders.output, job.revision
        )
        self.ledger.finish(
            job,
            str(outcome.written.image),
            profile=outcome.profile,
            timings=outcome.seconds,
            warning="; ".join(outcome.warnings) or None,
        )
        self._pause = 0.0
        log.info("%s", describe(job, outcome))
        self._leave(job)

    # The network

    def _network(self) -> None:
        backends: dict[Path, Backend] = {}
        try:
            for weights in self._weights.values():
                if weights.folder not in backends:
                    backends[weights.folder] = open_backend(self.config.backend, weights.folder, self._beat)
            for backend in backends.values():
                canary(backend)
                self.backend_name = backend.name
            self._opened.set()
            while not self._stopping.is_set():
                claimed = self._next()
                if claimed is not None:
                    self._stream(claimed, backends[claimed.work.weights.folder])
                elif not self._stopping.is_set():
                    for backend in backends.values():
                        canary(backend)
        finally:
            for backend in backends.values():
                backend.close()

    def _beat(self) -> None:
        self.beats += 1

    def _next(self, wait: bool = True) -> Claimed | None:
        """The next micrograph for the network; None after `idle_canary_seconds` without one, or to stop."""
        if self._again:
            return self._again.popleft()
        try:
            return self._ready.get(wait, self._canary_seconds if wait else None)
        except queue.Empty:
            return None

    def _stream(self, first: Claimed, backend: Backend) -> None:
        """Feed the backend as long as micrographs for its weights are waiting."""
        flying: deque[Claimed] = deque()
        begin = time.perf_counter()

        def source() -> Iterator[Prepared | None]:
            claimed: Claimed | None = first
            while True:
                if claimed is not None:
                    flying.append(claimed)
                    yield claimed.work.served.prepared
                elif flying:
                    yield None
                else:
                    return
                claimed = None if self._stopping.is_set() else self._next(wait=False)
                if claimed is not None and claimed.work.weights != first.work.weights:
                    self._again.appendleft(claimed)
                    claimed = None
                    if not flying:
                        return

        try:
            for denoised in backend.denoise(source()):
                claimed = flying.popleft()
                now = time.perf_counter()
                claimed.work.seconds["network"] = round(now - begin, 4)
                begin = now
                self._writer.submit(self._step, claimed.job, self._write, claimed, denoised)
        except MicrographError as error:
            claimed = flying.popleft()
            self._account(self._quarantine, claimed.job, f"{claimed.work.raw['path']}: {error}")
            self._again.extendleft(reversed(flying))
            self._leave(claimed.job)
        else:
            if flying:
                raise BackendError(f"{backend.name}: {len(flying)} micrographs went in and never came out; restart")
