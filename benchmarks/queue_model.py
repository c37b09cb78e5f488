"""A queue model of a shared server: how long a live micrograph waits, and what the network carries.

`python benchmarks/queue_model.py -o benchmarks/results/queue.json`: one card serves the frames of many microscopes one
after the other, in the order in which they come. Each microscope records independently: the times between two frames
are gamma-distributed with a coefficient of variation of 0.5 (people and stages are irregular; a Poisson process, 1.0,
is given for comparison). A burst is all microscopes at the same moment. Takes a minute on one core.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.backends import manifest, tiling

MICROSCOPES, EVERY, SIDE = 20, 3.0, 4096
VARIATION = 0.5
HANDLING = 0.001
"""Seconds for each frame besides the network: requests, copies on the card."""
HOURS = 40
SERVICES = (0.030, 0.060, 0.120)
TILE = 1024
"""A server's tile: small enough to batch the tiles of several microscopes."""


@dataclass(frozen=True, slots=True)
class Load:
    """One setting of the model, and what came out; seconds from a frame's arrival to its result."""

    service: float
    microscopes: int
    variation: float
    busy: float
    p50: float
    p99: float
    longest: float


def arrivals(microscopes: int, variation: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Times of all frames, seconds, sorted."""
    frames = round(HOURS * 3600 / EVERY)
    shape = variation**-2
    gaps = rng.gamma(shape, EVERY / shape, (microscopes, frames))
    times = np.cumsum(gaps, axis=1) - gaps[:, :1] * rng.random((microscopes, 1))
    return np.sort(times[times < HOURS * 3600])


def finished(times: NDArray[np.float64], service: float) -> NDArray[np.float64]:
    """When each frame is done (Lindley's recursion for a constant service time)."""
    done = service * np.arange(1, len(times) + 1)
    return np.maximum.accumulate(times - (done - service)) + done


def load(service: float, microscopes: int = MICROSCOPES, variation: float = VARIATION) -> Load:
    """Simulate one setting."""
    times = arrivals(microscopes, variation, np.random.default_rng(21))
    spent = finished(times, service + HANDLING) - times
    p50, p99 = np.quantile(spent, [0.5, 0.99])
    busy = len(times) * (service + HANDLING) / (HOURS * 3600)
    return Load(service, microscopes, variation, *(round(float(one), 4) for one in (busy, p50, p99, spent.max())))


def most(service: float, p99: float = 1.0) -> int:
    """The largest number of microscopes whose frames are done within `p99` seconds in 99 % of cases."""
    number = 1
    while (one := load(service, number + 1)).busy < 0.98 and one.p99 <= p99:
        number += 1
    return number


def network(side: int = SIDE) -> dict[str, float]:
    """Megabytes of a frame as float32 tiles, each way, and gigabits a second for all microscopes."""
    weights = manifest.verified("fast").manifest
    plan = tiling.plan((side, side), (TILE, TILE), weights.halo, weights.align, 0)
    megabytes = sum(1 for _ in plan) * TILE * TILE * 4 / 1e6
    return {"megabytes": round(megabytes, 1), "gigabits": round(megabytes * 8e-3 * MICROSCOPES / EVERY, 2)}


def result() -> dict[str, Any]:
    """All of it."""
    return {
        "microscopes": MICROSCOPES,
        "seconds between frames": EVERY,
        "side": SIDE,
        "loads": [asdict(load(service)) for service in SERVICES],
        "poisson": [asdict(load(service, variation=1.0)) for service in SERVICES],
        "burst of all at once": {str(service): round(MICROSCOPES * (service + HANDLING), 2) for service in SERVICES},
        "most microscopes for 1 s": {str(service): most(service) for service in SERVICES},
        "network": network(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.write_text(json.dumps(result(), indent=1) + "\n")


if __name__ == "__main__":
    main()
