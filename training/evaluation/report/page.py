"""An evaluation as one self-contained HTML file: verdict, tables, figures, and the protocol.

All input is in the folder that `command` fills (see its docstring). An optional text file `remarks.txt` in it is shown
below the verdict, to explain figures that were not reached.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from daemon.commands.html import opening
from daemon.errors import ConfigError
from daemon.files import save
from training.evaluation import rows
from training.evaluation.report import figures, html, plots
from training.evaluation.report import tables as report_tables
from training.evaluation.report.html import REGIMES, STRATA
from training.evaluation.rows import Row

REPORT = "report.html"
REMARKS = "remarks.txt"
_Entry = Mapping[str, Any]
"""A goal or a guard of an evaluation, in JSON types."""


def write(out: Path) -> Path:
    """Write OUT/report.html from OUT/evaluation.json and the files beside it; returns its path.

    Raises ConfigError if there is no readable evaluation, or the report cannot be written.
    """
    path = out / "evaluation.json"
    try:
        evaluation = json.loads(path.read_bytes())
        identities = {name: method["identity"] for name, method in evaluation["methods"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: is no evaluation that can be read ({error}); run `python -m training evaluate` with this --out"
        ) from error
    text = render(evaluation, rows.current(out / "instances.jsonl", identities), out)
    target = out / REPORT
    save(target, text.encode())
    return target


def render(evaluation: Mapping[str, Any], measured: Sequence[Row], out: Path) -> str:
    """The page. `out`: folder of error maps, examples and remarks."""
    labels = html.labels(evaluation["methods"])
    families = {labels[name]: str(method["family"]) for name, method in evaluation["methods"].items()}
    style = plots.styles(families)
    body = [
        *_verdict(evaluation, labels, out),
        *report_tables.table_one(evaluation, labels),
        *report_tables.strata(evaluation, labels),
        *report_tables.against_rival(evaluation, labels),
        "<h2>Figures</h2>",
        *figures.densities(measured, labels, style),
        *figures.error_maps(out, evaluation["methods"], labels),
        *figures.examples(out, evaluation, measured, labels),
        *figures.ring_curves(evaluation, labels, style),
        *figures.gains(evaluation, measured, labels, style),
        *_guards(evaluation, labels),
        *_cost(evaluation, labels, style),
        *_protocol(evaluation),
    ]
    return opening("Evaluation", html.STYLE) + "\n".join(body) + "\n</body></html>\n"


# Verdict


def _verdict(evaluation: Mapping[str, Any], labels: Mapping[str, str], out: Path) -> Iterator[str]:
    yield "<h1>Evaluation of a denoiser for electron micrographs</h1>"
    protocol = evaluation.get("protocol", {})
    if protocol.get("quick"):
        yield "<p class=missed>A quick run: too few and too small pairs for any of these figures to be quoted.</p>"
    entries = list(evaluation.get("acceptance", ()))
    guards = evaluation.get("guards", {})
    judged = [name for name in labels if any(e["method"] == name for e in entries) or name in guards]
    if not judged:
        yield "<p>No weights were evaluated, so there is nothing to accept or reject.</p>"
    for name in judged:
        mine = [entry for entry in entries if entry["method"] == name]
        yield from _verdict_on(labels[name], mine, list(guards.get(name, ())))
    remarks = out / REMARKS
    if remarks.is_file():
        yield f"<h3>Remarks</h3><pre>{escape(remarks.read_text(encoding='utf-8'))}</pre>"


def _verdict_on(label: str, goals: Sequence[_Entry], guards: Sequence[_Entry]) -> Iterator[str]:
    """Reached and missed goals of one method, and a table of all figures."""
    reached = sum(bool(item["ok"]) for item in (*goals, *guards))
    yield f"<h2>{escape(label)}: {reached} of {len(goals) + len(guards)} figures reached</h2>"
    missed = [_shortfall(entry) for entry in goals if not entry["ok"]]
    missed += [_guard_shortfall(guard) for guard in guards if not guard["ok"]]
    if missed:
        yield from _bullets("Not reached:", missed)
    else:
        yield "<p>Everything that must be reached is reached.</p>"
    short = [_shortfall(entry, "aim") for entry in goals if entry["ok"] and entry.get("aim_ok") is False]
    if short:
        yield from _bullets("Reached, but not what was aimed at:", short)
    lines = [*map(_goal_cells, goals), *map(_guard_cells, guards)]
    yield html.table(("figure", "where", "pairs", "must be", "aim", "reached", ""), lines, text_columns=2)


def _bullets(head: str, texts: Iterable[str]) -> Iterator[str]:
    yield f"<p>{head}</p><ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _goal_cells(entry: _Entry) -> Sequence[str]:
    return (
        html.cell(entry["figure"], "text"), html.cell(_where(entry), "text"), html.cell(entry.get("n", "")),
        html.cell(html.limit(entry["sense"], entry["must"])),
        html.cell("" if entry["aim"] is None else html.limit(entry["sense"], entry["aim"])),
        html.cell(_reached(entry)), html.status(entry),
    )  # fmt: skip


def _guard_cells(guard: _Entry) -> Sequence[str]:
    return (
        html.cell(guard["name"], "text"), html.cell("simulation", "text"), html.cell(""),
        html.cell(html.limit(guard["sense"], guard["limit"])), html.cell(""), html.cell(html.number(guard["worst"])),
        html.status(guard),
    )  # fmt: skip


def _where(entry: Mapping[str, Any]) -> str:
    if entry["regime"] == entry["stratum"] == "every":
        return "every pair"
    return f"{REGIMES.get(entry['regime'], entry['regime'])}; {STRATA.get(entry['stratum'], entry['stratum'])}"


def _shortfall(entry: Mapping[str, Any], limit: str = "must") -> str:
    what = f"{entry['figure']} ({_where(entry)})"
    if entry["reached"] is None:
        return f"{what}: not measured; a method that it is compared with, or a micrograph for it, is missing."
    verb = "it must be" if limit == "must" else "the aim is"
    return f"{what}: {_reached(entry)} was reached; {verb} {html.limit(entry['sense'], entry[limit])}."


def _guard_shortfall(guard: Mapping[str, Any]) -> str:
    worst, limit = html.number(guard["worst"]), html.limit(guard["sense"], guard["limit"])
    return f"{guard['name']}: {worst} was reached; it must be {limit} ({guard['statistic']})."


def _reached(entry: Mapping[str, Any]) -> str:
    interval = f" [{html.number(entry['low'])}, {html.number(entry['high'])}]" if entry.get("low") is not None else ""
    return html.number(entry["reached"]) + interval


# Guards, cost, protocol


def _guards(evaluation: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[str]:
    guards = {name: found for name, found in evaluation.get("guards", {}).items() if found}
    if not guards:
        return
    yield "<h2>No detail lost, nothing invented</h2>"
    yield "<p class=note>Seeded simulations of specimens that no training saw. The identity fails them.</p>"
    for name, verdicts in guards.items():
        yield f"<h3>{escape(labels.get(name, name))}</h3>"
        lines = [
            (
                html.cell(guard["name"], "text"), html.cell(html.limit(guard["sense"], guard["limit"])),
                html.cell(html.number(guard["worst"])), html.status(guard), html.cell(guard["statistic"], "text"),
            )
            for guard in verdicts
        ]  # fmt: skip
        yield html.table(("test", "must be", "worst", "", "statistic"), lines, last_is_text=True)
        numbers = {guard["name"]: guard["numbers"] for guard in verdicts}
        text = escape(json.dumps(numbers, indent=1, ensure_ascii=False))
        yield f"<details><summary>All numbers</summary><pre class=note>{text}</pre></details>"


def _cost(evaluation: Mapping[str, Any], labels: Mapping[str, str], style: Mapping[str, plots.Style]) -> Iterator[str]:
    side = evaluation.get("protocol", {}).get("side", "?")
    quality: dict[str, dict[str, float]] = defaultdict(dict)
    chosen = _stratum_of_cost(evaluation["tables"])
    for entry in evaluation["tables"]:
        if entry["stratum"] == chosen and entry["instances"] == "shared" and entry["regime"] in ("low", "ordinary"):
            quality[entry["regime"]][entry["method"]] = entry["psnr"]
    methods = evaluation["methods"]
    rival = next((m.get("seconds") for m in methods.values() if m["family"] == "bm3d"), None)
    yield "<h2>Cost and quality</h2>"
    yield (
        f"<p class=note>Processor time per {side}² image, median over pairs, one thread unless stated below; loading "
        f"once. PSNR in dB on the shared pairs ({escape(STRATA.get(chosen, chosen))}).</p>"
    )
    columns = ("method", "s", "times faster than BM3D", "load, s", "parameters, M", "file, MB", "PSNR low", "ordinary")
    lines = [
        [
            html.cell(labels[name], "text"),
            *_cost_cells(method, rival),
            *(html.figure(quality[regime].get(name), ".2f") for regime in ("low", "ordinary")),
        ]
        for name, method in methods.items()
    ]
    yield html.table(columns, lines, families=[html.family(evaluation, name) for name in methods])
    panels = {
        REGIMES[regime]: [
            plots.Cost(labels[name], methods[name]["seconds"], psnr)
            for name, psnr in found.items()
            if methods.get(name, {}).get("seconds")
        ]
        for regime, found in quality.items()
    }
    if any(panels.values()):
        yield html.image(
            plots.cost_against_quality(panels, style, f"{side} × {side} px"),
            "Cost against quality: up and left is better.",
        )


def _cost_cells(method: Mapping[str, Any], rival: float | None) -> Iterator[str]:
    """Time, speed against the rival's time, loading time, parameters and file size; 0 or none: an empty cell."""
    seconds = method.get("seconds")
    yield html.figure(seconds, ".3g")
    yield html.figure(rival / seconds if rival and seconds and seconds >= plots.INSTANT else None, ".3g")
    yield html.figure(method["load_seconds"] if method["family"] == "weights" else None, ".2f")
    yield html.figure(method.get("parameters") or None, ".2f", 1e-6)
    yield html.figure(method.get("megabytes") or None, ".1f")


def _stratum_of_cost(tables: Iterable[Mapping[str, Any]]) -> str:
    there = {entry["stratum"] for entry in tables}
    return next((name for name in ("all", "simulated", "clean") if name in there), "all")


def _protocol(evaluation: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>How it was measured</h2>"
    yield (
        "<p>Pairs follow section 3.1 of the paper: area downsizing by two where the short side stays at 512 px, "
        "a random crop, one of eight symmetries, scaled to [0, 1]; Poisson counts of the crop times a dose (low: "
        "25 + Exp(75); ordinary: 200 to 2500), scaled to [0, 1]; the truth scaled to the same mean. The same seeded "
        "pairs for every method, all results clipped alike. At contrasts 0.2 and 0.05 the low law's electrons are "
        "spent on the crop diluted by a background.</p>"
    )
    lines = [
        (html.cell(str(key).replace("_", " "), "text"), html.cell(html.plain(value), "text"))
        for key, value in evaluation.get("protocol", {}).items()
    ]
    lines += [
        (html.cell(f"{name}: what ran", "text"), html.cell(method["identity"], "text"))
        for name, method in evaluation["methods"].items()
    ]
    yield html.table(("", ""), lines, text_columns=2)
