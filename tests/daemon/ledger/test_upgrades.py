"""Ledgers of earlier versions are brought up to date, or left as they were."""

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from ledgers import Clock, start

from daemon.ledger import database as ledger_file
from daemon.ledger.database import LedgerError
from daemon.ledger.jobs import Ledger
from daemon.ledger.names import stored

ROOT = Path(__file__).parents[3]


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
        assert [job.path for job in ledger.below("LOW")] == ["low/wären \udcff.tif"]
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


def test_an_upgrade_that_is_killed_in_its_middle_begins_anew(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.executescript((Path(__file__).parent / "ledger_first.sql").read_text())
        paths = [path for (path,) in database.execute("SELECT path FROM jobs ORDER BY id")]
    database.close()
    program = (
        "import os, pathlib, signal, sys\n"
        "from daemon.ledger import names\n"
        "from daemon.ledger.jobs import Ledger\n"
        "whole = names.stored\n"
        f"names.stored = lambda path: os.kill(os.getpid(), signal.SIGKILL) if path == {paths[5]!r} else whole(path)\n"
        "Ledger(pathlib.Path(sys.argv[1]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, tmp_path], check=False, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        assert database.execute("PRAGMA user_version").fetchone()[0] == 6, "before the names"
    with start(tmp_path) as ledger:
        found = ledger._db.execute("SELECT job, name FROM names ORDER BY job")
        assert [tuple(row) for row in found] == [(at, stored(path)) for at, path in enumerate(paths, 1)]
