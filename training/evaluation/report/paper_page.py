"""The paper's table 1 and figures 3 to 8 as one HTML page, from `paper.json`, the rows, and the files of an evaluation.

Every number of the page is in `paper.json` (`training.evaluation.paper`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from daemon.commands.html import opening
from daemon.files import save
from training import curve
from training.evaluation.report import figures, html, plots
from training.evaluation.report import tables as report_tables
from training.evaluation.report.html import REGIMES
from training.evaluation.rows import Row

RESULT, PAGE = "paper.json", "paper.html"
PAPER = "J. M. Ede and R. Beanland, arXiv:1807.11234 (2018)"

_PAPERS_TRAINING = {
    "width of the network": "1",
    "micrographs to train on": "11 350 of one laboratory, more than 2500 counts per pixel",
    "batches": "198 511 at low doses, then 34 335 at ordinary ones",
    "a batch": "10 crops of 512²",
    "trained on": "2 × NVIDIA GTX 1080 Ti",
    "micrographs to test on": "3486 of the same laboratory",
    "pairs of each dose": "20 000",
}
_PAPERS_COST = {"time": "77.0 ms on a GTX 1080 Ti and 1 thread of an i7-6700", "load": "a few seconds"}
_PAPERS_MAP = {"low": (0.0177, 0.0169, 0.0320), "ordinary": (0.0102, 0.0098, 0.0272)}
"""Section 4.2 and figure 5: mean absolute error of a pixel on average, its lowest and its highest value."""


def write(out: Path, rows: Sequence[Row], run: Path) -> Path:
    """Write OUT/paper.html; returns its path. `run`: folder of the training, with a curve for each dose."""
    result = json.loads((out / RESULT).read_bytes())
    target = out / PAGE
    save(target, render(result, rows, out, run).encode())
    return target


def render(result: Mapping[str, Any], rows: Sequence[Row], out: Path, run: Path) -> str:
    """The page."""
    labels = html.labels(result["methods"])
    style = plots.styles({labels[name]: str(method["family"]) for name, method in result["methods"].items()})
    named = {found["name"]: {"family": "weights"} for found in result["networks"].values()}
    body = [
        *_opening(result),
        *_goals(result),
        *report_tables.table_one(result, labels),
        "<h2>Figures</h2>",
        *_curves(result, run),
        *figures.densities(rows, labels, style),
        *figures.error_maps(out, named, {name: name for name in named}),
        *_maps(result),
        *figures.examples(out, result, rows, {name: name for name in named}),
        "<p class=note>The restored images are those of the network for low doses. "
        f"Shown: {escape(result['protocol']['examples'])}.</p>",
        *_cost(result, labels),
        *_protocol(result),
    ]
    return opening("The paper's figures, at reduced width", html.STYLE) + "\n".join(body) + "\n</body></html>\n"


def _opening(result: Mapping[str, Any]) -> Iterator[str]:
    """What this is and is not, and what differs from the paper."""
    low = result["networks"]["low"]["training"]
    ordinary = result["networks"]["ordinary"]["training"]
    recipe, protocol, first = low["recipe"], result["protocol"], result["first"]
    before = f"{first['steps']} ({first['minutes']:.0f} minutes; {first['recipe']['optimiser']}), " if first else ""
    yield "<h1>The paper's table and figures, at reduced width, on other data</h1>"
    yield f"<p><b>{escape(result['about'])}</b> The paper: {escape(PAPER)}. Its figures stand beside ours.</p>"
    here = {
        "width of the network": f"{recipe['arguments'].get('width', 1):g}: "
        f"{result['networks']['low']['parameters'] / 1e6:.2f} million parameters",
        "micrographs to train on": f"{result['networks']['low']['micrographs']} of {len(low['sources'])} sources, "
        "most of them 8 bit and scaled for display",
        "batches": f"{before}{low['steps']} at low doses, then {ordinary['steps']} at ordinary ones "
        f"({low['minutes']:.0f} and {ordinary['minutes']:.0f} minutes; {recipe['optimiser']})",
        "a batch": f"{recipe['batch']} crops of {recipe['crop']}²",
        "trained on": low["hardware"],
        "micrographs to test on": f"{protocol['micrographs']} of {len(protocol['sources'])} other sources",
        "pairs of each dose": str(protocol["pairs"]),
    }
    lines = [
        (html.cell(name, "text"), html.cell(paper, "text"), html.cell(here[name], "text"))
        for name, paper in _PAPERS_TRAINING.items()
    ]
    yield html.table(("", "paper", "here"), lines, text_columns=3)


def _goals(result: Mapping[str, Any]) -> Iterator[str]:
    """The network against the best of the paper's filters."""
    yield "<h2>Against the best of the paper's filters</h2>"
    lines = []
    for regime, found in result["under_best"].items():
        best = result["methods"][found["filter"]]["label"]
        figures_of = [("MSE", "mse", -1, best), ("SSIM", "similarity", 1, "")]
        if found["mse_mean_not_carried"] is not None:
            figures_of.insert(1, ("MSE, mean not carried", "mse_mean_not_carried", -1, best))
        for name, key, sign, rival in figures_of:
            papers = _change(sign * found["paper"][key]) if key in found["paper"] else ""
            lines.append(
                (
                    html.cell(REGIMES[regime], "text"), html.cell(name, "text"), html.cell(papers),
                    html.cell(_change(sign * found[key])), html.cell(rival, "text"),
                )
            )  # fmt: skip
    yield html.table(("dose", "change", "paper", "here", "filter of the least MSE here"), lines, text_columns=2)
    under = result["under_best"]
    pairwise = ", ".join(f"{REGIMES[regime]} {_change(-found['mse_pairs'])}" for regime, found in under.items())
    yield (
        "<p class=note>Means over the micrographs of each source, then over sources, as in the table below. By plain "
        f"means over pairs, as in the paper, the MSE changes by: {escape(pairwise)}. The paper's shares follow from "
        "its table 1; its abstract states 43.7 % less at ordinary dose, which is the share under the wavelet filter. "
        "The networks are served with the mean of each tile carried from image to result, which the truths of the "
        "protocol have in common with their noisy images; “mean not carried” is the network as the paper has it.</p>"
    )


def _change(share: float) -> str:
    return f"{share * 100:+.1f} %".replace("-", "−")


def _curves(result: Mapping[str, Any], run: Path) -> Iterator[str]:
    phases = {
        regime: (f"{network['name']}: {network['training']['steps']} batches", REGIMES[regime], network["training"])
        for regime, network in result["networks"].items()
    }
    if first := result["first"]:
        phases = {"first": (f"{first['steps']} batches first", REGIMES["low"], first), **phases}
    for phase, (title, dose, training) in phases.items():
        if result["curves"][phase]:
            yield html.image(
                curve.draw(run / phase, title),
                f"Figure 3, {dose}. Learning curve: training loss (1000 MSE, its root above 1) and "
                f"MSE of the validation crops. Dotted: the learning rate falls{_frozen(training)}.",
            )


def _frozen(training: Mapping[str, Any]) -> str:
    """From when on batch normalisation was frozen, in words."""
    stages = [stage["freeze"] for stage in training["recipe"]["stages"]]
    if not any(stages):
        return ""
    return f"; {'throughout' if all(stages) else 'with the first fall'} batch normalisation is frozen"


def _maps(result: Mapping[str, Any]) -> Iterator[str]:
    lines = []
    for regime, found in result["error_maps"].items():
        mean, lowest, highest = _PAPERS_MAP[regime]
        lines.append(
            (
                html.cell(REGIMES[regime], "text"), html.cell(f"{mean:.4f}"), html.cell(f"{found['mean']:.4f}"),
                html.cell(f"{lowest:.4f} to {highest:.4f}"),
                html.cell(f"{found['lowest']:.4f} to {found['highest']:.4f}"), html.cell(found["pairs"]),
            )
        )  # fmt: skip
    columns = ("mean absolute error", "paper", "here", "of a pixel: paper", "here", "pairs here")
    yield html.table(columns, lines)
    yield "<p class=note>The fewer pairs, the wider the spread of the pixels' means.</p>"


def _cost(result: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[str]:
    side = result["protocol"]["side"]
    yield "<h2>Speed and load time</h2>"
    yield (
        f"<p class=note>One {side}² image at a time on {escape(result['machine'])}; networks on "
        f"{result['protocol']['threads']} thread; median processor time over the pairs.</p>"
    )
    lines = [
        [html.cell("The paper's network", "text"), html.cell(_PAPERS_COST["time"]), html.cell(_PAPERS_COST["load"]), ""]
    ]
    lines += [
        [
            html.cell(found["name"], "text"), html.cell(_milliseconds(found["seconds"])),
            html.cell(f"{found['load_seconds']:.2f} s"), html.cell(f"{found['megabytes']:.1f}"),
        ]
        for found in result["networks"].values()
    ]  # fmt: skip
    lines += [
        [html.cell(labels[name], "text"), html.cell(_milliseconds(method["seconds"])), html.cell(""), html.cell("")]
        for name, method in result["methods"].items()
        if method["family"] == "nine" and name != "unfiltered"
    ]
    yield html.table(("method", f"{side}², batch 1", "load", "file, MB"), lines)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3g} ms"


def _protocol(result: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>How it was measured</h2>"
    yield (
        "<p>By section 3.1 of the paper: area downsizing by two where the short side stays at 512 px, a random crop, "
        "one of eight symmetries, scaled to [0, 1]; Poisson counts of the crop times a dose (low: 25 + Exp(75); "
        "ordinary: 200 to 2500), scaled to [0, 1]; the truth scaled to the same mean; results clipped. Filters with "
        "their default parameters, as section 4.1 describes. Each network at the doses it is for, served by the daemon "
        "on tiles of this size. Unlike the paper's, these truths carry visible noise of their own, which limits what "
        "any method can reach at ordinary dose.</p>"
    )
    protocol = result["protocol"] | {f"{name}: what ran": m["identity"] for name, m in result["methods"].items()}
    lines = [
        (html.cell(str(key).replace("_", " "), "text"), html.cell(html.plain(value), "text"))
        for key, value in protocol.items()
    ]
    yield html.table(("", ""), lines, text_columns=2)
