"""The present session over time: outcomes, throughput, mean dose, removed noise, hot pixels; and the outliers."""

import threading
from collections import Counter
from dataclasses import dataclass
from math import isfinite
from statistics import median
from typing import Any, Literal, get_args

from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger
from daemon.ledger.sessions import PAUSE_SECONDS

LONGEST = 20_000
"""Of a longer session only the newest micrographs are included."""
BINS = 60
_SHORTEST_BIN = 10.0
_PAGE = 500
_OUTLIERS = 40
"""At most this many of each curve, the farthest off."""
_SIGMAS = 5.0
_FEWEST = 8
"""Micrographs, below which the spread of a session is too uncertain for outliers."""
_SIGMA_OF_MAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
_LEAST = 0.02
"""A spread below this share of the median counts as this share."""
_OUTCOMES = ("good", "check", "reject", "unjudged", "quarantined")
_Key = Literal["dose", "removed_noise", "spikes"]
_KEYS: tuple[_Key, ...] = get_args(_Key)


@dataclass(frozen=True, slots=True)
class _Point:
    id: int
    at: float
    outcome: str
    dose: float | None
    removed_noise: float | None
    """Over the expected noise."""
    spikes: float | None
    """Hot pixels and X-ray hits, for each million of pixels."""


class SessionSummary:
    """Updated by `refresh`, which reads only new jobs. Used by any thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._points: dict[int, _Point] = {}

    def refresh(self) -> dict[str, Any]:
        """The summary in plain JSON types: seconds of the wall clock; lists have one entry for each bin of time.

        Raises as the ledger does.
        """
        with self._lock:
            for job in self._new():
                if self._points and job.updated - self._last > PAUSE_SECONDS:
                    self._points.clear()
                self._points.pop(job.id, None)  # reinserted at the end: points are in the order of time
                self._points[job.id] = _point(job)
            while len(self._points) > LONGEST:
                del self._points[next(iter(self._points))]
            return _summed_up(list(self._points.values()))

    @property
    def _last(self) -> float:
        return next(reversed(self._points.values())).at

    def _new(self) -> list[Job]:
        """Jobs done or quarantined since the last call, or since the session began, oldest first."""
        known = {(self._last, number) for number in self._points} if self._points else set()
        last = self._last if self._points else float("-inf")
        found: list[Job] = []
        before = None
        while page := self._ledger.recent(_PAGE, before=before):
            before = page[-1].updated, page[-1].id
            for job in page:
                if job.updated < last or (job.updated, job.id) in known or len(found) == LONGEST:
                    return found[::-1]
                if job.state not in ("done", "quarantined"):
                    continue
                if found and found[-1].updated - job.updated > PAUSE_SECONDS:
                    return found[::-1]
                found.append(job)
        return found[::-1]


def _point(job: Job) -> _Point:
    if job.state == "quarantined":
        return _Point(job.id, job.updated, "quarantined", None, None, None)
    shape, spikes = job.facts.get("shape"), job.facts.get("spikes")
    pixels = shape[0] * shape[1] if isinstance(shape, list) and len(shape) == 2 else 0
    rate = 1e6 * spikes / pixels if pixels and isinstance(spikes, int) else None
    dose, removed = (_number(job.facts.get(name)) for name in ("dose", "removed_noise"))
    return _Point(job.id, job.updated, job.verdict or "unjudged", dose, removed, rate)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and isfinite(value) else None


def _summed_up(points: list[_Point]) -> dict[str, Any]:
    if not points:
        return {"micrographs": 0}
    # A clock that was set back puts them out of order.
    begin, end = min(point.at for point in points), max(point.at for point in points)
    width, bins = _binned(points, begin, end)
    counts = Counter(point.outcome for point in points)
    outcomes = [name for name in _OUTCOMES if counts[name]]
    return {
        "micrographs": len(points),
        "begin": begin,
        "end": end,
        "bin_seconds": width,
        "counts": {name: counts[name] for name in outcomes},
        "outcomes": {name: [sum(point.outcome == name for point in one) for one in bins] for name in outcomes},
        "per_hour": [3600 * sum(point.outcome != "quarantined" for point in one) / width for one in bins],
        **{key: [_mean(key, one) for one in bins] for key in _KEYS},
        **{f"mean_{key}": _mean(key, points) for key in _KEYS},
        "outliers": {key: _outliers(key, points) for key in _KEYS},
    }


def _binned(points: list[_Point], begin: float, end: float) -> tuple[float, list[list[_Point]]]:
    """The points by time, in bins of equal width, seconds."""
    number = min(BINS, max(1, int((end - begin) / _SHORTEST_BIN)))
    width = max(_SHORTEST_BIN, (end - begin) / number)
    bins: list[list[_Point]] = [[] for _ in range(number)]
    for point in points:
        bins[min(number - 1, int((point.at - begin) / width))].append(point)
    return width, bins


def _outliers(key: _Key, points: list[_Point]) -> list[dict[str, float]]:
    """Number, time and value of those over _SIGMAS standard deviations from the session's median, farthest first."""
    known = [(point, value) for point in points if (value := getattr(point, key)) is not None]
    if len(known) < _FEWEST:
        return []
    middle = median(value for _, value in known)
    spread = max(_SIGMA_OF_MAD * median(abs(value - middle) for _, value in known), _LEAST * abs(middle))
    far = [(abs(value - middle), point, value) for point, value in known if abs(value - middle) > _SIGMAS * spread]
    far.sort(key=lambda one: one[0], reverse=True)
    return [{"id": point.id, "at": point.at, "value": value} for _, point, value in far[:_OUTLIERS]]


def _mean(key: _Key, points: list[_Point]) -> float | None:
    known = [value for value in (getattr(point, key) for point in points) if value is not None]
    return sum(known) / len(known) if known else None
