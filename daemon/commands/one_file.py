"""One file from its bytes to its results, for the commands that use neither drop folder nor ledger."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from daemon.commands.progress import Progress
from daemon.commands.shared import micrographs, opened
from daemon.commands.terminal import coloured, in_words
from daemon.errors import MicrographError, StorageError, TransientError
from daemon.logs import one_line
from daemon.settings.config import Config

if TYPE_CHECKING:
    from daemon.backends.manifest import Weights
    from daemon.backends.protocol import Backend
    from daemon.formats.decoder import Reader
    from daemon.output.record import Record
    from daemon.service.steps import Work


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a file has no result, or not all of its sections have one."""

    cause: str
    """In words on one line, without the file's path."""
    error: Exception


def failed(progress: Progress, cause: str, error: Exception) -> Failed:
    """Show the cause, and return it."""
    found = Failed(one_line(cause), error)
    progress.say(f"{coloured('failed')}\n    {found.cause}")
    return found


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes results below `out`, with open networks and reader, and reports each to `progress`."""

    config: Config
    weights: "dict[str, Weights]"
    backends: "Mapping[str, Backend]"
    reader: "Reader"
    out: Path
    profile: str | None
    progress: Progress
    _reported: set[str] = field(default_factory=set)
    """As in `steps.Finished.news`."""

    def make(self, path: Path, relative: PurePath) -> Failed | None:
        """Denoise a file, or each of its sections, unless `out` has the same result; None if all have one.

        Raises StorageError if no result can be written now, BackendError if the network can no longer run.
        """
        try:
            for one in micrographs(self.config, self.weights, path, relative, self.reader, self.profile):
                self._denoise(one)
        except StorageError:
            raise
        except (MicrographError, TransientError) as error:
            cause = str(error).removeprefix(f"{path}: ").removeprefix(f"{path.resolve()}: ")
            again = "; run the same command again" if isinstance(error, TransientError) else ""
            return failed(self.progress, f"{cause}{again}", error)
        except OSError as error:
            return failed(self.progress, in_words(error), error)
        except MemoryError as error:
            return failed(self.progress, "not enough memory for this micrograph; close other programs", error)
        return None

    def _denoise(self, one: "Work") -> None:
        from daemon.output import writing
        from daemon.service import steps

        which = "" if one.section is None else f"{one.section}: "
        found = writing.find_same(self.out, one.relative, steps.made_with(self.config, one))
        if found is not None:
            self.progress.say(f"{which}{_in_words(found.content)} → {one_line(str(found.image))} (existing result)")
            return
        backend = self.backends[one.choice.profile.weights]
        with steps.timed(one.seconds, "network"):
            (denoised,) = backend.denoise([one.plane])
        finished = steps.finish(self.config, one, denoised, self.out, same_settings=True)
        adopted = " (existing result)" if finished.written.adopted else ""
        seconds = sum(finished.seconds.values())
        summary = f"{coloured(finished.verdict)}, {finished.dose}, profile {finished.profile}, {seconds:.1f} s"
        warnings = "".join(f"\n    warning: {warning}" for warning in finished.news(self._reported))
        self.progress.say(f"{which}{summary} → {one_line(str(finished.written.image))}{adopted}{warnings}")


@contextmanager
def maker(config: Config, out: Path, profile: str | None, progress: Progress) -> Iterator[Maker]:
    """A `Maker` whose networks and reader are closed at the end. Raises as `shared.opened`."""
    with opened(config, progress) as (weights, backends, reader):
        yield Maker(config, weights, backends, reader, out, profile, progress)


def _in_words(record: "Record") -> str:
    dose = "dose unknown" if record.dose is None else f"{record.dose:.3g} counts per pixel"
    profile = "unknown" if record.profile is None else record.profile.name
    return f"{coloured((record.verdict and record.verdict.word) or 'no verdict')}, {dose}, profile {profile}"
