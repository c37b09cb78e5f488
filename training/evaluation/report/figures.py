"""The figures of a report, from the rows, arrays and tables of an evaluation; `figures` draws them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from daemon.micrograph import Image
from training.evaluation.report import html, plots
from training.evaluation.report.html import REGIMES, STRATA
from training.evaluation.rows import Row


def densities(measured: Sequence[Row], labels: Mapping[str, str], style: Mapping[str, plots.Style]) -> Iterator[str]:
    doses: dict[str, dict[str, plots.Errors]] = {}
    for regime in ("low", "ordinary"):
        by_method: dict[str, list[Row]] = defaultdict(list)
        for row in measured:
            if row.regime == regime:
                by_method[row.method].append(row)
        curves = {
            labels[name]: plots.Errors([row.mse for row in by_method[name]], [row.ssim for row in by_method[name]])
            for name in labels
            if by_method[name]
        }
        if curves:
            doses[REGIMES[regime]] = curves
    if doses:
        yield html.image(
            plots.densities(doses, style),
            "Figure 4. Densities of the errors of all pairs that a method was run on, real and simulated (Gaussian "
            "kernels, Scott's rule, 200 bins); the highest value of each panel is 1. Only the start of the MSE is "
            "shown.",
        )


def error_maps(out: Path, methods: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[str]:
    maps = {}
    for name, method in methods.items():
        if method["family"] != "weights":
            continue
        for regime in ("low", "ordinary"):
            path = out / "errors" / f"{regime}.{name}.npz"
            if path.is_file():
                with np.load(path, allow_pickle=False) as stored:
                    title = f"{labels[name]}, {REGIMES[regime]}, {int(stored['count'])} pairs"
                    maps[title] = stored["mean"].astype(np.float32)
    if maps:
        yield html.image(
            plots.error_maps(maps),
            "Figure 5. Mean absolute error of every pixel, [0, 1] scale. Left: contrast limited adaptive histogram "
            "equalisation, after cutting the lowest and the highest hundredth, so that even the faintest pattern "
            "shows. Right: the corner, not adjusted.",
        )


def examples(
    out: Path, evaluation: Mapping[str, Any], measured: Sequence[Row], labels: Mapping[str, str]
) -> Iterator[str]:
    by_figure: dict[int, list[tuple[str, dict[str, Image]]]] = defaultdict(list)
    doses = {row.key: row.mean for row in measured}
    for entry in evaluation.get("examples", ()):
        path = out / entry["file"]
        if not path.is_file():
            continue
        with np.load(path, allow_pickle=False) as stored:
            images = {"noisy": stored["noisy"].astype(np.float32)}
            images |= {labels[m]: stored[m].astype(np.float32) for m in entry["methods"] if m in labels}
            images["truth"] = stored["truth"].astype(np.float32)
        mean = doses.get(entry["key"])
        caption = str(entry["key"]).split("/")[2]
        caption = caption if len(caption) <= 32 else caption[:31] + "…"
        by_figure[int(entry["figure"])].append((caption + (f"\n{mean:.3g} counts per pixel" if mean else ""), images))
    texts = {6: "TEM", 7: "more kinds of microscopy, and simulation", 8: "STEM"}
    for figure, group in sorted(by_figure.items()):
        yield html.image(
            plots.examples(group),
            f"Figure {figure}. Examples at low dose: {texts.get(figure, 'other')}. Below each, its top left 64 × 64 "
            "pixels; one grey scale along a row.",
        )


def ring_curves(
    evaluation: Mapping[str, Any], labels: Mapping[str, str], style: Mapping[str, plots.Style]
) -> Iterator[str]:
    shown = [name for name in labels if html.family(evaluation, name) in ("ours", "rival") or name == "unfiltered"]
    panels: dict[str, Any] = {}
    for entry in evaluation.get("frc", ()):
        # Noiseless truths if available: a truth's own noise hides high frequencies.
        if entry["stratum"] != "simulated" or entry["regime"] not in ("low", "ordinary"):
            continue
        title = f"{REGIMES[entry['regime']]}, simulated"
        curves, _ = panels.setdefault(title, ({}, np.array(entry["noise"])))
        if entry["method"] in shown:
            curve = plots.RingCurve(np.array(entry["frc"]), np.array(entry["spread"]))
            curves[labels[entry["method"]]] = curve
    if panels:
        yield html.image(
            plots.ring_curves(panels, style),
            "Fourier ring correlation with the noiseless truth: mean over pairs, ± 2 standard errors. Dotted: what "
            "twice the spread of noise alone would give in one image. No restoration may lie below the unfiltered "
            "image left of half Nyquist's frequency.",
        )


def gains(
    evaluation: Mapping[str, Any],
    measured: Sequence[Row],
    labels: Mapping[str, str],
    style: Mapping[str, plots.Style],
) -> Iterator[str]:
    chosen = [c for c in evaluation.get("comparisons", ()) if html.family(evaluation, c["method"]) == "ours"]
    if not chosen:
        return
    rival = str(chosen[0]["rival"])
    names = {"low": "low dose,\ncontrast 1", "ordinary": "ordinary\ndose", "contrast_0.2": "low dose,\ncontrast 0.2",
             "contrast_0.05": "low dose,\ncontrast 0.05"}  # fmt: skip
    panels: dict[str, dict[str, list[plots.Gain]]] = defaultdict(lambda: defaultdict(list))
    for regime in sorted({c["regime"] for c in chosen}, key=[*names].index):
        for c in chosen:
            if c["regime"] == regime and c["stratum"] in ("clean", "simulated"):
                gain = plots.Gain(names[regime], c["psnr"], c["low"], c["high"])
                panels[STRATA[c["stratum"]]][labels[c["method"]]].append(gain)
    if panels:
        yield html.image(
            plots.gains(panels, style, labels[rival]),
            f"Gain over {labels[rival]} by dose and contrast, with 95 % intervals.",
        )
    reference = {row.key: row for row in measured if row.method == rival}
    clouds: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for row in measured:
        if row.key in reference and html.family(evaluation, row.method) == "ours":
            title = "contrast 1" if row.contrast == 1 else f"contrast {row.contrast:g}"
            cloud = clouds.setdefault(title, {}).setdefault(labels[row.method], ([], []))
            cloud[0].append(row.mean)
            cloud[1].append(row.psnr - reference[row.key].psnr)
    if clouds:
        yield html.image(
            plots.gain_by_dose(clouds, style, labels[rival]),
            f"Gain over {labels[rival]} of every pair, real and simulated, and medians by dose.",
        )
