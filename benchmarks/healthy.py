"""Verdicts on healthy micrographs with the default settings, and on results with provoked faults.

    python benchmarks/healthy.py DATA -o benchmarks/results/healthy.json       # DATA: with val/ and train2/ in it

`healthy.txt` lists the micrographs and the criterion of their choice, which was made before any was judged. Of each the
middle 512² is denoised and judged with the default settings. Faults are results as a broken engine makes them (three of
the kinds of `verdict.broken` for each micrograph, drawn by a seed): caught means not *good*.
"""

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from verdict import broken, share

from daemon import formats
from daemon.backends import manifest, open_backend
from daemon.backends.gpu.engine import default_folder
from daemon.counts.prepare import plane
from daemon.counts.profiles import choose
from daemon.errors import MicrographError
from daemon.micrograph import Micrograph
from daemon.settings.config import BackendConfig, load
from daemon.verdict import judge

LIST = Path(__file__).with_name("healthy.txt")
SIDE = 512
FAULTS = 3


def middle(found: Micrograph) -> Micrograph:
    height, width = found.pixels.shape
    top, left = max(0, (height - SIDE) // 2), max(0, (width - SIDE) // 2)
    return replace(found, pixels=np.ascontiguousarray(found.pixels[top : top + SIDE, left : left + SIDE]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    names = [line for line in LIST.read_text().split("\n") if line and not line.startswith("#")]
    config, loaded = load(), manifest.verified("fast")
    weights = loaded.manifest
    backend = open_backend(BackendConfig(kind="cpu", threads=1), loaded, default_folder())
    rng = np.random.default_rng(5)
    rows: list[dict[str, Any]] = []
    faults: list[dict[str, Any]] = []
    for name in names:
        micrograph = middle(formats.read(options.data / f"{name}.tif", 1 << 24))
        try:
            choice = choose(config, PurePath(f"{name}.tif"), micrograph)
            (done,) = backend.denoise([plane(micrograph.pixels, choice, weights.dose_range)])
            verdict = judge.judge(done.image, done.prepared, choice)
        except MicrographError as error:
            rows.append({"name": name, "word": "refused", "reasons": [str(error)]})
            continue
        rows.append({"name": name, **verdict.as_json()})
        raw = micrograph.pixels.astype(np.float32)
        for _ in range(FAULTS):
            how, bad = broken(rng, done.image, raw, done.prepared.scaling.unit**2)
            word = judge.judge(bad, done.prepared, choice).word
            faults.append({"name": name, "fault": how, "word": word})
        print(name, verdict.word, flush=True)
    result = {
        "what": "verdicts on healthy micrographs as they are, default settings, and on broken results of the same",
        "good": share(sum(row["word"] == "good" for row in rows), len(rows)),
        "words": dict(Counter(row["word"] for row in rows)),
        "faults caught": share(sum(fault["word"] != "good" for fault in faults), len(faults)),
        "faults rejected": share(sum(fault["word"] == "reject" for fault in faults), len(faults)),
        "micrographs": rows,
        "faults": faults,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("good", "words", "faults caught", "faults rejected")}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
