"""What a shard leaves beside the manifest: failures, one JSON line each, and a mark while it runs."""

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from daemon.batch.manifest import FOLDER, Entry
from daemon.batch.shard import Shard
from daemon.output.disk import clean_temporary, explained_writing, temporary_prefix

_FAILED, _RUNNING = "failed", "running"
_LINE_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that could not be denoised; `size` and `mtime_ns` are those of the file then."""

    path: str
    cause: str
    error: str
    """Name of the class of the error."""
    size: int
    mtime_ns: int
    time: str
    manifest: str
    host: str
    job: str | None
    """SLURM's number of the job, or the pod's name."""

    def concerns(self, entry: Entry) -> bool:
        """Whether it is of this state of the file: a file that has changed since may well succeed."""
        return (self.path, self.size, self.mtime_ns) == (entry.path, entry.size, entry.mtime_ns)


class ShardLog:
    """The log of one shard below `out`."""

    def __init__(self, out: Path, shard: Shard, manifest: str) -> None:
        self.suspect: str | None = None
        """The file at which an earlier run of the shard was killed: it may have been too large for the memory."""
        self._out, self._manifest = out, manifest
        self._begun = {
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "job": _job(),
            "begun": _now(),
            "temporary": temporary_prefix(),
        }
        self.failures = out / FOLDER / f"{_FAILED}-{shard.file_name}.jsonl"
        self._mark = out / FOLDER / f"{_RUNNING}-{shard.file_name}.json"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Mark the shard as running. Temporary files of a run that was killed are removed first, if it was on this
        computer or in an earlier start of the same job.

        Raises StorageError if nothing can be written now.
        """
        with explained_writing(self._out, self._mark):
            if self._mark.exists():
                earlier = _read(self._mark)
                self.suspect = earlier.get("at")
                same = earlier.get("job") is not None and earlier["job"] == self._begun["job"]
                clean_temporary(self._out, earlier.get("temporary") if same else None)
        self.at(None)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self._mark.unlink(missing_ok=True)

    def at(self, path: str | None) -> None:
        """Note the file that is denoised now. Raises StorageError if that cannot be written now."""
        with explained_writing(self._out, self._mark):
            self._mark.write_text(json.dumps({**self._begun, "at": path}) + "\n", encoding="ascii")

    def failed(self, entry: Entry, cause: str, error: Exception) -> None:
        """Add a failure. Raises StorageError if it cannot be written now."""
        failure = Failure(
            entry.path, cause, type(error).__name__, entry.size, entry.mtime_ns, _now(), self._manifest,
            os.uname().nodename, _job(),
        )  # fmt: skip
        line = json.dumps(asdict(failure)).encode("ascii") + b"\n"
        # In one call, so that lines of two processes do not mix.
        with explained_writing(self._out, self.failures), self.failures.open("ab", buffering=0) as stream:
            stream.write(line)


def failures(out: Path) -> dict[str, Failure]:
    """The latest failure of each file, by its path, of all shards. Lines that were cut by a crash are left out."""
    latest: dict[str, Failure] = {}
    for file in sorted((out / FOLDER).glob(f"{_FAILED}-*.jsonl")):
        with file.open("rb") as stream:
            while line := stream.readline(_LINE_LIMIT):
                with contextlib.suppress(ValueError, TypeError):
                    found = Failure(**json.loads(line))
                    if found.path not in latest or latest[found.path].time <= found.time:
                        latest[found.path] = found
    return latest


def marks(out: Path) -> list[str]:
    """Shards that have begun and not ended, in words: they run, or were killed."""
    found = []
    for file in sorted((out / FOLDER).glob(f"{_RUNNING}-*.json")):
        one = _read(file)
        job = f", job {one['job']}" if one.get("job") else ""
        at = f", at {one['at']}" if one.get("at") else ""
        name = file.stem.removeprefix(f"{_RUNNING}-").replace("-of-", "/")
        found.append(f"{name} on {one.get('host', 'unknown')}{job}, since {one.get('begun', 'unknown')}{at}")
    return found


def _read(mark: Path) -> dict[str, str]:
    """What a mark states; nothing where it was cut or has gone."""
    try:
        found = json.loads(mark.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return {}
    return {name: text for name, text in found.items() if isinstance(text, str)} if isinstance(found, dict) else {}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _job() -> str | None:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        return f"{array}_{task}"
    return os.environ.get("SLURM_JOB_ID") or (os.uname().nodename if "JOB_COMPLETION_INDEX" in os.environ else None)
