"""The running service: reading, network and writing overlap through bounded queues, one ledger keeps account.

    arrival thread    watch → tracker → ledger → dispatch (`daemon.service.arrivals`)
    reader threads    hash, read, choose the profile (`daemon.service.making`)
    network thread    owns the backends and nothing else touches them (`daemon.service.inference`)
    writer threads    judge, preview, JSON, image, ledger (`daemon.service.making`)
    keeper thread     once an hour, old previews and forgotten micrographs (`daemon.service.housekeeping`)
    main thread       signals, watchdog, status (`daemon.service.supervisor`)

At most `backend.queue` + 2 micrographs are in memory, and 2 more with a GPU, however many wait in the folder.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from prometheus_client.core import Metric

from daemon.arrival.tracker import Lanes
from daemon.arrival.watcher import Watcher
from daemon.backends import manifest, resolve
from daemon.backends.protocol import SLOTS
from daemon.counts.plane import Denoised
from daemon.errors import EmdenoisedError, MicrographError, TransientError
from daemon.formats import rosettasciio
from daemon.ledger.database import LedgerReplacedError
from daemon.ledger.jobs import Job, Ledger
from daemon.live_page.server import Health
from daemon.output.disk import clean_temporary
from daemon.service import session_weights
from daemon.service.accounts import Accounts
from daemon.service.arrivals import Arrivals
from daemon.service.blockage import Blockage
from daemon.service.housekeeping import prune
from daemon.service.inference import Claimed, Inference
from daemon.service.making import Making
from daemon.service.metrics import Metrics, gauge, graphics_card, queue_figures
from daemon.settings.config import Config

log = logging.getLogger(__name__)

READERS = {"cpu": 2, "tensorrt": 4}
WRITERS = {"cpu": 1, "tensorrt": 4}
AHEAD = {"cpu": 0, "tensorrt": SLOTS - 1}
"""Micrographs that the backend holds besides the one it computes."""
STUCK_SECONDS = 300.0
"""A micrograph that a reader or writer has so long: the share or disk it is on hangs, most likely."""
PATIENCE_SECONDS = 0.25
HOUSEKEEPING_SECONDS = 3600.0


class Service:
    """Runs until `stop`; `failure` then says whether it had to. Made, started and stopped by one thread.

    `once`: what an earlier run had put off is due now. Raises, when made, LedgerError, ConfigError (state folder)
    and WeightsError.
    """

    def __init__(
        self,
        config: Config,
        idle_canary_seconds: float | None = None,
        once: bool = False,
        metrics: Metrics | None = None,
    ) -> None:
        self.config = config
        self._metrics = metrics or Metrics()
        self.failure: BaseException | None = None
        weights = manifest.load_weights(config)
        self.ledger = Ledger(config.folders.state, retry=config.retry)
        weights = session_weights.kept(weights, self.ledger, time.time())
        for asked, one in weights.items():
            log.info("weights %s: %s", asked, one.manifest)
        self._once = once
        self._lanes = Lanes(config.order.backlog_every)
        self._stopping = threading.Event()
        self.watcher = Watcher(config.folders.drop, config.arrival)
        self._blockage = Blockage(config.retry, self._folder_away, self.watcher.wake)
        self.arrivals = Arrivals(config, self.ledger, self.watcher, self._blockage, self._by_section)
        self._accounts = Accounts(self.ledger, self._metrics, self.arrivals.forgotten, self.watcher.wake)
        self.inference = Inference(
            config.backend,
            weights.values(),
            config.folders.engines,
            self._stopping,
            self._delivered,
            self._refused,
            self._lost,
            idle_canary_seconds,
        )
        self.making = Making(
            config, weights, self.ledger, self._accounts, self._metrics, self._blockage, self.inference.put
        )
        kind = self._kind = resolve(config.backend.kind)
        self._places = threading.BoundedSemaphore(config.backend.queue + 2 + AHEAD[kind])
        self._dispatching = threading.Lock()
        self._at_work: dict[int, tuple[str, float]] = {}
        """By thread: what a reader or writer has just now, and since when. A share that hangs holds them."""
        self._in_hand: dict[int, Job] = {}  # by Python's id: the ledger may give a forgotten job's number away
        self._readers = ThreadPoolExecutor(READERS[kind], thread_name_prefix="reader")
        self._writers = [ThreadPoolExecutor(1, thread_name_prefix=f"writer-{n}") for n in range(WRITERS[kind])]
        self._threads = [
            threading.Thread(target=self._guarded, args=(body,), name=name)
            for name, body in (("network", self.inference.run), ("arrival", self._arrive), ("keeper", self._keep))
        ]

    def start(self, patient: Callable[[], bool] = lambda: True) -> bool:
        """Load the weights, prove them on a canary tile, then watch. Returns when ready; raises what went wrong.

        `patient` is asked several times a second whether to go on waiting; if not, all is freed and False returned.
        """
        output = self.config.folders.output
        if removed := clean_temporary(output):
            log.info("%s: %d half-written files of an interrupted run removed", output, removed)
        if (missing := rosettasciio.missing(self.config.arrival.extensions)) is not None:
            log.warning("%s", missing)
        for job in self.ledger.recover(self._once):
            log.info("%r was in hand when the service last stopped; %s", job.path, job.error or "it is done again")
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
        """Micrographs quarantined or given up for now since the start."""
        return self._accounts.unsuccessful

    @property
    def blocked(self) -> bool:
        """Whether everything waits because results cannot be written, or the drop folder is away."""
        return self._blockage.holds

    @property
    def idle(self) -> bool:
        """Whether everything that lay in the folder at the last look is done with, one way or another."""
        # In this order: what moves on from one place to the next between two questions is then still seen.
        try:
            return not self._in_hand and self.arrivals.quiet and not self.ledger.busy()
        except TransientError:
            return False

    @property
    def health(self) -> Health:
        """How it is, for whoever watches it."""
        name, watched = self.inference.backend_name, self.watcher.health
        if self.failure is not None:
            return Health("failed", str(self.failure) or repr(self.failure), name)
        if not self._threads[1].ident:
            return Health("starting", "the network is being opened", name)
        if watched.state == "degraded":
            return Health("degraded", watched.detail, name)
        # Between two attempts at a full disk as well: an alarm that waits for five bad minutes must not see good ones.
        if self.blocked or (self._blockage.lasts and not self.idle):
            return Health("degraded", f"{self._blockage.why}; the queue is kept", name)
        if stuck := [path for path, since in list(self._at_work.values()) if time.monotonic() - since > STUCK_SECONDS]:
            text = f"{stuck[0]!r} is not read or written after {STUCK_SECONDS:.0f} s: check the shares and disks in use"
            return Health("degraded", text, name)
        return Health("ok", watched.detail, name)

    def figures(self) -> list[Metric]:
        """What metrics ask of it."""
        card = graphics_card(self.config.backend.device) if self._kind == "tensorrt" else []
        state = self.health.state
        return [
            gauge("healthy", "1 if all is well, as /healthz says it.", {"": float(state == "ok")}),
            *queue_figures(self.ledger.counts, self.ledger.oldest_waiting),
            *card,
        ]

    def check_ledger(self) -> None:
        """Called now and then: fail if the ledger's files are no longer those under their names.

        The next start adopts what lies whole on the disk, and does the rest again.
        """
        try:
            self.ledger.require_in_place()
        except LedgerReplacedError as error:
            self._fail("the ledger is lost", error)

    def stop(self) -> None:
        """Finish the micrograph in hand, leave the rest for the next start, and free everything."""
        self._stopping.set()
        with self._dispatching:  # whoever was handing out jobs has done so
            pass
        self.watcher.wake()
        self.inference.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self._readers.shutdown(cancel_futures=True)
        self.making.close()
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
            self.inference.opened.set()  # whoever waits for it must see the failure

    def _fail(self, what: str, error: BaseException) -> None:
        """The main thread must learn of it, or the service would look alive and do nothing."""
        if not isinstance(self.failure, LedgerReplacedError):  # every thread meets that one
            log.critical("%s: %s", what, str(error) or repr(error))
        log.debug("traceback", exc_info=error)
        self.failure = self.failure or error

    def _keep(self) -> None:
        """Once an hour, and not at the start, when there is more urgent work."""
        while not self._stopping.wait(HOUSEKEEPING_SECONDS):
            try:
                self.making.output.require()
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
        return self.making.by_section(relative)

    # From the ledger to readers, network and writers

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
                self._in_hand[id(job)] = job
                self._readers.submit(self._guarded, self._step, job, self.making.read, job)

    def _step(self, job: Job, step: Callable[..., bool], *arguments: object) -> None:
        self._at_work[threading.get_ident()] = job.path, time.monotonic()
        try:
            if not self.making.attempt(job, step, *arguments):
                return
        finally:
            del self._at_work[threading.get_ident()]
        self._leave(job)

    def _leave(self, job: Job) -> None:
        del self._in_hand[id(job)]
        self._places.release()
        self._dispatch()

    # What the network reports (see `inference.Inference`)

    def _delivered(self, claimed: Claimed, denoised: Denoised) -> None:
        # One thread for all files whose results could get the same name: they must not race for it.
        alike = claimed.job.path.rpartition("/")[2].partition(".")[0]
        writer = self._writers[hash(alike) % len(self._writers)]
        writer.submit(self._guarded, self._step, claimed.job, self.making.write, claimed, denoised)

    def _refused(self, claimed: Claimed, error: MicrographError) -> None:
        self._accounts.quarantine(claimed.job, f"{claimed.work.raw.path}: {error}")
        self._leave(claimed.job)

    def _lost(self, claimed: Claimed, error: BaseException) -> None:
        # It may have brought the network down, so this attempt counts: or it would do so for ever.
        self._accounts.postpone(claimed.job, f"{claimed.job.path}: {str(error) or repr(error)}")
        del self._in_hand[id(claimed.job)]
