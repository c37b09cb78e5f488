"""The ledger's file on disk: whose it is, what is in it, and what to do when it cannot be used."""

import fcntl
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from daemon.errors import ConfigError, EmdenoisedError, TransientError
from daemon.filesystem import is_network

FILE = "ledger.db"
LOCK = "lock"
_APPLICATION = 0x454D6465  # "EMde", so that a foreign database is never taken for ours

Mode = Literal["own", "edit", "read"]

# Paths and outputs are bytes, as the kernel has them. Modification times are text: they are only compared for
# equality, and a camera with a wrong clock can write one that no 64-bit integer of nanoseconds holds.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY,
        path BLOB NOT NULL,
        revision INTEGER NOT NULL,
        size INTEGER NOT NULL,
        mtime_ns TEXT NOT NULL,
        sha256 TEXT,
        state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'retry', 'done', 'quarantined')),
        live INTEGER NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        not_before REAL NOT NULL DEFAULT 0,
        error TEXT,
        warning TEXT,
        profile TEXT,
        timings TEXT NOT NULL DEFAULT '{}',
        output BLOB,
        created REAL NOT NULL,
        updated REAL NOT NULL,
        UNIQUE (path, revision)
    );
    CREATE INDEX waiting ON jobs (live, id) WHERE state = 'pending';
    CREATE INDEX retrying ON jobs (not_before) WHERE state = 'retry';
    CREATE INDEX outcomes ON jobs (state, updated);
    CREATE INDEX latest ON jobs (updated);
    """,
    # How many jobs are in each state: counting a million rows each time somebody asks takes too long.
    """
    CREATE TABLE tally (state TEXT PRIMARY KEY, jobs INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO tally VALUES ('pending', 0), ('running', 0), ('retry', 0), ('done', 0), ('quarantined', 0);
    UPDATE tally SET jobs = (SELECT count(*) FROM jobs WHERE jobs.state = tally.state);
    CREATE TRIGGER job_came AFTER INSERT ON jobs BEGIN
        UPDATE tally SET jobs = jobs + 1 WHERE state = new.state;
    END;
    CREATE TRIGGER job_went AFTER DELETE ON jobs BEGIN
        UPDATE tally SET jobs = jobs - 1 WHERE state = old.state;
    END;
    CREATE TRIGGER job_moved AFTER UPDATE OF state ON jobs WHEN old.state <> new.state BEGIN
        UPDATE tally SET jobs = jobs - 1 WHERE state = old.state;
        UPDATE tally SET jobs = jobs + 1 WHERE state = new.state;
    END;
    """,
    # How many sections of a stack are done, where they are taken one by one.
    "ALTER TABLE jobs ADD COLUMN sections INTEGER NOT NULL DEFAULT 0;",
    # What the live page shows of many micrographs at once, without opening as many JSON files.
    """
    ALTER TABLE jobs ADD COLUMN verdict TEXT;
    ALTER TABLE jobs ADD COLUMN facts TEXT NOT NULL DEFAULT '{}';
    CREATE INDEX verdicts ON jobs (verdict, updated) WHERE verdict IS NOT NULL;
    """,
)
"""Each brings the schema from its index to the next version (PRAGMA user_version). Only ever appended to."""


class LedgerError(EmdenoisedError):
    """The ledger cannot be used as it is; the message says what to do."""


class LedgerLockedError(LedgerError):
    """Another emdenoised works with this state folder."""


class LedgerDamagedError(LedgerError):
    """The file is not a database any more."""


class LedgerUnavailableError(TransientError):
    """The disk of the state folder is full or failing, or another process holds the ledger; nothing was changed."""


def own(folder: Path, filesystem: Callable[[Path], str]) -> int:
    """Make the state folder if need be and lock it for this process. Returns the descriptor that holds the lock.

    Raises ConfigError (network filesystem, cannot be made) or LedgerLockedError.
    """
    kind = filesystem(folder)
    if is_network(kind):
        raise ConfigError(
            f"folders.state: {folder} is on a network filesystem ({kind}), where the ledger would be damaged sooner or"
            " later; choose a folder on a local disk"
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"folders.state: {folder} cannot be used: {error.strerror}; choose a folder that this user may write to"
        ) from error
    try:
        # Held until the process ends, however it ends. The file itself stays: deleting it would race.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise LedgerLockedError(
            f"{folder} is in use by another emdenoised (process {owner}); stop that one, or give this one another"
            " state folder"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def connect(path: Path, mode: Mode) -> sqlite3.Connection:
    """Open the ledger; "own" creates it and brings it up to date. The connection commits by itself.

    Raises LedgerError (missing, foreign, of another version) or sqlite3.DatabaseError (see `explain`).
    """
    # Made by hand first, so that nobody else may read it; SQLite's other files follow its mode.
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if mode == "own" else 0)
    try:
        os.close(os.open(path, flags, 0o600))
    except FileNotFoundError as error:
        raise LedgerError(f"{path}: there is no ledger; the service has not run with this state folder yet") from error
    except OSError as error:
        raise LedgerError(f"{path} cannot be opened: {error.strerror}; give this user the right to") from error
    where = f"{path.absolute().as_uri()}?mode=rw"  # also for reading: SQLite has to share its index of the log
    database = sqlite3.connect(where, uri=True, timeout=10, isolation_level=None, check_same_thread=False)
    try:
        version = int(database.execute("PRAGMA user_version").fetchone()[0])
        application = int(database.execute("PRAGMA application_id").fetchone()[0])
        empty = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if application != _APPLICATION and not (empty and mode == "own"):
            raise LedgerError(f"{path} is not a ledger of emdenoised; move it away, or choose another state folder")
        if version > len(MIGRATIONS):
            raise LedgerError(
                f"{path} was written by a newer emdenoised (its version {version}, this one knows {len(MIGRATIONS)});"
                " install that one again, or choose another state folder"
            )
        if mode == "own":
            if database.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                raise LedgerError(f"{path}: its disk allows no write-ahead log; choose another state folder")
            for number in range(version, len(MIGRATIONS)):
                database.executescript(
                    f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA application_id = {_APPLICATION};"
                    f" PRAGMA user_version = {number + 1}; COMMIT;"
                )
        elif version < len(MIGRATIONS):
            raise LedgerError(f"{path} is of an older version; start the service once, which brings it up to date")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(f"PRAGMA query_only = {int(mode == 'read')}")
    except BaseException:
        database.close()
        raise
    database.row_factory = sqlite3.Row
    return database


def explain(path: Path, error: sqlite3.DatabaseError) -> EmdenoisedError:
    """SQLite's error as one that says what to do."""
    text = str(error)
    if "not a database" in text or "malformed" in text:
        return LedgerDamagedError(
            f"{path} is damaged ({text}); stop the service, move {path.name}, {path.name}-wal and {path.name}-shm away"
            " and start it again: finished images are recognised by their JSON and not made twice"
        )
    if "disk is full" in text:
        return LedgerUnavailableError(f"{path}: the disk is full; make room, the service goes on by itself")
    if "disk I/O error" in text:
        return LedgerUnavailableError(f"{path}: the disk cannot be read or written; check that it has room")
    if "locked" in text:
        return LedgerUnavailableError(f"{path} is held by another process; close what has it open")
    if "readonly" in text or "unable to open" in text:
        return LedgerError(f"{path} cannot be opened or written ({text}); give this user the right to")
    return LedgerError(f"{path}: {text}")
