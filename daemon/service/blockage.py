"""Everything waits while results cannot be written, or the drop folder is away: the queue is kept."""

import threading
import time
from collections.abc import Callable

from daemon.errors import StorageError, TransientError
from daemon.settings.config import Retry

FOLDER_AWAY_SECONDS = 1.0
"""Work pauses so long when the drop folder is found missing, until the watcher has seen it too."""


class Blockage:
    """Called by any thread. `folder_away`: whether the drop folder is; `wake` is called when a wait begins."""

    def __init__(self, retry: Retry, folder_away: Callable[[], bool], wake: Callable[[], None]) -> None:
        self._retry, self._folder_away, self._wake = retry, folder_away, wake
        self._refusals = 0
        self._lock = threading.Lock()
        self.until = 0.0
        """Monotonic seconds."""
        self.why = ""

    @property
    def holds(self) -> bool:
        """Whether nothing may be begun now."""
        return time.monotonic() < self.until or self._folder_away()

    @property
    def lasts(self) -> bool:
        """Whether the output disk refused the last time it was tried; between two attempts as well."""
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
        """The drop folder is away."""
        self.until = max(self.until, time.monotonic() + FOLDER_AWAY_SECONDS)
        self.why = str(error)
        self._wake()

    def over(self) -> None:
        """A result was written."""
        self._refusals = 0
