"""Which micrographs a session has."""

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from daemon.errors import UsageError
from daemon.ledger import sessions
from daemon.ledger.jobs import Ledger

HOUR = 3600.0
NOON = datetime(2026, 11, 20, 12).astimezone().timestamp()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Nine micrographs, an hour apart, then a pause of five hours into the next day, and three more."""
    now = [NOON]
    made = Ledger(tmp_path, clock=lambda: now[0])
    for number in range(12):
        now[0] += HOUR if number != 9 else 5 * HOUR
        path = f"{('Grid 2', 'grid 2/square', 'other')[number % 3]}/{number}.tif"
        made.register(path, 1, number, live=True)
        job = made.claim()
        assert job is not None
        if number == 4:
            made.quarantine(job, "damaged")
        else:
            made.finish(job, f"/out/{path}")
    made.register("waiting.tif", 1, 99, live=True)
    return made


def numbers(jobs: list[sessions.Job]) -> list[int]:
    return [int(Path(job.path).stem) for job in jobs]


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("last", [9, 10, 11]),
        ("2026-11-20", [*range(9)]),
        ("2026-11-21", [9, 10, 11]),
        ("grid 2", [0, 1, 3, 4, 6, 7, 9, 10]),
        ("Grid 2/", [0, 1, 3, 4, 6, 7, 9, 10]),
        ("*/square", [1, 4, 7, 10]),
        ("OTHER", [2, 5, 8, 11]),
    ],
)
def test_sessions_by_pause_day_and_folder(ledger: Ledger, named: str, expected: list[int]) -> None:
    assert numbers(sessions.find(ledger, named)) == expected


def test_today_is_a_day(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Callable[[], float] = lambda: NOON + HOUR / 2  # noqa: E731
    monkeypatch.setattr(time, "time", clock)
    assert numbers(sessions.find(ledger, "today")) == [*range(9)]


@pytest.mark.parametrize("named", ["2026-11-19", "2026-13-40", "grid 3", ""])
def test_an_empty_session(ledger: Ledger, named: str) -> None:
    with pytest.raises(UsageError, match="no micrographs of it; a session is 'last'"):
        sessions.find(ledger, named)


def test_more_than_one_page_of_the_ledger(tmp_path: Path) -> None:
    with Ledger(tmp_path, clock=lambda: NOON) as made:
        for number in range(sessions._PAGE + 3):
            made.register(f"a/{number}.tif", 1, number, live=True)
            job = made.claim()
            assert job is not None
            made.finish(job, "/out")
        assert numbers(sessions.find(made)) == [*range(sessions._PAGE + 3)]
