"""The paths of the live page and their answers; micrographs are named by their number in the ledger.

All only read, except a POST of /act/retry/7 or /act/acknowledge/7 (see `actions`).

/, /page.css, ...                         the page itself (`daemon/live_page/site`)
/data/state                               health, figures, and whether anything is new: cheap, asked all the time
/data/list?show=good&before=...           a page of micrographs, newest first
/data/micrograph/7                        ledger entry and record of one
/data/profile/7?y0=..&x0=..&y1=..&x1=..   values along a line
/data/session                             the present session as curves
/data/table?sort=dose&order=asc&...       a page of the table of micrographs; /data/table.csv: all of it
/file/7/image                             a file of the result as it is: image, preview or record
/picture/7/raw/2/0/0                      a tile: plane, level, row, column; as codes (`deep`), the residual as PNG
/picture/7/thumbnail, /picture/7/spectrum/raw
"""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from daemon import __version__
from daemon.errors import EmdenoisedError
from daemon.formats.decoder import Reader
from daemon.ledger import table
from daemon.ledger.database import LedgerError
from daemon.ledger.job import Job, State
from daemon.ledger.jobs import Ledger
from daemon.live_page import deep, downloads, listing, pictures
from daemon.live_page.actions import Actions
from daemon.live_page.gallery import BusyError, Gallery, NotThereError, ShownPlane, ShownResult
from daemon.live_page.server import Answer, Health, Request
from daemon.live_page.session_curves import SessionSummary
from daemon.logs import one_line, reason
from daemon.settings.config import Config

log = logging.getLogger(__name__)

SITE = Path(__file__).parent / "site"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
LISTED = 100
"""Most micrographs in one list."""
_RATE_SECONDS = 600.0
"""The rate is an average over this time."""
_RATED = 60
_WIDEST = 200
_FOR_ALL = ("/login.js", "/page.css", "/icon.svg")
_ENDED: tuple[State, ...] = ("done", "quarantined")
_WAITING: tuple[State, ...] = ("running", "pending", "retry")
_BY_STATE: Mapping[str, tuple[State, ...]] = {"all": _ENDED, "quarantined": ("quarantined",), "waiting": _WAITING}
_VERDICTS = ("good", "check", "reject")
_NUMBER = r"(\d{1,15})"
_SMALL = r"(\d{1,6})"


class Page:
    """The monitor's site (`server.Site`) for one set of settings. Used by any thread.

    Its own connection to the ledger lets readers and writers work without waiting for it. Raises LedgerError if there
    is no ledger yet.
    """

    def __init__(self, config: Config, health: Callable[[], Health], clock: Callable[[], float] = time.time) -> None:
        self._health, self._clock = health, clock
        self._ledger = Ledger(config.folders.state, "read", clock=clock)
        self.gallery = Gallery(
            config.folders,
            Reader(config.backend.max_pixels, config.backend.decode_seconds),
            memory=config.monitor.page_memory_mib << 20,
            disk=config.keep.page_mib << 20,
        )
        self._table = table.Table(config.folders.state)
        self._drop = config.folders.drop
        self._actions = Actions(config.folders.state, config.monitor.actions)
        self._summary = SessionSummary(self._ledger)
        self._files = {f"/{path.name}": _static(path) for path in SITE.iterdir() if path.suffix in KINDS}
        self._files["/"] = self._files.pop("/index.html")
        self._routes: tuple[tuple[re.Pattern[str], Callable[..., Answer]], ...] = tuple(
            (re.compile(pattern), answer)
            for pattern, answer in (
                ("/data/state", self._state),
                ("/data/list", self._list),
                ("/data/session", self._session),
                ("/data/table", self._rows),
                ("/data/table[.]csv", self._csv),
                (f"/data/micrograph/{_NUMBER}", self._micrograph),
                (f"/data/profile/{_NUMBER}", self._profile),
                (f"/file/{_NUMBER}/({'|'.join(get_args(downloads.Part))})", self._file),
                (f"/picture/{_NUMBER}/thumbnail", self._thumbnail),
                (f"/picture/{_NUMBER}/spectrum/(raw|denoised)", self._spectrum),
                (f"/picture/{_NUMBER}/({'|'.join(get_args(ShownPlane))})/{_SMALL}/{_SMALL}/{_SMALL}", self._tile),
            )
        )

    def close(self) -> None:
        """Free everything; no request may follow."""
        self.gallery.close()
        self._table.close()
        self._ledger.close()

    def tidy(self) -> None:
        """Free micrographs that are no longer displayed."""
        self.gallery.tidy()

    def answer(self, request: Request) -> Answer | None:
        """None if there is no such path."""
        if (file := self._files.get(request.path)) is not None:
            return file
        for pattern, answer in self._routes:
            if (match := pattern.fullmatch(request.path)) is not None:
                return _guarded(answer, request, *match.groups())
        return None

    def ask_for_token(self, request: Request) -> Answer:
        """Answer a request without the token: the page that asks for it, and its parts."""
        if request.path == "/":
            return replace(self._files["/login.html"], status=401, etag="")
        if request.path in _FOR_ALL:
            return self._files[request.path]
        return _json({"error": "this page asks for a token: load it again"}, 401)

    def act(self, request: Request) -> Answer | None:
        """Answer a POST. None if there is no such path."""
        match = re.fullmatch(f"/act/(retry|acknowledge)/{_NUMBER}", request.path)
        return None if match is None else _guarded(self._act, request, *match.groups())

    def _act(self, request: Request, action: str, number: str) -> Answer:
        if why := self._actions.why_not(request):
            return _json({"error": why}, 403)
        (self._actions.retry if action == "retry" else self._actions.acknowledge)(int(number))
        return _json({})

    # Data

    def _state(self, _: Request) -> Answer:
        """Reads only indices of the ledger, so it is quick however many micrographs that holds."""
        health, counts, problems = self._health(), self._ledger.counts(), self._ledger.problems()
        latest, newest = self._ledger.recent(1), self._ledger.recent(1, "done")
        return _json(
            {
                "version": __version__,
                "health": {"state": health.state, "detail": health.detail, "backend": health.backend},
                "counts": counts,
                "problems": problems,
                "waiting": sum(counts[state] for state in _WAITING),
                "oldest_waiting": self._ledger.oldest_waiting(),
                "per_hour": self._per_hour(),
                # With the counts, because after a clock was set back the newest job is not the latest by time.
                "changed": "-".join([*map(_place, latest), *map(str, counts.values()), str(problems)]),
                "newest": self._brief(newest[0]) if newest else None,
                "token": self._actions.token,
            }
        )

    def _per_hour(self) -> float:
        """Micrographs per hour, over the last _RATE_SECONDS."""
        now = self._clock()
        since = now - _RATE_SECONDS
        found = [job.updated for job in self._ledger.recent(_RATED, "done") if since <= job.updated <= now]
        if len(found) < 2:
            return 3600 * len(found) / _RATE_SECONDS
        span = now - found[-1] if len(found) == _RATED else _RATE_SECONDS
        return 3600 * len(found) / max(span, 1.0)

    def _list(self, request: Request) -> Answer:
        show = request.given.get("show", "all")
        limit = min(LISTED, _whole(request.given.get("limit", "40"), 1))
        before = _place_of(request.given.get("before", ""))
        if show in _VERDICTS:
            found = self._ledger.recent(limit + 1, verdict=show, before=before)
        elif show in _BY_STATE:
            found = [job for state in _BY_STATE[show] for job in self._ledger.recent(limit + 1, state, before=before)]
        else:
            raise _WrongError(f"show: one of {', '.join((*_BY_STATE, *_VERDICTS))}")
        found.sort(key=lambda job: (job.updated, job.id), reverse=True)
        shown = found[:limit]
        return _json({"micrographs": [self._brief(job) for job in shown], "more": len(found) > limit})

    def _micrograph(self, _: Request, number: str) -> Answer:
        job = self._job(number)
        brief: dict[str, Any] = {
            **self._brief(job),
            "warning": job.warning,
            "timings": dict(job.timings),
            "shown": None,
            "files": {"raw": _readable(str(self._drop / job.path)), "result": job.output and _readable(job.output)},
        }
        if job.output is None:
            return _json(brief)
        try:
            result = self.gallery.find(job)
        except NotThereError as error:
            return _json({**brief, "missing": str(error)})
        return _json({**brief, "shown": _shown(result), "record": _of_record(result)})

    def _session(self, _: Request) -> Answer:
        return _json(self.gallery.quietly(self._summary.refresh))

    def _profile(self, request: Request, number: str) -> Answer:
        y0, x0, y1, x1 = (_real(request.given.get(name, "")) for name in ("y0", "x0", "y1", "x1"))
        width = min(_WIDEST, _whole(request.given.get("width", "1"), 1))
        return _json(self.gallery.profile(self._result(number), (y0, x0), (y1, x1), width))

    def _rows(self, request: Request) -> Answer:
        begin, number = _whole(request.given.get("from", "0"), 0), _whole(request.given.get("count", "100"), 1)
        query = self._query(request)

        def rows() -> dict[str, Any]:
            return listing.page(self._table, query, begin, number, self._texts)

        return _json(rows() if table.quick(query) else self.gallery.quietly(rows))

    def _csv(self, request: Request) -> Answer:
        lines = listing.csv_of(self._table, self._query(request), self._texts)
        return Answer(200, "text/csv; charset=utf-8", b"", parts=lines, save_as="micrographs.csv")

    def _query(self, request: Request) -> table.Query:
        try:
            return listing.query_of(request.given, self._table)
        except ValueError as error:
            raise _WrongError(str(error)) from error

    def _file(self, _: Request, number: str, part: Any) -> Answer:
        path = downloads.path_of(self._result(number), part)
        length, parts = downloads.opened(path)
        return Answer(200, "application/octet-stream", b"", parts=parts, length=length, save_as=_readable(path.name))

    # Pictures

    def _thumbnail(self, request: Request, number: str) -> Answer:
        return _picture(request, self._result(number), "thumbnail", "image/jpeg", self.gallery.thumbnail)

    def _spectrum(self, request: Request, number: str, plane: Any) -> Answer:
        result = self._result(number)
        return _picture(request, result, f"s-{plane}", "image/png", lambda one: self.gallery.spectrum(one, plane))

    def _tile(self, request: Request, number: str, plane: Any, *place: str) -> Answer:
        level, row, column = map(int, place)
        version = "-".join((plane, *place, "tile"))
        kind = "image/png" if plane == "residual" else deep.KIND

        def draw(result: ShownResult) -> bytes:
            return self.gallery.tile(result, plane, level, row, column)

        return _picture(request, self._result(number), version, kind, draw)

    def _texts(self, path: str, error: str | None) -> tuple[str, str]:
        """Path and reason of a micrograph as they are displayed."""
        return _readable(path), reason(error, self._drop, path)

    def _brief(self, job: Job) -> dict[str, Any]:
        """The ledger's entry of a job, for lists."""
        path, why = self._texts(job.path, job.error)
        return {
            "id": job.id,
            "place": _place(job),
            "path": path,
            "revision": job.revision,
            "sections": job.sections,
            "state": job.state,
            "updated": job.updated,
            "verdict": job.verdict if job.state == "done" else None,
            "profile": job.profile,
            "error": why or None,
            "acknowledged": job.acknowledged,
            "size": job.size,
            "facts": dict(job.facts),
        }

    def _job(self, number: str) -> Job:
        try:
            return self._ledger.get(int(number))
        except LedgerError as error:
            raise NotThereError(f"there is no micrograph {number}") from error

    def _result(self, number: str) -> ShownResult:
        return self.gallery.find(self._job(number))


class _WrongError(EmdenoisedError):
    """The request makes no sense."""


def _guarded(answer: Callable[..., Answer], request: Request, *groups: str) -> Answer:
    """The answer, or an error's message with its HTTP status."""
    try:
        return answer(request, *groups)
    except BusyError as error:
        return _json({"error": str(error)}, 503, retry_after=1)
    except NotThereError as error:
        return _json({"error": str(error)}, 404)
    except _WrongError as error:
        return _json({"error": str(error)}, 400)
    except EmdenoisedError as error:
        return _json({"error": str(error)}, 503, retry_after=1)
    except Exception as error:
        # An edited record, or a defect of this program: the browser gets the reason and can show other micrographs.
        log.debug("traceback", exc_info=True)
        return _json({"error": f"this cannot be shown ({error!r}): its record is damaged, or please report it"}, 500)


def _picture(
    request: Request, result: ShownResult, version: str, kind: str, draw: Callable[[ShownResult], bytes]
) -> Answer:
    etag = f'"{result.key}-{version}"'
    return Answer(200, kind, b"" if request.etag == etag else draw(result), etag)


def _static(path: Path) -> Answer:
    body = path.read_bytes()
    return Answer(200, KINDS[path.suffix], body, f'"{hashlib.sha256(body).hexdigest()[:24]}"')


def _json(content: Mapping[str, Any], status: int = 200, retry_after: int = 0) -> Answer:
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Answer(status, "application/json", text.encode("ascii"), retry_after=retry_after)


def _shown(result: ShownResult) -> dict[str, Any]:
    """Key, size, tiles and spectrum of a result: what the page needs to draw it."""
    height, width = result.shape
    side, factor = pictures.spectrum_size(result.shape)
    return {
        "key": result.key,
        "height": height,
        "width": width,
        "tile": pictures.TILE,
        "levels": pictures.levels(result.shape),
        "raw_gone": result.raw_gone,
        "spectrum": {"side": side, "factor": factor},
        "name": _readable(result.image.name),
    }


def _of_record(result: ShownResult) -> dict[str, Any]:
    """The displayed fields of the record, without its long lists."""
    record = result.record.model_copy(update={"spikes": None}).as_json()
    raw = record.get("raw") or {}
    return {
        **{name: record.get(name) for name in ("dose", "profile", "backend", "verdict", "warnings", "finished")},
        "seconds": record.get("seconds"),
        "weights": (record.get("weights") or {}).get("name"),
        "spikes": None if result.record.spikes is None else result.record.spikes.count,
        **{name: raw.get(name) for name in ("kind", "dtype", "pixel_size", "acquisition", "section")},
    }


def _place(job: Job) -> str:
    """A job's place in the order of time, as `before` takes it."""
    return f"{job.updated!r}_{job.id}"


def _place_of(text: str) -> tuple[float, int] | None:
    if not text:
        return None
    updated, _, number = text.partition("_")
    return _real(updated), _whole(number, 0)


def _real(text: str) -> float:
    if not re.fullmatch(r"-?\d{1,15}(\.\d{1,17})?(e[+-]?\d\d?)?", text):
        raise _WrongError("a number is missing, or is none")
    return float(text)


def _whole(text: str, least: int) -> int:
    if not re.fullmatch(r"\d{1,15}", text) or int(text) < least:
        raise _WrongError("a whole number is missing, or is none")
    return int(text)


def _readable(path: str) -> str:
    """A path as text, with escapes for bytes that are not UTF-8 and for characters that hide or reorder others."""
    return one_line(os.fsencode(path).decode("utf-8", "backslashreplace"))
