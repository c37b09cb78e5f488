"""Limits for what would grow without end: previews, and the ledger's rows."""

import logging
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from daemon.files import is_folder
from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger
from daemon.output import preview
from daemon.output.paths import preview_path
from daemon.output.record import WRITER
from daemon.service.fingerprints import gone
from daemon.settings.config import Config

log = logging.getLogger(__name__)

DAY = 86_400.0
_AT_ONCE = 500
_SWEPT = 5000
"""Results in a row without a preview, beyond the limit, after which an earlier run has removed all older ones."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed, or what `dry_run` would have removed."""

    previews: int
    preview_bytes: int
    rows: int

    def __str__(self) -> str:
        size = f"{self.preview_bytes / 2**30:.2f} GiB"
        return f"{self.previews} previews ({size}), {self.rows} micrographs in the ledger whose raw files are gone"


def prune(
    config: Config,
    ledger: Ledger,
    *,
    dry_run: bool = False,
    wanted: Callable[[], bool] = lambda: True,
    clock: Callable[[], float] = time.time,
) -> Pruned:
    """Bring previews and ledger within `config.keep`; `dry_run` only counts.

    Results, their JSON and raw files are never touched. Rows are only dropped, and purged files forgotten, if their raw
    file certainly does not exist. Stops early once `wanted` returns False. Raises LedgerError, LedgerUnavailableError.
    """
    previews, size = _prune_previews(config, ledger, dry_run, wanted)
    rows = _prune_rows(config, ledger, dry_run, wanted, clock)
    return Pruned(previews, size, rows)


def _prune_previews(config: Config, ledger: Ledger, dry_run: bool, wanted: Callable[[], bool]) -> tuple[int, int]:
    """Remove the oldest previews beyond the limit; their number and bytes."""
    previews = size = missing = 0
    if config.keep.previews_gib is None:
        return previews, size
    left = config.keep.previews_gib * 2**30
    for job in ledger.each("done", newest_first=True):
        if not wanted() or (left < 0 and missing > _SWEPT):
            break
        picture = preview_path(Path(job.output or ""))
        length = _length(picture)
        missing = 0 if length else missing + 1
        left -= length
        if length and left < 0 and (dry_run or _remove(picture)):
            previews, size = previews + 1, size + length
    return previews, size


def _prune_rows(
    config: Config, ledger: Ledger, dry_run: bool, wanted: Callable[[], bool], clock: Callable[[], float]
) -> int:
    """Drop old rows, and purged files, whose raw file certainly does not exist; the number of rows."""
    rows = 0
    if config.keep.ledger_days is None or not is_folder(config.folders.drop):
        return rows
    before = clock() - config.keep.ledger_days * DAY
    for state in ("done", "quarantined"):
        batch: list[Job] = []
        for job in ledger.each(state, updated_before=before):
            if not wanted():
                break
            if gone(config.folders.drop / job.path):
                rows += 1
                batch.append(job)
            if len(batch) == _AT_ONCE:
                rows -= 0 if dry_run else len(batch) - ledger.drop(batch)
                batch = []
        rows -= 0 if dry_run else len(batch) - ledger.drop(batch)
    if not dry_run:  # a list: no share is asked while the ledger is locked
        ledger.forget_purged([path for path in ledger.purged() if wanted() and gone(config.folders.drop / path)])
    return rows


def _length(picture: Path) -> int:
    """Bytes of a regular file; 0 if there is none."""
    try:
        found = picture.lstat()
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _remove(picture: Path) -> bool:
    """Remove a preview, if this program wrote it; returns whether it did."""
    try:
        if preview.written_by(picture) != WRITER:
            return False
        picture.unlink()
    except OSError as error:
        log.debug("%s: %s", picture, error)
        return False
    return True
