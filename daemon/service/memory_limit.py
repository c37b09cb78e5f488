"""How many micrographs may be in memory at once: a few always, more where the computer's memory allows it."""

import threading
from collections import deque

WEIGHT = 8
"""Bytes of memory for each byte of a raw file: its pixels, the float32 result, and what is written."""
_REMEMBERED = 32
SHARE = 1 / 4
"""Of the memory that was available at the start."""


class MemoryLimit:
    """Counts micrographs in memory; called by any thread.

    Args:
        always: so many may be in memory whatever their size.
        most: and never more than so many.
        available: bytes of memory the computer had left at the start; None: not known.
    """

    def __init__(self, always: int, most: int, available: int | None) -> None:
        self._always, self._most = always, max(always, most)
        self._budget = 0 if available is None else int(available * SHARE)
        self._taken, self._lock = 0, threading.Lock()
        self._sizes: deque[int] = deque(maxlen=_REMEMBERED)

    def take(self) -> bool:
        """Count one more, if memory allows for a micrograph as large as the largest of the last few; False: wait."""
        with self._lock:
            if self._taken >= self._always:
                largest = max(self._sizes, default=0)
                if self._taken >= self._most or (self._taken + 1) * largest * WEIGHT > self._budget:
                    return False
            self._taken += 1
            return True

    def sized(self, nbytes: int) -> None:
        """Note the size of the file that was counted last."""
        with self._lock:
            self._sizes.append(nbytes)

    def leave(self) -> None:
        """One less is in memory."""
        with self._lock:
            assert self._taken > 0
            self._taken -= 1
