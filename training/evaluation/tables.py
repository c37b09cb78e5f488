"""Rows → the tables of the report and the verdict: plain numbers, ready for JSON.

Strata: `all` are the real micrographs; `clean` those of them whose truth's own noise lies 6 dB or more under the best
method's error, so that differences between methods are visible (decided on the pairs that every method has, since the
best of fewer methods may differ). That noise is estimated as white: smoothed or compressed noise is underestimated,
which makes differences look smaller. `simulated` is noiseless simulation of families that no training has.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from training import averages
from training.evaluation import metrics
from training.evaluation.rows import Row

STRATA = ("all", "clean", "simulated")
JUDGED = ("clean", "simulated")

_CLEAN_DECIBELS = 6.0

PSNR = {"low": (0.3, 1.0), "ordinary": (0.2, 0.5), "contrast_0.05": (0.3, 1.0), "contrast_0.2": (0.3, 1.0)}
"""Regime → PSNR over BM3D, dB: limit and aim. Low dose at contrast 1 is `low` itself."""

_UNDER_NINE = {"low": (0.246, 0.21), "ordinary": (0.437, 0.39)}
"""Regime → share by which MSE, and 1 - SSIM, must be below those of the best of the nine."""

_MSE_BEYOND_BM3D = 0.15
"""The aim for the MSE: BM3D's own share under the best of the nine, plus this."""

_TIME = 1 / 50
"""Time over BM3D's."""

_RIVAL = "bm3d"

Grouped = Mapping[str, Mapping[str, Row]]
"""Method → key → row."""


def stratum(rows: Sequence[Row], regime: str, name: str) -> dict[str, dict[str, Row]]:
    """Rows of a regime and stratum, by method and key."""
    mine = [row for row in rows if row.regime == regime and (row.stratum == "simulated") == (name == "simulated")]
    if name == "clean":
        methods = {row.method for row in mine}
        count = Counter(row.key for row in mine)
        mine = [row for row in mine if count[row.key] == len(methods)]
        best: dict[str, float] = {}
        for row in mine:
            best[row.key] = min(best.get(row.key, np.inf), row.noise)
        margin = 10 ** (_CLEAN_DECIBELS / 10)
        mine = [row for row in mine if row.truth_noise**2 * margin <= best[row.key]]
    grouped: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in mine:
        grouped[row.method][row.key] = row
    return grouped


def shared(grouped: Grouped, methods: Iterable[str] | None = None) -> list[str]:
    """Keys that all `methods` (by default all) have, in the order of the first one's."""
    names = list(grouped if methods is None else methods)
    if not names or any(name not in grouped for name in names):
        return []
    return [key for key in grouped[names[0]] if all(key in grouped[name] for name in names)]


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Table 1 and its extensions: a dictionary for every regime, stratum, choice of pairs and method."""
    result = []
    for regime in _regimes(rows):
        for name in STRATA:
            grouped = stratum(rows, regime, name)
            common = shared(grouped)
            for instances in ("shared", "every"):
                for method, by_key in grouped.items():
                    chosen = [by_key[key] for key in (common if instances == "shared" else by_key)]
                    if chosen:
                        result.append(
                            {"regime": regime, "stratum": name, "instances": instances, "method": method}
                            | _summary(chosen)
                        )
    return result


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    sources = [row.source for row in rows]
    summary: dict[str, Any] = {"n": len(rows), "sources": len(set(sources))}
    for figure in ("mse", "ssim", "psnr"):
        values = [float(getattr(row, figure)) for row in rows]
        summary[figure] = averages.mean_over_sources(values, sources)
        summary[f"{figure}_std"] = float(np.std(values))
    return summary


def comparisons(rows: Sequence[Row], rival: str = _RIVAL) -> list[dict[str, Any]]:
    """Every method against the rival on the pairs both have: mean difference in PSNR (dB) and its 95 % interval."""
    result = []
    for regime in _regimes(rows):
        for name in STRATA:
            grouped = stratum(rows, regime, name)
            result += [
                {"regime": regime, "stratum": name, "method": method, "rival": rival} | found
                for method in grouped
                if method != rival and (found := _difference(grouped, method, rival))
            ]
    return result


def _difference(grouped: Grouped, method: str, rival: str) -> dict[str, Any] | None:
    keys = shared(grouped, (method, rival))
    if not keys:
        return None
    gains = [grouped[method][key].psnr - grouped[rival][key].psnr for key in keys]
    interval = averages.bootstrap(gains, [grouped[rival][key].source for key in keys])
    return {"n": len(keys), "psnr": interval.mean, "low": interval.low, "high": interval.high}


def correlations(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Fourier ring correlation with the truth by ring: mean, its change from the noisy image's, and their errors."""
    result = []
    for regime in _regimes(rows):
        for name in STRATA:
            grouped = stratum(rows, regime, name)
            for method, by_key in grouped.items():
                keys = shared(grouped, (method, "unfiltered"))
                curves = np.array([row.frc for row in by_key.values()])
                entry: dict[str, Any] = {"regime": regime, "stratum": name, "method": method, "n": len(curves)}
                entry["frc"] = _listed(curves.mean(0))
                entry["spread"] = _listed(curves.std(0) / np.sqrt(len(curves)))
                shapes = {row.shape for row in by_key.values()}
                entry["noise"] = _listed(metrics.frc_noise(min(shapes)))
                if keys:
                    change = np.array([by_key[k].frc for k in keys]) - [grouped["unfiltered"][k].frc for k in keys]
                    entry["change"] = _listed(change.mean(0))
                    entry["change_spread"] = _listed(change.std(0, ddof=min(1, len(keys) - 1)) / np.sqrt(len(keys)))
                result.append(entry)
    return result


def seconds(rows: Sequence[Row], side: int) -> dict[str, float]:
    """Method → median processor seconds for a (side, side) image."""
    times: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.shape == (side, side):
            times[row.method].append(row.seconds)
    return {method: median(values) for method, values in times.items()}


# The figures to reach


def acceptance(rows: Sequence[Row], candidate: str, nine: Sequence[str], side: int) -> list[dict[str, Any]]:
    """Limits, aims and results of a candidate on the judged strata.

    Each entry: figure, regime, stratum, n (pairs), sense (">=" or "<="), must, aim, reached, ok, aim_ok. If a rival is
    missing, the goal is not reached: `reached` is None and `ok` False.
    """
    entries = []
    for name in JUDGED:
        entries += [_psnr_entry(rows, candidate, regime, name, *limits) for regime, limits in PSNR.items()]
        for regime, (less_mse, less_ssim) in _UNDER_NINE.items():
            grouped = stratum(rows, regime, name)

            def share(method: str, error: Callable[[Row], float], grouped: Grouped = grouped) -> float | None:
                return _share_under(grouped, method, nine, error)

            margin = share(_RIVAL, _mse)
            aim_mse = None if margin is None else round(margin + _MSE_BEYOND_BM3D, 4)
            number = len(shared(grouped, (candidate, *nine)))
            entries.append(_entry("MSE under the best of the nine, share", regime, name, number, less_mse, aim_mse,
                                  share(candidate, _mse)))  # fmt: skip
            entries.append(_entry("1 - SSIM under the best of the nine, share", regime, name, number, less_ssim, None,
                                  share(candidate, _dissimilarity)))  # fmt: skip
            spread, number = _spread_over_lowest(grouped, candidate, nine)
            entries.append(_entry("standard deviation of MSE over the lowest other", regime, name, number, 1.0, None,
                                  spread, "<="))  # fmt: skip
    times = seconds(rows, side)
    ratio = times[candidate] / times[_RIVAL] if candidate in times and times.get(_RIVAL) else None
    entries.append(_entry(f"time per {side}² over BM3D's, same core", "every", "every",
                          sum(row.method == candidate for row in rows), _TIME, None, ratio, "<="))  # fmt: skip
    return [{"method": candidate} | entry for entry in entries]


def _entry(
    figure: str, regime: str, name: str, n: int, must: float, aim: float | None, reached: float | None,
    sense: str = ">=",
) -> dict[str, Any]:  # fmt: skip
    def fulfils(limit: float | None) -> bool | None:
        if limit is None:
            return None
        return reached is not None and (reached >= limit if sense == ">=" else reached <= limit)

    return {"figure": figure, "regime": regime, "stratum": name, "n": n, "sense": sense, "must": must, "aim": aim,
            "reached": reached, "ok": fulfils(must), "aim_ok": fulfils(aim)}  # fmt: skip


def _psnr_entry(rows: Sequence[Row], candidate: str, regime: str, name: str, must: float, aim: float) -> dict[str, Any]:
    found = _difference(stratum(rows, regime, name), candidate, _RIVAL)
    figure = "PSNR over BM3D, dB"
    if found is None:
        return _entry(figure, regime, name, 0, must, aim, None)
    interval = {"low": found["low"], "high": found["high"]}
    return _entry(figure, regime, name, found["n"], must, aim, found["psnr"]) | interval


def _mse(row: Row) -> float:
    return row.mse


def _dissimilarity(row: Row) -> float:
    return 1 - row.ssim


def _share_under(grouped: Grouped, method: str, nine: Sequence[str], error: Callable[[Row], float]) -> float | None:
    """Share by which a method's mean error is below that of the best of the nine, on pairs they all have."""
    keys = shared(grouped, (method, *nine))
    if not keys:
        return None
    sources = [grouped[method][key].source for key in keys]

    def mean(name: str) -> float:
        return averages.mean_over_sources([error(grouped[name][key]) for key in keys], sources)

    return 1 - mean(method) / min(map(mean, nine))


def _spread_over_lowest(grouped: Grouped, candidate: str, nine: Sequence[str]) -> tuple[float | None, int]:
    """Standard deviation of a candidate's MSE over the lowest among the nine and BM3D, on pairs they all have."""
    keys = shared(grouped, (candidate, *nine, _RIVAL))
    if len(keys) < 2:
        return None, len(keys)
    lowest = min(_spread(grouped[name], keys) for name in (*nine, _RIVAL))
    return (_spread(grouped[candidate], keys) / lowest if lowest else None), len(keys)


def _spread(by_key: Mapping[str, Row], keys: Iterable[str]) -> float:
    return float(np.std([by_key[key].mse for key in keys]))


def _regimes(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.regime for row in rows))


def _listed(values: Any) -> list[float]:
    return [round(float(value), 5) for value in values]
