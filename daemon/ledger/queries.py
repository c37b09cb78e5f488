"""Queries of the ledger: single jobs, counts, lists by time and by folder. They never change it."""

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from daemon.ledger import names
from daemon.ledger.connection import LedgerConnection
from daemon.ledger.database import LedgerError
from daemon.ledger.job import Job, State, from_row
from daemon.settings.names import folded

PROBLEM = "acknowledged IS NULL AND (state = 'quarantined' OR (state = 'done' AND verdict = 'reject'))"
"""In SQL, as the index `problems` has it: quarantined or rejected, and nobody has marked it as seen."""
_COUNT_PROBLEMS = f"SELECT count(*) FROM jobs INDEXED BY problems WHERE {PROBLEM}"
_PAGE = 500


class Queries(LedgerConnection):
    """The table `jobs`."""

    _clock: Callable[[], float]

    def get(self, job_id: int) -> Job:
        """The present state of a job. Raises LedgerError if there is none."""
        with self._explained():
            job = self._one("SELECT * FROM jobs WHERE id = ?", job_id)
        if job is None:
            raise LedgerError(f"{self.path}: there is no job {job_id}")
        return job

    def counts(self) -> dict[State, int]:
        """How many jobs are in each state."""
        found: dict[State, int] = {"pending": 0, "running": 0, "retry": 0, "done": 0, "quarantined": 0}
        with self._explained():
            rows = self._db.execute("SELECT state, jobs FROM tally")
            found.update({row["state"]: row["jobs"] for row in rows})
        return found

    def problems(self) -> int:
        """How many micrographs are quarantined or rejected and not acknowledged."""
        with self._explained():
            return int(self._db.execute(_COUNT_PROBLEMS).fetchone()[0])

    def busy(self) -> bool:
        """Whether any job is pending or running."""
        counts = self.counts()
        return counts["pending"] + counts["running"] > 0

    def oldest_waiting(self) -> float:
        """Seconds since the job that has waited longest was first seen; 0 if none waits."""
        first = "SELECT created FROM jobs WHERE state = 'pending' AND live = {} ORDER BY id LIMIT 1"
        parts = [f"SELECT * FROM ({first.format(live)})" for live in (0, 1)]
        parts += [f"SELECT min(created) AS created FROM jobs WHERE state = '{state}'" for state in ("retry", "running")]
        with self._explained():
            row = self._db.execute(f"SELECT min(created) FROM ({' UNION ALL '.join(parts)})").fetchone()
        return 0.0 if row[0] is None else max(0.0, self._clock() - row[0])

    def recent(
        self,
        limit: int,
        state: State | None = None,
        verdict: str | None = None,
        before: tuple[float, int] | None = None,
    ) -> list[Job]:
        """The jobs that changed last, newest first; only those with `state` and `verdict`, if given.

        `before`: only those older than this (updated, id), the last of an earlier page.
        """
        stated = {"state = ?": state, "verdict = ?": verdict, "updated <= ?": before and before[0]}
        given = {rule: value for rule, value in stated.items() if value is not None}
        rules = [*given] + ["(updated, id) < (?, ?)"] * (before is not None)
        where = f"WHERE {' AND '.join(rules)}" if rules else ""
        query = f"SELECT * FROM jobs {where} ORDER BY updated DESC, id DESC LIMIT ?"
        with self._explained():
            return self._many(query, *given.values(), *(before or ()), limit)

    def each(self, state: State, *, newest_first: bool = False, updated_before: float | None = None) -> Iterator[Job]:
        """Every job in a state, by the time of its change, read a page at a time: other threads do not wait long."""
        order, after = ("DESC", "<") if newest_first else ("ASC", ">")
        end = float("inf") if updated_before is None else updated_before
        here = (float("inf"), 1 << 62) if newest_first else (float("-inf"), -1)
        query = (
            f"SELECT * FROM jobs WHERE state = ? AND (updated, id) {after} (?, ?) AND updated < ? "
            f"ORDER BY updated {order}, id {order} LIMIT {_PAGE}"
        )
        while True:
            with self._explained():
                page = self._many(query, state, *here, end)
            yield from page
            if not page:
                return
            here = page[-1].updated, page[-1].id

    def below(self, glob: str) -> list[Job]:
        """The done and quarantined jobs in the sub-folders that a glob matches and below them, newest first.

        Neither letter case matters, nor how accents are composed.
        """
        wanted = folded(glob)

        @cache
        def inside(folder: str) -> bool:
            parts = folder.split("/") if folder else []
            return any(fnmatchcase("/".join(parts[: depth + 1]), wanted) for depth in range(len(parts)))

        with self._explained():
            rows = self._db.execute("SELECT job, name FROM names WHERE instr(name, ?)", (names.certain(wanted),))
            numbers = [job for job, name in rows if inside(names.decode(name).rpartition("/")[0])]
        found: list[Job] = []
        for begin in range(0, len(numbers), _PAGE):
            page = numbers[begin : begin + _PAGE]
            marks = ", ".join("?" * len(page))  # with + SQLite reads no index of the states
            ended = f"SELECT * FROM jobs WHERE id IN ({marks}) AND +state IN ('done', 'quarantined')"
            with self._explained():
                found += self._many(ended, *page)
        return sorted(found, key=lambda job: (job.updated, job.id), reverse=True)

    def _one(self, query: str, *values: object) -> Job | None:
        jobs = self._many(query, *values)
        return jobs[0] if jobs else None

    def _many(self, query: str, *values: Any) -> list[Job]:
        return [from_row(row) for row in self._db.execute(query, values)]
