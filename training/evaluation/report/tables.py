"""The tables of a report: the paper's table 1 beside ours, strata, and paired differences to the rival."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from training.evaluation.report import html
from training.evaluation.report.html import REGIMES, STRATA

PAPER = {
    "unfiltered": (4.357, 2.558, 0.454, 0.208, 0.508, 0.682, 0.850, 0.123),
    "gaussian": (0.816, 0.452, 0.685, 0.159, 0.344, 0.334, 0.878, 0.087),
    "bilateral": (1.025, 1.152, 0.574, 0.261, 1.243, 1.392, 0.600, 0.271),
    "median": (1.083, 0.618, 0.618, 0.171, 0.507, 0.512, 0.821, 0.126),
    "wiener": (1.068, 0.546, 0.681, 0.137, 0.402, 0.389, 0.870, 0.085),
    "wavelet": (0.832, 0.580, 0.657, 0.186, 0.357, 0.312, 0.875, 0.085),
    "chambolle": (0.746, 0.725, 0.686, 0.192, 0.901, 0.909, 0.674, 0.217),
    "bregman": (1.109, 1.031, 0.544, 0.268, 4.074, 3.025, 0.348, 0.312),
    "nl_means": (2.924, 2.338, 0.357, 0.315, 1.403, 1.266, 0.545, 0.281),
    "paper": (0.562, 0.449, 0.752, 0.147, 0.201, 0.169, 0.926, 0.057),
}
"""Table 1 of the paper: mean and standard deviation of MSE (×10⁻³) and SSIM at low, then at ordinary dose."""


_Entries = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Method → regime → its entry in the evaluation's tables."""
_REGIMES = ("low", "ordinary")
_FIGURES = (("mse", 1e3), ("mse_std", 1e3), ("ssim", 1), ("ssim_std", 1))
"""Columns of table 1 with their factors."""


def table_one(evaluation: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[str]:
    """The paper's table 1, and ours in the same columns."""
    stratum = "all" if any(entry["stratum"] == "all" for entry in evaluation["tables"]) else "simulated"
    ours: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for entry in evaluation["tables"]:
        if entry["stratum"] == stratum and entry["instances"] == "shared" and entry["regime"] in _REGIMES:
            ours[entry["method"]][entry["regime"]] = entry
    number = sorted({entry["n"] for found in ours.values() for entry in found.values()})
    yield f"<h2>Table 1, the paper's and ours ({escape(STRATA[stratum])})</h2>"
    yield (
        "<p class=note>MSE in units of 10⁻³. The paper: 20 000 instances of its own 3486 test micrographs, so its "
        "columns and ours are on different images. Here: the same "
        f"{' or '.join(map(str, number)) or 'no'} pairs for all methods; means per source, then over sources; ± is the "
        "standard deviation over pairs. Bold: the best here.</p>"
    )
    best = _best(ours)
    others = [name for name in labels if name not in PAPER and ours.get(name)]
    names = [*(name for name in PAPER if name != "paper"), *others, "paper"]
    rows = "".join(
        f"<tr class={html.family(evaluation, name)}>{''.join(_cells_of_one(name, ours, labels, best))}</tr>"
        for name in names
    )
    head = "".join(f"<th>{text}</th>" for text in ("MSE", "±", "SSIM", "±") * 2)
    top = (
        "<tr><th rowspan=2>method</th><th colspan=4>low dose: paper</th><th colspan=4>low dose: here</th>"
        "<th colspan=4>ordinary dose: paper</th><th colspan=4>ordinary dose: here</th></tr>"
    )
    yield f"<div class=scroll><table><thead>{top}<tr>{head}{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _best(ours: _Entries) -> dict[tuple[str, str], float | None]:
    """The lowest error and the highest similarity of each regime; None where nothing was measured."""
    return {
        (regime, figure): choose((found[regime][figure] for found in ours.values() if regime in found), default=None)
        for regime in _REGIMES
        for figure, choose in (("mse", min), ("ssim", max))
    }


def _cells_of_one(
    name: str, ours: _Entries, labels: Mapping[str, str], best: Mapping[tuple[str, str], float | None]
) -> Iterator[str]:
    """A row of table 1: the method, then for each regime the paper's figures and ours."""
    yield html.cell(labels.get(name, "The paper's network" if name == "paper" else name), "text")
    for part, regime in enumerate(_REGIMES):
        paper = PAPER[name][4 * part : 4 * part + 4] if name in PAPER else (None,) * 4
        yield from (html.figure(value, ".3f") for value in paper)
        entry = ours.get(name, {}).get(regime, {})
        for figure, unit in _FIGURES:
            value = entry.get(figure)
            is_best = value is not None and value == best.get((regime, figure))
            yield html.figure(value, ".3f", unit, "best" if is_best else "")


def strata(evaluation: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[str]:
    grouped: dict[tuple[str, str], dict[str, dict[str, Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for entry in evaluation["tables"]:
        grouped[entry["regime"], entry["stratum"]][entry["instances"]][entry["method"]] = entry
    yield "<h2>By dose, contrast and kind of truth</h2>"
    yield (
        "<p class=note>“Truth clean enough”: real micrographs whose truth's own noise lies 6 dB or more under the "
        "error of the best method; what a noisier truth measures is its own noise. Simulated: generator families that "
        "no training saw. PSNR in dB, in counts, peak = the dose. Shared pairs: those that every method has, the slow "
        "ones too; every pair: all that the method was run on.</p>"
    )
    columns = (
        "method", "shared pairs", "sources", "MSE (10⁻³)", "±", "SSIM", "±", "PSNR", "±", "every pair", "PSNR",
    )  # fmt: skip
    for (regime, stratum), found in grouped.items():
        shared, every = found.get("shared", {}), found.get("every", {})
        lines = []
        for name in (name for name in labels if name in shared or name in every):
            entry, more = shared.get(name, {}), every.get(name, {})
            cells = [html.cell(labels[name], "text")]
            cells += [html.cell(entry.get(key, "")) for key in ("n", "sources")]
            cells += [html.figure(entry.get(key), ".3f", 1e3) for key in ("mse", "mse_std")]
            cells += [html.figure(entry.get(key), ".3f") for key in ("ssim", "ssim_std")]
            cells += [html.figure(entry.get(key), ".2f") for key in ("psnr", "psnr_std")]
            cells += [html.cell(more.get("n", "")), html.figure(more.get("psnr"), ".2f")]
            lines.append(cells)
        yield f"<h3>{escape(REGIMES.get(regime, regime))}; {escape(STRATA.get(stratum, stratum))}</h3>"
        yield html.table(
            columns, lines, families=[html.family(evaluation, n) for n in labels if n in shared or n in every]
        )


def against_rival(evaluation: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[str]:
    chosen = [c for c in evaluation.get("comparisons", ()) if html.family(evaluation, c["method"]) == "ours"]
    if not chosen:
        return
    rival = labels.get(chosen[0]["rival"], chosen[0]["rival"])
    yield f"<h2>Against {escape(rival)}, pair by pair</h2>"
    yield (
        "<p class=note>Mean difference in PSNR on the same pairs, with its 95 % interval from resampling sources, then "
        "pairs within them. An interval that holds zero means that neither is shown to be better.</p>"
    )
    lines = [
        (
            html.cell(labels[c["method"]], "text"), html.cell(REGIMES.get(c["regime"], c["regime"]), "text"),
            html.cell(STRATA.get(c["stratum"], c["stratum"]), "text"), html.cell(c["n"]),
            html.cell(f"{c['psnr']:+.2f} dB"),
            html.cell(f"{c['low']:+.2f} to {c['high']:+.2f}"),
        )
        for c in chosen
    ]  # fmt: skip
    yield html.table(
        ("method", "dose, contrast", "truth", "pairs", "difference", "95 % interval"), lines, text_columns=3
    )
