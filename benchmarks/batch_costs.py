"""What `emdenoised batch` costs besides the denoising: listing, the manifest, skipping, verifying.

`python benchmarks/batch_costs.py -o benchmarks/results/batch_costs.json [--files 20000]` makes so many copies of one
small micrograph and of its result in a temporary folder, and measures on them. Processor time, because other work
runs on the machine; a share adds its own time for each call.
"""

import argparse
import json
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from daemon.backends import manifest as weights_of
from daemon.batch import manifest as manifests
from daemon.batch.existing import Existing
from daemon.batch.shard import Shard
from daemon.commands.main import main as emdenoised
from daemon.formats.decoder import Reader
from daemon.settings import config as settings


def seconds(work: Callable[[], Any]) -> float:
    """Processor seconds of a call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def archive(root: Path, files: int) -> tuple[Path, Path]:
    """Source and results of so many files, a hundred in each folder."""
    first, made = root / "one", root / "made"
    first.mkdir()
    counts = np.random.default_rng(0).poisson(20 * np.ones((256, 256)))
    tifffile.imwrite(first / "0.tif", counts.astype(np.uint16))
    assert emdenoised(["denoise", str(first), "-o", str(made)]) == 0
    record = json.loads((made / "0.tif.json").read_text())
    source, out = root / "source", root / "out"
    for number in range(files):
        name = f"{number // 100}/{number}.tif"
        for folder in (source, out):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(first / "0.tif", source / name)
        (out / name).hardlink_to(made / "0.tif") if number % 1000 else shutil.copy2(made / "0.tif", out / name)
        record["raw"]["relative"], record["output"]["name"] = name, f"{number}.tif"
        (out / f"{name}.json").write_text(json.dumps(record, indent=1))
    return source, out


def measured(root: Path, files: int) -> dict[str, Any]:
    source, out = archive(root, files)
    config = settings.load(settings.default_config_path())
    weights = weights_of.load_weights(config)
    listing = seconds(lambda: manifests.freeze(source, out, config.arrival))
    frozen = manifests.load(out)
    assert frozen is not None and frozen.entries == files
    loading = seconds(lambda: manifests.load(out))
    reading = seconds(lambda: [None for _ in frozen.of(Shard(0, 16))])
    existing = Existing(out, config, weights)

    def all_of(which: Existing, step: int) -> None:
        for entry in frozen.of(Shard(0, step)):
            assert which.of(source / entry.path, entry.path)

    skipping = seconds(lambda: all_of(existing, 1))
    tracemalloc.start()
    all_of(existing, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with Reader(config.backend.max_pixels, config.backend.decode_seconds) as reader:
        hashing = seconds(lambda: all_of(Existing(out, config, weights, verify=reader), 10)) * 10
    million = 1e6 / files
    return {
        "files": files,
        "list and freeze, s for a million": round(listing * million, 1),
        "hash the manifest, s for a million": round(loading * million, 2),
        "read one shard of 16 from it, s for a million": round(reading * million, 2),
        "bytes of manifest for each file": round(frozen.file.stat().st_size / files),
        "skip, ms for each file": round(skipping / files * 1e3, 3),
        "memory of skipping, MiB": round(peak / 2**20, 1),
        "verify beside reading (128 kB raw, 256 kB result), ms for each file": round(hashing / files * 1e3, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--files", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), options.files)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
