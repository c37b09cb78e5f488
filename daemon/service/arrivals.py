"""The arrival thread: files that the tracker finds complete are registered in the ledger, which is the queue."""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from daemon import formats
from daemon.arrival.tracker import Arrived, Tracker
from daemon.arrival.watcher import Watcher
from daemon.errors import TransientError
from daemon.ledger.jobs import Ledger
from daemon.service.accounts import Accounts
from daemon.service.blockage import Blockage
from daemon.service.ledger_outage import LedgerOutage
from daemon.settings.config import Config

log = logging.getLogger(__name__)

_OVERDUE_SECONDS = 1.0


class Arrivals:
    """`run` is the thread's body; the rest is for any thread.

    `by_section`: whether the file of a path is a stack that is processed section by section.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        watcher: Watcher,
        blockage: Blockage,
        outage: LedgerOutage,
        by_section: Callable[[str], bool | None],
    ) -> None:
        self.settled = False
        """Whether every file that the last scan found is in the ledger."""
        self._ledger, self._watcher, self._blockage, self._by_section = ledger, watcher, blockage, by_section
        self._outage = outage
        drop = config.folders.drop
        self._tracker = Tracker(
            config.arrival,
            lambda path: formats.probe(formats.RawFile(drop / path, drop)),
            lambda seen: ledger.known(seen.path, seen.size, seen.mtime_ns),
        )
        self._forgotten: deque[str] = deque()
        """Paths whose jobs were forgotten: the tracker offers them again if the files exist."""

    @property
    def quiet(self) -> bool:
        """Whether no file is left to register, as of the last scan."""
        return not self._forgotten and self.settled

    def forgotten(self, path: str) -> None:
        """The job of `path` was removed from the ledger: register the file again if it exists."""
        self.settled = False
        self._forgotten.append(path)
        self._watcher.wake()

    def run(self, stop: threading.Event, accounts: Accounts, dispatch: Callable[[], None]) -> None:
        """Work until `stop`. `dispatch` is called whenever a job may be due."""
        while not stop.is_set():
            due = self._watcher.wait(self._next_due())
            if found := self._watcher.scan() if due else None:
                self._tracker.observe(
                    found.listing.sightings, found.ended, began=found.began, interrupted=found.interrupted
                )
            now = time.monotonic()
            while self._forgotten:
                self.settled = False  # before the next line, so that `quiet` is never true between the two
                self._tracker.offer_again(self._forgotten.popleft(), now)
            while not stop.is_set() and (arrived := self._tracker.ready(now)):
                for one in arrived:
                    self._register(one, now, accounts)
                dispatch()
            for held in self._tracker.take_news():
                log.info("waiting for %r: %s", held.path, held.reason)
            scanned = found is not None if due else self.settled
            self.settled = scanned and self._tracker.unfinished == 0
            accounts.catch_up()
            dispatch()

    def _next_due(self) -> float | None:
        """Monotonic time at which, without an event, a file settles or a failed job is due; None if neither waits."""
        now, settled = time.monotonic(), self._tracker.next_due()
        due = [] if settled is None else [settled]
        if self._blockage.until > now:
            due.append(self._blockage.until)
        with contextlib.suppress(TransientError):  # the ledger's disk is full: the next rescan asks again
            if (retry := self._ledger.next_retry()) is not None:
                # A retry that is overdue waits for memory, and each job that ends dispatches it: no need to hurry.
                due.append(max(now + (retry or _OVERDUE_SECONDS), self._blockage.until))
        return min(due) if due else None

    def _register(self, arrived: Arrived, now: float, accounts: Accounts) -> None:
        seen = arrived.sighting
        refused = None if arrived.truncated is None else f"{arrived.truncated}: copy it again"
        try:
            self._ledger.register(
                seen.path,
                seen.size,
                seen.mtime_ns,
                live=arrived.live,
                warning=arrived.warning,
                refused=refused,
                by_section=self._by_section(seen.path),
            )
        except TransientError as error:
            self._outage.met(error, seen.path)
            self._tracker.offer_again(seen.path, now)
            return
        self._outage.over()
        if refused is not None:
            accounts.refused(seen.path, refused)
