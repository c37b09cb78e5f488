"""Progress of a long step: a bar on a terminal, elsewhere a line in the log once a minute."""

import logging
import sys
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

EVERY = 60.0
"""Seconds between two lines where there is no terminal."""
_WIDTH = 30


class Bar:
    """Progress in `what`, such as "pairs"; begins now."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._clock = what, clock
        self._begin = self._said = clock()

    def show(self, done: int, of: int) -> None:
        """Report that `done`, at least 1, of `of` are done."""
        now = self._clock()
        text = f"{done} of {of} {self._what}, {left((now - self._begin) / done * (of - done))}"
        if sys.stderr.isatty():
            full = _WIDTH * done // of
            end = "\n" if done == of else ""
            print(f"\r[{'#' * full}{'.' * (_WIDTH - full)}] {text}   ", end=end, file=sys.stderr, flush=True)
        elif now - self._said >= EVERY:
            self._said = now
            log.info("%s", text)


def left(seconds: float) -> str:
    """The time left, in words."""
    return f"about {seconds / 60:.0f} min left" if seconds >= 60 else "less than a minute left"
