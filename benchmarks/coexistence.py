"""Does the camera's software notice the service? A simulated camera alone, and beside the service at full load.

`sudo python benchmarks/coexistence.py -o benchmarks/results/coexistence.json`: in pairs, alone and beside, so that
other load on the computer meets both alike. The camera records a frame each `--period` seconds and writes it, flushed,
into the drop folder; a frame that finds all places of its buffer taken is lost. One service, with a backlog that it
does not finish, is stopped (SIGSTOP) while the camera is alone.

As with the units of systemd, camera and service are in control groups of their own, of weight 100 and that of
systemd/emdenoised.slice. Both are in a group that is heavy, so that other work on the computer counts little: without
that the figures are those of the other work. IOWeight is not used: it needs a scheduler of the disk that knows weights.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

SLICE = Path(__file__).parents[1] / "systemd/emdenoised.slice"
OTHERS = 50
"""So many times as much as one process outside, where both want the processor."""
BUFFER = 4
"""Frames that the camera holds while the disk is slow."""
SIDE = 2048
START_SECONDS = 300.0
PARTS = ("awake", "written", "flushed", "named")
RESAMPLED = 2000


def weight_of_slice() -> int:
    """The weight of the processor that the shipped slice has."""
    return next(int(line.split("=")[1]) for line in SLICE.read_text().splitlines() if line.startswith("CPUWeight="))


@contextmanager
def control_groups(weight: int) -> Iterator[Path]:
    """Puts this process, the camera, into a control group; yields that of the service. Version 1 or 2; needs root."""
    first = Path("/sys/fs/cgroup/cpu")
    top = first if first.is_dir() else Path("/sys/fs/cgroup")
    groups = [top / "emdenoised-coexistence"]
    groups += [groups[0] / name for name in ("camera", "service")]
    for group, wanted in zip(groups, (100 * OTHERS, 100, weight), strict=True):
        group.mkdir(exist_ok=True)
        if top == first:
            (group / "cpu.shares").write_text(str(1024 * wanted // 100))
            continue
        (group / "cpu.weight").write_text(str(wanted))
        if group == groups[0]:
            (group / "cgroup.subtree_control").write_text("+cpu")
    (groups[1] / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield groups[2]
    finally:
        (top / "cgroup.procs").write_text(str(os.getpid()))
        for group in reversed(groups):
            end = time.monotonic() + 10
            while (group / "cgroup.procs").read_text() and time.monotonic() < end:  # the service's last child ends
                time.sleep(0.1)
            group.rmdir()


def record(drop: Path, name: str, frames: int, period: float) -> dict[str, Any]:
    """What a camera sees: milliseconds of each frame from its exposure to its name on the disk, and frames lost.

    `parts`: the same by step: until the camera runs, until the file is written, flushed to the disk, renamed.
    """
    pixels = np.random.default_rng(0).poisson(30, (SIDE, SIDE)).astype(np.uint16)
    steps: list[list[float]] = []
    lost, begin = 0, time.monotonic()
    for number in range(frames):
        exposed = begin + number * period
        time.sleep(max(0.0, exposed - time.monotonic()))
        times = [exposed, time.monotonic()]
        if times[1] - exposed > BUFFER * period:
            lost += 1
            continue
        unfinished = drop / f".{name}-{number}"
        pixels[0, 0] = number
        with unfinished.open("wb") as stream:
            tifffile.imwrite(stream, pixels)
            stream.flush()
            times.append(time.monotonic())
            os.fsync(stream.fileno())
        times.append(time.monotonic())
        unfinished.rename(drop / f"{name}-{number}.tif")
        times.append(time.monotonic())
        steps.append([round(1000 * one, 1) for one in np.diff(times)])
    return {"lost": lost, "milliseconds": [round(sum(one), 1) for one in steps], "parts": steps}


@contextmanager
def service(
    place: Path, drop: Path, backlog: int, group: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], int]]]:
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
    join = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
    command = [*join, sys.executable, "-m", "emdenoised", "run", "--config", str(config)]
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
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--period", type=float, default=0.3)
    parser.add_argument("--weight", type=int, default=weight_of_slice(), help="of the service; the camera has 100")
    options = parser.parse_args()
    backlog = 20 + int(options.pairs * options.frames * options.period / 2)
    pairs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=Path.home()) as folder, control_groups(options.weight) as group:
        drop = Path(folder) / "drop"
        drop.mkdir()
        with service(Path(folder), drop, backlog, group) as (process, done):
            for number in range(options.pairs):
                found: dict[str, Any] = {}
                for kind in ("alone", "beside")[:: 1 if number % 2 else -1]:
                    process.send_signal(signal.SIGCONT if kind == "beside" else signal.SIGSTOP)
                    before = done()
                    found[kind] = record(drop, f"{number}-{kind}", options.frames, options.period)
                    found[kind]["denoised meanwhile"] = done() - before
                pairs.append(found)
                print(json.dumps(ratios(pairs)), flush=True)
            if done() >= backlog:
                raise RuntimeError("the service had nothing left to do: the load was not full")
    options.out.write_text(json.dumps(summary(options, pairs), indent=1) + "\n")
    return 0


def ratios(pairs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Median and 95th percentile of all frames beside, over those of all frames alone."""
    beside, alone = ([one for pair in pairs for one in pair[kind]["milliseconds"]] for kind in ("beside", "alone"))
    return {
        name: float(np.quantile(beside, at) / np.quantile(alone, at)) for name, at in (("median", 0.5), ("p95", 0.95))
    }


def summary(options: argparse.Namespace, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    random = np.random.default_rng(0)
    drawn = [
        ratios([pairs[at] for at in random.integers(len(pairs), size=len(pairs))])["p95"] for _ in range(RESAMPLED)
    ]
    parts = {
        kind: dict(
            zip(PARTS, np.quantile([row for one in pairs for row in one[kind].pop("parts")], 0.95, axis=0), strict=True)
        )
        for kind in ("alone", "beside")
    }
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cores": os.cpu_count(),
        "load of the computer": os.getloadavg()[1],
        "frame": [SIDE, SIDE],
        "period": options.period,
        "weight": {"camera": 100, "service": options.weight},
        "ratio": ratios(pairs),
        "ratio p95, 95 % interval over pairs": [float(np.quantile(drawn, at)) for at in (0.025, 0.975)],
        "p95 of the steps, milliseconds": parts,
        "lost": {kind: sum(one[kind]["lost"] for one in pairs) for kind in ("alone", "beside")},
        "denoised meanwhile": sum(one["beside"]["denoised meanwhile"] for one in pairs),
        "pairs": pairs,
    }


if __name__ == "__main__":
    raise SystemExit(main())
