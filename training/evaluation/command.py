"""`python -m training evaluate`: every method on the same seeded pairs, the paper's tables, and the goals.

**Pairs** (`pairs`) are named by a key ``regime/stratum/micrograph/repetition`` and depend only on it,
the seed, the side and the file. Regimes: `low` and `ordinary` are the paper's (section 3.1); `contrast_0.05` and
`contrast_0.2` spend the low law's electrons on the same crop at that contrast. At contrast 1 that is `low` itself.

With `--paper` only the paper's table and figures are made (`training.evaluation.paper`).

**Contents of OUT**:

`instances.jsonl`: a row (`rows.Row`) for every pair and method, appended as measured; of the same key and method the
last one counts, and only if its identity is the one in `evaluation.json` (`rows.current`):
    key, regime, stratum ("real" or "simulated"), micrograph (path below the folder, or family), source, modality ("" if
    unknown), repetition, binned (1 or 2), shape [H, W]; pair (fingerprint of all its parameters);
    contrast (1 for low and ordinary), dose (counts over which the true image ranges: the peak for PSNR), mean (true
    counts per pixel), truth_noise (σ in counts of noise in the truth itself; 0 if simulated), scale (counts per unit of
    the [0, 1] scale);
    method (its name), identity (settings, version, SHA-256 of weights), seconds (processor time, one thread);
    mse, ssim (paper's [0, 1] scale), psnr (dB, in counts), frc (against the truth, `metrics.RINGS` rings from zero to
    Nyquist's frequency); all of the result clipped to [0, 1].
`errors/REGIME.METHOD.npz` (low and ordinary): mean (side, side) float32, every pixel's mean absolute error in the
    [0, 1] scale; count; keys (fingerprints); identity.
`examples/*.npz`: noisy, truth and an array for every method shown, (H, W) float16 in [0, 1].
`evaluation.json`:
    protocol {seed, side, instances, slow_instances, data, micrographs, sources, threads, versions, processor ...};
    methods {name: {label, identity, family ("nine", "bm3d", "weights", "identity"), load_seconds, seconds (median per
        side², one thread; null if none was measured), megabytes}};
    tables [{regime, stratum ("all" real ones, "clean", "simulated"), instances ("every" of the method's pairs, or
        those "shared" by all methods), method, n, sources, mse, mse_std, ssim, ssim_std, psnr, psnr_std}]: means per
        source, then over sources; standard deviations over pairs;
    comparisons [{regime, stratum, method, rival, n, psnr, low, high}]: paired difference in PSNR, dB, and its 95 %
        bootstrap interval;
    frc [{regime, stratum, method, n, frc, spread (standard error), noise (2σ line of one image), change, change_spread
        (paired, from the noisy image's; absent without `unfiltered`)}];
    acceptance [{method, figure, regime, stratum, n, sense, must, aim, reached, ok, aim_ok, and low, high for PSNR}]:
        for all weights; reached is null where a rival was not measured;
    guards {weights: [{name, ok, worst, sense, limit, statistic, numbers}]};
    examples [{file, key, figure (6: TEM, 7: others, 8: STEM), modality, source, methods}].
"""

import argparse
import json
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from daemon import __version__
from daemon.errors import ConfigError
from daemon.files import save
from daemon.verdict import rings
from training.data import drawing, exposure, simulate
from training.evaluation import (
    defect_guards,
    defect_specimens,
    guard,
    guards,
    metrics,
    object_guards,
    pairs,
    spectrum,
    tables,
)
from training.evaluation import methods as known
from training.evaluation.examples import examples
from training.evaluation.methods import Method
from training.evaluation.pairs import Key
from training.evaluation.report import page
from training.evaluation.rows import Row
from training.evaluation.runner import Plan, measure_all
from training.progress import Bar

log = logging.getLogger(__name__)

RESULT = "evaluation.json"

_GUARD_CODE = (
    guards, guard, defect_guards, defect_specimens, object_guards, spectrum, metrics, rings, simulate, drawing,
    exposure,
)  # fmt: skip
"""Guards are measured again when any of these changes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `evaluate`."""
    parser.add_argument("micrographs", type=Path, nargs="?", help="folder of micrographs; without it, simulation only")
    parser.add_argument("--sources", type=Path, help="CSV file with the columns name, source and, if known, modality")
    parser.add_argument("--weights", action="append", default=[], metavar="NAME_OR_FOLDER",
                        help="shipped weights, a weights folder or a training run; may be repeated")  # fmt: skip
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME",
                        help=f"only these of: {', '.join([*known.NINE, 'bm3d', 'identity'])}")  # fmt: skip
    parser.add_argument("--instances", type=int, default=2000, help="pairs of each of low and ordinary (default 2000)")
    parser.add_argument("--slow-instances", type=int, default=100, help="the same for slow methods (default 100)")
    parser.add_argument("--seed", type=int, default=2018, help="another seed, other pairs")
    parser.add_argument("--side", type=int, default=512, help="side of the crops, pixels")
    parser.add_argument("--threads", type=int, default=1, help="processor threads of weights (default 1, as the rest)")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows, tables and report; rerun to resume")
    parser.add_argument(
        "--no-examples", action="store_true",
        help="leave figures 6 to 8 out of the report: the micrographs may not be yours to publish",
    )  # fmt: skip
    parser.add_argument(
        "--paper",
        type=Path,
        metavar="RUN",
        help="only the paper's protocol and figures, on one page: its filters, and the networks for low and for "
        "ordinary doses (two --weights, in this order); RUN: folder of `fit --preset ede2018`, for the learning curves",
    )
    parser.add_argument(
        "--no-rival",
        action="store_true",
        help="judge lost and invented detail by absolute limits: with BM3D as the rival that takes it an hour",
    )
    parser.add_argument("--quick", action="store_true", help="few small pairs in about a minute, to test the setup")


_QUICK_SIDE, _QUICK_INSTANCES = 64, 4
_QUICK_METHODS = ("unfiltered", "gaussian", "median", "bm3d")


@dataclass(frozen=True, slots=True)
class _Size:
    """Extent of an evaluation: methods, side of the pairs, and their number at each dose."""

    names: tuple[str, ...]
    side: int
    instances: int
    slow: int

    @classmethod
    def of(cls, options: argparse.Namespace) -> "_Size":
        """The extent by the options. Raises ConfigError for too small values."""
        names = tuple(options.methods)
        if options.quick:
            return cls(names or _QUICK_METHODS, _QUICK_SIDE, _QUICK_INSTANCES, _QUICK_INSTANCES)
        if options.instances < 1 or options.slow_instances < 0 or options.side < 64:
            raise ConfigError("--instances must be at least 1, --slow-instances not negative, --side at least 64")
        return cls(names, options.side, options.instances, min(options.slow_instances, options.instances))


def run(options: argparse.Namespace) -> int:
    """Measure, tabulate, judge and report. Raises ConfigError or WeightsError with the remedy."""
    size = _Size.of(options)
    if options.paper:
        from training.evaluation import paper  # needs torch

        return paper.run(options, size.side, size.instances)
    methods = _methods(size.names, options.weights, options.threads)
    ours = [method for method in methods if method.family == "weights"]
    out: Path = options.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be made ({error.strerror}); choose another --out") from error
    subjects: dict[str, Sequence[pairs.Subject]] = {"simulated": pairs.simulated_subjects()}
    if options.micrographs:
        subjects["real"] = pairs.real_subjects(options.micrographs, out / "cache", options.sources)
    seen = {
        method.name: _trained_on(method.name, name, subjects.get("real", ()))
        for method, name in zip(ours, options.weights, strict=True)
    }
    done = measure_all(out, _work(methods, subjects, size, options.seed), size.side, Bar("pairs"))
    result = _conclude(done, methods, size.side)
    rivals = [] if options.quick or options.no_rival else [method for method in methods if method.family == "bm3d"]
    rival = rivals[0] if rivals else None
    result["protocol"] = _protocol(options, subjects, size) | {"trained_on": seen, "guards_rival": rival is not None}
    result["guards"] = {method.name: _guards(out, method, rival, options.quick) for method in ours}
    result["examples"] = [] if options.no_examples else examples(out, subjects, methods, options.seed, size.side)
    save(out / RESULT, json.dumps(result, indent=1, allow_nan=False).encode() + b"\n")
    print(summary(result))
    print(f"{out / RESULT}; {page.write(out)}")
    return 0


def _methods(names: Sequence[str], weights: Sequence[str], threads: int) -> list[Method]:
    """The methods of these names, and each of the weights. Raises ConfigError for two of one name."""
    if threads < 1:
        raise ConfigError("--threads must be at least 1")
    methods = list(known.methods(names).values())
    for name in weights:
        method = known.weights(name, threads)
        if any(other.name == method.name for other in methods):
            raise ConfigError(f"two methods are called {method.name}; rename the folder {name}")
        methods.append(method)
    return methods


def _trained_on(name: str, weights: str, subjects: Sequence[pairs.Subject]) -> list[str]:
    """Files of the subjects that these weights were trained on; logs a warning."""
    files = sorted({Path(subject.name).name for subject in subjects} & known.learnt_from(weights))
    if files:
        log.warning("%s was trained on %s: its figures are not those of new images", name, ", ".join(files))
    return files


def _work(
    methods: Sequence[Method],
    subjects: Mapping[str, Sequence[pairs.Subject]],
    size: _Size,
    seed: int,
) -> list[tuple[Key, Sequence[Method]]]:
    """Pairs with their methods, first those that slow methods get, too."""
    fast = [method for method in methods if not method.slow]
    with_slow = _shares(size.slow, subjects).keys(subjects, seed, size.side)
    seen = {str(key) for key in with_slow}
    rest = [key for key in _shares(size.instances, subjects).keys(subjects, seed, size.side) if str(key) not in seen]
    return [(key, methods) for key in with_slow] + [(key, fast) for key in rest]


def _shares(number: int, subjects: Mapping[str, Sequence[pairs.Subject]]) -> Plan:
    """A quarter is simulated. Contrasts get half as many, rounded up to fours so that the quarter is whole."""
    contrast = min(number, -(-number // 8) * 4)
    if "real" not in subjects:
        return Plan(0, number, 0, contrast)
    return Plan(number - number // 4, number // 4, contrast - contrast // 4, contrast // 4)


def _conclude(done: Sequence[Row], methods: Sequence[Method], side: int) -> dict[str, Any]:
    """Tables, comparisons and the verdict on all weights (and on the identity, if it is among the methods)."""
    times = tables.seconds(done, side)
    return {
        "methods": {
            method.name: {
                "label": method.label, "identity": method.identity, "family": method.family,
                "load_seconds": round(method.load_seconds, 3), "seconds": times.get(method.name),
                "megabytes": round(method.megabytes, 2),
            }
            for method in methods
        },
        "tables": tables.table(done),
        "comparisons": tables.comparisons(done),
        "frc": tables.correlations(done),
        "acceptance": [
            entry
            for method in methods
            if method.family in ("weights", "identity")
            for entry in tables.acceptance(done, method.name, list(known.NINE), side)
        ],
    }  # fmt: skip


def _protocol(
    options: argparse.Namespace, subjects: Mapping[str, Sequence[pairs.Subject]], size: _Size
) -> dict[str, Any]:
    real = subjects.get("real", ())
    return {
        "seed": options.seed,
        "side": size.side,
        "quick": options.quick,
        "instances": size.instances,
        "slow_instances": size.slow,
        "data": options.micrographs.name if options.micrographs else None,
        "micrographs": len(real),
        "sources": sorted({subject.source for subject in real}),
        "smaller_than_side": sorted(s.name for s in real if s.truth and min(s.truth.versions[0].shape) < size.side),
        "not_binned": sorted(s.name for s in real if s.truth and s.truth.binned[0] == 1),
        "simulated_families": [subject.name for subject in subjects["simulated"]],
        "threads": options.threads,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {"emdenoised": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "scipy", "scikit-image", "opencv-python-headless")},
    }


def _guards(out: Path, method: Method, rival: Method | None, quick: bool) -> list[dict[str, Any]]:
    """No detail lost, nothing invented: measured once for the same weights, and the same rival (BM3D) if any."""
    path = out / f"guards.{method.name}.json"
    code = known.digest_of(*_GUARD_CODE)
    identity = [method.identity, rival.identity if rival else None, quick, code]
    try:
        saved = json.loads(path.read_bytes())
        if saved["identity"] == identity:
            return list(saved["guards"])
    except (OSError, ValueError, KeyError, TypeError):
        log.info("%s: flat fields, defects, false objects, blocks and rings", method.name)
    judge = known.on_counts(rival, out / "rival") if rival else None
    verdicts = [found.as_json() for found in guards.run_all(known.on_counts(method), quick, judge)]
    save(path, json.dumps({"identity": identity, "guards": verdicts}, indent=1).encode())
    return verdicts


def summary(result: Mapping[str, Any]) -> str:
    """The tables of the shared pairs and the verdict, as text for a terminal."""
    lines = [
        f"{entry['regime']:13} {entry['stratum']:9} {entry['method']:12} n {entry['n']:4}  "
        f"MSE {1e3 * entry['mse']:8.3f}e-3 ± {1e3 * entry['mse_std']:.3f}  SSIM {entry['ssim']:.3f}  "
        f"PSNR {entry['psnr']:6.2f} dB"
        for entry in result["tables"]
        if entry["instances"] == "shared"
    ]
    for entry in result["acceptance"]:
        reached = "not measured" if entry["reached"] is None else f"{entry['reached']:.3g}"
        lines.append(
            f"{'reached' if entry['ok'] else 'MISSED ':7} {entry['method']:12} {entry['regime']:13} "
            f"{entry['stratum']:9} {entry['figure']}: {reached} (must be {entry['sense']} {entry['must']:g}; "
            f"{entry['n']} pairs)"
        )
    for name, verdicts in result["guards"].items():
        for verdict in verdicts:
            worst = "not a number" if verdict["worst"] is None else f"{verdict['worst']:.3g}"
            lines.append(
                f"{'reached' if verdict['ok'] else 'MISSED ':7} {name:12} {verdict['name']}: {worst} "
                f"(must be {verdict['sense']} {verdict['limit']:.3g})"
            )
    return "\n".join(lines)
