"""The order of the queue: new micrographs first, and a share of the turns for the backlog."""

from dataclasses import dataclass


@dataclass
class Lanes:
    """Chooses the lane of the next micrograph: the newest live one, but every `backlog_every`-th time the oldest of the
    backlog. Without a backlog, that turn goes to the oldest live one, so that no lane starves.
    """

    backlog_every: int
    """At least 1 (always the oldest first)."""
    _turn: int = 0

    def live_next(self) -> bool:
        """Whether it is the live lane's turn; each call is one turn."""
        self._turn = (self._turn + 1) % self.backlog_every
        return self._turn != 0
