"""The table of micrographs: a page of rows as plain JSON types, and all rows as CSV."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, cast

from daemon.errors import EmdenoisedError
from daemon.ledger.table import COLUMNS, SHOWS, SORTED, Column, Query, Show, Table, TableRow

_LONGEST_SEARCH = 200
ROWS = 200
"""Most rows in one answer."""
_HEAD = ("time", "path", "revision", "dose (counts per pixel)", "pixel size (nm)", "verdict", "reason codes", "reason",
         "seconds", "acknowledged")  # fmt: skip
_LINES = 500
Texts = Callable[[str, str | None], tuple[str, str]]
"""Path and reason of a micrograph as they are displayed."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a cell that begins with one of these for a formula."""


def query_of(given: Mapping[str, str], table: Table) -> Query:
    """The query that a request states. Raises ValueError, and as the ledger does."""
    show, sort = given.get("show", "all"), given.get("sort", "time")
    order, scope = given.get("order", "desc"), given.get("scope", "all")
    for name, value, words in (("show", show, SHOWS), ("sort", sort, COLUMNS), ("order", order, ("asc", "desc")),
                               ("scope", scope, ("all", "session"))):  # fmt: skip
        if value not in words:
            raise ValueError(f"{name}: one of {', '.join(words)}")
    since = table.session_begin() if scope == "session" else float("-inf")
    search = given.get("search", "").strip()[:_LONGEST_SEARCH]
    return Query(cast(Show, show), cast(Column, sort), order == "desc", search, since)


def page(table: Table, query: Query, begin: int, number: int, texts: Texts) -> dict[str, Any]:
    """Rows, how many there are in all, and whether only the newest of these are sorted."""
    total = table.count(query)
    rows = table.page(query, begin, min(ROWS, number))
    limited = query.sort != "time" and total == SORTED
    return {"total": total, "limited": limited, "rows": [_plain(row, texts) for row in rows]}


def csv_of(table: Table, query: Query, texts: Texts) -> Iterator[bytes]:
    """All rows as the lines of a CSV file. If the ledger fails midway, the last line states that."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_HEAD)
    try:
        for number, row in enumerate(table.each(query)):
            writer.writerow(_cells(row, texts))
            if number % _LINES == _LINES - 1:
                yield _taken(text)
    except EmdenoisedError as error:
        writer.writerow(("incomplete", str(error)))
    yield _taken(text)


def _taken(text: io.StringIO) -> bytes:
    found = text.getvalue().encode("utf-8", "backslashreplace")
    text.seek(0)
    text.truncate()
    return found


def _plain(row: TableRow, texts: Texts) -> dict[str, Any]:
    path, reason = texts(row.path, row.error)
    return {
        "id": row.id, "path": path, "revision": row.revision, "updated": row.updated, "dose": row.dose,
        "pixel": row.pixel, "verdict": row.verdict, "codes": row.codes, "error": reason or None, "seconds": row.seconds,
        "acknowledged": row.acknowledged,
    }  # fmt: skip


def _cells(row: TableRow, texts: Texts) -> tuple[object, ...]:
    path, reason = texts(row.path, row.error)
    when = datetime.fromtimestamp(row.updated).astimezone().isoformat(timespec="seconds")
    return (
        when, _text(path), row.revision, row.dose, row.pixel, row.verdict, " ".join(row.codes),
        _text(reason), None if row.seconds is None else round(row.seconds, 3),
        "yes" if row.acknowledged else "",
    )  # fmt: skip


def _text(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
