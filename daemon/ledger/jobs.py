"""The jobs: one for each revision of each file, in one SQLite file (WAL) on a local disk.

The ledger is also the queue: `Ledger.claim` takes the next job from it. Each public method is one transaction, except
that `retry` and `acknowledge` change many jobs in portions. Commits are not forced to disk one by one: a power cut may
lose the last of them, but does not damage the file. The next scan finds such files again, and an image already written
is adopted by its JSON.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from daemon.ledger import names
from daemon.ledger.database import LedgerError, Mode
from daemon.ledger.job import Job, State
from daemon.ledger.purged import PurgedFiles
from daemon.ledger.queries import PROBLEM, Queries
from daemon.settings.config import Retry
from daemon.settings.names import folded

_HELD = "9e999"
"""Infinity in SQL: `not_before` of jobs whose reader is not installed."""
_UNDONE = (
    "state IN ('quarantined', 'retry') AND NOT EXISTS"
    " (SELECT 1 FROM jobs AS newer WHERE newer.path = jobs.path AND newer.revision > jobs.revision)"
)
"""In SQL: without a result, and the latest revision of its file."""
_WORST_FIRST = ("reject", "check", "good")
_PORTION = 100
"""Jobs that one transaction of `retry` and `acknowledge` changes: a service beside them does not wait long."""


class Ledger(PurgedFiles, Queries):
    """Opened on a state folder, closed by `close` or `with`. Used by any thread.

    `mode`: "own" for the service (creates and migrates; only one at a time), "edit" beside a running service
    (`emdenoised retry`), "read" (`emdenoised status`). Raises ConfigError if the folder cannot be made,
    LedgerLockedError if another service owns it, LedgerDamagedError, LedgerError if the file is foreign, missing (edit,
    read) or of another version. Any method raises LedgerUnavailableError while the disk is full or another process
    locks the file; those that write raise LedgerReplacedError if files were replaced (`require_in_place`).
    """

    def __init__(
        self, folder: Path, mode: Mode = "own", *, retry: Retry | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(folder, mode)
        self._retry = retry or Retry()
        self._clock = clock

    # Arrival

    def known(self, path: str, size: int, mtime_ns: int) -> bool:
        """Whether a file of this path, size and modification time was registered before: in any state, or purged."""
        with self._explained():
            return self._same(path, size, mtime_ns)

    def register(
        self,
        path: str,
        size: int,
        mtime_ns: int,
        *,
        live: bool,
        warning: str | None = None,
        refused: str | None = None,
        by_section: bool | None = False,
    ) -> Job | None:
        """Register a complete file: pending, or quarantined for the reason `refused`. None if it is known already.

        A file that changed is a new revision if the last one was processed; one that still waits, or was quarantined,
        has no output and is registered again under the same number. So is a stack that is processed `by_section`: it
        has grown, and its first sections are done. `by_section` None: as it was the last time.
        """
        file: dict[str, object] = {"size": size, "mtime_ns": str(mtime_ns)}
        state = "pending" if refused is None else "quarantined"
        new = {**file, "live": live, "state": state, "error": _text(refused), "warning": _text(warning)}
        with self._transaction():
            if self._same(path, size, mtime_ns):
                return None
            last = self._one("SELECT * FROM jobs WHERE path = ? ORDER BY revision DESC LIMIT 1", os.fsencode(path))
            if last is not None and (by_section or (by_section is None and last.sections)):
                if last.state == "running":  # `finish` sees that it has grown meanwhile
                    new = {"size": size, "mtime_ns": str(mtime_ns)}
                return self._move(last, (last.state,), **new, attempts=last.attempts if last.state == "running" else 0)
            waiting: tuple[State, ...] = ("pending", "retry", "quarantined")
            if last is not None and last.state in waiting:
                return self._move(last, waiting, **new, attempts=0, not_before=0.0, sha256=None, profile=None)
            now = self._clock()
            revision = 1 if last is None else last.revision + 1
            new |= {"path": os.fsencode(path), "revision": revision, "created": now, "updated": now}
            marks = ", ".join("?" * len(new))
            self._not_purged(path)
            row = self._db.execute(f"INSERT INTO jobs ({', '.join(new)}) VALUES ({marks})", tuple(new.values()))
            return self.get(int(row.lastrowid or 0))

    # The queue

    def claim(self, live_first: bool = True) -> Job | None:
        """Take the next job, now running: the newest live one, else the oldest of the backlog; None if none is due.

        `live_first=False`: the oldest of the backlog, else the oldest live one. The attempt is counted here, so that
        a file that makes the service crash is quarantined in the end (`recover`).
        """
        live = "SELECT id FROM jobs WHERE state = 'pending' AND live = 1 ORDER BY id {} LIMIT 1"
        backlog = "SELECT id FROM jobs WHERE state = 'pending' AND live = 0 ORDER BY id LIMIT 1"
        order = (live.format("DESC"), backlog) if live_first else (backlog, live.format("ASC"))
        with self._transaction():
            now = self._clock()
            awake = "UPDATE jobs SET state = 'pending' WHERE state = 'retry' AND not_before"
            self._db.execute(f"{awake} <= ?", (now,))
            # Later than the longest pause allows: the clock was set back.
            self._db.execute(f"{awake} > ? AND not_before < {_HELD}", (now + self._retry.longest_seconds,))
            for query in order:
                if (row := self._db.execute(query).fetchone()) is not None:
                    job = self.get(row["id"])
                    waited = max(0.0, now - max(job.updated, job.not_before))
                    taken = self._move(job, ("pending",), state="running", attempts=job.attempts + 1)
                    return replace(taken, waited=waited)
            return None

    def next_retry(self) -> float | None:
        """Seconds until the first retry is due, at least 0; None if none waits."""
        with self._explained():
            row = self._db.execute(
                f"SELECT min(not_before), max(not_before) FROM jobs WHERE state = 'retry' AND not_before < {_HELD}"
            ).fetchone()
        if row[0] is None:
            return None
        now = self._clock()
        return 0.0 if row[1] > now + self._retry.longest_seconds else max(0.0, row[0] - now)

    def same_content(self, job: Job, sha256: str) -> Job | None:
        """Store the file's hash and return a finished revision of this file with the same hash, if any.

        Only the file's time has changed then: `finish` this job with that one's output.
        """
        with self._transaction():
            self._move(job, ("running",), sha256=sha256)
            return self._one(
                "SELECT * FROM jobs WHERE path = ? AND sha256 = ? AND state = 'done' ORDER BY revision DESC LIMIT 1",
                os.fsencode(job.path),
                sha256,
            )

    def finish(
        self,
        job: Job,
        output: str,
        *,
        sha256: str | None = None,
        profile: str | None = None,
        timings: Mapping[str, float] | None = None,
        warning: str | None = None,
        verdict: str | None = None,
        facts: Mapping[str, Any] | None = None,
        sections: int = 0,
        more: bool = False,
    ) -> Job:
        """Running -> done, once `output` is written. None keeps the stored value.

        `sections`: how many of a stack are done now; the worst of their verdicts is kept. If there are `more`, or the
        stack has grown meanwhile -> pending.
        """
        changes = {"sha256": sha256, "profile": _text(profile), "warning": _text(warning)}
        kept: dict[str, object] = {name: value for name, value in changes.items() if value is not None}
        if facts is not None:
            kept |= {"verdict": verdict, "facts": json.dumps(dict(facts))}
        times = json.dumps(dict(timings or {}))
        with self._transaction():
            kept |= {"output": os.fsencode(output), "error": None, "timings": times}
            if sections:
                now = self.get(job.id)
                more = more or (now.size, now.mtime_ns) != (job.size, job.mtime_ns)
                kept |= {"sections": sections, "attempts": 0}
                if facts is not None and sections > 1:
                    kept["verdict"] = _worse(now.verdict, verdict)
            return self._move(job, ("running",), state="pending" if more else "done", **kept)

    def replaced(self, job: Job) -> Job:
        """Running -> pending: another stack has the name of one that was processed section by section."""
        changes: dict[str, object] = {"revision": job.revision + 1, "sections": 0, "sha256": None, "verdict": None}
        with self._transaction():
            return self._move(job, ("running",), state="pending", attempts=0, **changes)

    def fail_transient(self, job: Job, error: str) -> Job:
        """Running -> retry, after a pause that survives restarts; after the last attempt -> quarantined."""
        with self._transaction():
            attempts = self.get(job.id).attempts
            if attempts >= self._retry.attempts:
                reason = f"given up after {attempts} attempts: {error}"
                return self._move(job, ("running",), state="quarantined", error=_text(reason))
            due = self._clock() + self._retry.pause(attempts)
            return self._move(job, ("running",), state="retry", error=_text(error), not_before=due)

    def hold(self, job: Job, reason: str) -> Job:
        """Running -> retry until the next start or `retry`, no attempt counted: its reader is not installed."""
        with self._transaction():
            attempts = max(0, self.get(job.id).attempts - 1)
            changes = {"error": _text(reason), "attempts": attempts, "not_before": float("inf")}
            return self._move(job, ("running",), state="retry", **changes)

    def quarantine(self, job: Job, reason: str) -> Job:
        """Pending, retry or running -> quarantined, until the file changes or `retry` is called."""
        with self._transaction():
            return self._move(job, ("pending", "retry", "running"), state="quarantined", error=_text(reason))

    def release(self, job: Job) -> Job:
        """Running -> pending without counting the attempt: the service stops, or the output disk is full."""
        with self._transaction():
            attempts = max(0, self.get(job.id).attempts - 1)
            return self._move(job, ("running",), state="pending", attempts=attempts)

    def forget(self, job: Job) -> None:
        """Remove a running job: the file is gone or was replaced. The next scan that finds the file registers it again.

        A newer revision that still waits gets its number, so that its result has the plain name.
        """
        waiting = "state IN ('pending', 'retry', 'quarantined')"
        with self._transaction():
            self._move(job, ("running",), error=None)
            self._db.execute("DELETE FROM jobs WHERE id = ?", (job.id,))
            self._db.execute(
                f"UPDATE jobs SET revision = revision - 1 WHERE path = ? AND revision = ? AND {waiting}",
                (os.fsencode(job.path), job.revision + 1),
            )

    def recover(self, impatient: bool = False) -> list[Job]:
        """At the start: jobs that were running when the service died are pending again. Returns these.

        One that has used up its attempts in this way is quarantined: it probably made the service crash. Held jobs are
        due. `impatient`: so are all retries.
        """
        with self._transaction():
            found = []
            self._db.execute(f"UPDATE jobs SET not_before = 0 WHERE state = 'retry' AND not_before = {_HELD}")
            if impatient:
                self._db.execute("UPDATE jobs SET not_before = 0 WHERE state = 'retry'")
            for job in self._many("SELECT * FROM jobs WHERE state = 'running' ORDER BY id"):
                if job.attempts >= self._retry.attempts:
                    reason = f"given up after {job.attempts} attempts; the service died during the last one"
                    found.append(self._move(job, ("running",), state="quarantined", error=reason))
                else:
                    found.append(self._move(job, ("running",), state="pending"))
            return found

    def retry(self, pattern: str = "*", *, only: int | None = None) -> list[Job]:
        """Quarantined and waiting jobs whose relative path or name matches the glob -> pending, attempts set to 0.

        Neither letter case matters, nor how accents are composed. `only`: no other than the job of this number. An
        error leaves the jobs before it changed.
        """

        def again(job: Job) -> Job:
            return self._move(job, (job.state,), state="pending", attempts=0, not_before=0.0, error=None)

        return self._change(_UNDONE, pattern, only, again)

    def acknowledge(self, pattern: str = "*", *, only: int | None = None) -> list[Job]:
        """Mark open problems as seen by a person, chosen as by `retry`; returns these. Their state stays.

        If a later attempt at such a micrograph fails, also an automatic one, it is an open problem again.
        """

        def seen(job: Job) -> Job:
            now = self._clock()
            self._db.execute("UPDATE jobs SET acknowledged = ? WHERE id = ?", (now, job.id))
            return replace(job, acknowledged=now)

        return self._change(PROBLEM, pattern, only, seen)

    def _change(self, rule: str, pattern: str, only: int | None, change: Callable[[Job], Job]) -> list[Job]:
        """Change the jobs that `rule` (SQL), pattern and number choose, in portions; returns them as they are then."""
        wanted, rows = folded(pattern), "" if only is None else "id = ? AND "
        given = () if only is None else (only,)
        with self._explained():
            found = self._db.execute(
                f"SELECT id, name FROM jobs JOIN names ON job = id WHERE {rows}{rule} AND instr(name, ?) ORDER BY id",
                (*given, names.certain(wanted)),
            )
            numbers = [row["id"] for row in found if _matches(names.decode(row["name"]), wanted)]
        changed: list[Job] = []
        pause = 0.0
        for first in range(0, len(numbers), _PORTION):
            time.sleep(pause)  # SQLite has no queue: a waiting service polls, and would seldom find the file free
            with self._transaction():
                begin = time.monotonic()
                for number in numbers[first : first + _PORTION]:  # as they are now, since a service may run beside this
                    changed += map(change, self._many(f"SELECT * FROM jobs WHERE id = ? AND {rule}", number))
                pause = time.monotonic() - begin
        return changed

    # Rows

    def _same(self, path: str, size: int, mtime_ns: int) -> bool:
        same = "SELECT 1 FROM {} WHERE path = ? AND size = ? AND mtime_ns = ?"
        query = f"{same.format('jobs')} UNION ALL {same.format('purged')} LIMIT 1"
        return self._db.execute(query, (os.fsencode(path), size, str(mtime_ns)) * 2).fetchone() is not None

    def _move(self, job: Job, allowed: tuple[State, ...], **changes: Any) -> Job:
        now = self.get(job.id)
        if now.state not in allowed:
            raise LedgerError(f"{self.path}: {job.path} is {now.state} and not {' or '.join(allowed)}")
        if "state" in changes:
            changes["acknowledged"] = None
        columns = ", ".join(f"{name} = ?" for name in changes)
        values = (*changes.values(), self._clock(), job.id)
        self._db.execute(f"UPDATE jobs SET {columns}, updated = ? WHERE id = ?", values)
        return self.get(job.id)


def _matches(name: str, wanted: str) -> bool:
    return any(fnmatchcase(part, wanted) for part in (name, name.rpartition("/")[2]))


def _worse(one: str | None, other: str | None) -> str | None:
    return next((word for word in _WORST_FIRST if word in (one, other)), other)


def _text(text: str | None) -> str | None:
    """Text that SQLite stores: a message may hold a file's name with surrogates, which it does not take."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")
