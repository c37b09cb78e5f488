"""Tests the estimates of dose and gain from images: on simulated cameras of known gain, and on real files.

`python benchmarks/dose_calibration.py DATA -o benchmarks/results/dose.json --page docs/dose.md`, where DATA holds
`test_public`, `val` and `formats`; a few minutes. The simulated part is the same for the same code. Half of the kinds
of specimen are those that weights are trained on; nothing here is trained.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon import __version__
from daemon.counts import profiles
from daemon.counts.gain import measure
from daemon.demo.specimen import expose
from daemon.errors import EmdenoisedError
from daemon.formats.decoder import Reader
from daemon.micrograph import Acquisition, Micrograph
from daemon.settings.profile import Profile
from training import markdown
from training.data.simulate import HELD_OUT, TRAINING

KINDS = {**TRAINING, **HELD_OUT}
DOSES = (1.0, 5.0, 30.0, 200.0, 1000.0, 3000.0)
CONTRASTS = (0.02, 0.1, 0.3, 1.0)
CAMERAS = ("counts", "scaled", "pedestal", "pedestal and read-out noise")
SIDE = 512
AUTO, PLAIN = Profile(name="auto", gain="auto"), Profile(name="plain")
Row = dict[str, Any]
Real = NDArray[Any]


def simulated(side: int = SIDE, doses: Sequence[float] = DOSES) -> list[Row]:
    """Every kind of specimen, dose, contrast and camera once: ratios of gain and of noise variance to the truth."""
    rows = []
    for number, (kind, generate) in enumerate(KINDS.items()):
        scenes = [generate(np.random.default_rng([2026, number, n]), side) for n in range(2 if side <= SIDE else 1)]
        rng = np.random.default_rng([2027, number, side])
        for level in doses:
            for contrast in CONTRASTS:
                for camera in CAMERAS:
                    gain = 1.0 if camera == "counts" else float(np.exp(rng.uniform(np.log(0.01), np.log(1000))))
                    pedestal = float(rng.choice([0.3, 2.0, 10.0])) * level if "pedestal" in camera else 0.0
                    read = float(rng.uniform(0.5, 3)) if "read-out" in camera else 0.0
                    counts, _ = expose(scenes[int(rng.integers(len(scenes)))], level, contrast, rng)
                    image: Real = gain * (counts + pedestal + rng.normal(0, read, counts.shape))
                    whole = camera == "counts" or (gain >= 1 and rng.random() < 0.5)
                    image = np.rint(image).astype(np.int32) if whole else image.astype(np.float32)
                    found = measure(image)
                    noise = found.gain * (float(image.mean(dtype=np.float64)) - found.offset)
                    ratios = {"gain": found.gain / gain, "noise": noise / (gain**2 * (level + read**2))}
                    case = {"kind": kind, "dose": level, "contrast": contrast, "camera": camera}
                    rows.append({**case, **ratios, "told": found.determines_gain})
    return rows


def summary(rows: Iterable[Row]) -> Row:
    """Shares within 10 %, and errors: of the noise, of the gain, and of the gain where the image determines it."""
    rows = list(rows)
    determined = [row for row in rows if row["told"]]

    def of(chosen: list[Row], key: str) -> Row:
        errors = [abs(row[key] - 1) for row in chosen]
        if not errors:
            return {"images": 0}
        within = round(float(np.mean(np.array(errors) <= 0.1)), 3)
        middle, worst = round(median(errors), 4), round(max(errors), 3)
        return {"images": len(errors), "within_10_percent": within, "median_error": middle, "worst_error": worst}

    return {
        "noise_variance": of(rows, "noise"),
        "gain": of(rows, "gain"),
        "gain_where_told": of(determined, "gain"),
    }


def grouped(rows: list[Row]) -> Row:
    """Summaries by each parameter."""
    return {
        "all": summary(rows),
        **{
            key: {str(value): summary(row for row in rows if row[key] == value) for value in values}
            for key, values in (("kind", KINDS), ("dose", DOSES), ("contrast", CONTRASTS), ("camera", CAMERAS))
        },
    }


def neighbours(image: Real, share: float) -> Real:
    """Each pixel gives `share` of its electrons to each of its two neighbours along either axis."""
    for axis in (0, 1):
        image = (1 - 2 * share) * image + share * (np.roll(image, 1, axis) + np.roll(image, -1, axis))
    return image


DETECTORS: dict[str, Callable[[NDArray[np.uint16], np.random.Generator], Real]] = {
    "counts every electron": lambda counts, _: counts.astype(float),
    "spreads 5 % to each neighbour": lambda counts, _: neighbours(counts.astype(float), 0.05),
    "spreads 10 % to each neighbour": lambda counts, _: neighbours(counts.astype(float), 0.10),
    "misses half of the electrons": lambda counts, rng: 2.0 * rng.binomial(counts, 0.5),
    "pulses of exponential height": lambda counts, rng: rng.gamma(np.maximum(counts, 1e-9)),
    "shifted by half a pixel, interpolated": lambda counts, _: neighbours(counts.astype(float), 0.25),
}
LIES = (1.0, 1.5, 2.0, 4.0, 0.5, 0.25)


def warnings_of_detectors() -> list[Row]:
    """Warnings about true (factor 1) and wrong statements on gain and dose in files; all kinds, doses 5 to 200."""
    rows = []
    for name, detect in DETECTORS.items():
        for lie in LIES:
            doubted, images = {"gain": 0, "dose": 0}, 0
            for number, (kind, generate) in enumerate(KINDS.items()):
                for level in (5.0, 50.0, 200.0):
                    rng = np.random.default_rng([2028, number, int(level)])
                    counts, _ = expose(generate(rng, 256), level, 0.5, rng)
                    pixels = (3.0 * detect(counts, rng)).astype(np.float32)
                    images += 1
                    for what, stated in (
                        ("gain", Acquisition(electrons_per_unit=1 / (3.0 * lie))),
                        ("dose", Acquisition(electrons_per_pixel=level * lie)),
                    ):
                        one = Micrograph(pixels, Path(kind), "tiff", acquisition=stated)
                        choice = profiles.scaled(AUTO, "", one, profiles.dose_evidence(one))
                        doubted[what] += any("the file states" in warning for warning in choice.warnings)
            shares = {f"doubted_{what}": round(number / images, 3) for what, number in doubted.items()}
            rows.append({"detector": name, "stated_over_true": lie, "images": images, **shares})
    return rows


def real(data: Path) -> list[Row]:
    """Every readable file of at least 32 x 32 pixels: measured, stated and chosen gain and dose."""
    rows: list[Row] = []
    with Reader(150_000_000, 60) as reader:
        for path in sorted(path for part in ("test_public", "val", "formats") for path in (data / part).iterdir()):
            row: Row = {"file": f"{path.parent.name}/{path.name}"}
            try:
                one = reader.read(path)
                if min(one.pixels.shape) < 32:
                    continue
                seen = profiles.dose_evidence(one)
                choice = profiles.scaled(AUTO, "", one, seen)
                plain = profiles.scaled(PLAIN, "", one, seen)
            except EmdenoisedError as error:
                rows.append({**row, "refused": str(error).partition(": ")[2]})
                continue
            assert seen.measured is not None
            rows.append(
                {
                    **row,
                    "shape": list(one.pixels.shape),
                    "dtype": str(one.metadata.get("dtype", one.pixels.dtype)),
                    **seen.as_json(),
                    "gain_from": choice.dose_evidence.gain_from,
                    "mean": seen.measured.mean,
                    "told": seen.measured.determines_gain,
                    "dose": choice.counts(seen.measured.mean) if choice.dose_known else None,
                    "warnings_auto": list(choice.warnings),
                    "warnings_gain_1": list(plain.warnings),
                }
            )
    return rows


def milliseconds() -> Row:
    """Milliseconds of processor time for a 2048 x 2048 image: the median of nine."""
    image = np.random.default_rng(1).poisson(50, (2048, 2048)).astype(np.uint16)
    times = {}
    for kind in (np.uint16, np.float32):
        pixels, took = image.astype(kind), []
        for _ in range(9):
            begin = time.process_time()
            measure(pixels)
            took.append(1e3 * (time.process_time() - begin))
        times[np.dtype(kind).name] = round(median(took), 1)
    return times


def page(found: Row) -> str:
    """docs/dose.md."""
    template = (Path(__file__).parent / "dose_page.md").read_text()
    return template.format(
        date=found["date"],
        machine=found["machine"],
        version=found["emdenoised"],
        integer=found["milliseconds_2048"]["uint16"],
        floating=found["milliseconds_2048"]["float32"],
        kinds=len(KINDS),
        trained=len(TRAINING),
        simulated="\n".join(_simulated(found)),
        doubts="\n".join(_doubts(found["detectors"])),
        files="\n".join(_files(found["real"])),
        number=len(found["real"]),
        refused=sum("refused" in row for row in found["real"]),
        told=sum(row.get("told", False) for row in found["real"]),
        known=sum(row.get("dose") is not None for row in found["real"]),
    )


def _simulated(found: Row) -> list[str]:
    """The table of simulated images: each summary in a row."""

    def cells(name: str, group: Row) -> list[str]:
        row = [name]
        for key in ("noise_variance", "gain_where_told", "gain"):
            one = group[key]
            share = f"{one['within_10_percent']:.0%} of {one['images']}" if one["images"] else "none"
            row += [share, *(f"{one[k]:{form}}" if one["images"] else "" for k, form in _ERRORS.items())]
        return row

    simulation = found["simulation"]
    head = [""]
    for what in ("noise variance", "gain, where determined:", "gain, all:"):
        head += [f"{what} within 10 %", "median error", "worst"]
    rows = [cells("all", simulation["all"])]
    for key, unit in (("camera", ""), ("dose", " counts"), ("contrast", ""), ("kind", "")):
        for name, group in simulation[key].items():
            label = f"contrast {float(name):.0%}" if key == "contrast" else f"{name.removesuffix('.0')}{unit}"
            rows.append(cells(label.replace("_", " "), group))
    rows += [cells(f"{side} × {side} pixels", group) for side, group in found["simulation_by_side"].items()]
    return markdown.table(head, rows)


_ERRORS = {"median_error": ".1%", "worst_error": ".0%"}


def _doubts(detectors: list[Row]) -> list[str]:
    """The table of detectors with point spread or noise: shares of warnings about a wrong gain, and about the dose."""
    rows = []
    for name in DETECTORS:
        these = [row for row in detectors if row["detector"] == name]
        rows.append([name, *(f"{row['doubted_gain']:.0%}, {row['doubted_dose']:.0%}" for row in these)])
    return markdown.table(["the detector", *(f"× {lie:g}" for lie in LIES)], rows)


def _files(real: list[Row]) -> list[str]:
    """The table of real files and their statements."""
    head = ("file", "gain ±", "offset", "neighbours", "counts per pixel", "the file states", "gain from")
    return markdown.table(head, [_file_cells(row) for row in real if "refused" not in row])


def _file_cells(row: Row) -> list[str]:
    def number(value: float | None) -> str:
        return "unknown" if value is None else f"{value:.3g}"

    measured = row["measured"]
    sure = "" if measured["gain"] is None else f" ± {min(measured['gain_error'], 1):.0%}"
    words = (("stated_gain", "units per electron"), ("stated_dose", "electrons per pixel"))
    stated = [f"{row[key]:.3g} {unit}" for key, unit in words if row[key] is not None]
    return [
        row["file"],
        f"{number(measured['gain'])}{sure}",
        number(measured["offset"]),
        f"{measured['correlation']:+.2f}",
        number(row["dose"]),
        ", ".join(stated) or "nothing stated",
        row["gain_from"],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with test_public, val and formats")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--page", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    found = {
        "what": "gain and dose estimated from images; `simulation*` and `detectors`: simulated; `real`: real files",
        "emdenoised": __version__,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, shared with other work",
        "milliseconds_2048": milliseconds(),
        "simulation": grouped(simulated()),
        "simulation_by_side": {
            str(side): summary(simulated(side=side, doses=(5.0, 200.0))) for side in (256, 1024, 2048)
        },
        "detectors": warnings_of_detectors(),
        "real": real(options.data),
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    options.page.write_text(page(found))


if __name__ == "__main__":
    main()
