"""The micrographs as a table: sorted, searched and filtered by SQLite, one page of rows at a time.

By time it reads only indices, however many rows there are. A search reads all names, other orders the rows themselves:
their result is kept as a list of numbers for a while, so that the next pages cost nothing.
"""

import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from daemon.formats.units import METRES
from daemon.ledger import names
from daemon.ledger.connection import LedgerConnection
from daemon.ledger.sessions import PAUSE_SECONDS
from daemon.settings.names import folded

Column = Literal["time", "name", "dose", "pixel", "verdict", "code", "seconds"]
Show = Literal["all", "good", "check", "reject", "quarantined", "waiting"]
COLUMNS: tuple[Column, ...] = get_args(Column)
SHOWS: tuple[Show, ...] = get_args(Show)
SORTED = 100_000
"""Of a longer table only the newest rows are sorted by anything but time."""
KEPT_SECONDS = 10.0
_KEPT = 4
_PAGE = 500

_UNITS = " ".join(f"WHEN '{name}' THEN {size / METRES['nm']}" for name, size in METRES.items())
_VALUES: dict[Column, str] = {
    "time": "updated",
    "name": "path",
    "dose": "json_extract(facts, '$.dose')",
    "pixel": f"json_extract(facts, '$.pixel_size.x') * CASE json_extract(facts, '$.pixel_size.unit') {_UNITS} END",
    "verdict": "CASE state WHEN 'done' THEN coalesce(verdict, 'unjudged') WHEN 'quarantined' THEN state "
    "ELSE 'waiting' END",
    "code": "CASE state WHEN 'done' THEN json_extract(facts, '$.codes[0]') ELSE error END",
    "seconds": "(SELECT sum(value) FROM json_each(timings))",
}
_RULES: dict[Show, str] = {
    "all": "1",
    "waiting": "state IN ('running', 'pending', 'retry')",
    "quarantined": "state = 'quarantined'",
    "good": "verdict = 'good'",
    "check": "verdict = 'check'",
    "reject": "verdict = 'reject'",
}


@dataclass(frozen=True, slots=True)
class Query:
    """Which rows, in which order."""

    show: Show = "all"
    sort: Column = "time"
    descending: bool = True
    search: str = ""
    """Part of the path; neither letter case matters, nor how accents are composed."""
    since: float = float("-inf")
    """Only rows that changed at this time (seconds, wall clock) or later."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """One micrograph. `pixel`: width in nm; `seconds`: of all steps; None where it is unknown."""

    id: int
    path: str
    revision: int
    updated: float
    verdict: str
    """good, check, reject, unjudged, quarantined or waiting."""
    dose: float | None
    pixel: float | None
    codes: tuple[str, ...]
    """Of the verdict's reasons."""
    error: str | None
    seconds: float | None
    acknowledged: bool
    """Whether a person marked it as seen."""


class Table(LedgerConnection):
    """A connection of its own, so that a long search does not hold up others. Used by any thread.

    Raises as `jobs.Ledger` does.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(folder, "read")
        self._clock = clock
        self._begin = float("-inf"), float("-inf")
        """When `session_begin` was last asked, and its answer."""
        self._found: OrderedDict[Query, tuple[float, NDArray[np.int64]]] = OrderedDict()

    def session_begin(self) -> float:
        """When the latest session began, of which at most SORTED rows count; -inf without rows. KEPT_SECONDS old."""
        newest = f"SELECT updated FROM jobs ORDER BY updated DESC LIMIT {SORTED}"
        pairs = f"SELECT updated, lead(updated) OVER (ORDER BY updated DESC) AS earlier FROM ({newest})"
        pause = f"SELECT updated FROM ({pairs}) WHERE updated - earlier > {PAUSE_SECONDS} ORDER BY updated DESC LIMIT 1"
        with self._explained():
            now = self._clock()
            if not 0 <= now - self._begin[0] < KEPT_SECONDS:
                begin = self._value(pause)
                if begin is None:
                    begin = self._value(f"SELECT min(updated) FROM ({newest})")
                self._begin = now, float("-inf") if begin is None else float(begin)
            return self._begin[1]

    def count(self, query: Query) -> int:
        """How many rows a query has."""
        if not quick(query):
            return len(self._listed(query))
        with self._explained():
            if query.since == float("-inf") and query.show in ("all", "waiting", "quarantined"):
                return int(self._value(f"SELECT sum(jobs) FROM tally WHERE {_RULES[query.show]}") or 0)
            return int(self._value(f"SELECT count(*) FROM jobs WHERE {_where(query)}", query.since))

    def page(self, query: Query, begin: int, number: int) -> list[TableRow]:
        """`number` rows from the place `begin` on."""
        if quick(query):
            order = "DESC" if query.descending else "ASC"
            with self._explained():
                found = self._db.execute(
                    f"SELECT id FROM jobs WHERE {_where(query)} ORDER BY updated {order}, id {order} LIMIT ? OFFSET ?",
                    (query.since, number, begin),
                )
                return self._rows([row[0] for row in found])
        return self._rows([int(one) for one in self._listed(query)[begin : begin + number]])

    def each(self, query: Query) -> Iterator[TableRow]:
        """All rows of a query as it is now, read a page at a time."""
        numbers = self._listed(query)
        for begin in range(0, len(numbers), _PAGE):
            yield from self._rows([int(one) for one in numbers[begin : begin + _PAGE]])

    def _listed(self, query: Query) -> NDArray[np.int64]:
        """The numbers of all rows of a query, in order; kept for KEPT_SECONDS."""
        with self._lock:
            now = self._clock()
            known = self._found.get(query)
            if known is not None and 0 <= now - known[0] < KEPT_SECONDS:
                return known[1]
            with self._explained():
                # One string for all numbers: a million rows would keep Python, and with it the service, busy.
                text = self._value(f"SELECT group_concat(id) FROM ({_ordered(query)})", *_given(query))
            found = np.fromstring(text or "", np.int64, sep=",")
            self._found[query] = now, found
            self._found.move_to_end(query)
            while len(self._found) > _KEPT:
                self._found.popitem(last=False)
            return found

    def _value(self, query: str, *given: object) -> Any:
        row = self._db.execute(query, given).fetchone()
        return None if row is None else row[0]

    def _rows(self, numbers: Sequence[int]) -> list[TableRow]:
        """Rows by their numbers, in this order; without those that were removed meanwhile."""
        columns = ", ".join(f"{_VALUES[name]} AS {name}" for name in ("dose", "pixel", "verdict", "seconds"))
        marks = ", ".join("?" * len(numbers))
        plain = "id, path, revision, updated, error, acknowledged"
        query = f"SELECT {plain}, json_extract(facts, '$.codes') AS codes, {columns}"
        with self._explained():
            found = {
                row["id"]: TableRow(
                    row["id"], os.fsdecode(row["path"]), row["revision"], row["updated"], row["verdict"],
                    _number(row["dose"]), _number(row["pixel"]), _words(row["codes"]), row["error"],
                    _number(row["seconds"]), row["acknowledged"] is not None,
                )
                for row in self._db.execute(f"{query} FROM jobs WHERE id IN ({marks})", tuple(numbers))
            }  # fmt: skip
        return [found[number] for number in numbers if number in found]


def quick(query: Query) -> bool:
    """Whether the ledger's indices have this order."""
    return query.sort == "time" and not query.search


def _where(query: Query) -> str:
    # With + SQLite reads the index of the order, and sorts nothing.
    found = " AND +id IN (SELECT job FROM names WHERE instr(name, ?))" if query.search else ""
    return f"{_RULES[query.show]} AND updated >= ?{found}"


def _given(query: Query) -> tuple[object, ...]:
    if not query.search:
        return (query.since,)
    return query.since, names.encode(folded(query.search))


def _ordered(query: Query) -> str:
    order = "DESC" if query.descending else "ASC"
    if query.sort == "time":
        return f"SELECT id FROM jobs WHERE {_where(query)} ORDER BY updated {order}, id {order}"
    newest = f"SELECT * FROM jobs WHERE {_where(query)} ORDER BY updated DESC, id DESC LIMIT {SORTED}"
    value = _VALUES[query.sort]
    return f"SELECT id FROM ({newest}) ORDER BY {value} IS NULL, {value} {order}, updated DESC, id DESC"


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _words(text: object) -> tuple[str, ...]:
    """The words of a JSON list; empty for anything else."""
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        found = None
    return tuple(map(str, found)) if isinstance(found, list) else ()
