"""Ledgers of earlier versions are brought up to date, or left as they were."""

import sqlite3
from pathlib import Path

import pytest
from ledgers import Clock, start

from daemon.ledger import database as ledger_file
from daemon.ledger.database import (
    LedgerError,
)
from daemon.ledger.jobs import Ledger


def test_a_ledger_of_the_first_version_is_brought_up_to_date(tmp_path: Path, clock: Clock) -> None:
    """What the first version that landed wrote, by its own code."""
    first = (Path(__file__).parent / "ledger_first.sql").read_text()
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.executescript(first)
        before = database.execute("SELECT * FROM jobs ORDER BY id").fetchall()
    database.close()
    with pytest.raises(LedgerError, match="older version; start the service once"):
        Ledger(tmp_path, "read")
    clock.now = 1_760_000_100.0
    with start(tmp_path, clock) as ledger:
        now = [tuple(row) for row in ledger._db.execute("SELECT * FROM jobs ORDER BY id")]
        assert now == [(*row, 0, None, "{}", None) for row in before]  # no section of a stack, no verdict, not seen
        assert ledger.problems() == 1
        assert ledger.counts() == {"pending": 3, "running": 1, "retry": 1, "done": 2, "quarantined": 1}
        assert ledger.oldest_waiting() == 96.0
        assert [job.path for job in ledger.recover()] == ["running.tif"]
        done = []
        while (job := ledger.claim()) is not None:
            done.append(job.path)
            ledger.finish(job, f"/out/{job.path}")
        assert len(done) == 5 and ledger.counts()["done"] == 7
        assert ledger.known("low/wären \udcff.tif", 1001, 1_759_999_999_000_000_001)
    with Ledger(tmp_path, "read") as reader:
        assert reader.counts()["done"] == 7


def test_an_upgrade_that_is_cut_off_leaves_the_ledger_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.executescript((Path(__file__).parent / "ledger_first.sql").read_text())
    database.close()
    whole = ledger_file.MIGRATIONS
    monkeypatch.setattr(ledger_file, "MIGRATIONS", (whole[0], whole[1] + "; no such statement"))
    with pytest.raises(LedgerError):
        start(tmp_path)
    monkeypatch.setattr(ledger_file, "MIGRATIONS", whole)
    with start(tmp_path) as ledger:
        assert ledger.counts()["done"] == 2
