"""`emdenoised denoise`: the named files and folders, now, without drop folder or ledger."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath

from daemon.commands.one_file import maker
from daemon.commands.progress import Progress
from daemon.commands.shared import settings_for_files
from daemon.logs import one_line
from daemon.settings import names
from daemon.settings.config import Arrival


def denoise(options: argparse.Namespace) -> int:
    """The named files, and the micrographs below the named folders; 0 if each has its result."""
    config = settings_for_files(options, options.passes)
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

    That name is the path below the folder, and of several arguments begins with the folder's own name. Raises as
    `micrographs_below` does.
    """
    from daemon.arrival.folder import micrographs_below

    found: dict[Path, PurePath] = {}
    unreadable: list[str] = []
    for path, name in names.distinct_names(given).items():
        if not path.is_dir():
            found[path] = name
            continue
        sightings, problems = micrographs_below(path, out, arrival)
        unreadable += [f"{path / below}: cannot be read ({reason})" for below, reason in problems]
        for one in sightings:
            found[path / one.path] = PurePath(one.path) if len(given) == 1 else name / one.path
    return found, unreadable
