"""The work of readers and writers on one micrograph, and the outcome of each kind of error."""

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from daemon.backends.manifest import Weights
from daemon.backends.protocol import OUT_OF_MEMORY
from daemon.counts.plane import Denoised
from daemon.errors import MicrographError, ReaderMissingError, StorageError, TransientError
from daemon.files import is_folder
from daemon.formats import RawFile
from daemon.formats.decoder import Reader
from daemon.ledger.database import LedgerUnavailableError
from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger
from daemon.output import paths, writing
from daemon.output.disk import Mounted
from daemon.service import fingerprints, sections, steps
from daemon.service.accounts import Accounts
from daemon.service.blockage import Blockage
from daemon.service.inference import Claimed
from daemon.service.metrics import Metrics
from daemon.settings.config import Config

log = logging.getLogger(__name__)


class Workers:
    """Used by several threads. A step returns True when the job has ended, False after `put` (to the network)."""

    def __init__(
        self,
        config: Config,
        weights: dict[str, Weights],
        ledger: Ledger,
        accounts: Accounts,
        metrics: Metrics,
        blockage: Blockage,
        put: Callable[[Claimed], None],
    ) -> None:
        self.output = Mounted(config.folders.output)
        self._config, self._weights, self._ledger, self._put = config, weights, ledger, put
        self._accounts, self._metrics, self._blockage = accounts, metrics, blockage
        self._reader = Reader(config.backend.max_pixels, config.backend.decode_seconds, root=config.folders.drop)
        self._reported: defaultdict[str, set[str]] = defaultdict(set)
        """By folder: codes of the session's warnings that the log holds."""

    def close(self) -> None:
        """Close the reader."""
        self._reader.close()

    def by_section(self, relative: str) -> bool | None:
        """Whether a file of the drop folder is a stack whose sections are taken one by one: see `sections.grows`."""
        path = self._config.folders.drop / relative
        return sections.grows(self._reader, self._config, path, relative)

    def read(self, job: Job) -> bool:
        """Hash and read a job's file or its next section; adopt a result that an earlier run finished."""
        self.output.require()
        path = self._config.folders.drop / job.path
        if job.sections or self.by_section(job.path):
            return self._read_section(job, path)
        raw = fingerprints.fingerprint(RawFile(path, self._config.folders.drop), self._config.backend.max_pixels)
        if (raw.size, raw.mtime_ns) != (job.size, job.mtime_ns):
            raise fingerprints.ChangedError(
                f"{path}: changed after it had settled; it is read once it has settled again"
            )
        relative = PurePosixPath(job.path)
        if self._done_before(job, raw.sha256):
            return True
        adopted = writing.find_adoptable(self._config.folders.output, relative, job.revision, raw.sha256)
        if adopted is not None:
            self._accounts.finish(job, str(adopted.image), "adopted", **adopted.content.summary)
            log.info("adopted %r: its result was finished before the service last stopped", job.path)
            return True
        seconds: dict[str, float] = {}
        with steps.timed(seconds, "read"):
            found = sections.whole(self._reader, self._config, path, job.path)
        if found is None:
            return self._read_section(job, path)
        one = steps.read(self._config, self._weights, path, relative, raw, self._reader, job.warning, None, found)
        one.seconds.update(seconds)
        self._put(Claimed(job, one))
        return False

    def _read_section(self, job: Job, path: Path) -> bool:
        """Read the next section of a stack, which may still grow."""
        if job.sections:
            _, first = sections.read(self._reader, path, 1)
            if first.sha256 != job.sha256:
                log.info("%r is another stack than before: it is revision %d", job.path, job.revision + 1)
                self._ledger.replaced(job)
                return True
            if job.sections >= first.of:  # only its time was touched
                self._accounts.finish(job, job.output or "", "unchanged", sections=job.sections)
                return True
        number = job.sections + 1
        relative = paths.section_name(job.path, number)
        micrograph, section = sections.read(self._reader, path, number, job.sha256 if job.sections else None)
        taking = sections.taking(self._config, job.path, micrograph)
        adopted = writing.find_adoptable(self._config.folders.output, relative, job.revision, section.sha256, number)
        if adopted is not None:
            entries = {**section.for_ledger, **adopted.content.summary}
            self._accounts.finish(job, str(adopted.image), "adopted", **entries)
            log.info("adopted %s of %r: it was finished before", section, job.path)
            return True
        micrograph = sections.noted(micrograph, taking)
        one = steps.prepare(self._config, self._weights, path, relative, section.raw, micrograph, job.warning)
        self._put(Claimed(job, replace(one, section=section)))
        return False

    def _done_before(self, job: Job, sha256: str) -> bool:
        """Finish a job if an earlier revision with the same bytes has a result: only the file's time has changed."""
        same = self._ledger.same_content(job, sha256)
        if same is None or same.output is None:
            return False
        self._accounts.finish(job, same.output, "unchanged", verdict=same.verdict, facts=same.facts)
        log.info("unchanged %r: same bytes as revision %d, whose result stands", job.path, same.revision)
        return True

    def write(self, claimed: Claimed, denoised: Denoised) -> bool:
        """Judge and write a denoised micrograph."""
        job = claimed.job
        self.output.require()
        section = claimed.work.section
        # An earlier revision with the same bytes may have been finished meanwhile.
        if section is None and self._done_before(job, claimed.work.raw.sha256):
            return True
        finished = steps.finish(self._config, claimed.work, denoised, self._config.folders.output, job.revision)
        self._accounts.finish(
            job,
            str(finished.written.image),
            "adopted" if finished.written.adopted else "done",
            profile=finished.profile,
            timings=finished.seconds,
            warning="; ".join(finished.warnings) or None,
            **finished.written.content.summary,
            **(section.for_ledger if section else {}),
        )
        self._blockage.over()
        self._metrics.finished(finished.seconds, claimed.work.raw.size or 0, finished.spikes, finished.verdict)
        name = job.path if section is None else f"{job.path} ({section})"
        text = finished.describe(name, job.revision, self._reported[job.path.rpartition("/")[0]])
        log.info("%s", text, extra={"micrograph": job.path, "outcome": "done"})
        return True

    def attempt(self, job: Job, step: Callable[..., bool], *arguments: object) -> bool:
        """Run one step of a job. An error ends or postpones this job only: True is returned for it."""
        try:
            return step(*arguments)
        except MicrographError as error:
            self._accounts.quarantine(job, str(error))
        except StorageError as error:
            if (pause := self._blockage.refused(error)) is not None:
                log.error("%s; the queue is kept and everything waits %.0f s", error, pause)
            self._accounts.release(job)
        except LedgerUnavailableError as error:
            log.error("%s; %r is done later", error, job.path)
            self._accounts.release(job)
        except ReaderMissingError as error:
            self._accounts.hold(job, str(error))
        except TransientError as error:
            if self._blockage.holds or not is_folder(self._config.folders.drop):
                self._blockage.missing(error)
                self._accounts.release(job)
            elif isinstance(error, fingerprints.ChangedError):
                self._accounts.forget(job, str(error))
            elif fingerprints.gone(self._config.folders.drop / job.path):
                self._accounts.forget(job, "it was gone before it could be read; if it comes back, it is denoised then")
            else:
                self._accounts.postpone(job, str(error))
        except MemoryError:
            self._accounts.quarantine(job, f"{job.path}: {OUT_OF_MEMORY}")
        except Exception as error:
            # A defect of this program costs one micrograph and not the session; the attempts are limited.
            log.debug("traceback", exc_info=True)
            self._accounts.postpone(job, f"{job.path}: internal error, please report it: {error!r}")
        return True
