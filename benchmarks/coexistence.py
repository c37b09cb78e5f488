"""Does the camera's software notice the service? A simulated camera alone, and beside the service at full load.

`python benchmarks/coexistence.py -o benchmarks/results/coexistence.json`: in pairs, alone and beside, so that other
load on the computer meets both alike. The camera records a frame each `--period` seconds and writes it, flushed, into
the drop folder; a frame that finds all places of its buffer taken is lost. One service, with the unit's priority and
a backlog that it does not finish, is stopped (SIGSTOP) while the camera is alone. The unit's other means (CPUWeight,
IOWeight in a slice of its own) need systemd and are not used here: with them it takes less.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

NICE = 5
"""As in systemd/emdenoised.service."""
BUFFER = 4
"""Frames that the camera holds while the disk is slow."""
SIDE = 2048
START_SECONDS = 300.0
SEEN = ("median", "p95")


def record(drop: Path, name: str, frames: int, period: float) -> dict[str, Any]:
    """What a camera sees: seconds from a frame's exposure to its name on the disk, and frames lost."""
    pixels = np.random.default_rng(0).poisson(30, (SIDE, SIDE)).astype(np.uint16)
    latencies, lost = [], 0
    begin = time.monotonic()
    for number in range(frames):
        exposed = begin + number * period
        time.sleep(max(0.0, exposed - time.monotonic()))
        if time.monotonic() - exposed > BUFFER * period:
            lost += 1
            continue
        unfinished = drop / f".{name}-{number}"
        pixels[0, 0] = number
        with unfinished.open("wb") as stream:
            tifffile.imwrite(stream, pixels)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.rename(drop / f"{name}-{number}.tif")
        latencies.append(time.monotonic() - exposed)
    return {"lost": lost, "median": statistics.median(latencies), "p95": float(np.quantile(latencies, 0.95))}


@contextmanager
def service(place: Path, drop: Path, backlog: int) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], int]]]:
    """The service at work, and how many micrographs it has done."""
    config = place / "config.yaml"
    config.write_text(
        f"folders: {{drop: {drop}, output: {place}/out, state: {place}/state}}\n"
        "monitor: {listen: null}\nbackend: {kind: cpu}\n"
    )
    pixels = np.random.default_rng(1).poisson(30, (SIDE, SIDE)).astype(np.uint16)
    for number in range(backlog):
        pixels[0, 0] = number
        tifffile.imwrite(drop / f"backlog-{number}.tif", pixels)
    command = ["nice", "-n", str(NICE), sys.executable, "-m", "emdenoised", "run", "--config", str(config)]
    log = place / "log"
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        end = time.monotonic() + START_SECONDS
        while "denoised '" not in log.read_text():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the service did not get to work: {log.read_text()}")
            time.sleep(0.1)
        yield process, lambda: log.read_text().count("denoised '")
    finally:
        process.kill()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--period", type=float, default=1.0)
    options = parser.parse_args()
    backlog = options.pairs * options.frames
    pairs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=Path.home()) as folder:
        drop = Path(folder) / "drop"
        drop.mkdir()
        with service(Path(folder), drop, backlog) as (process, done):
            for number in range(options.pairs):
                found: dict[str, Any] = {}
                for kind in ("alone", "beside")[:: 1 if number % 2 else -1]:
                    process.send_signal(signal.SIGCONT if kind == "beside" else signal.SIGSTOP)
                    before = done()
                    found[kind] = record(drop, f"{number}-{kind}", options.frames, options.period)
                    found[kind]["denoised meanwhile"] = done() - before
                pairs.append({**found, "ratio": {name: found["beside"][name] / found["alone"][name] for name in SEEN}})
                print(json.dumps(pairs[-1]), flush=True)
            if done() >= backlog:
                raise RuntimeError("the service had nothing left to do: the load was not full")
    options.out.write_text(json.dumps(summary(options, pairs), indent=1) + "\n")
    return 0


def summary(options: argparse.Namespace, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cores": os.cpu_count(),
        "load of the computer": os.getloadavg()[1],
        "frame": [SIDE, SIDE],
        "period": options.period,
        "nice": NICE,
        "ratio": {name: statistics.median(one["ratio"][name] for one in pairs) for name in SEEN},
        "lost": {kind: sum(one[kind]["lost"] for one in pairs) for kind in ("alone", "beside")},
        "denoised meanwhile": sum(one["beside"]["denoised meanwhile"] for one in pairs),
        "pairs": pairs,
    }


if __name__ == "__main__":
    raise SystemExit(main())
