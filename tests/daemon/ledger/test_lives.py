"""Any order of arrivals, work, failures and crashes, drawn by chance."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from ledgers import Clock, killed, start

from daemon.ledger.job import Job


class Lives(RuleBasedStateMachine):
    """Any order of arrivals, work, failures and crashes: every version of every file ends once, or still waits."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.folder = self.root / "0"
        self.clock = Clock()
        self.ledger = start(self.folder, self.clock)
        self.lives = 0
        self.running: list[Job] = []
        self.finished: set[tuple[str, int]] = set()
        self.latest: dict[str, int] = {}

    @rule(path=st.sampled_from("abc"), version=st.integers(1, 4), live=st.booleans())
    def arrives(self, path: str, version: int, live: bool) -> None:
        known = self.ledger.known(path, 1, version)
        job = self.ledger.register(path, 1, version, live=live)
        assert (job is None) == known
        if job is not None:
            assert (path, version) not in self.finished
            self.latest[path] = version

    @rule(live_first=st.booleans())
    def claims(self, live_first: bool) -> None:
        if (job := self.ledger.claim(live_first)) is not None:
            assert job.id not in {one.id for one in self.running}
            assert (job.path, job.mtime_ns) not in self.finished
            self.running.append(job)

    @precondition(lambda self: self.running)
    @rule(end=st.sampled_from(["finish", "fail", "quarantine", "release"]))
    def ends(self, end: str) -> None:
        job = self.running.pop(0)
        match end:
            case "finish":
                self.ledger.finish(job, "x")
                self.finished.add((job.path, job.mtime_ns))
            case "fail":
                self.ledger.fail_transient(job, "locked")
            case "quarantine":
                self.ledger.quarantine(job, "bad")
            case "release":
                self.ledger.release(job)

    @rule(seconds=st.sampled_from([1.0, 60.0, 3600.0, -3600.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def everything_is_tried_again(self) -> None:
        self.ledger.retry()

    @rule()
    def dies_and_starts_again(self) -> None:
        self.lives += 1
        after = killed(self.folder, self.root / str(self.lives))
        self.ledger.close()
        self.folder, self.ledger = after, start(after, self.clock)
        recovered = {job.id for job in self.ledger.recover()}
        assert recovered == {job.id for job in self.running}
        self.running.clear()

    @invariant()
    def counts_are_what_counting_gives(self) -> None:
        rows = self.ledger._db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall()
        assert {state: number for state, number in self.ledger.counts().items() if number} == dict(rows)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.ledger.counts()["done"] == len(self.finished)
        assert self.ledger.counts()["running"] == len(self.running)
        assert all(self.ledger.known(path, 1, version) for path, version in self.latest.items())

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.root)


TestLives = Lives.TestCase


TestLives.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
