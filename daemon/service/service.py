"""The running service: reading, network and writing overlap through bounded queues; the ledger keeps account.

    arrival thread    watch → tracker → ledger → dispatch (`daemon.service.arrivals`)
    reader threads    hash, read, choose the profile (`daemon.service.workers`)
    network thread    the only one that uses the backends (`daemon.service.inference`)
    writer threads    judge, preview, JSON, image, ledger (`daemon.service.workers`)
    keeper thread     once an hour, old previews and forgotten micrographs (`daemon.service.housekeeping`)
    main thread       signals, watchdog, status (`daemon.service.supervisor`)

At most `backend.queue` + 2 micrographs are in memory, however many wait in the folder; with a GPU 2 more, or up to 16
where they are small enough for the computer's memory (`daemon.service.memory_limit`). With a server as with a GPU.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from prometheus_client.core import Metric

from daemon.arrival.watcher import Watcher
from daemon.backends import manifest, resolve
from daemon.backends.protocol import SLOTS
from daemon.counts.plane import Denoised
from daemon.errors import EmdenoisedError, MicrographError, TransientError
from daemon.formats import rosettasciio
from daemon.ledger.database import LedgerReplacedError
from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger
from daemon.live_page.server import Health
from daemon.memory import memory_available
from daemon.output.disk import clean_temporary
from daemon.service import pressure, session_weights
from daemon.service.accounts import Accounts
from daemon.service.arrivals import Arrivals
from daemon.service.blockage import Blockage
from daemon.service.housekeeping import prune
from daemon.service.inference import Claimed, Inference
from daemon.service.lanes import Lanes
from daemon.service.ledger_outage import LedgerOutage
from daemon.service.memory_limit import MemoryLimit
from daemon.service.metrics import Metrics, gauge, graphics_card, limits, queue_figures
from daemon.service.workers import Workers
from daemon.settings.config import Config

log = logging.getLogger(__name__)

_READERS = {"cpu": 2, "tensorrt": 4, "server": 4}
_WRITERS = {"cpu": 1, "tensorrt": 4, "server": 4}
_AHEAD = {"cpu": 0, "tensorrt": SLOTS - 1, "server": SLOTS - 1}
"""Micrographs that the backend holds besides the one it computes."""
_MOST_IN_MEMORY = {"cpu": 0, "tensorrt": 16, "server": 16}
"""Micrographs in memory at most, where they are small enough: as many as keep readers, card and writers at work."""
STUCK_SECONDS = 300.0
"""A reader or writer that needs longer for one micrograph is reported: its share or disk probably hangs."""
PATIENCE_SECONDS = 0.25
CARD_SECONDS = 60.0
"""So long a graphics card may take to answer, after the computer started."""
_HOUSEKEEPING_SECONDS = 3600.0


class Service:
    """Runs until `stop`. `failure`: the error that ended it, or None. One thread makes, starts and stops it.

    `once`: retries that an earlier run put off are due now. `progress`: called while a graphics card is waited for. The
    constructor raises BackendError (the card), LedgerError, ConfigError (state folder) and WeightsError.
    """

    def __init__(
        self,
        config: Config,
        idle_canary_seconds: float | None = None,
        once: bool = False,
        metrics: Metrics | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        # Before the ledger is locked: a service that cannot be made must leave it to one with other settings.
        kind = self._kind = resolve(config.backend.kind, CARD_SECONDS, progress)
        self.config = config
        self._metrics = metrics or Metrics()
        self.failure: BaseException | None = None
        weights = manifest.load_weights(config)
        self.ledger = Ledger(config.folders.state, retry=config.retry)
        try:
            weights = session_weights.kept(weights, self.ledger, time.time())
        except BaseException:
            self.ledger.close()
            raise
        for asked, one in weights.items():
            log.info("weights %s: %s", asked, one.manifest)
        self._once = once
        self._lanes = Lanes(config.order.backlog_every)
        self._stopping = threading.Event()
        self.watcher = Watcher(config.folders.drop, config.arrival)
        self._blockage = Blockage(config.retry, self._folder_away, self.watcher.wake)
        self._outage = LedgerOutage(config.retry)
        self.arrivals = Arrivals(config, self.ledger, self.watcher, self._blockage, self._outage, self._by_section)
        self._accounts = Accounts(
            config.folders.drop, self.ledger, self._metrics, self.arrivals.forgotten, self.watcher.wake
        )
        self.inference = Inference(
            config.backend.model_copy(update={"kind": kind}),
            weights.values(),
            config.folders.engines,
            self._stopping,
            self._delivered,
            self._refused,
            self._lost,
            self._returned,
            self._dispatch,
            config.retry,
            idle_canary_seconds,
        )
        self.workers = Workers(
            config, weights, self.ledger, self._accounts, self._metrics, self._blockage, self.inference.put
        )
        always = config.backend.queue + 2 + _AHEAD[kind]
        self._in_memory = MemoryLimit(always, _MOST_IN_MEMORY[kind], memory_available())
        self._dispatching = threading.Lock()
        self._at_work: dict[int, tuple[str, float]] = {}
        """By reader or writer thread: the path in work, and since when (monotonic seconds)."""
        self._in_hand: dict[int, Job] = {}  # by id(): the ledger may reuse the number of a forgotten job
        self._readers = ThreadPoolExecutor(_READERS[kind], thread_name_prefix="reader")
        self._writers = [ThreadPoolExecutor(1, thread_name_prefix=f"writer-{n}") for n in range(_WRITERS[kind])]
        self._threads = [
            threading.Thread(target=self._guarded, args=(body,), name=name)
            for name, body in (("network", self.inference.run), ("arrival", self._arrive), ("keeper", self._keep))
        ]

    def start(self, patient: Callable[[], bool] = lambda: True) -> bool:
        """Load the weights, check them on a canary tile, then watch. Returns True when ready; raises the failure.

        `patient` is called several times a second; once it returns False, the service is stopped and False returned.
        """
        output = self.config.folders.output
        if removed := clean_temporary(output):
            log.info("%s: %d half-written files of an interrupted run removed", output, removed)
        if (missing := rosettasciio.missing(self.config.arrival.extensions)) is not None:
            log.warning("%s", missing)
        for job in self.ledger.recover(self._once):
            log.info("%r was in work when the service last stopped; %s", job.path, job.error or "it is done again")
        self._threads[0].start()
        while not self.inference.opened.wait(PATIENCE_SECONDS):
            if not patient():
                self._stopping.set()
        if self.failure is not None or self._stopping.is_set():
            self.stop()
            if self.failure is not None:
                raise self.failure
            return False
        for thread in self._threads[1:]:
            thread.start()
        return True

    @property
    def unsuccessful(self) -> int:
        """Micrographs quarantined or put off since the start."""
        return self._accounts.unsuccessful

    @property
    def blocked(self) -> bool:
        """Whether no job may start: results cannot be written, the drop folder is missing or the server is away."""
        return self._blockage.holds or bool(self.inference.away)

    @property
    def idle(self) -> bool:
        """Whether every micrograph that the last scan found is done, put off or quarantined."""
        # In this order, so that a job that moves on between two of these checks is not missed.
        try:
            return not self._in_hand and self.arrivals.quiet and not self.ledger.busy()
        except TransientError:
            return False

    @property
    def health(self) -> Health:
        """The state of the service, with the reason where it is not ok."""
        name, watched = self.inference.backend_name, self.watcher.health
        if self.failure is not None:
            return Health("failed", str(self.failure) or repr(self.failure), name)
        if self.inference.away:
            return Health("degraded", f"{self.inference.away}; the queue is kept", name)
        if not self._threads[1].ident or not name:
            return Health("starting", "the network is being opened", name)
        if watched.state == "degraded":
            return Health("degraded", watched.detail, name)
        # Also between two attempts at a full disk: an alarm that waits for five bad minutes must not see good ones.
        if self.blocked or (self._blockage.lasts and not self.idle):
            return Health("degraded", f"{self._blockage.why}; the queue is kept", name)
        if stuck := [path for path, since in list(self._at_work.values()) if time.monotonic() - since > STUCK_SECONDS]:
            text = f"{stuck[0]!r} is not read or written after {STUCK_SECONDS:.0f} s: check the shares and disks in use"
            return Health("degraded", text, name)
        return Health("ok", watched.detail, name)

    def figures(self) -> list[Metric]:
        """Gauges for `Metrics.ask`."""
        card = graphics_card(self.config.backend.device) if self._kind == "tensorrt" else []
        state = self.health.state
        return [
            gauge("healthy", "1 if /healthz reports ok, else 0.", {"": float(state == "ok")}),
            *queue_figures(self.ledger),
            *limits(self.config.backend),
            *pressure.figures(),
            *card,
        ]

    def check_ledger(self) -> None:
        """Fail if files of the ledger were moved, deleted or replaced.

        The next start adopts finished results and does the other micrographs again.
        """
        try:
            self.ledger.require_in_place()
        except LedgerReplacedError as error:
            self._fail("the ledger is lost", error)

    def stop(self) -> None:
        """Finish the current micrographs, return the others to the ledger, and close everything."""
        self._stopping.set()
        with self._dispatching:  # a dispatch in progress ends first
            pass
        self.watcher.wake()
        self.inference.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self._readers.shutdown(cancel_futures=True)
        self.workers.close()
        for writer in self._writers:
            writer.shutdown()
        for job in self._in_hand.values():
            self._accounts.release(job)
        self._accounts.catch_up()
        self.watcher.close()
        self.ledger.close()

    def _guarded(self, body: Callable[..., None], *arguments: object) -> None:
        try:
            body(*arguments)
        except BaseException as error:
            self._fail(f"the {threading.current_thread().name} thread ended", error)
        finally:
            self.inference.opened.set()  # `start` waits for it and must see the failure

    def _fail(self, what: str, error: BaseException) -> None:
        """Set `failure`, so that the main thread ends the service instead of leaving it idle."""
        if not isinstance(self.failure, LedgerReplacedError):  # which every thread meets
            log.critical("%s: %s", what, str(error) or repr(error))
        log.debug("traceback", exc_info=error)
        self.failure = self.failure or error

    def _keep(self) -> None:
        """Prune once an hour; not at the start, when other work is more urgent."""
        while not self._stopping.wait(_HOUSEKEEPING_SECONDS):
            try:
                self.workers.output.require()
                pruned = prune(self.config, self.ledger, wanted=lambda: not self._stopping.is_set())
            except EmdenoisedError as error:
                log.warning("%s; old previews are removed later", error)
            else:
                if pruned.previews or pruned.rows:
                    log.info("removed to keep within limits: %s", pruned)

    def _arrive(self) -> None:
        self.arrivals.run(self._stopping, self._accounts, self._dispatch)

    def _folder_away(self) -> bool:
        return self.watcher.health.state == "degraded"

    def _by_section(self, relative: str) -> bool | None:
        return self.workers.by_section(relative)

    # From the ledger to readers, network and writers

    def _dispatch(self) -> None:
        """Give jobs to the readers while memory has room. Called by any thread."""
        with self._dispatching:
            while not self._stopping.is_set() and not self.blocked and self._in_memory.take():
                try:
                    job = self.ledger.claim(self._lanes.live_next())
                except TransientError as error:
                    self._outage.met(error)
                    job = None
                if job is None:
                    self._in_memory.leave()
                    return
                self._outage.over()
                self._metrics.waited(job.waited, job.live)
                self._in_memory.sized(job.size)
                self._in_hand[id(job)] = job
                self._readers.submit(self._guarded, self._step, job, self.workers.read, job)

    def _step(self, job: Job, step: Callable[..., bool], *arguments: object) -> None:
        self._at_work[threading.get_ident()] = job.path, time.monotonic()
        try:
            if not self.workers.attempt(job, step, *arguments):
                return
        finally:
            del self._at_work[threading.get_ident()]
        self._leave(job)

    def _leave(self, job: Job) -> None:
        del self._in_hand[id(job)]
        self._in_memory.leave()
        self._dispatch()

    # Reports of the network thread (see `inference.Inference`)

    def _delivered(self, claimed: Claimed, denoised: Denoised) -> None:
        # One thread for all files whose results could get the same name: they must not race for it.
        alike = claimed.job.path.rpartition("/")[2].partition(".")[0]
        writer = self._writers[hash(alike) % len(self._writers)]
        writer.submit(self._guarded, self._step, claimed.job, self.workers.write, claimed, denoised)

    def _refused(self, claimed: Claimed, error: MicrographError) -> None:
        self._accounts.quarantine(claimed.job, f"{claimed.work.raw.path}: {error}")
        self._leave(claimed.job)

    def _returned(self, claimed: Claimed) -> None:
        self._accounts.release(claimed.job)
        self._leave(claimed.job)

    def _lost(self, claimed: Claimed, error: BaseException) -> None:
        # It may be what made the network fail, so the attempt counts: the retries must end.
        self._accounts.postpone(claimed.job, f"{claimed.job.path}: {str(error) or repr(error)}")
        del self._in_hand[id(claimed.job)]
