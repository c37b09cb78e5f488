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


def table_one(evaluation: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[str]:
    """The paper's table 1, and ours in the same columns."""
    stratum = "all" if any(entry["stratum"] == "all" for entry in evaluation["tables"]) else "simulated"
    ours: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for entry in evaluation["tables"]:
        if entry["stratum"] == stratum and entry["instances"] == "shared" and entry["regime"] in ("low", "ordinary"):
            ours[entry["method"]][entry["regime"]] = entry
    head = "".join(f"<th>{text}</th>" for text in ("MSE", "±", "SSIM", "±") * 2)
    top = (
        "<tr><th rowspan=2>method</th><th colspan=4>low dose: paper</th><th colspan=4>low dose: here</th>"
        "<th colspan=4>ordinary dose: paper</th><th colspan=4>ordinary dose: here</th></tr>"
    )
    best = {
        (regime, figure): (min if figure == "mse" else max)(
            (found[regime][figure] for found in ours.values() if regime in found), default=None
        )
        for regime in ("low", "ordinary")
        for figure in ("mse", "ssim")
    }
    lines = []
    for name in [
        *(name for name in PAPER if name != "paper"),
        *(name for name in labels if name not in PAPER),
        "paper",
    ]:
        found = ours.get(name, {})
        if name not in PAPER and not found:
            continue
        cells = [html.cell(labels.get(name, "The paper's network" if name == "paper" else name), "text")]
        for part, regime in enumerate(("low", "ordinary")):
            paper = PAPER[name][4 * part : 4 * part + 4] if name in PAPER else (None,) * 4
            cells += [html.cell("" if value is None else f"{value:.3f}") for value in paper]
            entry = found.get(regime)
            for figure, unit in (("mse", 1e3), ("mse_std", 1e3), ("ssim", 1), ("ssim_std", 1)):
                value = entry[figure] if entry else None
                is_best = value is not None and value == best.get((regime, figure))
                cells.append(html.cell("" if value is None else f"{unit * value:.3f}", "best" if is_best else ""))
        lines.append((html.family(evaluation, name), cells))
    number = sorted({entry["n"] for found in ours.values() for entry in found.values()})
    yield f"<h2>Table 1, the paper's and ours ({escape(STRATA[stratum])})</h2>"
    yield (
        "<p class=note>MSE in units of 10⁻³. The paper: 20 000 instances of its own 3486 test micrographs, so its "
        "columns and ours are on different images. Here: the same "
        f"{' or '.join(map(str, number)) or 'no'} pairs for all methods; means per source, then over sources; ± is the "
        "standard deviation over pairs. Bold: the best here.</p>"
    )
    rest = "".join(f"<tr class={family}>{''.join(cells)}</tr>" for family, cells in lines)
    yield f"<div class=scroll><table><thead>{top}<tr>{head}{head}</tr></thead><tbody>{rest}</tbody></table></div>"


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
            entry, more = shared.get(name), every.get(name)
            cells = [html.cell(labels[name], "text")]
            if entry:
                cells += [html.cell(entry["n"]), html.cell(entry["sources"])]
                cells += [html.cell(f"{1e3 * entry[key]:.3f}") for key in ("mse", "mse_std")]
                cells += [html.cell(f"{entry[key]:.3f}") for key in ("ssim", "ssim_std")]
                cells += [html.cell(f"{entry[key]:.2f}") for key in ("psnr", "psnr_std")]
            else:
                cells += [html.cell("")] * 8
            cells += [html.cell(more["n"]), html.cell(f"{more['psnr']:.2f}")] if more else [html.cell("")] * 2
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
