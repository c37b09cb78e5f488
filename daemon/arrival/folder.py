"""All micrographs below a folder, listed once: for commands that are given folders, instead of the watched one."""

import os
from pathlib import Path

from daemon.arrival.rules import wants
from daemon.arrival.tracker import Sighting
from daemon.arrival.watcher import scan
from daemon.errors import UsageError
from daemon.settings.config import Arrival


def micrographs_below(folder: Path, results: Path, arrival: Arrival) -> tuple[list[Sighting], list[tuple[str, str]]]:
    """Micrographs in a folder and its sub-folders, by path, and what cannot be listed, each with the reason.

    What lies in `results` is left out; symbolic links are not followed. Raises UsageError if there are no micrographs
    and if `results` is the folder or holds it, FolderGoneError if the folder itself cannot be listed.
    """
    top, out = os.path.realpath(folder), os.path.realpath(results)
    if out == top:
        raise UsageError(f"{folder}: is the folder for the results, too; choose another with -o")
    if Path(top).is_relative_to(out):
        raise UsageError(f"{results}: holds the micrographs, among which results could land; choose another with -o")
    arrival = arrival.model_copy(update={"recursive": True})
    listing, inside = scan(folder, arrival), os.path.relpath(out, top) + "/"
    found = [one for one in listing.sightings if wants(arrival, one.path) and not one.path.startswith(inside)]
    if not found and not listing.unreadable:
        raise UsageError(f"{folder}: has no micrographs; their names end in {', '.join(arrival.extensions)}")
    return sorted(found, key=lambda one: one.path), listing.unreadable
