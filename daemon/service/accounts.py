"""What became of each micrograph, told to the ledger and the log; what the ledger refuses to hear is told later."""

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from daemon.errors import EmdenoisedError, TransientError
from daemon.ledger.database import LedgerReplacedError
from daemon.ledger.jobs import Job, Ledger
from daemon.service.metrics import Metrics

log = logging.getLogger(__name__)


class Accounts:
    """Called by any thread, and never raises for a ledger that cannot be written: the job counts as running until then.

    `forgotten` is called with the path of a job that was forgotten: the file may be there after all. `wake` is called
    when a job may be due earlier than anybody expects.
    """

    def __init__(
        self, drop: Path, ledger: Ledger, metrics: Metrics, forgotten: Callable[[str], None], wake: Callable[[], None]
    ) -> None:
        self.unsuccessful = 0
        """Micrographs quarantined or given up for now."""
        self._drop, self._ledger, self._metrics, self._forgotten, self._wake = drop, ledger, metrics, forgotten, wake
        self._untold: deque[Callable[[], object]] = deque()

    @property
    def behind(self) -> bool:
        """Whether there is something the ledger has not been told yet."""
        return bool(self._untold)

    def finish(self, job: Job, output: str, outcome: Literal["done", "adopted", "unchanged"], **told: Any) -> None:
        """The result lies whole on the disk; `told` as `Ledger.finish` takes it."""
        self._tell(partial(self._ledger.finish, job, output, **told))
        self._metrics.count(outcome)

    def release(self, job: Job) -> None:
        """Not done, through no fault of its own: it waits again and no attempt is counted."""
        self._tell(partial(self._ledger.release, job))
        self._metrics.count("released")

    def quarantine(self, job: Job, reason: str) -> None:
        """It cannot be done as it is."""

        def note() -> None:
            self._ledger.quarantine(job, reason)
            self.refused(job.path, reason)

        self._tell(note)

    def postpone(self, job: Job, error: str) -> None:
        """It failed now; the attempts are counted."""

        def note() -> None:
            after = self._ledger.fail_transient(job, error)
            if after.state == "quarantined":
                self.refused(job.path, str(after.error))
            else:
                self.unsuccessful += 1
                self._metrics.count("retried")
                told = {"micrograph": job.path, "outcome": "retried"}
                log.warning("put off %r: %s", job.path, self._short(job.path, str(after.error)), extra=told)
            self._wake()

        self._tell(note)

    def hold(self, job: Job, why: str) -> None:
        """It needs what is not installed: it waits for the next start, and no attempt is counted."""

        def note() -> None:
            self._ledger.hold(job, why)
            self.unsuccessful += 1
            self._metrics.count("held")
            told = {"micrograph": job.path, "outcome": "held"}
            log.warning("waits: %r: %s", job.path, self._short(job.path, why), extra=told)

        self._tell(note)

    def forget(self, job: Job, why: str) -> None:
        """The file is gone, or is another one now: seen again, it is taken in anew."""

        def note() -> None:
            self._ledger.forget(job)
            self._metrics.count("forgotten")
            told = {"micrograph": job.path, "outcome": "forgotten"}
            log.warning("set aside %r: %s", job.path, self._short(job.path, why), extra=told)
            self._forgotten(job.path)

        self._tell(note)

    def refused(self, path: str, reason: str) -> None:
        """The ledger has it as quarantined."""
        self.unsuccessful += 1
        self._metrics.count("quarantined")
        told = {"micrograph": path, "outcome": "quarantined"}
        log.error("quarantined %r: %s", path, self._short(path, reason), extra=told)

    def _short(self, path: str, text: str) -> str:
        """Without the micrograph's own path, which the line has already; others relative to the drop folder."""
        return text.replace(f"{self._drop / path}: ", "").replace(f"{self._drop}/", "")

    def catch_up(self) -> None:
        """Tell the ledger what it refused to hear, up to the first that it refuses again."""
        for _ in range(len(self._untold)):
            if not self._tell(self._untold.popleft()):
                return

    def _tell(self, note: Callable[[], object]) -> bool:
        """False if the ledger cannot be written now; `note` is kept for later then."""
        try:
            note()
        except TransientError as error:
            log.error("%s", error)
            self._untold.append(note)
            return False
        except LedgerReplacedError as error:  # the service ends for it and reports it once
            log.debug("%s", error)
        except EmdenoisedError as error:
            log.error("%s", error)
        return True
