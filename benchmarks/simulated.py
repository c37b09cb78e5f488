"""Measures how well the shipped weights denoise new specimens of the demo's simulated camera.

`python benchmarks/simulated.py -o benchmarks/results/simulated.json`. Simulation, not real data: the truth is known,
and the camera's family of scenes is excluded from training. The rival is a Gaussian filter whose width is the best
for each micrograph by its truth, an advantage over any real filter.
"""

import argparse
import json
import platform
from pathlib import Path
from statistics import mean

import numpy as np

from daemon import __version__
from daemon.demo.run import USUAL_SIGMA, best_gaussian, gaussian, psnr
from daemon.demo.specimen import expose, scene
from emdenoised import Denoiser

SIDE = 512
DOSES = (5.0, 20.0, 200.0, 1000.0)
CONTRASTS = (0.05, 0.2, 1.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--weights", default="fast")
    options = parser.parse_args()
    rows = []
    with Denoiser(options.weights, backend="cpu", gain=1.0) as denoiser:
        for dose in DOSES:
            for contrast in CONTRASTS:
                results = []
                for seed in range(options.scenes):
                    rng = np.random.default_rng(1000 + seed)
                    counts, truth = expose(scene(rng, SIDE), dose, contrast, rng)
                    raw = counts.astype(np.float32)
                    denoised = denoiser.denoise(counts)
                    results.append(
                        {
                            "raw": psnr(raw, truth),
                            "gaussian_2px": psnr(gaussian(raw, USUAL_SIGMA), truth),
                            "gaussian": best_gaussian(raw, truth)[0],
                            "denoised": psnr(denoised, truth),
                            "mean_shift": float(denoised.mean(dtype=np.float64) / counts.mean() - 1),
                        }
                    )
                row: dict[str, float] = {"dose": dose, "contrast": contrast}
                row.update({f"psnr_{key}": round(mean(r[key] for r in results), 2) for key in list(results[0])[:4]})
                row["worst_mean_shift"] = max(abs(r["mean_shift"]) for r in results)
                rows.append(row)
                print(
                    f"{dose:6g} counts, contrast {contrast:4.0%}: raw {row['psnr_raw']:5.2f}  Gaussian 2 px "
                    f"{row['psnr_gaussian_2px']:5.2f}  best "
                    f"{row['psnr_gaussian']:5.2f}  denoised {row['psnr_denoised']:5.2f} dB",
                    flush=True,
                )
        report = {
            "what": "simulated nanoparticles on carbon (daemon.demo), not trained on; PSNR in dB, peak = truth's",
            "side": SIDE,
            "scenes": options.scenes,
            "weights": denoiser.manifest.sha256["model.onnx"],
            "emdenoised": __version__,
            "machine": platform.machine(),
            "rows": rows,
        }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
