"""The running service: reading, network and writing overlap through bounded queues, one ledger keeps account.

    arrival thread    watch → tracker → ledger → dispatch
    reader threads    hash, read, choose the profile
    network thread    owns the backends and nothing else touches them (`daemon.service.inference`)
    writer threads    judge, preview, JSON, image, ledger
    keeper thread     once an hour, old previews and forgotten micrographs (`daemon.service.housekeeping`)
    main thread       signals, watchdog, status (`daemon.service.supervisor`)

At most `backend.queue` + 2 micrographs are in memory, however many wait in the folder; with a GPU 2 more, or up to 16
where they are small enough for the computer's memory (`daemon.service.places`).
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath

from prometheus_client.core import Metric

from daemon import formats
from daemon.arrival.rules import rules_of
from daemon.arrival.tracker import Arrived, Lanes, Tracker
from daemon.arrival.watcher import Watcher
from daemon.backends import manifest, resolve
from daemon.backends.gpu.buffers import memory_available
from daemon.backends.protocol import SLOTS
from daemon.counts.plane import Denoised
from daemon.errors import EmdenoisedError, MicrographError, StorageError, TransientError
from daemon.formats.decoder import Reader
from daemon.ledger.database import LedgerReplacedError, LedgerUnavailableError
from daemon.ledger.jobs import Backoff, Job, Ledger
from daemon.live_page.server import Health
from daemon.output import paths, record, writing
from daemon.output.disk import Mounted, clean_temporary
from daemon.service import raw_file, sections, steps
from daemon.service.accounts import Accounts
from daemon.service.housekeeping import prune
from daemon.service.inference import Claimed, Inference
from daemon.service.metrics import Metrics, gauge, graphics_card, queue_figures
from daemon.service.places import Places
from daemon.settings.config import Config

log = logging.getLogger(__name__)

READERS = {"cpu": 2, "tensorrt": 4}
WRITERS = {"cpu": 1, "tensorrt": 4}
AHEAD = {"cpu": 0, "tensorrt": SLOTS - 1}
"""Micrographs that the backend holds besides the one it computes."""
MOST_PLACES = {"cpu": 0, "tensorrt": 16}
"""Micrographs in memory at most, where they are small enough: as many as keep readers, card and writers at work."""
OVERDUE_SECONDS = 1.0
STUCK_SECONDS = 300.0
"""A micrograph that a reader or writer has so long: the share or disk it is on hangs, most likely."""
PATIENCE_SECONDS = 0.25
CARD_SECONDS = 60.0
"""So long a graphics card may take to answer, after the computer started."""
HOUSEKEEPING_SECONDS = 3600.0
FOLDER_AWAY_SECONDS = 1.0
"""Work pauses so long when the drop folder is found missing, until the watcher has seen it too."""


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
        retry = config.retry
        backoff = Backoff(
            first=retry.first_seconds, factor=retry.factor, longest=retry.longest_seconds, attempts=retry.attempts
        )
        self._weights = manifest.load_weights(config)
        self.ledger = Ledger(config.folders.state, backoff=backoff)
        self._once = once
        self._lanes = Lanes(config.order.backlog_every)
        wanted = self._rules = rules_of(config)
        self._tracker = Tracker(
            wanted,
            lambda path: formats.probe(config.folders.drop / path, config.folders.drop),
            lambda seen: self.ledger.known(seen.path, seen.size, seen.mtime_ns),
        )
        self.watcher = Watcher(
            config.folders.drop,
            wanted,
            rescan_seconds=config.arrival.rescan_seconds,
            polling=config.arrival.polling,
            poll_seconds=config.arrival.poll_seconds,
        )
        self._stopping = threading.Event()
        self.inference = Inference(
            config.backend,
            self._weights.values(),
            config.folders.engines,
            self._stopping,
            self._delivered,
            self._refused,
            self._lost,
            idle_canary_seconds,
        )
        self._forgotten: deque[str] = deque()
        """Files that changed or went, for the tracker: they may be there after all."""
        self._accounts = Accounts(self.ledger, self._metrics, self._note_forgotten, self.watcher.wake)
        self._reader = Reader(config.backend.max_pixels, config.backend.decode_seconds, below=config.folders.drop)
        self._output = Mounted(config.folders.output)
        kind = self._kind = resolve(config.backend.kind, CARD_SECONDS)
        always = config.backend.queue + 2 + AHEAD[kind]
        self._places = Places(always, MOST_PLACES[kind], memory_available())
        self._dispatching = threading.Lock()
        self._at_work: dict[int, tuple[str, float]] = {}
        """By thread: what a reader or writer has just now, and since when. A share that hangs holds them."""
        self._in_hand: dict[int, Job] = {}  # by Python's id: the ledger may give a forgotten job's number away
        self._blocked_until, self._pause, self._why_blocked = 0.0, 0.0, ""
        self._settled = False
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
        return time.monotonic() < self._blocked_until or self.watcher.health.state == "degraded"

    @property
    def idle(self) -> bool:
        """Whether everything that lay in the folder at the last look is done with, one way or another."""
        # In this order: what moves on from one place to the next between two questions is then still seen.
        try:
            return not self._in_hand and not self._forgotten and self._settled and not self.ledger.busy()
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
        if self.blocked or (self._pause and not self.idle):
            return Health("degraded", f"{self._why_blocked}; the queue is kept", name)
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
        self._reader.close()
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
                self._output.require()
                pruned = prune(self.config, self.ledger, wanted=lambda: not self._stopping.is_set())
            except EmdenoisedError as error:
                log.warning("%s; old previews are removed later", error)
            else:
                if pruned.previews or pruned.rows:
                    log.info("removed to keep within limits: %s", pruned)

    # Arrival

    def _arrive(self) -> None:
        while not self._stopping.is_set():
            due = self.watcher.wait(self._next_look())
            if found := self.watcher.scan() if due else None:
                self._tracker.observe(
                    found.listing.sightings, found.ended, began=found.began, interrupted=found.interrupted
                )
            now = time.monotonic()
            while self._forgotten:
                self._settled = False  # before the next word, which is what `idle` looks at first
                self._tracker.offer_again(self._forgotten.popleft(), now)
            while not self._stopping.is_set() and (arrived := self._tracker.ready(now)):
                for one in arrived:
                    self._register(one, now)
                self._dispatch()
            for held in self._tracker.take_news():
                log.info("waiting for %r: %s", held.path, held.reason)
            looked = found is not None if due else self._settled
            self._settled = looked and self._tracker.unfinished == 0
            self._accounts.catch_up()
            self._dispatch()

    def _note_forgotten(self, path: str) -> None:
        self._settled = False
        self._forgotten.append(path)
        self.watcher.wake()

    def _next_look(self) -> float | None:
        """Monotonic time of the next thing due without an event: a file settles, or a failed job's turn comes."""
        now, settled = time.monotonic(), self._tracker.next_due()
        due = [] if settled is None else [settled]
        if self._blocked_until > now:
            due.append(self._blocked_until)
        with contextlib.suppress(TransientError):  # the ledger's disk is full: the next rescan asks again
            if (retry := self.ledger.next_retry()) is not None:
                # One that is due already waits for room in memory, and whoever leaves makes it: no need to hurry.
                due.append(max(now + (retry or OVERDUE_SECONDS), self._blocked_until))
        return min(due) if due else None

    def _register(self, arrived: Arrived, now: float) -> None:
        seen = arrived.sighting
        refused = None if arrived.truncated is None else f"{arrived.truncated}: copy it again"
        try:
            self.ledger.register(
                seen.path,
                seen.size,
                seen.mtime_ns,
                live=arrived.live,
                warning=arrived.warning,
                refused=refused,
                by_section=self._by_section(seen.path),
            )
        except TransientError as error:
            log.error("%s; %r is taken in later", error, seen.path)
            self._tracker.offer_again(seen.path, now)
            return
        if refused is not None:
            self._accounts.refused(seen.path, refused)

    def _dispatch(self) -> None:
        """Hand jobs to the readers while there is room in memory. Called by any thread."""
        with self._dispatching:
            while not self._stopping.is_set() and not self.blocked and self._places.take():
                try:
                    job = self.ledger.claim(self._lanes.live_next())
                except TransientError as error:
                    log.error("%s; tried again", error)
                    job = None
                if job is None:
                    self._places.leave()
                    return
                self._places.sized(job.size)
                self._in_hand[id(job)] = job
                self._readers.submit(self._guarded, self._step, job, self._read, job)

    # One micrograph

    def _step(self, job: Job, step: Callable[..., bool], *arguments: object) -> None:
        """Run one step, which says whether the job is done; whatever goes wrong with this file is this file's fate."""
        self._at_work[threading.get_ident()] = job.path, time.monotonic()
        try:
            if not self._tried(job, step, *arguments):
                return
        finally:
            del self._at_work[threading.get_ident()]
        self._leave(job)

    def _tried(self, job: Job, step: Callable[..., bool], *arguments: object) -> bool:
        """False if the job goes on to another step."""
        try:
            return step(*arguments)
        except MicrographError as error:
            self._accounts.quarantine(job, str(error))
        except StorageError as error:
            retry = self.config.retry
            if time.monotonic() >= self._blocked_until:  # those in hand at the same time tell nothing new
                self._pause = min(self._pause * retry.factor or retry.first_seconds, retry.longest_seconds)
                self._blocked_until = time.monotonic() + self._pause
                self.watcher.wake()
            self._why_blocked = str(error)
            log.error("%s; the queue is kept and everything waits %.0f s", error, self._pause)
            self._accounts.release(job)
        except LedgerUnavailableError as error:
            log.error("%s; %r is done later", error, job.path)
            self._accounts.release(job)
        except TransientError as error:
            if self.blocked or not self.config.folders.drop.is_dir():
                self._blocked_until = max(self._blocked_until, time.monotonic() + FOLDER_AWAY_SECONDS)
                self._why_blocked = str(error)
                self.watcher.wake()
                self._accounts.release(job)
            elif isinstance(error, raw_file.ChangedError):
                self._accounts.forget(job, str(error))
            elif raw_file.gone(self.config.folders.drop / job.path):
                self._accounts.forget(job, "it was gone before it could be read; should it come back, it is done then")
            else:
                self._accounts.postpone(job, str(error))
        except MemoryError:
            self._accounts.quarantine(
                job,
                f"{job.path}: not enough memory for this micrograph; lower backend.queue, "
                "or backend.max_pixels to refuse such files at once",
            )
        except Exception as error:
            # A defect of ours must cost one micrograph and not the session; the attempts are limited.
            log.debug("traceback", exc_info=True)
            self._accounts.postpone(job, f"{job.path}: internal error, please report it: {error!r}")
        return True

    def _leave(self, job: Job) -> None:
        del self._in_hand[id(job)]
        self._places.leave()
        self._dispatch()

    def _by_section(self, relative: str) -> bool:
        path = self.config.folders.drop / relative
        return sections.grows(self._reader, self.config, self._rules, path, relative)

    def _read(self, job: Job) -> bool:
        self._output.require()
        path = self.config.folders.drop / job.path
        if job.sections or self._by_section(job.path):
            return self._read_section(job, path)
        raw = raw_file.fingerprint(path, self.config.backend.max_pixels, self.config.folders.drop)
        if (raw["size"], raw["mtime_ns"]) != (job.size, job.mtime_ns):
            raise raw_file.ChangedError(f"{path}: changed after it had settled; it is read once it has settled again")
        relative = PurePosixPath(job.path)
        if self._done_before(job, raw["sha256"]):
            return True
        adopted = writing.find_adoptable(self.config.folders.output, relative, job.revision, raw["sha256"])
        if adopted is not None:
            self._accounts.finish(job, str(adopted.image), "adopted", **record.summary(adopted.content))
            log.info("adopted %r: its result was finished before the service last stopped", job.path)
            return True
        seconds: dict[str, float] = {}
        with steps.timed(seconds, "read"):
            found = sections.whole(self._reader, self.config, self._rules, path, job.path)
        if found is None:
            return self._read_section(job, path)
        one = steps.read(self.config, self._weights, path, relative, raw, self._reader, job.warning, None, found)
        one.seconds.update(seconds)
        self.inference.put(Claimed(job, one))
        return False

    def _read_section(self, job: Job, path: Path) -> bool:
        """The next section of a stack that is not done yet; the stack may be growing."""
        if job.sections:
            _, first = sections.read(self._reader, path, 1)
            if first.sha256 != job.sha256:
                log.info("%r is another stack than before: it is revision %d", job.path, job.revision + 1)
                self.ledger.replaced(job)
                return True
            if job.sections >= first.of:  # only its time was touched
                self._accounts.finish(job, job.output or "", "unchanged", sections=job.sections)
                return True
        number = job.sections + 1
        relative = paths.section_name(job.path, number)
        micrograph, section = sections.read(self._reader, path, number, job.sha256 if job.sections else None)
        taking = sections.taking(self.config, self._rules, job.path, micrograph)
        adopted = writing.find_adoptable(self.config.folders.output, relative, job.revision, section.sha256)
        if adopted is not None:
            told = {**section.told, **record.summary(adopted.content)}
            self._accounts.finish(job, str(adopted.image), "adopted", **told)
            log.info("adopted %s of %r: it was finished before", section, job.path)
            return True
        micrograph = sections.noted(micrograph, taking)
        one = steps.prepare(self.config, self._weights, path, relative, section.raw, micrograph, job.warning)
        self.inference.put(Claimed(job, replace(one, section=section)))
        return False

    def _done_before(self, job: Job, sha256: str) -> bool:
        """Finish a job whose file was only touched: an earlier revision with the same bytes has its result."""
        same = self.ledger.same_content(job, sha256)
        if same is None or same.output is None:
            return False
        self._accounts.finish(job, same.output, "unchanged", verdict=same.verdict, facts=same.facts)
        log.info("unchanged %r: same bytes as revision %d, whose result stands", job.path, same.revision)
        return True

    def _write(self, claimed: Claimed, denoised: Denoised) -> bool:
        job = claimed.job
        self._output.require()
        section = claimed.work.section
        if section is None and self._done_before(
            job, claimed.work.raw["sha256"]
        ):  # touched while its earlier revision was in hand
            return True
        outcome = steps.finish(self.config, claimed.work, denoised, self.config.folders.output, job.revision)
        self._accounts.finish(
            job,
            str(outcome.written.image),
            "adopted" if outcome.written.adopted else "done",
            profile=outcome.profile,
            timings=outcome.seconds,
            warning="; ".join(outcome.warnings) or None,
            **record.summary(outcome.written.content),
            **(section.told if section else {}),
        )
        self._pause = 0.0
        self._metrics.finished(outcome.seconds, claimed.work.raw["size"], outcome.spikes, outcome.verdict)
        told = {"micrograph": job.path, "outcome": "done"}
        name = job.path if section is None else f"{job.path} ({section})"
        log.info("%s", outcome.describe(name, job.revision), extra=told)
        return True

    # What the network reports (see `inference.Inference`)

    def _delivered(self, claimed: Claimed, denoised: Denoised) -> None:
        # One thread for all files whose results could get the same name: they must not race for it.
        alike = claimed.job.path.rpartition("/")[2].partition(".")[0]
        writer = self._writers[hash(alike) % len(self._writers)]
        writer.submit(self._guarded, self._step, claimed.job, self._write, claimed, denoised)

    def _refused(self, claimed: Claimed, error: MicrographError) -> None:
        self._accounts.quarantine(claimed.job, f"{claimed.work.raw['path']}: {error}")
        self._leave(claimed.job)

    def _lost(self, claimed: Claimed, error: BaseException) -> None:
        # It may have brought the network down, so this attempt counts: or it would do so for ever.
        self._accounts.postpone(claimed.job, f"{claimed.job.path}: {str(error) or repr(error)}")
        del self._in_hand[id(claimed.job)]
