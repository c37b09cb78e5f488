"""The manifest of a batch: the micrographs below a folder, listed once and then never changed.

One text file: a header, a line [path, bytes, modification time in ns] for each micrograph, and a last line with the
SHA-256 of all lines before it. All lines are JSON.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from daemon.arrival.folder import micrographs_below
from daemon.arrival.tracker import Sighting
from daemon.batch.shard import Shard
from daemon.errors import ConfigError, MicrographError, TransientError, UsageError
from daemon.output.disk import explained_writing, flush, place, temporary_files
from daemon.settings.config import Arrival

FOLDER = ".emdenoised-batch"
"""In the folder of the results: everything that a batch keeps besides results."""
_NAME = "manifest.jsonl"
_WRITER, _SCHEMA = "emdenoised batch", 1
_TAIL = 1 << 12
_DENIED = os.strerror(errno.EACCES)


@dataclass(frozen=True, slots=True)
class Entry:
    """A micrograph's file when it was listed."""

    path: str
    """Below the listed folder, "/" between folders; bytes that are not UTF-8 as surrogates (PEP 383)."""
    size: int
    """Bytes."""
    mtime_ns: int

    def now(self, source: Path) -> "Entry":
        """The same file below `source` as it is now; as it was listed if that cannot be determined."""
        try:
            state = (source / self.path).lstat()
        except OSError:
            return self
        return Entry(self.path, state.st_size, state.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class BatchManifest:
    """A manifest whose hash was compared."""

    file: Path
    source: Path
    """The listed folder."""
    made: datetime
    entries: int
    size: int
    """Bytes of all files."""
    sha256: str
    denied: tuple[str, ...] = ()
    """Sub-folders and files below `source` that could not be examined for want of rights."""

    def of(self, shard: Shard) -> Iterator[Entry]:
        """The entries of a shard, in the order of their paths; read line by line."""
        with self.file.open("rb") as stream:
            stream.readline()
            for index in range(self.entries):
                line = stream.readline()
                if shard.has(index):
                    yield Entry(*json.loads(line))

    def __str__(self) -> str:
        return f"manifest {self.sha256[:12]} of {self.made:%Y-%m-%d %H:%M} UTC"


def load(out: Path) -> BatchManifest | None:
    """The manifest of a batch with results in `out`; None if there is none.

    Raises ConfigError if it is damaged, StorageError or TransientError if it cannot be read now.
    """
    file = out / FOLDER / _NAME
    with explained_writing(out, file):
        try:
            with file.open("rb") as stream:
                end = stream.seek(0, os.SEEK_END)
                stream.seek(max(0, end - _TAIL))
                last = stream.read().rstrip(b"\n").rpartition(b"\n")[2]
                body = end - len(last) - 1
                stream.seek(0)
                header = stream.readline(_TAIL)
                stream.seek(0)
                sha256 = _digest(stream, body)
        except FileNotFoundError:
            return None
    try:
        first, footer = json.loads(header), json.loads(last)
        if (first["writer"], first["schema"], footer["sha256"]) != (_WRITER, _SCHEMA, sha256):
            raise ValueError
        denied = tuple(map(str, first["denied"]))
        made = datetime.fromisoformat(first["made"])
        return BatchManifest(
            file, Path(first["source"]), made, int(footer["entries"]), int(footer["bytes"]), sha256, denied
        )
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{file}: is damaged or of another version; remove it, and the same command lists the micrographs again"
        ) from error


def freeze(source: Path, out: Path, arrival: Arrival) -> BatchManifest:
    """List the micrographs below `source` and keep the list in `out`; a list that exists already is kept instead.

    Raises UsageError as `micrographs_below` does and if no micrographs may be read,
    TransientError if the folder cannot be listed in full now, StorageError if the list cannot be written now.
    """
    sightings, denied = _listed(source, out, arrival)
    folder = out / FOLDER
    with explained_writing(out, folder / _NAME), temporary_files() as temporary:
        folder.mkdir(exist_ok=True)
        draft = temporary(folder)
        _write(draft, source, sightings, denied)
        flush(draft)
        with suppress(MicrographError):  # another process has listed the folder meanwhile: its list counts for all
            place(draft, folder / _NAME, folder / _NAME)
        flush(folder)
    made = load(out)
    if made is None:
        raise TransientError(f"{folder / _NAME}: was removed at once; run the same command again")
    return made


def _listed(source: Path, out: Path, arrival: Arrival) -> tuple[list[Sighting], list[str]]:
    sightings, unreadable = micrographs_below(source, out, arrival)
    denied = []
    for below, reason in unreadable:
        if reason != _DENIED:
            raise TransientError(f"{source / below}: cannot be listed now ({reason}); run the same command again")
        denied.append(below)
    if not sightings:
        raise UsageError(f"{source / min(denied)}: may not be read, and there are no other micrographs; give the right")
    return sightings, sorted(denied)


def _write(file: Path, source: Path, sightings: Iterable[Sighting], denied: list[str]) -> None:
    sha256, entries, size = hashlib.sha256(), 0, 0
    with file.open("wb") as stream:

        def put(value: Any) -> None:
            line = json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"
            sha256.update(line)
            stream.write(line)

        made = datetime.now(timezone.utc).isoformat(timespec="seconds")
        put({"writer": _WRITER, "schema": _SCHEMA, "made": made, "source": str(source), "denied": denied})
        for one in sightings:
            put([one.path, one.size, one.mtime_ns])
            entries, size = entries + 1, size + one.size
        put({"entries": entries, "bytes": size, "sha256": sha256.hexdigest()})


def _digest(stream: Any, length: int) -> str:
    sha256 = hashlib.sha256()
    while length > 0 and (block := stream.read(min(length, 1 << 20))):
        sha256.update(block)
        length -= len(block)
    return sha256.hexdigest()
