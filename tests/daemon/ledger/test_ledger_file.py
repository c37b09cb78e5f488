"""The file of the ledger: who may open it, and what happens to it behind the ledger's back."""

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ledgers import arrive, claim, start

from daemon.errors import ConfigError, TransientError
from daemon.ledger.database import (
    MIGRATIONS,
    LedgerDamagedError,
    LedgerError,
    LedgerLockedError,
    LedgerReplacedError,
    LedgerUnavailableError,
    Mode,
    explain,
)
from daemon.ledger.jobs import Ledger

ROOT = Path(__file__).parents[3]


def test_only_one_service_owns_a_state_folder(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    own = rf"in use by another emdenoised \(process {os.getpid()}\)"
    with start(folder), pytest.raises(LedgerLockedError, match=own):
        start(folder)
    with start(folder) as ledger:
        assert ledger.counts()["done"] == 0


def test_status_and_retry_work_beside_a_running_service(tmp_path: Path) -> None:
    with start(tmp_path) as ledger:
        arrive(ledger)
        ledger.quarantine(claim(ledger), "bad header")
        with Ledger(tmp_path, "read") as reader:
            assert reader.counts()["quarantined"] == 1
            assert [job.error for job in reader.recent(3, "quarantined")] == ["bad header"]
            with pytest.raises(LedgerError, match="cannot be opened or written"):
                reader.retry()
        with Ledger(tmp_path, "edit") as editor:
            assert len(editor.retry("a.*")) == 1
        assert claim(ledger).path == "a.tif"
    with Ledger(tmp_path, "read") as reader:
        assert reader.counts()["running"] == 1, "also when no service runs"


def test_reading_a_ledger_that_does_not_exist_is_an_error_and_creates_none(tmp_path: Path) -> None:
    modes: tuple[Mode, ...] = ("read", "edit")
    for mode in modes:
        with pytest.raises(LedgerError, match="the service has not run"):
            Ledger(tmp_path, mode)
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_made_this_moment_and_still_empty_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").touch()
    with pytest.raises(LedgerError, match="the service has not run"):
        Ledger(tmp_path, "read")
    with start(tmp_path) as ledger:
        arrive(ledger)


def test_a_ledger_this_user_may_not_open_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tmp_path).close()
    (tmp_path / "file").touch()
    with pytest.raises(
        LedgerError, match=r"file/ledger\.db cannot be opened: Not a directory; give this user the right"
    ):
        Ledger(tmp_path / "file", "read")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may open everything
    with pytest.raises(
        LedgerError, match=r"ledger\.db cannot be opened: Permission denied; give this user the right to"
    ):
        Ledger(tmp_path, "read")


# Locks, and files that are not the same any more


def elsewhere(folder: Path, program: str) -> None:
    """Run Python in another process, which knows the folder and `Ledger`."""
    begin = "import pathlib, sys; from daemon.ledger.jobs import Ledger; folder = pathlib.Path(sys.argv[1])\n"
    subprocess.run([sys.executable, "-c", begin + program, folder], check=True, cwd=ROOT)


def test_a_connection_that_comes_and_goes_takes_no_locks_of_another_in_the_same_process(tmp_path: Path) -> None:
    """Or a program that closes the ledger takes itself for its last user, and deletes the log in use."""
    with start(tmp_path) as ledger:
        arrive(ledger, "broken")
        ledger.quarantine(claim(ledger), "broken")
        log = (tmp_path / "ledger.db-wal").stat()
        Ledger(tmp_path, "read").close()
        elsewhere(tmp_path, "with Ledger(folder, 'read') as one: one.counts()")
        assert (tmp_path / "ledger.db-wal").stat().st_ino == log.st_ino and log.st_size
        elsewhere(tmp_path, "with Ledger(folder, 'edit') as one: one.retry()")
        assert claim(ledger).path == "broken", "what another process wrote is not seen"


def unlink(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    path.with_name("copy").write_bytes(path.with_name("kept").read_bytes())
    path.with_name("copy").replace(path)


@pytest.mark.parametrize("take", [unlink, replace])
@pytest.mark.parametrize("name", ["ledger.db", "ledger.db-wal", "ledger.db-shm", "lock"])
def test_nothing_is_written_to_a_file_that_lost_its_name(
    tmp_path: Path, name: str, take: Callable[[Path], None]
) -> None:
    ledger = start(tmp_path)
    (tmp_path / "kept").touch()
    arrive(ledger, "a.tif")
    ledger.require_in_place()
    take(tmp_path / name)
    with pytest.raises(LedgerReplacedError, match=f"{name} was moved, deleted or replaced.*next start.*Keep programs"):
        ledger.require_in_place()
    with pytest.raises(LedgerReplacedError):
        ledger.claim()
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerReplacedError):
        Ledger(tmp_path, "read")


def test_the_end_of_a_process_whose_log_was_deleted_does_not_undo_what_others_wrote(tmp_path: Path) -> None:
    """SQLite would copy the deleted log over the database, newer rows and all, when the last connection is closed."""
    with start(tmp_path) as ledger:
        for number in range(300):
            arrive(ledger, f"{number}.tif")
            ledger.quarantine(claim(ledger), "broken")
    elsewhere(
        tmp_path,
        "import subprocess\n"
        "with Ledger(folder) as one:\n"
        "    one.register('late.tif', 1, 1, live=True)\n"
        "    for name in ('ledger.db-wal', 'ledger.db-shm'):\n"
        "        (folder / name).unlink()\n"
        "    other = 'import sys, pathlib as p; from daemon.ledger.jobs import Ledger as L\\n'\n"
        "    other += 'with L(p.Path(sys.argv[1]), mode=\"edit\") as other: other.retry()'\n"
        "    subprocess.run([sys.executable, '-c', other, folder], check=True)\n",
    )
    with start(tmp_path) as ledger:
        assert ledger._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert ledger.counts() == {"pending": 300, "running": 0, "retry": 0, "done": 0, "quarantined": 0}


def test_files_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    before = os.umask(0)
    try:
        with start(folder) as ledger:
            arrive(ledger)
            modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in folder.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("ledger.db", "ledger.db-wal", "ledger.db-shm", "lock"), 384)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_unusable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        start(tmp_path / "file")


def test_a_damaged_a_foreign_and_a_newer_ledger_are_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is no database" * 100)
    before = path.read_bytes()
    with pytest.raises(LedgerDamagedError, match=r"move ledger\.db, ledger\.db-wal and ledger\.db-shm away"):
        start(tmp_path)
    assert path.read_bytes() == before
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE recipes (id)")
    database.close()
    with pytest.raises(LedgerError, match="not a ledger of emdenoised"):
        start(tmp_path)
    path.unlink()
    start(tmp_path).close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    database.close()
    with pytest.raises(LedgerError, match="newer emdenoised"):
        start(tmp_path)


def test_a_page_damaged_later_is_named_too(tmp_path: Path) -> None:
    with start(tmp_path) as ledger:
        for number in range(500):
            arrive(ledger, f"{number}.tif")
    path = tmp_path / "ledger.db"
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(LedgerDamagedError):
        start(tmp_path).claim()


def test_a_full_disk_changes_nothing_and_is_tried_again(tmp_path: Path) -> None:
    with start(tmp_path) as ledger:
        pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
        ledger._db.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(LedgerUnavailableError, match="disk is full") as caught:
            for number in range(10_000):
                arrive(ledger, f"{number}.tif")
        assert isinstance(caught.value, TransientError)
        count = ledger.counts()["pending"]
        assert 0 < count < 10_000
        ledger._db.execute("PRAGMA max_page_count = 100000")
        arrive(ledger, f"{count}.tif")
        assert ledger.counts()["pending"] == count + 1


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("disk I/O error", LedgerUnavailableError),
        ("database is locked", LedgerUnavailableError),
        ("attempt to write a readonly database", LedgerError),
        ("something new", LedgerError),
    ],
)
def test_sqlite_errors_in_words(text: str, kind: type[Exception]) -> None:
    error = explain(Path("/state/ledger.db"), sqlite3.OperationalError(text))
    assert type(error) is kind and "/state/ledger.db" in str(error)
