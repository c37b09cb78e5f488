"""Compares the speed of ONNX Runtime and OpenVINO for the networks, in turn, on one machine.

Needs torch (to write the networks), onnxruntime and openvino: `pip install openvino` in the development venv, then
`ORT_DISABLE_TELEMETRY=1 python benchmarks/cpu_runtime.py -o benchmarks/results/cpu_runtime.json`.
Weights are random: the time is the same.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import openvino

from engine_build.export import to_onnx
from training.network import Ede2018, FastDenoiser

TILE = 512


def ort_runner(path: Path, threads: int) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)[0]


def openvino_runner(path: Path, threads: int, precision: str) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    core = openvino.Core()
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(str(path)), "CPU", config)
    return lambda feeds: compiled(feeds)[0]


def measure(path: Path, threads: int, rounds: int) -> dict[str, object]:
    rng = np.random.default_rng(0)
    feeds = {
        "units": rng.normal(size=(1, 1, TILE, TILE)).astype(np.float32),
        "level": np.full((1, 1, 1, 1), 0.1, np.float32),
    }
    runners: dict[str, Callable[[dict[str, np.ndarray]], np.ndarray]] = {}
    load: dict[str, float] = {}
    candidates = {
        "onnxruntime float32": lambda: ort_runner(path, threads),
        "openvino float32": lambda: openvino_runner(path, threads, "f32"),
    }
    if "bfloat16" in " ".join(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")).lower():
        candidates["openvino bfloat16"] = lambda: openvino_runner(path, threads, "bf16")
    for name, make in candidates.items():
        begin = time.perf_counter()
        runners[name] = make()
        load[name] = time.perf_counter() - begin
    reference = runners["onnxruntime float32"](feeds)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for round_ in range(rounds + 1):
        for name, run in runners.items():
            begin = time.perf_counter()
            result = run(feeds)
            if round_:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - begin)
            elif not np.allclose(result, reference, atol=0.05 if "bf" in name else 1e-3):
                raise RuntimeError(f"{name} computes something else")
    base = seconds["onnxruntime float32"]
    return {
        name: {
            "seconds_median": round(median(values), 4),
            "seconds_min": round(min(values), 4),
            "load_seconds": round(load[name], 3),
            "time_over_onnxruntime": round(median(v / b for v, b in zip(values, base, strict=True)), 3),
        }
        for name, values in seconds.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    results: dict[str, object] = {
        "machine": {
            "processor": platform.machine(),
            "threads": options.threads,
            "bfloat16": "bfloat16"
            in " ".join(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")).lower(),
            "model": next(
                (
                    line.split(":")[1].strip()
                    for line in Path("/proc/cpuinfo").read_text().splitlines()
                    if line.startswith("model name")
                ),
                "unknown",
            ),
        },
        "versions": {"onnxruntime": onnxruntime.__version__, "openvino": openvino.__version__},
        "tile": TILE,
        "rounds": options.rounds,
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, network in (("fast", FastDenoiser()), ("ede2018", Ede2018())):
            path = Path(folder) / f"{name}.onnx"
            to_onnx(network, path, TILE)
            results[name] = measure(path, options.threads, options.rounds)
            print(name, json.dumps(results[name], indent=1))
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
