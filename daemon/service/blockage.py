"""Pauses the service while the output disk is full or away, or the drop folder is missing; the queue is kept."""

import threading
import time
from collections.abc import Callable

from daemon.errors import StorageError, TransientError
from daemon.settings.config import Retry

_FOLDER_AWAY_SECONDS = 1.0
"""Pause after a reader found the drop folder missing, until the watcher finds it missing too."""


class Blockage:
    """Used by any thread. `folder_away`: whether the drop folder is missing; `wake` is called when a pause begins."""

    def __init__(self, retry: Retry, folder_away: Callable[[], bool], wake: Callable[[], None]) -> None:
        self._retry, self._folder_away, self._wake = retry, folder_away, wake
        self._refusals = 0
        self._lock = threading.Lock()
        self.until = 0.0
        """End of the pause, monotonic seconds."""
        self.why = ""

    @property
    def holds(self) -> bool:
        """Whether no job may start now."""
        return time.monotonic() < self.until or self._folder_away()

    @property
    def lasts(self) -> bool:
        """Whether the last attempt to write failed; stays True between two attempts."""
        return self._refusals > 0

    def refused(self, error: StorageError) -> float | None:
        """The output disk takes nothing: everything waits so many seconds, longer each time.

        None if everything waits already: micrographs in hand at the same time add nothing.
        """
        self.why = str(error)
        with self._lock:
            now = time.monotonic()
            if now < self.until:
                return None
            self._refusals += 1
            pause = self._retry.pause(self._refusals)
            self.until = now + pause
        self._wake()
        return pause

    def missing(self, error: TransientError) -> None:
        """The drop folder is missing: pause."""
        self.until = max(self.until, time.monotonic() + _FOLDER_AWAY_SECONDS)
        self.why = str(error)
        self._wake()

    def over(self) -> None:
        """A result was written: the next pause is a short one again."""
        self._refusals = 0
