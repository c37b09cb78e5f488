"""Reports that the ledger cannot be written, most likely because its disk is full: at growing intervals."""

import logging
import threading
import time
from collections.abc import Callable

from daemon.errors import TransientError
from daemon.settings.config import Retry

log = logging.getLogger(__name__)


class LedgerOutage:
    """Used by any thread. Files and jobs try several times a second: the log must not fill the disk as well."""

    def __init__(self, retry: Retry, clock: Callable[[], float] = time.monotonic) -> None:
        self._retry, self._clock = retry, clock
        self._lock = threading.Lock()
        self._lines, self._silent_until = 0, 0.0
        self._waiting: set[str] = set()

    def met(self, error: TransientError, path: str = "") -> None:
        """The ledger refused; `path`: of a file that could not be registered."""
        with self._lock:
            if path:
                self._waiting.add(path)
            if (now := self._clock()) < self._silent_until:
                return
            self._lines += 1
            self._silent_until = now + self._retry.pause(self._lines)
            waiting = len(self._waiting)
        if not waiting:
            log.error("%s; the queue is tried again", error)
        elif path and waiting == 1:
            log.error("%s; %r is registered later", error, path)
        else:
            log.error("%s; %d micrographs are registered later", error, waiting)

    def over(self) -> None:
        """The ledger was written."""
        if not self._lines:
            return
        with self._lock:
            ended, self._lines, self._silent_until = self._lines > 0, 0, 0.0
            self._waiting.clear()
        if ended:
            log.info("the ledger can be written again")
