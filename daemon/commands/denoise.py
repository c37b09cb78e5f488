"""`emdenoised denoise`: the named files and folders, now, without drop folder or ledger."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath

from daemon.commands.one_file import maker
from daemon.commands.progress import Progress
from daemon.commands.shared import require_profile, settings_file
from daemon.errors import UsageError
from daemon.logs import one_line
from daemon.settings import config as settings
from daemon.settings import names
from daemon.settings.config import Arrival


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
    progress, failed = Progress(len(named)), 0
    with maker(config, options.out, options.profile, progress) as make:
        for path, relative in named.items():
            progress.next(str(path if path in options.files else relative))
            failed += make.make(path, relative) is not None
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
