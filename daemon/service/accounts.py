"""Enters the outcome of each job in ledger, log and metrics; entries that the ledger refuses are repeated later."""

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from daemon.errors import EmdenoisedError, TransientError
from daemon.ledger.database import LedgerReplacedError
from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger
from daemon.logs import without_paths
from daemon.service.metrics import Metrics

log = logging.getLogger(__name__)


class Accounts:
    """Used by any thread; never raises for a ledger that cannot be written: the job stays running until it can.

    `forgotten` is called with the path of a job that was forgotten, whose file may still exist; `wake` when a job may
    be due earlier than the arrival thread expects.
    """

    def __init__(
        self, drop: Path, ledger: Ledger, metrics: Metrics, forgotten: Callable[[str], None], wake: Callable[[], None]
    ) -> None:
        self.unsuccessful = 0
        """Micrographs quarantined or put off."""
        self._drop, self._ledger, self._metrics, self._forgotten, self._wake = drop, ledger, metrics, forgotten, wake
        self._unwritten: deque[Callable[[], object]] = deque()

    @property
    def behind(self) -> bool:
        """Whether entries wait because the ledger could not be written."""
        return bool(self._unwritten)

    def finish(self, job: Job, output: str, outcome: Literal["done", "adopted", "unchanged"], **entries: Any) -> None:
        """The result is written; `entries` as `Ledger.finish` takes them."""
        self._enter(partial(self._ledger.finish, job, output, **entries))
        self._metrics.count(outcome)

    def release(self, job: Job) -> None:
        """Not done, through no fault of its own: pending again, no attempt counted."""
        self._enter(partial(self._ledger.release, job))
        self._metrics.count("released")

    def quarantine(self, job: Job, reason: str) -> None:
        """It can never be processed as it is."""

        def entry() -> None:
            self._ledger.quarantine(job, reason)
            self.refused(job.path, reason)

        self._enter(entry)

    def postpone(self, job: Job, error: str) -> None:
        """It failed for now; the attempt is counted."""

        def entry() -> None:
            after = self._ledger.fail_transient(job, error)
            if after.state == "quarantined":
                self.refused(job.path, str(after.error))
            else:
                self.unsuccessful += 1
                self._metrics.count("retried")
                extra = {"micrograph": job.path, "outcome": "retried"}
                why = without_paths(str(after.error), self._drop, job.path)
                log.warning("put off %r: %s; it is tried again", job.path, why, extra=extra)
            self._wake()

        self._enter(entry)

    def hold(self, job: Job, why: str) -> None:
        """It needs a reader that is not installed: it waits for the next start, no attempt counted."""

        def entry() -> None:
            self._ledger.hold(job, why)
            self.unsuccessful += 1
            self._metrics.count("held")
            extra = {"micrograph": job.path, "outcome": "held"}
            log.warning("waits: %r: %s", job.path, without_paths(why, self._drop, job.path), extra=extra)

        self._enter(entry)

    def forget(self, job: Job, why: str) -> None:
        """The file is gone or was replaced: the next scan that finds it registers it again."""

        def entry() -> None:
            self._ledger.forget(job)
            self._metrics.count("forgotten")
            extra = {"micrograph": job.path, "outcome": "forgotten"}
            log.warning("forgotten %r: %s", job.path, without_paths(why, self._drop, job.path), extra=extra)
            self._forgotten(job.path)

        self._enter(entry)

    def refused(self, path: str, reason: str) -> None:
        """Count and log a micrograph that the ledger has quarantined."""
        self.unsuccessful += 1
        self._metrics.count("quarantined")
        extra = {"micrograph": path, "outcome": "quarantined"}
        log.error("quarantined %r: %s", path, without_paths(reason, self._drop, path), extra=extra)

    def catch_up(self) -> None:
        """Repeat the entries that the ledger refused, up to the first that it refuses again."""
        for _ in range(len(self._unwritten)):
            if not self._enter(self._unwritten.popleft()):
                return

    def _enter(self, entry: Callable[[], object]) -> bool:
        """False if the ledger cannot be written now; `entry` is kept for later then."""
        try:
            entry()
        except TransientError as error:
            log.error("%s", error)
            self._unwritten.append(entry)
            return False
        except LedgerReplacedError as error:  # the service ends for it and reports it once
            log.debug("%s", error)
        except EmdenoisedError as error:
            log.error("%s", error)
        return True
