"""Counts of a batch: done, failed, to do, and for how long."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from daemon.batch.existing import Existing
from daemon.batch.manifest import BatchManifest
from daemon.batch.shard import Shard
from daemon.batch.shard_log import Failure
from daemon.output.record import Record

WINDOW = timedelta(minutes=15)
"""The rate is that of results that were finished in it."""


@dataclass(frozen=True, slots=True)
class FileCounts:
    """Of the files of a batch, or of one shard of it."""

    done: int
    failed: int
    to_do: int
    bytes_to_do: int
    recent: int
    """Files whose results were finished in the last `span`."""
    span: timedelta
    """`WINDOW`, or the time since the manifest was made if that is shorter."""
    seconds: float | None
    """Mean time that a file took, of those done; None without any."""

    @property
    def left(self) -> timedelta | None:
        """Time left at the present rate; None if nothing was finished lately."""
        return self.span / self.recent * self.to_do if self.recent else None


def survey(
    manifest: BatchManifest,
    shard: Shard,
    source: Path,
    existing: Existing,
    failures: Mapping[str, Failure],
    now: datetime | None = None,
    progress: Callable[[], None] = lambda: None,
) -> FileCounts:
    """Count. `progress` is called for each file."""
    now = now or datetime.now(timezone.utc)
    span = max(min(WINDOW, now - manifest.made), timedelta(seconds=1))
    done = failed = to_do = bytes_to_do = recent = 0
    seconds = 0.0
    for entry in manifest.of(shard):
        progress()
        if records := existing.of(source / entry.path, entry.path):
            done += 1
            recent += any(_finished_since(record, now - span) for record in records)
            seconds += sum(sum(record.seconds.values()) for record in records)
        elif (failure := failures.get(entry.path)) is not None and failure.concerns(entry.now(source)):
            failed += 1
        else:
            to_do, bytes_to_do = to_do + 1, bytes_to_do + entry.size
    return FileCounts(done, failed, to_do, bytes_to_do, recent, span, seconds / done if done else None)


def _finished_since(record: Record, begin: datetime) -> bool:
    try:
        return record.finished is not None and datetime.fromisoformat(record.finished) >= begin
    except (ValueError, TypeError):  # changed by hand
        return False
