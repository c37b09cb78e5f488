"""`emdenoised purge`: results and ledger rows of one project."""

import argparse
from pathlib import Path, PurePosixPath

from daemon.commands.shared import open_ledger, settings_of
from daemon.errors import UsageError
from daemon.logs import one_line
from daemon.settings.config import Config


def run_purge(options: argparse.Namespace) -> int:
    from daemon.service.purge import below, purge

    config = settings_of(options)
    folders = [_below_drop(config, named) for named in options.folders]
    edits = options.yes or options.again
    with open_ledger(config, "edit" if edits else "read") as ledger:
        if options.again:
            count = ledger.readmit(path for path in ledger.purged() if below(path, folders))
            print(f"{count} to be denoised again" if count else "nothing that was purged is in these folders")
            return 0
        purged = purge(config, ledger, folders, dry_run=not options.yes)
    for path in purged.left:
        print(f"left, because its record does not name it as a result of this program: {one_line(str(path))}")
    if purged.running:
        print(f"{purged.running} are being denoised at this moment: repeat the command for these")
    print(f"{'removed' if options.yes else 'would be removed'}: {purged}; raw files are not touched")
    if not (purged.results or purged.rows or purged.running):
        print(f"the ledger has no micrographs in {', '.join(map(str, folders))}, below {config.folders.drop}")
    elif not options.yes:
        print("nothing was removed; to remove it, repeat the command with --yes")
    return 0


def _below_drop(config: Config, named: str) -> PurePosixPath:
    """The folder relative to the drop folder. Raises UsageError for what is not below it."""
    drop = config.folders.drop
    relative = Path(named)
    if relative.is_absolute():
        if not relative.is_relative_to(drop):
            raise UsageError(f"{named!r}: is not below the drop folder {drop}")
        relative = relative.relative_to(drop)
    if not relative.parts or ".." in relative.parts:
        raise UsageError(f"{named!r}: name a sub-folder of the drop folder {drop}, such as 'grid 2'")
    return PurePosixPath(relative)
