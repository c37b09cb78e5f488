"""Ledgers for tests: a clock by hand, short pauses, and the steps of a job that must succeed."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger
from daemon.settings.config import Retry

RETRY = Retry(first_seconds=5, factor=2, longest_seconds=600, attempts=4)


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def start(folder: Path, clock: Clock | None = None) -> Ledger:
    return Ledger(folder, retry=RETRY, clock=clock or Clock())


def arrive(ledger: Ledger, path: str = "a.tif", size: int = 100, mtime_ns: int = 1, live: bool = True) -> Job:
    job = ledger.register(path, size, mtime_ns, live=live)
    assert job is not None
    return job


def claim(ledger: Ledger, live_first: bool = True) -> Job:
    job = ledger.claim(live_first)
    assert job is not None
    return job


def killed(folder: Path, copy: Path) -> Path:
    """The state folder as a kill -9 at this moment leaves it: the database still open, its log not merged.

    Another process copies it: closing the files here would drop the locks of the connection that is open.
    """
    subprocess.run(["cp", "-r", folder, copy], check=True)
    return copy
