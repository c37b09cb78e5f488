"""Measures the benefit of each part of the recipe by short trainings that differ in one part, with the same seed.

`python benchmarks/ablations.py DATA --validation OTHER -o benchmarks/results/ablations.json`; a further run adds
the variants that are missing in that file. A small network
(widths 32-32-48-64) and few steps: differences of 0.1 dB are not significant. Measured on micrographs and
simulated scenes outside the training, with the same crops for all. Gains are in PSNR (dB) of output over input, also on
faint crops (2 to 20 % contrast) and on crops of full contrast by themselves. Half and twice the width show the cost of
quality: multiplications, and the time of one thread for a 512² image, in PyTorch, all measured in turn.
"""

import argparse
import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from daemon.counts.scaling import ANSCOMBE
from training.data import simulate
from training.data.truths import load_truths
from training.loop import WEIGHTS, Budget, train
from training.network import FastDenoiser, local_mean
from training.presets import FAST, Recipe
from training.supply import drawer, loss_of
from training.validation import validator

WIDTHS, BLOCKS = (32, 32, 48, 64), (1, 1, 1, 1)
HALF, DOUBLE = "half the width (16-16-24-32)", "twice the width (64-64-96-128)"


class Residual(FastDenoiser):
    """Without the Wiener filter: the correction is added to the raw image itself."""

    def forward(self, units: Tensor, level: Tensor) -> Tensor:
        mean = local_mean(units, self.cell)
        spread, mean_spread = (torch.sqrt(F.relu(1 + 2 * level * x)) for x in (units, mean))
        stabilised = 2 * units / (1 + spread) - 2 * mean / (1 + mean_spread)
        one = torch.ones_like(stabilised)
        mean_spread = torch.maximum(mean_spread, 2 * ANSCOMBE**0.5 * level)
        features = torch.cat([stabilised, stabilised, one, one * level / mean_spread], 1)
        return self.carried(units, units + mean_spread * self.body(features), level)


class Unstabilised(FastDenoiser):
    """Without the square root: the body gets linear noise units, so bright and dark noise differ."""

    def forward(self, units: Tensor, level: Tensor) -> Tensor:
        mean = local_mean(units, self.cell)
        centred = units - mean
        share = 1 / local_mean(centred.square(), self.cell).clamp(min=1)
        features = torch.cat([centred, centred * share.sqrt(), share, level.expand_as(share)], 1)
        return self.carried(units, units - share * centred + self.body(features), level)


class LevelFree(FastDenoiser):
    """The square root uses the noise level, but the body does not get it."""

    def forward(self, units: Tensor, level: Tensor) -> Tensor:
        body = self.body.forward
        self.body.forward = lambda x: body(x * x.new_tensor([1, 1, 1, 0]).view(1, 4, 1, 1))  # type: ignore[method-assign]
        try:
            return super().forward(units, level)
        finally:
            self.body.forward = body  # type: ignore[method-assign]


BASE = replace(
    FAST,
    arguments={"widths": list(WIDTHS), "blocks": list(BLOCKS)},
    course="cosine",  # the whole of a short budget
    finish={},
    simulated=0.4,
    scenes=320,
    validate_every=10**9,
)
"""The reference: the shipped recipe, with a small network."""


def small(kind: type[FastDenoiser] = FastDenoiser) -> FastDenoiser:
    return kind(WIDTHS, BLOCKS)


ADAMW = replace(BASE, optimiser="adamw", rate=8e-4)
VARIANTS: dict[str, tuple[Callable[[], nn.Module], Recipe]] = {
    "the base": (small, BASE),
    "AdamW instead of Muon": (small, ADAMW),
    "no camera noise": (small, replace(BASE, real_detector=0.0)),
    "gain always right": (small, replace(BASE, misjudged=0.0)),
    "no simulated scenes": (small, replace(BASE, simulated=0.0)),
    "full contrast only": (small, replace(BASE, contrast=False)),
    "flat crops and the grid loss all the time": (small, replace(BASE, flat=0.06, grid=3e4)),
    "loss: fourth root": (small, replace(BASE, loss="balanced")),
    "loss: squared error": (small, replace(BASE, loss="mse")),
    "loss: Huber": (small, replace(BASE, loss="huber")),
    "loss: logarithm (PSNR)": (small, replace(BASE, loss="logarithmic")),
    "no averaging of weights": (small, replace(BASE, averaging=0.0)),
    "no Wiener filter (residual)": (partial(small, Residual), BASE),
    "no variance stabilisation": (partial(small, Unstabilised), BASE),
    "body not given the noise level": (partial(small, LevelFree), BASE),
    HALF: (lambda: FastDenoiser((16, 16, 24, 32), BLOCKS), BASE),
    DOUBLE: (lambda: FastDenoiser((64, 64, 96, 128), BLOCKS), BASE),
    "width at the bottom (16-32-64-128; 1-1-2-2)": (lambda: FastDenoiser((16, 32, 64, 128), (1, 1, 2, 2)), BASE),
}


def cost(networks: dict[str, nn.Module], side: int = 512, rounds: int = 5) -> dict[str, dict[str, float]]:
    """Parameters, multiply-adds (10⁹) and median seconds of one thread for a (side, side) image."""
    units, level = torch.randn(1, 1, side, side), torch.full((1, 1, 1, 1), 0.1)
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    found = {}
    with torch.no_grad():
        for _ in range(rounds + 1):
            for name, network in networks.items():
                begin = process_time()
                network(units, level)
                seconds[name].append(process_time() - begin)
        for name, network in networks.items():
            with FlopCounterMode(display=False) as counter:
                network(units, level)
            found[name] = {
                "parameters": sum(parameter.numel() for parameter in network.parameters()),
                "gmac": round(counter.get_total_flops() / 2e9, 2),
                "seconds": round(median(seconds[name][1:]), 3),
            }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--sources", type=Path, help="CSV of names, sources and grades")
    parser.add_argument("--cache", type=Path, help="folder for prepared micrographs")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    truths = load_truths(options.data, options.cache, options.sources)
    unseen = load_truths(options.validation, options.cache, options.sources)
    scenes = simulate.bank(1, BASE.scenes, 320)
    measure = validator(replace(BASE, validation_crops=512), unseen)
    rows: dict[str, dict[str, float]] = {}
    costs = cost({name: VARIANTS[name][0]().eval() for name in (HALF, "the base", DOUBLE)})
    if options.out.exists():
        saved = json.loads(options.out.read_text())
        if saved["steps"] == options.steps:
            rows = saved["gains"]
    for name, (make, recipe) in VARIANTS.items():
        if name in rows:
            continue
        torch.manual_seed(recipe.seed)
        network = make()
        draw_batch = drawer(recipe, truths, scenes)
        with tempfile.TemporaryDirectory() as folder:
            budget = Budget(steps=options.steps)
            made = train(network, draw_batch, loss_of(recipe), recipe, Path(folder), budget, lambda *_: {}, {})
            network.load_state_dict(load_file(made / WEIGHTS))
        found = {name.rpartition("_")[2]: round(value, 2) for name, value in measure(network.eval(), 0).items()}
        rows[name] = found
        print(f"{name:30s} {found}", flush=True)
        report = {
            "what": "gain in PSNR (dB) over the input, crops not trained on, after a short training; one run each",
            "steps": options.steps,
            "widths": WIDTHS,
            "batch": BASE.batch,
            "micrographs": len(truths),
            "crops": "128 for each figure, half of them simulated",
            "torch": torch.__version__,
            "gains": {name: rows[name] for name in VARIANTS if name in rows},
            "cost of 512 x 512, one thread": costs,
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
