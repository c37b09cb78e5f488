"""Do the shipped weights lose detail or invent it? The guards of `training.evaluation.guards`, without a rival.

`python benchmarks/guards.py -o benchmarks/results/guards.json`. Simulation only. Without BM3D beside it, the vacancy is
asked for wherever an ideal observer would see it.
"""

import argparse
import json
from pathlib import Path

from daemon import Denoiser
from training.evaluation import guards


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--weights", default="fast")
    options = parser.parse_args()
    with Denoiser(options.weights, backend="cpu", find_spikes=False) as denoiser:
        found = guards.run_all(lambda counts: denoiser.denoise(counts))
        report = {
            "what": "limits and worst values of tests for lost and invented detail, on simulation",
            "weights": denoiser.manifest.sha256,
            "guards": [guard.as_json() for guard in found],
        }
    for guard in found:
        print(
            "ok    " if guard.ok else "MISSED",
            f"{guard.name}: {guard.worst:.3g}, must be {guard.sense} {guard.limit:.3g}",
        )
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
