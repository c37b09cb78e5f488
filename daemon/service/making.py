"""What readers and writers do with one micrograph, and what becomes of it where something goes wrong."""

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from daemon.backends.manifest import Weights
from daemon.backends.protocol import OUT_OF_MEMORY
from daemon.counts.plane import Denoised
from daemon.errors import MicrographError, ReaderMissingError, StorageError, TransientError
from daemon.formats.decoder import Reader
from daemon.ledger.database import LedgerUnavailableError
from daemon.ledger.jobs import Job, Ledger
from daemon.output import paths, writing
from daemon.output.disk import Mounted
from daemon.service import raw_file, sections, steps
from daemon.service.accounts import Accounts
from daemon.service.blockage import Blockage
from daemon.service.inference import Claimed
from daemon.service.metrics import Metrics
from daemon.settings.config import Config

log = logging.getLogger(__name__)


class Making:
    """Called by several threads. Each step returns whether the job is done; `put` takes one to the network instead."""

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
        self._reader = Reader(config.backend.max_pixels, config.backend.decode_seconds, below=config.folders.drop)
        self._said: defaultdict[str, set[str]] = defaultdict(set)
        """By folder: codes of remarks of a session that the log has."""

    def close(self) -> None:
        """No reading any more."""
        self._reader.close()

    def by_section(self, relative: str) -> bool | None:
        """Whether a file of the drop folder is a stack whose sections are taken one by one: see `sections.grows`."""
        path = self._config.folders.drop / relative
        return sections.grows(self._reader, self._config, path, relative)

    def read(self, job: Job) -> bool:
        """Hash and read a job's file, or its next section; what an earlier run finished is adopted."""
        self.output.require()
        path = self._config.folders.drop / job.path
        if job.sections or self.by_section(job.path):
            return self._read_section(job, path)
        raw = raw_file.fingerprint(path, self._config.backend.max_pixels, self._config.folders.drop)
        if (raw.size, raw.mtime_ns) != (job.size, job.mtime_ns):
            raise raw_file.ChangedError(f"{path}: changed after it had settled; it is read once it has settled again")
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
        """The next section of a stack that is not done yet; the stack may be growing."""
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
        adopted = writing.find_adoptable(self._config.folders.output, relative, job.revision, section.sha256)
        if adopted is not None:
            told = {**section.told, **adopted.content.summary}
            self._accounts.finish(job, str(adopted.image), "adopted", **told)
            log.info("adopted %s of %r: it was finished before", section, job.path)
            return True
        micrograph = sections.noted(micrograph, taking)
        one = steps.prepare(self._config, self._weights, path, relative, section.raw, micrograph, job.warning)
        self._put(Claimed(job, replace(one, section=section)))
        return False

    def _done_before(self, job: Job, sha256: str) -> bool:
        """Finish a job whose file was only touched: an earlier revision with the same bytes has its result."""
        same = self._ledger.same_content(job, sha256)
        if same is None or same.output is None:
            return False
        self._accounts.finish(job, same.output, "unchanged", verdict=same.verdict, facts=same.facts)
        log.info("unchanged %r: same bytes as revision %d, whose result stands", job.path, same.revision)
        return True

    def write(self, claimed: Claimed, denoised: Denoised) -> bool:
        """Judge and write what the network made."""
        job = claimed.job
        self.output.require()
        section = claimed.work.section
        # It may have been touched while its earlier revision was in hand.
        if section is None and self._done_before(job, claimed.work.raw.sha256):
            return True
        outcome = steps.finish(self._config, claimed.work, denoised, self._config.folders.output, job.revision)
        self._accounts.finish(
            job,
            str(outcome.written.image),
            "adopted" if outcome.written.adopted else "done",
            profile=outcome.profile,
            timings=outcome.seconds,
            warning="; ".join(outcome.warnings) or None,
            **outcome.written.content.summary,
            **(section.told if section else {}),
        )
        self._blockage.over()
        self._metrics.finished(outcome.seconds, claimed.work.raw.size or 0, outcome.spikes, outcome.verdict)
        told = {"micrograph": job.path, "outcome": "done"}
        name = job.path if section is None else f"{job.path} ({section})"
        log.info("%s", outcome.describe(name, job.revision, self._said[job.path.rpartition("/")[0]]), extra=told)
        return True

    def attempt(self, job: Job, step: Callable[..., bool], *arguments: object) -> bool:
        """Run one step; whatever goes wrong with this file is this file's fate."""
        try:
            return step(*arguments)
        except MicrographError as error:
            self._accounts.quarantine(job, str(error))
        except StorageError as error:
            pause = self._blockage.refused(error)
            log.error("%s; the queue is kept and everything waits %.0f s", error, pause)
            self._accounts.release(job)
        except LedgerUnavailableError as error:
            log.error("%s; %r is done later", error, job.path)
            self._accounts.release(job)
        except ReaderMissingError as error:
            self._accounts.hold(job, str(error))
        except TransientError as error:
            if self._blockage.holds or not self._config.folders.drop.is_dir():
                self._blockage.missing(error)
                self._accounts.release(job)
            elif isinstance(error, raw_file.ChangedError):
                self._accounts.forget(job, str(error))
            elif raw_file.gone(self._config.folders.drop / job.path):
                self._accounts.forget(job, "it was gone before it could be read; should it come back, it is done then")
            else:
                self._accounts.postpone(job, str(error))
        except MemoryError:
            self._accounts.quarantine(job, f"{job.path}: {OUT_OF_MEMORY}")
        except Exception as error:
            # A defect of ours must cost one micrograph and not the session; the attempts are limited.
            log.debug("traceback", exc_info=True)
            self._accounts.postpone(job, f"{job.path}: internal error, please report it: {error!r}")
        return True
