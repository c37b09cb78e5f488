"""An open ledger: one transaction at a time, SQLite's errors with a remedy, and no writing to replaced files."""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from daemon.ledger.database import (
    FILE,
    LOCK,
    LedgerError,
    LedgerReplacedError,
    Mode,
    connect,
    explain,
    identities,
    leave_open,
    own,
    require_same,
)

C = TypeVar("C", bound="LedgerConnection")


class LedgerConnection:
    """Opened on a state folder, closed by `close` or `with`. Used by any thread. See `jobs.Ledger`."""

    def __init__(self, folder: Path, mode: Mode) -> None:
        self.path = folder / FILE
        self._lock = threading.RLock()
        self._held = own(folder) if mode == "own" else None
        self._files: dict[Path, tuple[int, int]] = {}
        """Device and inode of each open file, by name."""
        try:
            with self._explained():
                self._db = connect(self.path, mode)
            self._files = identities(self.path)
            if self._held is not None:
                lock = os.fstat(self._held)
                self._files[folder / LOCK] = lock.st_dev, lock.st_ino
        except BaseException:
            self._release_folder()
            raise

    def close(self) -> None:
        """Close the file and let another service have the folder. Safe to call twice."""
        with self._lock:
            try:
                self.require_in_place()
            except LedgerReplacedError:
                leave_open(self.path, self._db)
            else:
                self._db.close()
            self._files = {}
            self._release_folder()

    def require_in_place(self) -> None:
        """Raise LedgerReplacedError if a file that is open here is no longer the one under its name."""
        require_same(self.path, self._files)

    def __enter__(self: C) -> C:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            if self._db.in_transaction:
                raise LedgerError(f"{self.path}: a transaction within a transaction")
            self.require_in_place()
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk ends the transaction
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """One thread at a time; SQLite's errors become ours (`database.explain`)."""
        with self._lock:
            try:
                yield
            except sqlite3.DatabaseError as error:
                self.require_in_place()
                raise explain(self.path, error) from error

    def _release_folder(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            os.close(held)
