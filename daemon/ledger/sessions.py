"""The micrographs of a session: all since the last long pause, of one day, or of one sub-folder."""

import time
from collections.abc import Iterator
from datetime import datetime, timedelta

from daemon.errors import UsageError
from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger

PAUSE_SECONDS = 4 * 3600.0
"""Longest pause between two results of one session."""
_PAGE = 500

HELP = (
    "'last' (all since the last pause of 4 hours), 'today', a day such as 2026-11-25, or a sub-folder of the drop "
    "folder such as 'grid 2' or 'alice/*'"
)


def find(ledger: Ledger, named: str = "last") -> list[Job]:
    """The done and quarantined micrographs of a session, oldest first; `named` as in HELP.

    Raises UsageError where `named` is none of these or finds nothing, and what the ledger raises.
    """
    if named == "last":
        found = list(_since_the_pause(_newest_first(ledger)))
    elif (day := _day(named)) is not None:
        begin, end = day.timestamp(), (day + timedelta(days=1)).timestamp()
        found = list(_until(_newest_first(ledger, before=end), begin))
    else:
        found = ledger.below(named.strip("/"))
    if not found:
        raise UsageError(f"session {named!r}: the ledger has no micrographs of it; a session is {HELP}")
    return found[::-1]


def in_progress(ledger: Ledger, now: float) -> Iterator[Job]:
    """The done and quarantined micrographs of the session at `now` (seconds, wall clock), newest first.

    None of them if `now` lies in a pause. Raises as the ledger does.
    """
    return _since_the_pause(_newest_first(ledger), now)


def _newest_first(ledger: Ledger, before: float = float("inf")) -> Iterator[Job]:
    """The done and quarantined jobs that changed before this time."""
    place = before, 0
    while page := ledger.recent(_PAGE, before=place):
        yield from (job for job in page if job.state in ("done", "quarantined"))
        place = page[-1].updated, page[-1].id


def _since_the_pause(ended: Iterator[Job], later: float | None = None) -> Iterator[Job]:
    for job in ended:
        if later is not None and later - job.updated > PAUSE_SECONDS:
            return
        later = job.updated
        yield job


def _until(ended: Iterator[Job], begin: float) -> Iterator[Job]:
    for job in ended:
        if job.updated < begin:
            return
        yield job


def _day(named: str) -> datetime | None:
    """Midnight, local time, at which a day begins; None if `named` is not a day."""
    if named == "today":
        named = time.strftime("%Y-%m-%d", time.localtime(time.time()))
    try:
        return datetime.strptime(named, "%Y-%m-%d").astimezone()
    except ValueError:
        return None
