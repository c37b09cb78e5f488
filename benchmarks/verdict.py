"""Tests whether the verdict recognises results that are worse than the raw image; calibrates, then reports.

    python benchmarks/verdict.py DATA -o benchmarks/results/verdict.json       # DATA: with val/ and test_public/ in it

Every case is a truth (a crop of a clean micrograph, or a simulated scene of a kind the network was not trained on), a
simulated exposure of it (so the truth is known), the daemon's own settings with or without a provoked fault, its
denoised image, and the verdict. `calibration` (val and simulation) is what the thresholds in `verdict.judge` were
chosen on; `report` (test_public) was evaluated only afterwards. Intervals are Wilson's, 95 %.
"""

import argparse
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from math import exp, log, sqrt
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from daemon.backends import manifest, open_backend
from daemon.backends.gpu.engine import default_folder
from daemon.counts.plane import Denoised
from daemon.counts.prepare import plane
from daemon.counts.profiles import Choice, dose_evidence, scaled
from daemon.errors import MicrographError
from daemon.micrograph import Micrograph
from daemon.settings.config import BackendConfig
from daemon.settings.profile import Profile
from daemon.verdict import judge
from daemon.verdict.residual import GAUSSIANS, Residual
from training.data import simulate
from training.data.exposure import Detector, expose
from training.data.truths import own_noise
from training.evaluation.pairs import real_subjects

Image = NDArray[np.float32]
Source = tuple[str, Image]

SIDE = 384
SIDES = 256, 512, 1024, 2048, 4096
DOSES = 2.0, 3000.0
CONTRASTS = 0.05, 0.2, 0.5, 1.0
CLEAN = 0.2
"""Largest noise variance of a truth over that which is added; beyond, the true error is unknown."""
BROKEN = (
    "shifted",
    "noise added",
    "checkerboard",
    "constant",
    "another image",
    "contrast",
    "blurred",
    "tiles",
    "holes",
    "inverted",
    "lattice invented",
    "particles invented",
    "seams",
    "clipped",
    "half of the noise left",
    "one tile noisy",
    "one tile left as it was",
)
FAULTS = ("wrong gain", "wrong offset", "correlated noise", "dose out of range", "broken engine")
NONE = "none"


@dataclass(frozen=True, slots=True)
class Case:
    """A simulated exposure with its fault, result and verdict."""

    stratum: str
    source: str
    fault: str
    detail: str
    dose: float
    contrast: float
    ratio: float
    """True squared error of the result over that of the raw image."""
    blurred: float
    """True squared error of the best Gaussian blur of the raw image over that of the raw image."""
    evidence: Residual | None
    word: str
    codes: tuple[str, ...]

    @property
    def estimate(self) -> float | None:
        return None if self.evidence is None else self.evidence.error_ratio


def broken(rng: np.random.Generator, image: Image, raw: Image, dose: float) -> tuple[str, Image]:
    """Damage a right result (H, W) of `raw` (H, W) as a damaged engine, card or file of weights may do."""
    how, mean, sigma = str(rng.choice(BROKEN)), float(image.mean()), sqrt(dose)
    y, x = np.indices(image.shape)
    middle = (y // 128 == 1) & (x // 128 == 1)
    match how:
        case "shifted":
            bad = np.roll(image, int(rng.integers(1, 4)), int(rng.integers(2)))
        case "noise added":
            bad = image + rng.normal(0, sigma * rng.uniform(0.3, 2), image.shape)
        case "checkerboard":
            bad = image + ((y // 2 + x // 2) % 2 * 2 - 1) * sigma * rng.uniform(0.3, 1.5)
        case "constant":
            bad = np.full_like(image, mean)
        case "another image":
            bad = np.rot90(image)
        case "contrast":
            bad = (image - mean) * rng.choice([rng.uniform(0.2, 0.8), rng.uniform(1.25, 2)]) + mean
        case "blurred":
            width = int(rng.integers(1, 8))
            kernel = np.hanning(2 * width + 3)[1:-1]
            rows = np.apply_along_axis(np.convolve, 0, np.pad(image, width, "reflect"), kernel / kernel.sum(), "valid")
            bad = np.apply_along_axis(np.convolve, 1, rows, kernel / kernel.sum(), "valid")
        case "tiles":
            bad = image + ((y // 128 + x // 128) % 2 - 0.5) * sigma * rng.uniform(0.2, 2)
        case "inverted":
            bad = 2 * mean - image
        case "lattice invented":
            angle = rng.uniform(0, np.pi)
            wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / rng.uniform(2.5, 10))
            bad = image + wave * sigma * rng.uniform(0.1, 2)
        case "particles invented":
            bad = image.copy()
            for top, left, radius in zip(*rng.uniform(0, SIDE, (2, 20)), rng.uniform(1.5, 8, 20), strict=True):
                bad += sigma * rng.uniform(0.5, 3) * np.exp(-(np.hypot(y - top, x - left) ** 2) / (2 * radius**2))
        case "seams":
            bad = image + ((y % 128 < 2) | (x % 128 < 2)) * sigma * rng.uniform(0.5, 3)
        case "clipped":
            bad = np.clip(image, *np.percentile(image, (2, 98)))
        case "half of the noise left":
            bad = (image + raw) / 2
        case "one tile noisy":
            bad = image + middle * rng.normal(0, sigma * rng.uniform(0.5, 2), image.shape)
        case "one tile left as it was":
            bad = np.where(middle, raw, image)
        case _:  # a tile that was never computed
            bad = np.where(middle, 0, image)
    return how, bad.astype(np.float32)


class Bench:
    """Denoises and judges with the daemon's own code."""

    def __init__(self, threads: int) -> None:
        weights = manifest.verified("fast")
        self._manifest = weights.manifest
        self._backend = open_backend(BackendConfig(kind="cpu", threads=threads), weights, default_folder())

    def denoise(self, raw: NDArray[Any], gain: float, offset: float) -> tuple[Denoised, Choice]:
        micrograph = Micrograph(raw, Path("simulated.tif"), "tiff")
        profile = Profile(name="p", gain=gain, offset=offset)
        choice = scaled(profile, "benchmark", micrograph, dose_evidence(micrograph))
        (done,) = self._backend.denoise([plane(raw, choice, self._manifest.dose_range)])
        return done, choice

    def case(self, rng: np.random.Generator, stratum: str, source: Source, fault: str) -> Case | None:
        """One case, or None if this truth is not clean enough or the exposure cannot be denoised."""
        name, image = source
        top, left = (int(rng.integers(0, extent - SIDE + 1)) for extent in image.shape)
        crop = np.asarray(image[top : top + SIDE, left : left + SIDE], np.float32)
        dose, contrast = _log_uniform(rng, *DOSES), float(rng.choice(CONTRASTS))
        gain, offset, detector, detail = 1.0, 0.0, Detector(), ""
        match fault:
            case "wrong gain":
                gain = float(rng.choice([_log_uniform(rng, 0.08, 0.6), _log_uniform(rng, 1.6, 12)]))
                detail = f"{gain:.2g} instead of 1"
            case "wrong offset":
                offset = -dose * float(rng.uniform(0.3, 5))
                detail = f"{offset / dose:.2g} of the mean"
            case "correlated noise":
                detector = Detector(psf=float(rng.uniform(0.3, 1.2)))
                detail = f"point spread {detector.psf:.2g} px"
            case "dose out of range":
                dose = _log_uniform(rng, *((0.05, 0.5) if rng.random() < 0.5 else (5000, 60_000)))
        raw, truth = expose(rng, crop, dose, contrast, detector)
        added = float(np.mean(np.square(raw - truth)))
        if not added or (stratum == "real" and float(own_noise(truth)) ** 2 > CLEAN * added):
            return None
        try:
            done, choice = self.denoise(raw, gain, offset)
            if fault == "broken engine":
                detail, bad = broken(rng, done.image, raw, dose)
                done = replace(done, image=bad)
            verdict = judge.judge(done.image, done.prepared, choice)
        except MicrographError:
            return None
        ratio = float(np.mean(np.square(done.image - truth))) / added
        blurs = (gaussian_filter(raw.astype(np.float64), width) for width in GAUSSIANS)
        blurred = min(float(np.mean(np.square(blur - truth))) for blur in blurs) / added
        codes = tuple(reason.code for reason in verdict.why)
        return Case(stratum, name, fault, detail, dose, contrast, ratio, blurred, verdict.evidence, verdict.word, codes)

    def seconds(self, side: int, rounds: int = 5) -> dict[str, float]:
        """Processor seconds of judging and of the network, in turn, for one side²."""
        rng = np.random.default_rng(0)
        wave = np.sin(np.arange(side) / 11)
        raw = rng.poisson(50 * (1 + 0.4 * wave[:, None] * wave)).astype(np.uint16)
        network, judging = [], []
        for _ in range(rounds):
            begin = time.process_time()
            done, choice = self.denoise(raw, 1.0, 0.0)
            network.append(time.process_time() - begin)
            begin = time.process_time()
            judge.judge(done.image, done.prepared, choice)
            judging.append(time.process_time() - begin)
        share = median(a / b for a, b in zip(judging, network, strict=True))
        return {"side": side, "judging": median(judging), "network": median(network), "share": share}


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return exp(rng.uniform(log(low), log(high)))


def real(folder: Path) -> list[Source]:
    """The finest clean version of each micrograph that is large enough."""
    found = [(one.name, one.truth.versions[0]) for one in real_subjects(folder, None, None) if one.truth is not None]
    return [(name, image) for name, image in found if min(image.shape) >= SIDE]


def simulated(rng: np.random.Generator, each: int) -> list[Source]:
    return [(family, draw(rng, 512)) for family, draw in simulate.HELD_OUT.items() for _ in range(each)]


def cases(bench: Bench, stratum: str, sources: list[Source], number: int, seed: int) -> Iterator[Case]:
    """`number` cases, every other one without a fault; the sources take turns."""
    rng = np.random.default_rng(seed)
    made = tried = 0
    while made < number and tried < 20 * number:
        fault = NONE if made % 2 else FAULTS[made // 2 % len(FAULTS)]
        case = bench.case(rng, stratum, sources[tried % len(sources)], fault)
        tried += 1
        if case is not None:
            made += 1
            yield case
        if tried % 100 == 0:
            print(f"  {stratum}: {made} of {number}", flush=True)


def share(number: int, of: int) -> dict[str, Any]:
    """A share with Wilson's interval (J. Am. Stat. Assoc. 22, 209, 1927)."""
    if not of:
        return {"number": 0, "of": 0, "share": None, "interval": None}
    z, p = 1.96, number / of
    middle, half = (p + z * z / (2 * of)), z * sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    interval = [max(0.0, (middle - half) / (1 + z * z / of)), min(1.0, (middle + half) / (1 + z * z / of))]
    return {"number": number, "of": of, "share": round(p, 4), "interval": [round(end, 4) for end in interval]}


def summary(found: list[Case]) -> dict[str, Any]:
    """Rejected bad results, false alarms, and the verdicts of each kind of case."""
    worse = [case for case in found if case.ratio > 1]
    better = [case for case in found if case.ratio <= 1]
    sound = [case for case in better if case.fault == NONE]

    def rejected(some: list[Case], wanted: Callable[[Case], bool] = lambda _: True) -> dict[str, Any]:
        chosen = [case for case in some if wanted(case)]
        return share(sum(case.word == "reject" for case in chosen), len(chosen))

    beaten = [case for case in found if case.ratio > case.blurred]
    clearly = [case for case in beaten if case.ratio > 1.2 * case.blurred]
    known = [case for case in found if case.estimate]
    both = np.log10([(max(case.ratio, 1e-3), max(case.estimate or 0, 1e-3)) for case in known]).T
    return {
        "cases": len(found),
        "sources": len({case.source for case in found}),
        "rejected of those worse than the raw image": rejected(worse),
        "not good of those worse than the raw image": share(sum(one.word != "good" for one in worse), len(worse)),
        "not good of those worse than a Gaussian": share(sum(one.word != "good" for one in beaten), len(beaten)),
        "not good of those clearly worse (by a fifth)": share(sum(one.word != "good" for one in clearly), len(clearly)),
        "rejected of those better than the raw image": rejected(better),
        "rejected of those better, without a fault": rejected(sound),
        "by fault": {
            fault: {
                "rejected of the worse": rejected(worse, lambda case, fault=fault: case.fault == fault),
                "rejected of the better": rejected(better, lambda case, fault=fault: case.fault == fault),
                "words": dict(Counter(case.word for case in found if case.fault == fault)),
                "codes": dict(Counter(code for case in found if case.fault == fault for code in case.codes)),
            }
            for fault in (NONE, *FAULTS)
        },
        "words by broken engine": {
            how: dict(Counter(case.word for case in found if case.fault == "broken engine" and case.detail == how))
            for how in BROKEN
        },
        "correlation of log10 true and estimated error ratio": round(float(np.corrcoef(both)[0, 1]), 3),
        "missed": [
            {"source": case.source, "fault": case.fault, "detail": case.detail, "dose": round(case.dose, 2),
             "contrast": case.contrast, "true": round(case.ratio, 2), "estimate": case.estimate, "word": case.word}
            for case in worse if case.word != "reject"
        ],
    }  # fmt: skip


ROWS = {
    "rejected of those worse than the raw image": "worse than the raw image: rejected",
    "not good of those worse than the raw image": "worse than the raw image: rejected or check",
    "rejected of those better than the raw image": "better than the raw image: rejected, a false alarm",
    "rejected of those better, without a fault": "the same, where no fault was provoked",
}


def table(result: dict[str, Any]) -> str:
    """The figures of docs/verdict.md, which a test compares."""
    parts = {name: part for name, part in result.items() if isinstance(part, dict) and "by fault" in part}
    lines = ["| | " + " | ".join(name.replace(" truths", "") for name in parts) + " |", "|---" * (len(parts) + 1) + "|"]
    for key, label in ROWS.items():
        cells = []
        for part in parts.values():
            one = part[key]
            low, high = one["interval"] or (0, 0)
            cells.append(f"{one['number']} of {one['of']}: {one['share'] or 0:.1%} ({low:.1%} to {high:.1%})")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    words = [part["by fault"][NONE]["words"] for part in parts.values()]
    shares = [
        ", ".join(f"{count / sum(one.values()):.0%} {word}" for word, count in sorted(one.items())) for one in words
    ]
    lines.append("| words where no fault was provoked | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=600, help="of each of val, simulation and test_public")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calibrate", action="store_true", help="without test_public and timing")
    options = parser.parse_args()
    bench = Bench(options.threads)
    scenes = simulated(np.random.default_rng(1), 6)
    found = {
        "calibration, val (real truths)": list(cases(bench, "real", real(options.data / "val"), options.cases, 11)),
        "calibration, simulated truths": list(cases(bench, "simulated", scenes, options.cases, 12)),
    }
    if not options.calibrate:
        public = real(options.data / "test_public")
        found["report, test_public (real truths)"] = list(cases(bench, "real", public, options.cases, 13))
    summaries = {name: summary(some) for name, some in found.items()}
    result = {
        "what": "verdicts on results whose truth is known: simulated exposures of real and simulated truths",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": platform.platform(),
        "thresholds": {
            "reject above an estimated error ratio of": judge.REJECTED,
            f"where neighbours correlate more than {judge.STRONGLY_CORRELATED}": judge.REJECTED_CORRELATED,
        },
        **summaries,
        "processor seconds, side by side": [bench.seconds(side) for side in (() if options.calibrate else SIDES)],
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
