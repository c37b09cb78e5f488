"""`emdenoised denoise`: the named files and folders, now, without drop folder or ledger."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from daemon.commands.progress import Progress
from daemon.commands.shared import micrographs, opened, require_profile, settings_file
from daemon.commands.terminal import coloured
from daemon.errors import MicrographError, StorageError, TransientError, UsageError
from daemon.logs import one_line
from daemon.settings import config as settings
from daemon.settings import names
from daemon.settings.config import Arrival, Config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.backends.manifest import Weights
    from daemon.backends.protocol import Backend
    from daemon.formats.decoder import Reader
    from daemon.output.record import Record
    from daemon.service.steps import Work


def denoise(options: argparse.Namespace) -> int:
    """The named files, and the micrographs below the named folders; 0 if each has its result."""
    config = settings.load(settings_file(options))
    require_profile(config, options.profile)
    if options.passes is not None:
        config = settings.with_profiles(config, passes=options.passes)
    named, unreadable = _found(options.files, options.out, config.arrival)
    for problem in unreadable:
        print(one_line(problem), file=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    progress = Progress(len(named))
    with opened(config, progress) as (weights, backends, reader):
        failed = _denoise_all(options, named, config, weights, backends, reader, progress)
    return 1 if failed or unreadable else 0


def _found(given: Sequence[Path], out: Path, arrival: Arrival) -> tuple[dict[Path, PurePath], list[str]]:
    """Files, and the micrographs below folders, each with its name below `out`; and what cannot be listed, in words.

    That name is the path below the folder, and of several arguments begins with the folder's own name. Raises
    UsageError for a folder without micrographs or one that is `out` itself, FolderGoneError.
    """
    from daemon.arrival.rules import wants
    from daemon.arrival.watcher import scan

    found: dict[Path, PurePath] = {}
    unreadable: list[str] = []
    results = os.path.realpath(out)
    arrival = arrival.model_copy(update={"recursive": True})
    for path, name in names.told_apart(given).items():
        if not path.is_dir():
            found[path] = name
            continue
        if os.path.realpath(path) == results:
            raise UsageError(f"{path}: is the folder for the results, too; choose another with -o")
        listing, number = scan(path, arrival), len(found)
        unreadable += [f"{path / below}: cannot be read ({reason})" for below, reason in listing.unreadable]
        for below in sorted(one.path for one in listing.sightings if wants(arrival, one.path)):
            if not Path(os.path.realpath(path / below)).is_relative_to(results):
                found[path / below] = PurePath(below) if len(given) == 1 else name / below
        if len(found) == number and not listing.unreadable:
            raise UsageError(f"{path}: has no micrographs; their names end in {', '.join(arrival.extensions)}")
    return found, unreadable


def _denoise_all(
    options: argparse.Namespace,
    named: "Mapping[Path, PurePath]",
    config: Config,
    weights: "dict[str, Weights]",
    backends: "dict[str, Backend]",
    reader: "Reader",
    progress: Progress,
) -> int:
    """Returns how many failed."""
    failed, reported = 0, set[str]()
    for path, relative in named.items():
        progress.next(str(path if path in options.files else relative))
        try:
            for one in micrographs(config, weights, path, relative, reader, options.profile):
                _denoise(config, backends, one, options.out, progress, reported)
        except StorageError:
            raise
        except (MicrographError, TransientError) as error:
            failed += 1
            cause = one_line(str(error).removeprefix(f"{path}: ").removeprefix(f"{path.resolve()}: "))
            progress.say(f"{coloured('failed')}\n    {cause}")
        except OSError as error:
            failed += 1
            progress.say(f"{coloured('failed')}\n    {error.strerror}")
        except MemoryError:
            failed += 1
            progress.say(f"{coloured('failed')}\n    not enough memory for this micrograph; close other programs")
    return failed


def _denoise(
    config: Config, backends: "Mapping[str, Backend]", one: "Work", out: Path, progress: Progress, reported: set[str]
) -> None:
    """Denoise and write one, unless `out` has the same result. `reported` as in `steps.Finished.news`."""
    from daemon.output import writing
    from daemon.service import steps

    which = "" if one.section is None else f"{one.section}: "
    if (found := writing.find_same(out, one.relative, steps.made_with(config, one))) is not None:
        progress.say(f"{which}{_in_words(found.content)} → {found.image} (existing result)")
        return
    backend = backends[one.choice.profile.weights]
    with steps.timed(one.seconds, "network"):
        (denoised,) = backend.denoise([one.plane])
    finished = steps.finish(config, one, denoised, out, same_settings=True)
    adopted = " (existing result)" if finished.written.adopted else ""
    seconds = sum(finished.seconds.values())
    summary = f"{coloured(finished.verdict)}, {finished.dose}, profile {finished.profile}, {seconds:.1f} s"
    warnings = "".join(f"\n    warning: {warning}" for warning in finished.news(reported))
    progress.say(f"{which}{summary} → {finished.written.image}{adopted}{warnings}")


def _in_words(record: "Record") -> str:
    dose = "dose unknown" if record.dose is None else f"{record.dose:.3g} counts per pixel"
    profile = "unknown" if record.profile is None else record.profile.name
    return f"{coloured((record.verdict and record.verdict.word) or 'no verdict')}, {dose}, profile {profile}"
