"""The table of micrographs: every order and filter, only new rows after a while, names as they are."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.ledger import table as module
from daemon.ledger.jobs import Ledger
from daemon.ledger.table import COLUMNS, KEPT_SECONDS, Query, Table

ROWS = 300


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def insert(ledger: Ledger, number: int, at: float, name: bytes, **facts: object) -> None:
    word = ("good", "check", "reject", None)[number % 4]
    state = "quarantined" if number % 10 == 9 else "pending" if number % 10 == 8 else "done"
    timings = json.dumps({"read": 0.5, "network": number % 7})
    with ledger._transaction():
        ledger._db.execute(
            "INSERT INTO jobs (path, revision, size, mtime_ns, state, live, created, updated, verdict, facts, timings,"
            " error) VALUES (?, 1, 1, '1', ?, 1, ?, ?, ?, ?, ?, ?)",
            (name, state, at, at, word if state == "done" else None, json.dumps(facts), timings,
             "it ends" if state == "quarantined" else None),
        )  # fmt: skip


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    rng = random.Random(1)
    with Ledger(tmp_path) as one:
        for number in range(ROWS):
            size = {"x": rng.random(), "y": 1.0, "unit": ("nm", "angstrom", "px")[number % 3]}
            facts = {"dose": rng.random() if number % 5 else None, "pixel_size": size, "codes": ["mean", "dose"]}
            at = 1000.0 + number + (5 * 3600 if number >= 200 else 0)
            insert(one, number, at, f"grid {number % 3}/É_{number:03d}.TIF".encode(), **facts)
        yield one


@pytest.fixture
def table(tmp_path: Path, ledger: Ledger, clock: Clock) -> Iterator[Table]:
    with Table(tmp_path, clock) as one:
        yield one


def test_every_column_sorts_both_ways_and_pages_fit_together(table: Table) -> None:
    for column in COLUMNS:
        for descending in (True, False):
            query = Query(sort=column, descending=descending)
            assert table.count(query) == ROWS
            rows = [row for begin in range(0, ROWS, 77) for row in table.page(query, begin, 77)]
            assert sorted(row.id for row in rows) == list(range(1, ROWS + 1))
            of_row = {
                "time": [row.updated for row in rows], "name": [row.path for row in rows],
                "dose": [row.dose for row in rows], "pixel": [row.pixel for row in rows],
                "verdict": [row.verdict for row in rows], "seconds": [row.seconds for row in rows],
                "code": [row.codes[0] if row.verdict in ("good", "check", "reject", "unjudged") else row.error
                         for row in rows],
            }[column]  # fmt: skip
            known = [value for value in of_row if value is not None]
            assert known == sorted(known, reverse=descending)  # type: ignore[type-var]
            assert of_row[: len(known)] == known  # what is unknown comes last
            assert rows == list(table.each(query))


def test_filters_count_what_they_show(table: Table) -> None:
    for show, words in (("good", {"good"}), ("check", {"check"}), ("reject", {"reject"}),
                        ("quarantined", {"quarantined"}), ("waiting", {"waiting"})):  # fmt: skip
        query = Query(show=show)  # type: ignore[arg-type]
        rows = table.page(query, 0, ROWS)
        assert {row.verdict for row in rows} == words and table.count(query) == len(rows) > 10
    searched = Query(search="grid 1/É_01")
    assert {row.path for row in table.page(searched, 0, ROWS)} == {"grid 1/É_010.TIF", "grid 1/É_013.TIF",
                                                                   "grid 1/É_016.TIF", "grid 1/É_019.TIF"}  # fmt: skip
    assert table.count(Query(search="GRID 1/é_01")) == table.count(Query(search="grid 1/e\u0301_01")) == 4
    assert table.count(Query(search="_29")) == 10 and table.count(Query(search=".tif")) == ROWS
    assert table.count(Query(search="%")) == table.count(Query(search="' OR 1 --")) == 0
    session = table.session_begin()
    assert session == 1000.0 + 200 + 5 * 3600
    assert table.count(Query(since=session)) == 100 == len(table.page(Query(since=session), 0, ROWS))


def test_a_sorted_table_is_kept_for_a_while_and_one_by_time_is_always_new(
    table: Table, ledger: Ledger, clock: Clock
) -> None:
    by_dose = Query(sort="dose")
    first = table.page(by_dose, 0, 1)[0]
    insert(ledger, 0, 99_999.0, b"new.tif", dose=1e9, codes=[])
    assert table.page(by_dose, 0, 1) == [first] and table.page(Query(), 0, 1)[0].path == "new.tif"
    clock.now += KEPT_SECONDS
    assert table.page(by_dose, 0, 1)[0].path == "new.tif" and table.count(by_dose) == ROWS + 1
    with ledger._transaction():
        ledger._db.execute("DELETE FROM jobs WHERE path = ?", (b"new.tif",))
    assert table.page(by_dose, 0, 2) == [first]


def test_of_a_long_table_the_newest_are_sorted(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SORTED", 50)
    query = Query(sort="name", descending=False)
    assert {row.id for row in table.each(query)} == set(range(ROWS - 49, ROWS + 1)) and table.count(query) == 50
    assert table.count(Query()) == ROWS


def test_odd_rows_do_no_harm(table: Table, ledger: Ledger) -> None:
    name = b"\xff\xfe odd.tif"
    insert(ledger, 0, 99_999.0, name, dose="much", pixel_size="none", codes={"a": 1})
    row = table.page(Query(), 0, 1)[0]
    assert os.fsencode(row.path) == name and row.dose is None and row.pixel is None
    assert table.page(Query(sort="dose"), 0, ROWS + 1) and table.count(Query(search="odd")) == 1
    assert table.page(Query(), ROWS + 5, 10) == []


def test_an_empty_ledger(tmp_path: Path) -> None:
    with Ledger(tmp_path), Table(tmp_path) as table:
        assert table.session_begin() == float("-inf") and table.count(Query()) == 0
        for column in COLUMNS:
            assert table.page(Query(sort=column, search="a"), 0, 10) == []
