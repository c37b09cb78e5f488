"""Progress of a long command: a bar with the time left on a terminal, plain lines in a file or pipe."""

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from daemon.commands.terminal import wrapped
from daemon.logs import one_line

_BAR = 24
_AGAIN = 0.1
"""Seconds between two drawings of the bar."""


class Progress:
    """Of `total` micrographs. As a context manager it removes the bar at the end, also after an error."""

    def __init__(self, total: int, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._stream, self._clock = total, stream or sys.stdout, clock
        self._bar = self._stream.isatty()
        self._begin = clock()
        self._number, self._skipped, self._drawn, self._name = 0, 0, float("-inf"), ""
        self._begun = False
        """Whether a line waits for its result."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._begun and not self._bar:
            self.say("failed" if isinstance(error, Exception) else "interrupted")
        self._wipe()

    def skip(self) -> None:
        """One needs no work; it gets no line, and does not count for the time left."""
        self._number, self._skipped = self._number + 1, self._skipped + 1
        self._draw()

    def next(self, name: str) -> None:
        """Begin with the next one."""
        self._number, self._name, self._begun = self._number + 1, one_line(name), True
        self._draw(at_once=True)
        if not self._bar:
            self._stream.write(f"[{self._number}/{self._total}] {self._name} ... ")
            self._stream.flush()

    def beat(self) -> None:
        """A tile is done: draw the bar again."""
        self._draw()

    def say(self, text: str) -> None:
        """Print this one's result; several lines are possible."""
        self._begun = False
        self._wipe()
        begin = f"[{self._number}/{self._total}] {self._name} ... " if self._bar else ""
        self._stream.write(wrapped(f"{begin}{text}", 4, self._stream) + "\n")
        self._stream.flush()

    def _draw(self, at_once: bool = False) -> None:
        now = self._clock()
        if not self._bar or (now - self._drawn < _AGAIN and not at_once):
            return
        self._drawn = now
        done = max(0, self._number - 1)
        worked = done - self._skipped
        full = round(_BAR * done / max(self._total, 1))
        took = now - self._begin
        left = f", {_clock(took / worked * (self._total - done))} left" if worked > 0 else ""
        text = f"{'█' * full}{'·' * (_BAR - full)} {self._number} of {self._total}, {_clock(took)}{left}  {self._name}"
        self._stream.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
        self._stream.flush()

    def _wipe(self) -> None:
        if self._bar:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
