"""Purging a project: its results, their records and previews, and its rows in the ledger. Never a raw file."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import get_args

from daemon.ledger.job import Job, State
from daemon.ledger.jobs import Ledger
from daemon.live_page.picture_cache import PictureCache
from daemon.output import disk, preview
from daemon.output.paths import JobImage, beside, preview_path, results_of
from daemon.output.record import WRITER, Record, read_record
from daemon.service.fingerprints import gone
from daemon.settings.config import Config

_AT_ONCE = 500
"""Rows that are deleted in one transaction: a running service waits no longer than this takes."""


@dataclass(slots=True)
class Purged:
    """What was removed, or with `dry_run` what would be."""

    results: int = 0
    size: int = 0
    """Bytes of results, records and previews."""
    rows: int = 0
    running: int = 0
    """Micrographs in work, which were left out."""
    left: list[Path] = field(default_factory=list)
    """Files under the name of a result that no record names."""

    def __str__(self) -> str:
        size = f"{self.size / 2**30:.2f} GiB"
        return f"{self.results} results with record and preview ({size}), {self.rows} micrographs in the ledger"


def below(path: str, folders: Sequence[PurePosixPath]) -> bool:
    """Whether a path, relative to the drop folder, lies in one of these folders."""
    return any(PurePosixPath(path).is_relative_to(folder) for folder in folders)


def purge(config: Config, ledger: Ledger, folders: Sequence[PurePosixPath], *, dry_run: bool) -> Purged:
    """Remove what was made of the micrographs in `folders` (relative to the drop folder); `dry_run` only counts.

    Only files that a record of this program names are removed, and folders that become empty. Raises LedgerError,
    LedgerUnavailableError, TransientError if there are results and the output folder is missing or empty, and OSError
    if a file cannot be removed: its row stays then, and the next purge continues there.
    """
    purged, batch = Purged(), list[Job]()
    mounted = False
    for job in _jobs(ledger, folders):
        if job.state == "running":
            purged.running += 1
            continue
        for image in results_of(job):
            if not mounted:  # or the ledger would forget results that come back with their share
                disk.require_filled(config.folders.output)
                mounted = True
            _remove(config.folders.output, image, purged, dry_run)
        batch.append(job)
        if len(batch) == _AT_ONCE:
            purged.rows += _forget(config, ledger, batch, dry_run)
            batch = []
    purged.rows += _forget(config, ledger, batch, dry_run)
    if purged.rows and not dry_run:
        PictureCache(config.folders.pictures, config.keep.page_mib << 20).clear()
    return purged


def _jobs(ledger: Ledger, folders: Sequence[PurePosixPath]) -> Iterator[Job]:
    for state in get_args(State):
        yield from (job for job in ledger.each(state) if below(job.path, folders))


def _forget(config: Config, ledger: Ledger, jobs: Sequence[Job], dry_run: bool) -> int:
    if dry_run:
        return len(jobs)
    drop = config.folders.drop
    absent = {job.id for job in jobs if gone(drop / job.path)} if drop.is_dir() else set()
    kept = sorted((job for job in jobs if job.id not in absent), key=lambda job: job.revision)
    return ledger.purge(kept) + ledger.drop(job for job in jobs if job.id in absent)


def _remove(root: Path, result: JobImage, purged: Purged, dry_run: bool) -> None:
    """Remove an image, its preview and, last, its record, by which an interrupted purge finds the others again."""
    image = result.image
    if not image.is_relative_to(root):  # made with another output folder
        purged.left += [image] if image.exists() else []
        return
    try:
        with disk.held(image.parent, root) as here:
            name = here / image.name
            record = read_record(beside(name, ".json"))
            if record is None or record.output.name != image.name or not _is_of(record, result):
                purged.left += [image] if name.exists() else []
                return
            picture = preview_path(name)
            ours = [name, beside(name, ".json")]
            if preview.written_by(picture) == WRITER:
                ours.insert(0, picture)
            purged.results += 1
            for file in ours:
                with suppress(FileNotFoundError):
                    purged.size += file.lstat().st_size
                    if not dry_run:
                        file.unlink()
        if not dry_run:
            _remove_empty(root, image.parent)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):  # no such folder, or a link in its place
            raise


def _is_of(record: Record, result: JobImage) -> bool:
    """Older records do not state the path below the drop folder."""
    return record.raw.relative in (None, str(result.relative))


def _remove_empty(root: Path, folder: Path) -> None:
    with suppress(OSError):  # not empty
        while folder != root:
            folder.rmdir()
            folder = folder.parent
