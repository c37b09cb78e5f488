"""Compares the speed of drawing samples by one thread with that of training steps, in turn, on one machine.

`python benchmarks/data_pipeline.py -o benchmarks/results/data_pipeline.json --data FOLDER`. Without a folder the
micrographs are simulated ones, written to TIFF files first. Draws from the cache on disk as training does. A step is
forward, backward and update, without drawing.

Both run on one thread. On a CPU processor time counts, which other load hardly changes; the step's time is then divided
by the number of cores, better than any training scales, before it is compared with drawing by one thread. On a GPU the
step's elapsed time counts.
"""

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import tifffile
import torch

from training.data import simulate
from training.data.samples import Batch, Draw, PaperDraw, batch, paper_batch
from training.data.truths import load_truths
from training.losses import LOSSES, on
from training.network import build
from training.presets import PRESETS, Recipe
from training.state import fast_half

SEED = 1
RUNS = {"fast": 8, "ede2018": 1}
"""Samples in a batch: the shipped network's, and the fewest of the paper's 512² crops, to its disadvantage."""


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Elapsed seconds, and seconds of processor time."""
    begin, used = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin, time.process_time() - used


def trainer(recipe: Recipe, device: torch.device) -> Callable[[Batch], None]:
    """A training step: forward, backward and update."""
    network = build(recipe.network, recipe.arguments).to(device).train()
    loss = LOSSES[recipe.loss]
    half = recipe.half and fast_half(device)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-5)

    def step(drawn: Batch) -> None:
        dummy = torch.zeros((), device=device)
        with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
            output = network(on(drawn.noisy, dummy), on(drawn.level, dummy))
        value = loss(output.float(), drawn)
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def measure(recipe: Recipe, draw: Callable[[int], Batch], device: torch.device, rounds: int) -> dict[str, object]:
    step = trainer(recipe, device)
    step(draw(0))  # warm-up
    drawing, stepping = [], []
    for number in range(1, rounds + 1):
        drawing.append(timed(partial(draw, number)))
        drawn = draw(number)
        stepping.append(timed(partial(step, drawn)))
    (draw_clock, draw_cpu), (step_clock, step_cpu) = (
        (median(clock for clock, _ in pairs), median(cpu for _, cpu in pairs)) for pairs in (drawing, stepping)
    )
    at_best = step_clock if device.type == "cuda" else step_cpu / (os.cpu_count() or 1)
    return {
        "batch": recipe.batch,
        "crop": recipe.crop,
        "rounds": rounds,
        "draw_a_batch": {"cpu_seconds": round(draw_cpu, 4), "clock_seconds": round(draw_clock, 4)},
        "train_a_step": {"cpu_seconds": round(step_cpu, 3), "clock_seconds": round(step_clock, 3)},
        "samples_per_second": {
            "drawn_by_one_thread": round(recipe.batch / draw_cpu, 1),
            "trained_at_best": round(recipe.batch / at_best, 2),
        },
        "drawing_over_step_at_best": round(draw_cpu / at_best, 4),
        "drawing_threads_that_keep_up": math.ceil(draw_cpu / at_best),
    }


def write_scenes(folder: Path) -> None:
    for number, scene in enumerate(simulate.bank(SEED, 8, 1024)):
        tifffile.imwrite(folder / f"scene{number}.tif", (scene * 60_000).astype(np.uint16))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder of micrographs")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--slow-rounds", type=int, default=2, help="for the paper's network")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / "data", Path(scratch) / "cache"
        folder.mkdir()
        if options.data is None:
            write_scenes(folder)
        data = options.data or folder
        loading = [timed(lambda: load_truths(data, cache)) for _ in range(2)]
        truths, originals = load_truths(data, cache), load_truths(data, cache, rule="paper")
        scenes = simulate.bank(SEED, 8, 576)
        results: dict[str, object] = {
            "what": "one thread drawing batches from the cache, against training steps at the same batch, in turn",
            "machine": {
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "load_average": round(os.getloadavg()[0], 1),
                "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
            },
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
            "micrographs": len(truths),
            "data": "real micrographs" if options.data else "simulated",
            "cpu_seconds_to_load_first": round(loading[0][1], 3),
            "cpu_seconds_to_load_from_cache": round(loading[1][1], 3),
        }
        for name, size in RUNS.items():
            recipe = replace(next(iter(PRESETS[name].values())), batch=size)
            indices = range(size)
            draw: Callable[[int], Batch]
            if recipe.protocol == "paper":
                draw = partial(paper_batch, PaperDraw(side=recipe.crop), originals, scenes, SEED, indices=indices)
            else:
                draw = partial(batch, Draw(side=recipe.crop), truths, scenes, SEED, indices=indices)
            rounds = options.slow_rounds if name == "ede2018" else options.rounds
            results[name] = measure(recipe, draw, device, rounds)
            print(name, json.dumps(results[name], indent=1), flush=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
