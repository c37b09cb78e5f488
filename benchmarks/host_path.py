"""Measures the daemon's costs besides the network: throughput, time to start, cost by image size, peak memory.

    python benchmarks/host_path.py -o benchmarks/results/host_path.json        # about 15 minutes on two cores
    python benchmarks/host_path.py --quick -o /tmp/x.json                      # a short test

Daemon and bare network take turns on the same tiles, in one process and one run: on a shared machine only such
ratios are meaningful. The daemon has its default settings, previews included.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import onnxruntime
import tifffile

from daemon.backends import manifest, tiling
from daemon.backends.cpu import CpuBackend
from daemon.output.record import read_record
from daemon.service import service
from daemon.settings.config import Config

WEIGHTS = manifest.locate("fast")


def specimen(side: int, seed: int) -> np.ndarray:
    """(side, side) uint16 counts of a smooth specimen, 20 on average; made in strips, to keep memory low."""
    rng = np.random.default_rng(seed)
    image = np.empty((side, side), np.uint16)
    wave = np.sin(np.arange(side) / 11)
    for row in range(0, side, 512):
        image[row : row + 512] = rng.poisson(20 * (1 + 0.4 * wave[row : row + 512, None] * wave))
    return image


def settings(root: Path, **sections: Any) -> Config:
    for name in ("drop", "output", "state"):
        (root / name).mkdir(parents=True, exist_ok=True)
    folders = {name: str(root / name) for name in ("drop", "output", "state")}
    return Config.model_validate(
        {"folders": folders, "backend": {"kind": "cpu"}, "monitor": {"listen": None}, **sections}
    )


class Bare:
    """The network alone, on the tiles of a micrograph with any content."""

    def __init__(self, side: int) -> None:
        backend = CpuBackend(WEIGHTS, manifest.load(WEIGHTS))
        about = manifest.load(WEIGHTS)
        sides = backend._sides((side, side))  # noqa: SLF001 - the same tiles
        plan = tiling.plan((side, side), sides, backend._halo, about.align, 0)  # noqa: SLF001
        self.tiles = len(list(plan))
        self._session: onnxruntime.InferenceSession = backend._session  # noqa: SLF001
        rng = np.random.default_rng(0)
        units = rng.normal(size=(1, 1, *sides)).astype(np.float32)
        self._feeds = {"units": units, "level": np.full((1, 1, 1, 1), 0.1, np.float32)}

    def run(self, micrographs: int) -> float:
        begin = time.perf_counter()
        for _ in range(self.tiles * micrographs):
            self._session.run(["denoised"], self._feeds)
        return time.perf_counter() - begin


def throughput(root: Path, side: int, number: int, rounds: int) -> dict[str, Any]:
    """`number` micrographs of side² at a time: the bare network, then the daemon, then again."""
    bare = Bare(side)
    bare.run(1)
    config = settings(root)
    one = service.Service(config)
    steps: dict[str, list[float]] = {}
    real = one._metrics.finished  # noqa: SLF001

    def finished(seconds: Any, *rest: Any) -> None:
        for step, value in seconds.items():
            steps.setdefault(step, []).append(value)
        real(seconds, *rest)

    one._metrics.finished = finished  # type: ignore[method-assign]  # noqa: SLF001
    one.start()
    ratios, pairs = [], []
    try:
        tifffile.imwrite(config.folders.drop / "warm-up.tif", specimen(side, 99))  # as the bare network had one
        while not one.ledger.counts()["done"]:
            time.sleep(0.05)
        steps.clear()
        for turn in range(rounds):
            beside = root / f"turn-{turn}"
            beside.mkdir()
            for index in range(number):
                tifffile.imwrite(beside / f"{index}.tif", specimen(side, index))
            alone = bare.run(number)
            done = one.ledger.counts()["done"]
            (begun,) = [time.perf_counter()]
            started: list[float] = []
            put = one.inference.put

            def first(claimed: Any, started: list[float] = started, put: Any = put) -> None:
                started.append(time.perf_counter())
                put(claimed)

            one.inference.put = first  # type: ignore[method-assign]
            beside.rename(config.folders.drop / f"turn-{turn}")
            while one.ledger.counts()["done"] < done + number:
                time.sleep(0.005)
            ended = time.perf_counter()
            one.inference.put = put  # type: ignore[method-assign]
            pairs.append({"bare_seconds": round(alone, 2), "daemon_seconds": round(ended - started[0], 2),
                          "first_in_network_after": round(started[0] - begun, 2)})  # fmt: skip
            ratios.append(alone / (ended - started[0]))
    finally:
        one.stop()
    return {
        "side": side,
        "micrographs_a_round": number,
        "tiles_each": bare.tiles,
        "rounds": pairs,
        "daemon_share_of_bare_speed": {"median": round(median(ratios), 3), "least": round(min(ratios), 3)},
        "mean_seconds_by_step": {step: round(mean(values), 4) for step, values in steps.items()},
    }


def latency(root: Path, side: int, number: int) -> dict[str, Any]:
    """Time from the last byte of a file to the start of its reading, default settings, idle daemon."""
    config = settings(root)
    one = service.Service(config)
    begun: dict[str, float] = {}
    real = one._read  # noqa: SLF001

    def read(job: Any) -> bool:
        begun[job.path] = time.monotonic()
        return real(job)

    one._read = read  # type: ignore[method-assign]  # noqa: SLF001
    one.start()
    waits = []
    try:
        for index in range(number):
            name = f"{index}.tif"
            tifffile.imwrite(config.folders.drop / name, specimen(side, index))
            closed = time.monotonic()
            while name not in begun or not one.idle:
                time.sleep(0.005)
            waits.append(begun[name] - closed)
    finally:
        one.stop()
    return {"files": number, "settle_seconds": config.arrival.settle_seconds,
            "seconds": {"median": round(median(waits), 3), "longest": round(max(waits), 3)}}  # fmt: skip


def size(side: int) -> dict[str, Any]:
    """One micrograph through the whole daemon, in a separate process: seconds per megapixel and peak memory."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        settings(root)
        tifffile.imwrite(root / "drop/one.tif", specimen(side, 1))
        text = {
            "folders": {name: str(root / name) for name in ("drop", "output", "state")},
            "backend": {"kind": "cpu", "max_pixels": 300_000_000, "queue": 1},
            "monitor": {"listen": None},
        }
        (root / "config.yaml").write_text(json.dumps(text))
        command = [sys.executable, "-m", "emdenoised", "once", "--config", str(root / "config.yaml")]
        with (root / "said").open("wb") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said)
            peak = 0
            while process.poll() is None:  # getrusage would count what this process had when it forked
                with contextlib.suppress(OSError, IndexError):
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    peak = max(peak, int(status.partition("VmHWM:")[2].split()[0]))
                time.sleep(0.05)
        if process.returncode:
            raise RuntimeError((root / "said").read_text())
        record = read_record(root / "output/one.tif.json")
        assert record is not None
        seconds = record.seconds
        out = tifffile.imread(root / "output/one.tif", key=0)
        assert out.shape == (side, side) and out.dtype == np.float32
    pixels = side * side / 1e6
    return {"side": side, "megapixels": round(pixels, 2), "peak_rss_mib": peak // 1024,
            "seconds_per_megapixel": {"network": round(seconds["network"] / pixels, 4)}}  # fmt: skip


def sizes(quick: bool) -> dict[str, Any]:
    """Seconds per megapixel and peak memory of several sizes, in turn, because the machine's speed varies."""
    sides = [256, 512] if quick else [1024, 2048, 4096, 8192, 16384]
    # The largest only once.
    runs = [size(side) for turn in range(1 if quick else 2) for side in sides if turn == 0 or side < 16384]
    by_side = {side: [run for run in runs if run["side"] == side] for side in sides}
    cost = {side: median(run["seconds_per_megapixel"]["network"] for run in these) for side, these in by_side.items()}
    return {
        "sizes": runs,
        "peak_rss_mib": {str(side): max(run["peak_rss_mib"] for run in these) for side, these in by_side.items()},
        "seconds_per_megapixel": {str(side): round(seconds, 4) for side, seconds in cost.items()},
        "dearest_over_cheapest": round(max(cost.values()) / min(cost.values()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a short test")
    parser.add_argument("--only", choices=["throughput", "latency", "sizes"], help="measure this again, keep the rest")
    options = parser.parse_args()
    quick = options.quick
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.only else {}
    found |= {
        "machine": platform.platform(),
        "processor": next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                           if line.startswith("model name")), ""),
        "cores": len(os.sched_getaffinity(0)),
        "onnxruntime": onnxruntime.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        if options.only in (None, "throughput"):
            number, rounds = (3, 1) if quick else (8, 3)
            found["throughput"] = throughput(Path(place) / "t", 256 if quick else 2048, number, rounds)
        if options.only in (None, "latency"):
            found["last_byte_to_start_of_work"] = latency(Path(place) / "l", 256 if quick else 1024, 2 if quick else 10)
    if options.only in (None, "sizes"):
        found |= sizes(quick)
    print(json.dumps(found, indent=1))
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
