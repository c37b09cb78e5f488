"""Decides when a file counts as complete, from sightings and their times, without filesystem or clock.

A file is complete when its size, modification time and inode have not changed over `settle_seconds` of
monotonic time *and* its own header agrees (`probe`). The first alone is not enough: a Windows copy gives the
file its full length at once and fills it afterwards. Wall clocks are not used, so the camera computer's may differ;
modification times are only compared for equality.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from daemon.arrival import rules
from daemon.errors import MicrographError, TransientError
from daemon.settings.config import Arrival
from daemon.settings.names import folded

if TYPE_CHECKING:
    from daemon.formats import Completeness

STUCK_SECONDS = 60.0
"""Time without any change after which an incomplete file is handed over, to be quarantined with the reason. If it
changes later, it is evaluated again, so a slow copy loses nothing."""

_LONGEST_PAUSE = 30.0
"""Longest time between two probes of a file that does not change."""

# A camera delivers a few micrographs a second at most. More than this many new files, faster than they drain, are a
# folder being moved in: backlog, which must not delay the camera's new files.
_FLOOD = 50
_DRAIN_PER_SECOND = 5.0


@dataclass(frozen=True, slots=True)
class Sighting:
    """A regular file in a scan of the drop folder.

    `path` is relative to the drop folder with "/" between folders; bytes that are not UTF-8 are kept as
    surrogates (PEP 383). `inode` is 0 where the filesystem's inode numbers cannot be trusted.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """A file that the tracker has finished, for the ledger. It is returned again only if it changes."""

    sighting: Sighting
    live: bool
    """Whether it was written while the service was watching; False: found at the start or moved in with many others."""
    warning: str | None = None
    """Remark for the microscopist on a file that is processed."""
    truncated: str | None = None
    """Reason why the file can never be complete as it is: to be quarantined, not read."""


@dataclass(frozen=True, slots=True)
class Held:
    """A file that is not complete, the reason, and the seconds since its last change."""

    path: str
    reason: str
    unchanged_seconds: float


@dataclass(slots=True)
class _File:
    sighting: Sighting
    live: bool
    since: float
    """When this size, modification time and inode were first seen (monotonic)."""
    due: float
    """Time of the next probe; infinite: none."""
    order: int
    queued: bool = False
    handed: bool = False
    pause: float = 0.0
    state: str = ""
    reason: str = ""
    held_since: float = 0.0
    reported: str = ""


@dataclass
class Tracker:
    """Takes complete scans and returns the files that are complete, each exactly once.

    `probe` tests a file (relative path); it is called outside `observe`, for a few files at a time, so that a flood
    never blocks the next scan. `known` asks the ledger whether this file is registered already, so that a restart does
    not open ten thousand finished files again; if it raises TransientError, the file waits. Not thread-safe.
    """

    arrival: Arrival
    probe: "Callable[[str], Completeness]"
    known: Callable[[Sighting], bool] = lambda _: False
    _files: dict[str, _File] = field(default_factory=dict)
    _agenda: list[tuple[float, int, str]] = field(default_factory=list)
    _live: deque[_File] = field(default_factory=deque)
    _backlog: deque[_File] = field(default_factory=deque)
    _alone: set[str] = field(default_factory=set)
    _news: list[Held] = field(default_factory=list)
    _first_scan: bool = True
    _flood: float = 0.0
    _observed: float = -math.inf
    _order: int = 0

    def observe(
        self, sightings: Iterable[Sighting], now: float, *, began: float | None = None, interrupted: bool = False
    ) -> None:
        """Process one scan of the whole folder, ended at monotonic time `now` and begun at `began`.

        `interrupted`: the folder was unavailable since the last scan. It could not be written to, so an unchanged file
        proves nothing, and settling starts again.
        """
        began = now if began is None else began
        seen: dict[str, Sighting] = {}
        companions: set[str] = set()
        fresh: list[Sighting] = []
        for sighting in sightings:
            path = sighting.path
            file = self._files.get(path)
            if file is None:
                if rules.is_sidecar(self.arrival, path) and sighting.size > 0:
                    companions.add(folded(path))
                if not rules.wants(self.arrival, path):
                    continue
                fresh.append(sighting)
            elif sighting != file.sighting:
                self._changed(file, sighting, now)
            elif interrupted and not file.handed:
                self._restart(file, now)
            seen[path] = sighting
        if len(seen) - len(fresh) != len(self._files):
            for path in self._files.keys() - seen.keys():
                self._forget(path)
        self._add(fresh, now)
        self._queue_due(began, companions)
        self._observed = now
        self._first_scan = False

    def next_due(self) -> float | None:
        """Monotonic time at which the next scan is due, or None if no file is settling."""
        if self._live or self._backlog:
            return self._observed
        while self._agenda:
            due, order, path = self._agenda[0]
            file = self._files.get(path)
            if file is not None and file.due == due and file.order == order:
                return due
            heapq.heappop(self._agenda)
        return None

    def ready(self, now: float, limit: int = 256) -> list[Arrived]:
        """Probe at most `limit` settled files, live ones first, and return those that are finished."""
        done = []
        probed = 0
        for _ in range(16 * limit):  # asking the ledger is much cheaper than opening a file, but not free
            file = self._take()
            if file is None:
                break
            file.queued = False
            try:
                if self.known(file.sighting):
                    self._hand_over(file)
                    continue
            except TransientError:  # the ledger cannot be asked now
                self._plan(file, now + max(self.arrival.settle_seconds, 1.0))
                continue
            if arrived := self._judge(file, now):
                done.append(arrived)
            probed += 1
            if probed == limit:
                break
        return done

    def offer_again(self, path: str, now: float) -> None:
        """Return this arrival from `ready` again later, because the caller could not store it (disk full)."""
        if (file := self._files.get(path)) is not None:
            file.handed = False
            self._plan(file, now + max(self.arrival.settle_seconds, 1.0))

    def held(self, now: float) -> list[Held]:
        """Files probed and not complete, for the status."""
        waiting = (file for file in self._files.values() if file.reason and not file.handed)
        return [Held(file.sighting.path, file.reason, now - file.since) for file in waiting]

    def take_news(self) -> list[Held]:
        """Files held since the last call, each once for each kind of reason, for the log."""
        news, self._news = self._news, []
        return news

    @property
    def unfinished(self) -> int:
        """Number of files that settle, wait for a probe, or are held; without those that lack a companion file."""
        return sum(not file.handed for file in self._files.values()) - len(self._alone)

    def _add(self, fresh: list[Sighting], now: float) -> None:
        if not self._first_scan:
            self._flood = max(0.0, self._flood - (now - self._observed) * _DRAIN_PER_SECOND)
        live = not self._first_scan and self._flood + len(fresh) <= _FLOOD
        self._flood = min(self._flood + (0 if self._first_scan else len(fresh)), 2 * _FLOOD)
        # In the order they were written, so that the ledger's numbers follow the microscope's.
        for sighting in sorted(fresh, key=lambda one: (one.mtime_ns, one.path)):
            self._order += 1
            file = _File(sighting, live, now, math.inf, self._order)
            self._files[sighting.path] = file
            self._restart(file, now)

    def _changed(self, file: _File, sighting: Sighting, now: float) -> None:
        # A file that is being written is live, also if it was found half written at the start.
        if not file.live and self._flood + 1 <= _FLOOD:
            self._flood += 1
            file.live = True
        file.sighting = sighting
        self._restart(file, now)

    def _restart(self, file: _File, now: float) -> None:
        file.since = now
        file.queued = file.handed = False
        file.pause = 0.0
        file.state = file.reason = ""
        self._alone.discard(file.sighting.path)
        self._plan(file, now + self.arrival.settle_seconds)

    def _plan(self, file: _File, due: float) -> None:
        file.due = due
        heapq.heappush(self._agenda, (due, file.order, file.sighting.path))

    def _forget(self, path: str) -> None:
        file = self._files.pop(path)
        file.queued = False
        self._alone.discard(path)

    def _queue_due(self, now: float, companions: set[str]) -> None:
        """Queue settled files; `now`: when the scan began, so that a slow scan never shortens the wait."""
        for path in [one for one in self._alone if self._accompanied(one, companions)]:
            self._alone.discard(path)
            self._files[path].reason = ""
            self._queue(self._files[path])
        while self._agenda and self._agenda[0][0] <= now:
            due, order, path = heapq.heappop(self._agenda)
            file = self._files.get(path)
            if file is None or file.due != due or file.order != order or file.handed:
                continue
            if self._accompanied(path, companions):
                self._queue(file)
                continue
            file.due = math.inf
            self._alone.add(path)
            endings = sorted({name[name.rindex(".") :] for name in rules.sidecars(self.arrival, path)})
            file.reason = f"the {' or '.join(endings)} file that belongs to it has not arrived yet"
            self._report(file, "alone", now)

    def _accompanied(self, path: str, companions: set[str]) -> bool:
        names = rules.sidecars(self.arrival, path)
        return not names or not companions.isdisjoint(names)

    def _queue(self, file: _File) -> None:
        file.due = math.inf
        file.queued = True
        (self._live if file.live else self._backlog).append(file)

    def _take(self) -> _File | None:
        for lane in (self._live, self._backlog):
            while lane:
                file = lane.popleft()
                if file.queued:
                    return file
        return None

    def _judge(self, file: _File, now: float) -> Arrived | None:
        path = file.sighting.path
        try:
            answer = self.probe(path)
            state, reason, proven = str(answer.state), answer.reason, answer.proven
        except FileNotFoundError:
            self._plan(file, now + self.arrival.settle_seconds)  # the next scan forgets it, or it is back by then
            return None
        except TransientError as error:
            state, reason, proven = "incomplete", str(error), False
        except OSError as error:
            state, reason, proven = "incomplete", f"it cannot be opened: {error.strerror or error}", False
        except MicrographError as error:
            return self._hand_over(file, warning=str(error))
        if state == "complete":
            return self._hand_over(file, warning=reason or None)
        # A new answer about an unchanged name is progress too: servers report a copy's size and time late, while
        # its zeros are already being filled.
        if (state, reason) != (file.state, file.reason):
            file.state, file.reason, file.held_since, file.pause = state, reason, now, 0.0
            self._report(file, state, now)
        hold = self.arrival.suspicious_tail_seconds if state == "suspicious" else STUCK_SECONDS
        if now - file.held_since >= hold:
            text = f"{reason}; it has not changed for {now - file.since:.0f} s"
            return self._hand_over(file, truncated=text) if proven else self._hand_over(file, warning=text)
        file.pause = min(2 * file.pause or max(self.arrival.settle_seconds, 0.5), _LONGEST_PAUSE)
        self._plan(file, min(now + file.pause, file.held_since + hold))
        return None

    def _report(self, file: _File, state: str, now: float) -> None:
        if state != file.reported:  # a slow writer pauses after every piece; once is enough
            file.reported = state
            self._news.append(Held(file.sighting.path, file.reason, now - file.since))

    def _hand_over(self, file: _File, warning: str | None = None, truncated: str | None = None) -> Arrived:
        file.handed, file.due = True, math.inf
        file.state = file.reason = ""
        return Arrived(file.sighting, file.live, warning, truncated)
