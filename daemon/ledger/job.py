"""`Job`: the ledger's entry for one revision of one file."""

import json
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["pending", "running", "retry", "done", "quarantined"]


@dataclass(frozen=True, slots=True)
class Job:
    """One revision of one file. Times are seconds of the wall clock; `timings` are seconds by step."""

    id: int
    path: str
    """Relative to the drop folder; bytes that are not UTF-8 as surrogates (PEP 383)."""
    revision: int
    """1, 2, ...: counts the versions of this file that were processed."""
    size: int
    mtime_ns: int
    sha256: str | None
    """Of the file; of its first section, where sections are processed one by one."""
    state: State
    live: bool
    attempts: int
    not_before: float
    error: str | None
    warning: str | None
    profile: str | None
    timings: Mapping[str, float]
    output: str | None
    created: float
    updated: float
    sections: int = 0
    """How many sections of a stack are done, where they are processed one by one."""
    verdict: str | None = None
    """Of the result: good, check or reject."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Figures of the result's record for lists of micrographs (`record.Record.summary`)."""
    acknowledged: float | None = None
    """When a person marked it as seen, quarantined or rejected as it is; None: nobody has."""
    waited: float = 0.0
    """Seconds it waited for its turn; only of what `Ledger.claim` returns."""


def from_row(row: sqlite3.Row) -> Job:
    """A row of the table `jobs`."""
    values = dict(row)
    values["path"] = os.fsdecode(row["path"])
    values["output"] = None if row["output"] is None else os.fsdecode(row["output"])
    values["mtime_ns"] = int(row["mtime_ns"])
    values["live"] = bool(row["live"])
    values["timings"], values["facts"] = json.loads(row["timings"]), json.loads(row["facts"])
    return Job(**values)
