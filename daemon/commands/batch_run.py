"""Runs one shard of a batch, and prints the counts of all."""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from pathlib import Path, PurePosixPath
from types import FrameType

from daemon.backends import manifest as weights_of
from daemon.batch.existing import Existing
from daemon.batch.manifest import FOLDER, BatchManifest, Entry
from daemon.batch.shard import EndedError, Shard
from daemon.batch.shard_log import ShardLog, failures, marks
from daemon.batch.survey import FileCounts, survey
from daemon.commands.one_file import Failed, Maker, failed, maker
from daemon.commands.progress import Progress
from daemon.errors import BackendError, EmdenoisedError, MicrographError, ServerError, TransientError
from daemon.formats.decoder import Reader
from daemon.logs import one_line
from daemon.output.disk import Mounted, require_filled
from daemon.settings.config import Config

_MOST_IN_A_ROW = 3
"""So often may the network fail, each time at another file, before the shard gives up."""


class _Interruptible(Progress):
    """Also ends the work, between two tiles, once SIGTERM has come: the end of a job's time, or a removed pod."""

    asked = False

    def beat(self) -> None:
        self.require()
        super().beat()

    def require(self) -> None:
        """Raise EndedError if the shard was asked to end."""
        if self.asked:
            if self._begun:  # it is not this file that ended the shard
                self.say("interrupted")
            raise EndedError("asked to end (SIGTERM); the same command continues from here")

    @contextmanager
    def listening(self) -> Iterator[None]:
        def ask(_signal: int, _frame: FrameType | None) -> None:
            self.asked = True

        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def run_shard(options: argparse.Namespace, config: Config, manifest: BatchManifest, shard: Shard) -> int:
    """Denoise the files of a shard that have no result; 0 if all have one now, else 1.

    Raises TransientError (StorageError among them), BackendError or EndedError if the shard could not be gone through.
    """
    out, total = options.out, shard.share(manifest.entries)
    log = ShardLog(out, shard, manifest.sha256)
    progress = _Interruptible(total)
    with _existing(options, config) as existing, progress, progress.listening(), log.running():
        run = _Run(options, config, manifest, existing, log, progress)
        if shard.number == 0:  # once in the batch
            run.denied(manifest.denied)
        run.all(manifest.of(shard))
    print(f"shard {shard}: {run.done} done now, {run.existing} done before, {run.failed} failed")
    if run.failed:
        print(f"failures: {log.failures}; the same command tries them again")
    return 1 if run.failed else 0


class _Run:
    """One run of a shard, and its counts."""

    def __init__(
        self,
        options: argparse.Namespace,
        config: Config,
        manifest: BatchManifest,
        existing: Existing,
        log: ShardLog,
        progress: _Interruptible,
    ) -> None:
        self.done = self.existing = self.failed = 0
        self._config, self._profile, self._log, self._progress = config, options.profile, log, progress
        self._source, self._out, self._existing = manifest.source, options.out, existing
        self._top = os.path.realpath(self._source)
        self._mounted = (Mounted(self._source, name="micrographs"), Mounted(self._out))

    def denied(self, paths: tuple[str, ...]) -> None:
        """Report what could not be listed."""
        for below in paths:
            text = f"{self._source / below}: may not be read; give the right to, remove the manifest and start again"
            print(one_line(text), file=sys.stderr)
            self._fail(Entry(below, 0, 0), Failed("may not be read", PermissionError(text)))

    def all(self, entries: Iterator[Entry]) -> None:
        """Each file, in networks that are opened when the first needs them, and again after one has failed."""
        in_a_row, to_do = 0, self._to_do(entries)
        for first in to_do:
            with maker(self._config, self._out, self._profile, self._progress) as make:
                for entry in chain((first,), to_do):
                    try:
                        self._one(entry, make)
                    except ServerError:  # no file's fault
                        raise
                    except BackendError as error:
                        in_a_row += 1
                        self._fail(entry, failed(self._progress, str(error), error))
                        if in_a_row == _MOST_IN_A_ROW:
                            raise
                        break
                    in_a_row = 0

    def _to_do(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """The entries without a result; that at which the shard was killed last, so that the others get theirs."""
        last: list[Entry] = []
        for entry in entries:
            self._progress.require()
            if self._existing.of(self._source / entry.path, entry.path):
                self.existing += 1
                self._progress.skip()
            elif entry.path == self._log.suspect:
                last.append(entry)
            else:
                yield entry
        yield from last

    def _one(self, entry: Entry, make: Maker) -> None:
        self._progress.require()
        self._progress.next(entry.path)
        for one in self._mounted:
            one.require()
        self._log.at(entry.path)
        failure = self._attempt(self._source / entry.path, entry, make)
        if failure is None:
            self.done += 1
            return
        if isinstance(failure.error, OSError | TransientError):  # of this file, or of the whole share?
            require_filled(self._source)
        self._fail(entry, failure)

    def _attempt(self, path: Path, entry: Entry, make: Maker) -> Failed | None:
        if path.is_symlink() or not Path(os.path.realpath(path)).is_relative_to(self._top):
            cause = "is a symbolic link or lies behind one, which is not followed; copy the file itself"
            return failed(self._progress, cause, MicrographError(f"{path}: {cause}"))
        try:
            return make.make(path, PurePosixPath(entry.path))
        except EmdenoisedError:
            raise
        except Exception as error:  # a defect of this program costs one micrograph, and not those after it
            return failed(self._progress, f"internal error, please report it: {error!r}", error)

    def _fail(self, entry: Entry, failure: Failed) -> None:
        self.failed += 1
        self._log.failed(entry.now(self._source), failure.cause, failure.error)


def print_status(options: argparse.Namespace, config: Config, manifest: BatchManifest, shard: Shard) -> int:
    """Print counts and estimates; 0 if all is done, 1 if the rest failed, 75 if there is more to do."""
    out = options.out
    with _existing(options, config) as existing, Progress(shard.share(manifest.entries), sys.stderr) as progress:
        counts = survey(manifest, shard, manifest.source, existing, failures(out), progress=progress.skip)
    require_filled(manifest.source)
    failed = counts.failed + (len(manifest.denied) if shard.number == 0 else 0)
    print(f"{one_line(str(manifest.source))} → {one_line(str(out))}, {manifest}")
    print(f"done    {counts.done:>9,} of {shard.share(manifest.entries):,}")
    print(f"failed  {failed:>9,}" + (f"  {out / FOLDER}/failed-*.jsonl" if failed else ""))
    print(f"to do   {counts.to_do:>9,}  {counts.bytes_to_do / 1e9:,.1f} GB")
    for line in (*_estimates(counts), *(f"begun, not ended: shard {one}" for one in map(one_line, marks(out)))):
        print(line)
    return os.EX_TEMPFAIL if counts.to_do else 1 if failed else 0


@contextmanager
def _existing(options: argparse.Namespace, config: Config) -> Iterator[Existing]:
    weights = weights_of.load_weights(config)
    with Reader(config.backend.max_pixels, config.backend.decode_seconds) as reader:
        yield Existing(options.out, config, weights, options.profile, reader if options.verify else None)


def _estimates(counts: FileCounts) -> Iterator[str]:
    if not counts.to_do:
        return
    if counts.seconds is not None:
        hours = counts.seconds * counts.to_do / 3600
        yield f"took    {counts.seconds:>9.2f} s a file so far: {hours:,.1f} h for one shard alone"
    minutes = counts.span.total_seconds() / 60
    if counts.left is None:
        yield f"rate            0 in the last {minutes:.0f} min"
    else:
        yield f"rate    {counts.recent:>9,} in the last {minutes:.0f} min: {_long(counts.left)} left"


def _long(time: timedelta) -> str:
    hours = time.total_seconds() / 3600
    return f"{hours / 24:,.1f} days" if hours >= 48 else f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"
