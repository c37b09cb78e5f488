"""Camera noise: the service's path, and BM3D with variance stabilisation and the spectrum, on the same exposures.

    python benchmarks/camera_noise.py DATA --sources manifest.csv -o benchmarks/results/camera_noise.json

Truths are the crops of the evaluation (`training.evaluation.pairs`), recorded by simulated cameras that smear their
counts and add read-out noise. emdenoised gets the image alone (`measured`), or a camera file with the camera's values
(`calibrated`). BM3D gets these values and the noise's spectrum. Rows of BM3D already in the output file are kept.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bm3d import BM3DProfile, bm3d
from numpy.typing import NDArray

from daemon import __version__
from daemon.counts.scaling import sharing
from daemon.settings import camera_file
from daemon.settings.profile import Profile
from emdenoised import Denoiser
from training.data.exposure import Detector, Image, expose, smear
from training.evaluation.methods import ANSCOMBE, unbiased_inverse
from training.evaluation.pairs import Key, make, plan, real_subjects, simulated_subjects

CAMERAS = {
    "sharp": Detector(readout=0.5, gain=4.0, offset=100.0, psf=0.4),
    "scintillator": Detector(readout=1.0, gain=2.0, offset=0.0, psf=0.7),
    "blurred": Detector(readout=2.0, gain=10.0, offset=500.0, psf=1.0),
}
SIDE, SEED = 512, 2033
if not hasattr(np, "trapz"):  # BM3D calls it by the name that NumPy 2 dropped
    np.trapz = np.trapezoid  # type: ignore[attr-defined]
Row = dict[str, Any]


def spectrum(camera: Detector, shape: tuple[int, int], mean: float) -> NDArray[np.float64]:
    """Power (H, W) of the noise, of unit variance after Anscombe's transform; BM3D wants it times the pixels."""
    impulse = np.zeros(shape, np.float32)
    impulse[shape[0] // 2, shape[1] // 2] = 1
    power = mean * np.square(np.abs(np.fft.fft2(smear(impulse, camera.psf)))) + camera.readout**2
    return np.asarray(power / power.mean() * power.size)


def rival(pixels: Image, camera: Detector) -> Image:
    """BM3D (profile `np`) on stabilised counts, in the camera's units."""
    profile = BM3DProfile()
    profile.num_threads = 1
    noise = camera.noise
    counts = np.maximum((pixels.astype(np.float64) - noise.effective_offset) / noise.effective_gain, 0)
    stable = 2 * np.sqrt(counts + ANSCOMBE)
    low, span = stable.min(), float(np.ptp(stable)) or 1.0
    mean = float(pixels.mean(dtype=np.float64) - camera.offset) / camera.gain
    restored = bm3d((stable - low) / span, spectrum(camera, pixels.shape, mean) / span**2, profile)
    back = unbiased_inverse(np.asarray(restored, np.float64) * span + low)
    return np.asarray(back * noise.effective_gain + noise.effective_offset, np.float32)


def calibrated(camera: Detector, folder: Path) -> Profile:
    path = folder / "camera.yaml"
    seen = camera_file.Camera(
        made="simulated", size=(SIDE, SIDE), gain=camera.gain, gain_error=0.0, offset=camera.offset,
        readout=camera.readout, psf=camera.psf, psf_error=0.0,
    )  # fmt: skip
    camera_file.save(path, seen)
    return Profile(name="calibrated", camera=str(path))


def psnr(image: Image, truth: Image) -> float:
    error = float(np.square(image.astype(np.float64) - truth).mean())
    return float(20 * np.log10(float(np.ptp(truth)) / np.sqrt(error)))


def exposure(key: Key, camera: Detector) -> tuple[Image, Image]:
    truth = make(key).pair.true_counts
    rng = np.random.default_rng([SEED, *str(key).encode()])
    return expose(rng, truth, float(truth.mean(dtype=np.float64)), 1.0, camera)


def row(key: Key, name: str, weights: str, known: Row | None) -> Row:
    camera = CAMERAS[name]
    pixels, truth = exposure(key, camera)
    with tempfile.TemporaryDirectory() as folder:
        with Denoiser(weights, backend="cpu", threads=1) as denoiser:
            measured = psnr(denoiser.denoise(pixels), truth)
        profile = calibrated(camera, Path(folder)).model_copy(update={"weights": weights})
        with Denoiser(profile, backend="cpu", threads=1) as denoiser:
            stated = psnr(denoiser.denoise(pixels), truth)
    return {
        "pair": str(key),
        "source": key.subject.source,
        "stratum": key.subject.stratum,
        "regime": key.regime,
        "camera": name,
        "recorded": round(psnr(pixels, truth), 3),
        "bm3d": known["bm3d"] if known else round(psnr(rival(pixels, camera), truth), 3),
        "measured": round(measured, 3),
        "calibrated": round(stated, 3),
    }


def summary(rows: list[Row]) -> Row:
    """Means over sources of the sources' means, dB over BM3D, with the standard error of these."""

    def over(which: str) -> Row:
        by_source: dict[str, list[float]] = {}
        for one in rows:
            by_source.setdefault(one["source"], []).append(one[which] - one["bm3d"])
        means = np.array([np.mean(one) for one in by_source.values()])
        error = float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None
        return {"over_bm3d": round(float(means.mean()), 3), "error": None if error is None else round(error, 3)}

    return {"pairs": len(rows), "measured": over("measured"), "calibrated": over("calibrated")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of micrographs that no training saw")
    parser.add_argument("--sources", type=Path, required=True, metavar="CSV")
    parser.add_argument("--cache", type=Path, help="folder for prepared micrographs")
    parser.add_argument("--weights", default="fast")
    parser.add_argument("--instances", type=int, default=24, help="pairs of a stratum and regime (default: 24)")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    before = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    known = {(one["pair"], one["camera"]): one for one in before}
    strata = [real_subjects(options.data, options.cache, options.sources), simulated_subjects()]
    keys = [
        (key, list(CAMERAS)[number % len(CAMERAS)])
        for subjects in strata
        for regime in ("low", "ordinary")
        for number, key in enumerate(plan(subjects, regime, options.instances, SEED, SIDE))
    ]
    rows: list[Row] = []
    for key, name in keys:
        rows.append(row(key, name, options.weights, known.get((str(key), name))))
        print(json.dumps(rows[-1]), flush=True)
        found = {
            "what": "PSNR of simulated exposures; truth: what the camera shows on average",
            "emdenoised": __version__,
            "weights": options.weights,
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, shared with other work",
            "cameras": {
                name: {"readout": one.readout, "gain": one.gain, "offset": one.offset, "psf": one.psf,
                       "sharing": round(sharing(one.psf), 4)}
                for name, one in CAMERAS.items()
            },
            "over_bm3d": {
                f"{stratum} {regime}": summary(some)
                for stratum in ("real", "simulated")
                for regime in ("low", "ordinary")
                if (some := [one for one in rows if (one["stratum"], one["regime"]) == (stratum, regime)])
            }
            | {
                f"camera {name}": summary(some)
                for name in CAMERAS
                if (some := [one for one in rows if one["camera"] == name])
            },
            "rows": rows,
        }  # fmt: skip
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
