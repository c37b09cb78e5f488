"""Deleted rows, and files whose results were purged: remembered, so that they are not denoised again automatically."""

import os
from collections.abc import Callable, Iterable

from daemon.ledger.connection import LedgerConnection
from daemon.ledger.job import Job


class PurgedFiles(LedgerConnection):
    """The table `purged`: path, size and modification time of raw files without a job."""

    _clock: Callable[[], float]

    def purge(self, jobs: Iterable[Job]) -> int:
        """Delete these jobs, unless they have changed meanwhile; returns how many.

        Their files count as known until they change or `readmit` is called. Of a file with several revisions the last
        of `jobs` is remembered.
        """
        with self._transaction():
            count = 0
            for job in jobs:
                if self._delete(job):
                    count += 1
                    file = os.fsencode(job.path), job.size, str(job.mtime_ns)
                    self._db.execute("INSERT OR REPLACE INTO purged VALUES (?, ?, ?)", file)
            return count

    def drop(self, jobs: Iterable[Job]) -> int:
        """Delete these jobs, unless they have changed meanwhile; returns how many. Their files are forgotten."""
        with self._transaction():
            return sum(self._delete(job) for job in jobs)

    def purged(self) -> list[str]:
        """Paths of purged files, relative to the drop folder."""
        with self._explained():
            return [os.fsdecode(row[0]) for row in self._db.execute("SELECT path FROM purged ORDER BY path")]

    def readmit(self, paths: Iterable[str]) -> int:
        """Purged files -> pending; a running service takes them at once. Returns how many."""
        now = self._clock()
        query = (
            "INSERT OR IGNORE INTO jobs (path, revision, size, mtime_ns, state, live, created, updated) "
            "SELECT path, 1, size, mtime_ns, 'pending', 0, ?, ? FROM purged WHERE path = ?"
        )
        with self._transaction():
            count = 0
            for path in paths:
                count += self._db.execute(query, (now, now, os.fsencode(path))).rowcount
                self._not_purged(path)
            return count

    def forget_purged(self, paths: Iterable[str]) -> int:
        """Forget purged files, whose raw files are gone; returns how many."""
        with self._transaction():
            return sum(self._not_purged(path) for path in paths)

    def _not_purged(self, path: str) -> int:
        return self._db.execute("DELETE FROM purged WHERE path = ?", (os.fsencode(path),)).rowcount

    def _delete(self, job: Job) -> int:
        query = "DELETE FROM jobs WHERE id = ? AND state = ? AND updated = ?"
        return self._db.execute(query, (job.id, job.state, job.updated)).rowcount
