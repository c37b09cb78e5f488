"""The ledger's file: its lock, its tables, and errors with their remedies.

Only SQLite opens the database, its log (-wal) and the index of the log (-shm). A process that closes any descriptor of
a file drops all its POSIX locks on it (fcntl(2)), also those of connections in other threads. The next program that
closes the ledger would then regard itself as its last user and delete the log that the service writes to.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import sqlite3
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from daemon.errors import EmdenoisedError, TransientError
from daemon.ledger import names
from daemon.settings.folders import kind_of

FILE = "ledger.db"
LOCK = "lock"
_APPLICATION = 0x454D6465  # "EMde", to recognise a foreign database

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
    # How many jobs are in each state: counting a million rows for each request takes too long.
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
    # How many sections of a stack are done, where they are processed one by one.
    "ALTER TABLE jobs ADD COLUMN sections INTEGER NOT NULL DEFAULT 0;",
    # For lists on the live page, which would otherwise open a JSON file for each micrograph.
    """
    ALTER TABLE jobs ADD COLUMN verdict TEXT;
    ALTER TABLE jobs ADD COLUMN facts TEXT NOT NULL DEFAULT '{}';
    CREATE INDEX verdicts ON jobs (verdict, updated) WHERE verdict IS NOT NULL;
    """,
    # Raw files whose results were purged: not denoised again automatically.
    "CREATE TABLE purged (path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns TEXT NOT NULL) WITHOUT ROWID;",
    # When a person marked a quarantined or rejected micrograph as seen. The others are open problems.
    """
    ALTER TABLE jobs ADD COLUMN acknowledged REAL;
    CREATE INDEX problems ON jobs (state, verdict, acknowledged) WHERE acknowledged IS NULL
        AND (state = 'quarantined' OR (state = 'done' AND verdict = 'reject'));
    """,
    # Names as they are searched for (`names.stored`), apart from the long rows of a million jobs.
    """
    CREATE TABLE names (job INTEGER PRIMARY KEY, name BLOB NOT NULL);
    INSERT INTO names SELECT id, folded(path) FROM jobs ORDER BY id;
    CREATE TRIGGER job_named AFTER INSERT ON jobs BEGIN
        INSERT INTO names VALUES (new.id, folded(new.path));
    END;
    CREATE TRIGGER job_unnamed AFTER DELETE ON jobs BEGIN
        DELETE FROM names WHERE job = old.id;
    END;
    """,
)
"""Each brings the schema from its index to the next version (PRAGMA user_version). Never change one: append."""


class LedgerError(EmdenoisedError):
    """The ledger cannot be used as it is; the message gives the remedy."""


class LedgerLockedError(LedgerError):
    """Another emdenoised works with this state folder."""


class LedgerDamagedError(LedgerError):
    """The file is not a database any more."""


class LedgerReplacedError(LedgerError):
    """A file of the ledger was moved, deleted or replaced while it was in use; what is written now would be lost."""


class LedgerUnavailableError(TransientError):
    """The disk of the state folder is full or failing, or another process holds the ledger; nothing was changed."""


def own(folder: Path) -> int:
    """Make the state folder if missing and lock it for this process. Returns the descriptor that holds the lock.

    `settings.folders` has checked that it is on a local disk. Raises ConfigError (cannot be made),
    TransientError (its disk is full or read-only) or LedgerLockedError.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise kind_of(error)(
            f"folders.state: {folder} cannot be used: {error.strerror}; choose a folder that this user may write to, "
            "on a disk that has space"
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
    with contextlib.suppress(OSError):  # the disk is full: the number is for people only
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def connect(path: Path, mode: Mode) -> sqlite3.Connection:
    """Open the ledger; "own" creates it and brings it up to date. The connection commits automatically.

    Raises LedgerError (missing, foreign, of another version), LedgerReplacedError (`leave_open` was called for it in
    this process) or sqlite3.DatabaseError (see `explain`).
    """
    if path in _left_open:
        raise _replaced(path, path)
    _prepare(path, mode)
    where = f"{path.absolute().as_uri()}?mode=rw"  # also for reading: SQLite has to share its index of the log
    database = sqlite3.connect(where, uri=True, timeout=10, isolation_level=None, check_same_thread=False)
    try:
        database.create_function("folded", 1, names.stored, deterministic=True)
        database.execute("PRAGMA trusted_schema = ON")  # a trigger may call it
        version = int(database.execute("PRAGMA user_version").fetchone()[0])
        application = int(database.execute("PRAGMA application_id").fetchone()[0])
        empty = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if empty and mode != "own":  # made this moment, by a service that starts for the first time
            raise _missing(path)
        if application != _APPLICATION and not empty:
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


def _prepare(path: Path, mode: Mode) -> None:
    """Make the file ("own") and check that it can be opened, without opening it."""
    try:
        if mode == "own":
            with contextlib.suppress(FileExistsError):
                # For this user only; SQLite's other files follow its mode. Unlike open(2), mknod(2) leaves no
                # descriptor to close while another thread may connect.
                os.mknod(path, stat.S_IFREG | 0o600)
        path.stat()
    except FileNotFoundError as error:
        raise _missing(path) from error
    except OSError as error:
        raise LedgerError(f"{path} cannot be opened: {error.strerror}; give this user the right to") from error
    if not os.access(path, os.R_OK | os.W_OK):  # SQLite would open it without the right to write
        raise LedgerError(f"{path} cannot be opened: {os.strerror(errno.EACCES)}; give this user the right to")


def _missing(path: Path) -> LedgerError:
    return LedgerError(f"{path}: there is no ledger; the service has not run with this state folder yet")


# Replaced files


def identities(path: Path) -> dict[Path, tuple[int, int]]:
    """Device and inode of the database, its log and the log's index, by name. Call it while connected."""
    found = {}
    for name in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        if (identity := _identity(name)) is not None:
            found[name] = identity
    return found


def require_same(path: Path, files: Mapping[Path, tuple[int, int]]) -> None:
    """Raise LedgerReplacedError for the ledger at `path` unless each name still leads to the same file."""
    for name, identity in files.items():
        try:
            now = _identity(name)
        except OSError:  # the folder cannot be searched now: unknown
            continue
        if now != identity:
            raise _replaced(path, name)


def leave_open(path: Path, database: sqlite3.Connection) -> None:
    """Keep a connection whose files were replaced until the process ends, and refuse another one to `path`.

    On closing, SQLite would copy the deleted log over the present database; a new connection would share the index of
    the deleted log.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(database))  # or the interpreter would close it when it ends
    _left_open.add(path)


_left_open: set[Path] = set()


def _identity(name: Path) -> tuple[int, int] | None:
    """None if there is no such file. Raises OSError if that is unknown."""
    try:
        found = name.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _replaced(path: Path, name: Path) -> LedgerReplacedError:
    return LedgerReplacedError(
        f"{name} was moved, deleted or replaced while emdenoised used it; the service ends with status 1, and the next"
        " start (systemd's is automatic) uses the file of that name and recognises finished images by their JSON. Keep"
        f" programs that clean, copy back or synchronise away from {path.parent}"
    )


def explain(path: Path, error: sqlite3.DatabaseError) -> EmdenoisedError:
    """An error of ours, with its remedy, for an error of SQLite."""
    text = str(error)
    if "not a database" in text or "malformed" in text:
        return LedgerDamagedError(
            f"{path} is damaged ({text}); stop the service, move {path.name}, {path.name}-wal and {path.name}-shm away"
            " and start it again: finished images are recognised by their JSON and not denoised twice"
        )
    if "disk is full" in text:
        return LedgerUnavailableError(f"{path}: the disk is full; free some space, then the service continues")
    if "disk I/O error" in text:
        return LedgerUnavailableError(f"{path}: the disk cannot be read or written; check that it has free space")
    if "locked" in text:
        return LedgerUnavailableError(f"{path} is locked by another process; close the program that has it open")
    if "readonly" in text or "unable to open" in text:
        return LedgerError(f"{path} cannot be opened or written ({text}); give this user the right to")
    return LedgerError(f"{path}: {text}")
