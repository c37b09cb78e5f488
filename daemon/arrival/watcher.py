"""Scans the drop folder when needed, and keeps doing so whatever happens to it.

Only scans of the whole folder count. Events of the operating system only start a scan early: shares send none, queues
overflow, and a watch can fail silently. The next rescan finds files without events.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from daemon.arrival import rules
from daemon.arrival.tracker import Sighting
from daemon.errors import TransientError
from daemon.files import filesystem_type, is_folder, is_network
from daemon.settings.config import Arrival

log = logging.getLogger(__name__)

_SHORTEST_GAP = 0.1
"""Seconds between two scans, at least; and three times as long as a scan takes, so that a full folder on a slow
share never keeps more than a quarter of one processor busy."""

LONGEST_BACK_OFF = 30.0
"""Seconds between two attempts at a folder that is away, at most."""

# Without opening and reading, which the daemon does itself, and without writing, of which one file sends thousands;
# closing, moving and the settling scans suffice.
_HINTS: list[type[FileSystemEvent]] = [
    FileCreatedEvent,
    FileClosedEvent,
    FileMovedEvent,
    FileDeletedEvent,
    DirCreatedEvent,
    DirMovedEvent,
]


class FolderGoneError(TransientError):
    """The drop folder cannot be listed: unplugged, unmounted, renamed, or no longer permitted."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Result of one pass over the folder."""

    sightings: list[Sighting]
    """Micrographs by name, and the sidecars they may need."""
    unreadable: list[tuple[str, str]]
    """Sub-folders and files (relative path, reason) that could not be examined."""
    strangers: dict[str, str]
    """One example for each kind of ignored file: its ending → its relative path."""


@dataclass(frozen=True, slots=True)
class Scan:
    """A listing and when it was made (monotonic seconds). `interrupted`: the folder was unavailable before it."""

    listing: Listing
    began: float
    ended: float
    interrupted: bool


@dataclass(frozen=True, slots=True)
class WatchHealth:
    """How the drop folder is watched at present, in words for the status."""

    state: Literal["starting", "events", "polling", "degraded"]
    detail: str


def scan(root: Path, arrival: Arrival, *, inodes: bool = True) -> Listing:
    """List every regular file below `root` that `arrival` wants. Symbolic links are not followed.

    Names that are not UTF-8 are kept (PEP 383). `inodes=False` leaves inode numbers out, for filesystems that do
    not keep them. Raises FolderGoneError if `root` itself cannot be listed; other errors are in `unreadable`.
    """
    listing = Listing([], [], {})
    top = str(root)
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(f"{top}/{folder}") as entries:
                for entry in entries:
                    path = folder + entry.name
                    try:
                        _examine(entry, path, arrival, inodes, listing, folders)
                    except FileNotFoundError:
                        continue  # removed since the listing
                    except OSError as error:
                        listing.unreadable.append((path, _words(error)))
        except OSError as error:
            if not folder:
                raise FolderGoneError(
                    f"{root}: this folder cannot be listed: {_words(error)}; check name, share and permissions"
                ) from error
            if not isinstance(error, FileNotFoundError):
                listing.unreadable.append((folder.rstrip("/"), _words(error)))
    return listing


def _examine(
    entry: "os.DirEntry[str]", path: str, arrival: Arrival, inodes: bool, listing: Listing, folders: list[str]
) -> None:
    if entry.is_dir(follow_symlinks=False):
        if arrival.recursive and not rules.ignores(arrival, path):
            folders.append(path + "/")
    elif not entry.is_file(follow_symlinks=False):
        if not rules.ignores(arrival, path):
            listing.strangers.setdefault("symbolic link" if entry.is_symlink() else "special file", path)
    elif rules.wants(arrival, path) or rules.is_sidecar(arrival, path):
        found = entry.stat(follow_symlinks=False)
        listing.sightings.append(Sighting(path, found.st_size, found.st_mtime_ns, found.st_ino if inodes else 0))
    elif not rules.ignores(arrival, path):
        listing.strangers.setdefault(os.path.splitext(entry.name)[1].lower() or "no ending", path)  # noqa: PTH122


def _words(error: OSError) -> str:
    return error.strerror or str(error)


class _Hint(FileSystemEventHandler):
    """Ends the watcher's wait, and records that an event did it and not `wake`."""

    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake
        self.heard = False

    def on_any_event(self, event: FileSystemEvent) -> None:
        self.heard = True
        self._wake.set()


class Watcher:
    """Waits until a scan is due, scans, and restores its own watch. One thread uses it; `wake` may be called from any
    other.

        if watcher.wait(tracker.next_due()) and (found := watcher.scan()):
            tracker.observe(found.listing.sightings, found.ended, began=found.began, interrupted=found.interrupted)

    No method raises for the folder's failures: `health` reports them, `scan` returns None, and further attempts follow
    with growing pauses.
    """

    def __init__(
        self,
        root: Path,
        arrival: Arrival,
        *,
        clock: Callable[[], float] = time.monotonic,
        filesystem: Callable[[Path], str] = filesystem_type,
        observer: Callable[[], BaseObserver] = Observer,
        hint: threading.Event | None = None,
    ) -> None:
        self.health = WatchHealth("starting", "the folder has not been listed yet")
        self._root, self._arrival = root, arrival
        self._clock, self._filesystem, self._new_observer = clock, filesystem, observer
        self._hint = threading.Event() if hint is None else hint
        self._events = _Hint(self._hint)
        self._observer: BaseObserver | None = None
        self._woken = False
        self._identity: tuple[int, int] | None = None
        self._network = False
        self._polled_because = ""
        self._logged_unreadable: set[str] = set()
        self._logged_kinds: set[str] = set()
        self._earliest = self._latest = clock()
        self._back_off = 0.0
        self._missing_at_start = not is_folder(root)
        """Then whoever starts the service has reported it (`settings.folders.prepare`)."""

    def wait(self, until: float | None = None) -> bool:
        """Return True when a scan is due (an event, monotonic time `until`, the clock), False after `wake`."""
        while not self._woken:
            now = self._clock()
            wanted = self._latest
            if until is not None:
                wanted = min(wanted, until)
            if self._events.heard:
                wanted = now
            wanted = max(wanted, self._earliest)
            if now >= wanted:
                return True
            if self._hint.wait(wanted - now):
                self._hint.clear()
        self._woken = False
        return False

    def wake(self) -> None:
        """End a `wait` now, from another thread (the service stops, or something else needs the loop)."""
        self._woken = True
        self._hint.set()

    def scan(self) -> Scan | None:
        """List the folder now; None if it is unavailable, with the reason in `health`."""
        self._events.heard = False
        began = self._clock()
        try:
            self._settle_watch()
            listing = scan(self._root, self._arrival, inodes=not self._network)
        except FolderGoneError as gone:
            self._degrade(gone)
            return None
        ended = self._clock()
        interrupted = self._back_off > 0
        if interrupted:
            log.info("%s is back", self._root)
        self._back_off, self._missing_at_start = 0.0, False
        self.health = self._watching(listing)
        self._report(listing)
        interval = self._arrival.rescan_seconds if self._observer else self._arrival.poll_seconds
        self._earliest = ended + max(_SHORTEST_GAP, 3 * (ended - began))
        self._latest = ended + interval
        return Scan(listing, began, ended, interrupted)

    def close(self) -> None:
        """Stop the watch. The watcher is not used again."""
        self._stop_observer()

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settle_watch(self) -> None:
        """Start or renew the watch on the folder; before each listing, so that no file is missed between them."""
        try:
            found = self._root.stat()
        except OSError as error:
            raise FolderGoneError(
                f"{self._root}: the drop folder is missing ({_words(error)}); mount the share it is on, or create it"
            ) from error
        # A share may not keep inode numbers; it is polled, so only its device matters.
        identity = (found.st_dev, 0 if self._network else found.st_ino)
        if identity != self._identity:
            self._choose(identity)
            return
        if self._observer is not None and not (
            self._observer.is_alive() and all(emitter.is_alive() for emitter in self._observer.emitters)
        ):
            log.warning("%s: the watch for events has died; it is renewed", self._root)
            self._start_observer()

    def _choose(self, identity: tuple[int, int]) -> None:
        """Choose events or polling for a new folder: the first one, one mounted over it, or a replacement."""
        fstype = self._filesystem(self._root)
        network = is_network(fstype)
        if self._network and not network:
            # The empty mount point: with it, all files would count as removed.
            raise FolderGoneError(f"{self._root}: the share is not mounted (its place is on {fstype}); mount it again")
        if self._identity is not None:
            log.info("%s is another folder than before; it is watched again", self._root)
        self._identity = (identity[0], 0) if network else identity
        self._network = network
        if self._arrival.polling == "always" or (self._arrival.polling == "auto" and network):
            self._stop_observer()
            why = f"{fstype} sends no events" if self._arrival.polling == "auto" else "arrival.polling is always"
            if why != self._polled_because:  # a share that comes and goes is reported once
                self._polled_because = why
                log.info("%s is polled every %g s (%s)", self._root, self._arrival.poll_seconds, why)
        elif self._start_observer():
            self._polled_because = ""
            interval = self._arrival.rescan_seconds
            log.info("%s (%s) is watched for events and listed every %g s", self._root, fstype, interval)

    def _start_observer(self) -> bool:
        self._stop_observer()
        observer = self._new_observer()
        try:
            observer.schedule(self._events, str(self._root), recursive=self._arrival.recursive, event_filter=_HINTS)
            observer.start()
        except OSError as error:  # most often the limit fs.inotify.max_user_watches
            log.warning("%s cannot be watched for events (%s); it is polled", self._root, error)
            return False
        self._observer = observer
        return True

    def _stop_observer(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None and observer.is_alive():
            observer.stop()
            observer.join(timeout=5)

    def _degrade(self, gone: FolderGoneError) -> None:
        if self._back_off == 0 and not self._missing_at_start:
            log.warning("%s; the service waits for it, nothing is lost", gone)
        # The watch is made again, because after a rename there and back it is alive but sends no events.
        self._stop_observer()
        self._identity = None
        self._back_off = min(2 * self._back_off or self._arrival.poll_seconds, LONGEST_BACK_OFF)
        self.health = WatchHealth("degraded", str(gone))
        self._earliest = self._latest = self._clock() + self._back_off

    def _watching(self, listing: Listing) -> WatchHealth:
        remark = f"; {len(listing.unreadable)} folders or files cannot be read" if listing.unreadable else ""
        if self._observer is None:
            return WatchHealth("polling", f"listed every {self._arrival.poll_seconds:g} s{remark}")
        return WatchHealth("events", f"events, and listed every {self._arrival.rescan_seconds:g} s{remark}")

    def _report(self, listing: Listing) -> None:
        """Log each unreadable path once, and each kind of ignored file once."""
        for path, reason in listing.unreadable:
            if path not in self._logged_unreadable:
                log.warning("%s/%s cannot be read: %s; it is tried again at every scan", self._root, path, reason)
        self._logged_unreadable = {path for path, _ in listing.unreadable}
        for ending, path in listing.strangers.items():
            if ending not in self._logged_kinds:
                log.info("%s/%s and other files of this kind (%s) are passed over", self._root, path, ending)
        self._logged_kinds.update(listing.strangers)
