"""Tests the estimates for cameras that smear counts: gain, noise and their stated errors, on simulated cameras.

`python benchmarks/smeared_cameras.py -o benchmarks/results/smeared.json [--data DATA]`: the simulator's families, and,
where DATA holds `val` and `train`, real micrographs as truths: binned, denoised by the shipped weights (their own noise
would count as the camera's), and left out where 3 % of the noise is still their own.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon import __version__
from daemon.counts.gain import measure
from daemon.counts.scaling import Noise
from daemon.errors import EmdenoisedError
from daemon.formats.decoder import Reader
from emdenoised import Denoiser
from training.data.exposure import Detector, expose
from training.data.simulate import HELD_OUT, TRAINING
from training.data.truths import bin2, own_noise

SIDE = 512
SPREADS = (0.0, 0.3, 0.5, 0.8, 1.0, 1.2)
OWN = 0.03
Row = dict[str, Any]


def scenes(data: Path | None) -> Iterator[tuple[str, str, NDArray[np.float32]]]:
    """Family (simulated, real), name and scene in [0, 1]."""
    for number, (kind, generate) in enumerate({**TRAINING, **HELD_OUT}.items()):
        for seed in range(2):
            yield "simulated", kind, generate(np.random.default_rng([2031, number, seed]), SIDE)
    if data is None:
        return
    with Reader(150_000_000, 60) as reader, Denoiser() as denoiser:
        for path in sorted(path for part in ("val", "train") for path in (data / part).iterdir()):
            try:
                image = reader.read(path).pixels.astype(np.float32)
                while min(image.shape) >= 2 * SIDE:
                    image = bin2(image)
                image = image[:SIDE, :SIDE]
                low, high = (float(one) for one in np.percentile(image, (0.05, 99.95)))
                scene = np.clip((image - low) / max(high - low, 1e-9), 0, 1).astype(np.float32)
                yield "real", path.name, np.clip(denoiser.denoise(scene), 0, 1)
            except EmdenoisedError:
                continue


def exposures(name: str, scene: NDArray[np.float32], seed: int) -> Iterator[Row]:
    """One exposure for each point spread with random camera, dose and contrast: estimates over the truth."""
    rng = np.random.default_rng([2032, seed])
    for psf in SPREADS:
        dose = float(np.exp(rng.uniform(np.log(5), np.log(2000))))
        contrast = float(rng.choice([0.1, 0.3, 0.6, 1.0]))
        gain = float(np.exp(rng.uniform(np.log(0.2), np.log(20))))
        offset, readout = float(rng.choice([0, 0, 100, 1000])), float(rng.choice([0, rng.uniform(0, 3)]))
        if dose * (contrast * own_noise(scene) / float(scene.mean())) ** 2 > OWN:
            continue
        image, _ = expose(rng, scene, dose, contrast, Detector(readout, gain, offset, psf))
        pixels = np.rint(image).astype(np.int32) if gain >= 1 and rng.random() < 0.5 else image
        try:
            found = measure(pixels)
        except EmdenoisedError:
            continue
        mean = float(pixels.mean(dtype=np.float64))
        sizes = [
            one.effective_gain * (mean - one.effective_offset)
            for one in (found.noise, Noise(gain, offset, readout, psf))
        ]
        yield {
            "name": name,
            "psf": psf,
            "dose": dose,
            "contrast": contrast,
            "noise": sizes[0] / sizes[1],
            "gain": found.gain / gain,
            "error": min(found.error, 9.0),
            "psf_found": found.psf,
        }


def summary(rows: list[Row]) -> Row:
    """Shares within 10 %: of the noise; of the gain where the image determines it; and of errors that hold."""
    noise, gain, error = (np.array([row[key] for row in rows]) for key in ("noise", "gain", "error"))
    determined, known = error <= 0.05, error < 0.3

    def share(which: NDArray[np.bool_]) -> float | None:
        return round(float(which.mean()), 3) if len(which) else None

    return {
        "images": len(rows),
        "noise_within_10_percent": share(np.abs(noise - 1) < 0.1),
        "noise_within_20_percent": share(np.abs(noise - 1) < 0.2),
        "point_spread_seen": share(np.array([row["psf_found"] > 0 for row in rows])),
        "gain_told": int(determined.sum()),
        "gain_within_10_percent_where_told": share(np.abs(gain[determined] - 1) < 0.1),
        "gain_error_below_30_percent": int(known.sum()),
        "gain_within_two_of_its_errors": share((np.abs(gain - 1) < 2 * error)[known]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--data", type=Path, help="folder with val and train")
    options = parser.parse_args()
    rows: dict[str, list[Row]] = {}
    for seed, (family, name, scene) in enumerate(scenes(options.data)):
        rows.setdefault(family, []).extend(exposures(name, scene, seed))
    found = {
        "what": "cameras that smear their counts, simulated; `simulated` and `real` are the specimens",
        "emdenoised": __version__,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, shared with other work",
        **{
            family: {str(psf): summary([row for row in some if row["psf"] == psf]) for psf in SPREADS}
            | {"all": summary(some)}
            for family, some in rows.items()
        },
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
