"""Fit a network to a folder of micrographs, within a budget of minutes, resumable after being killed at any moment."""

import copy
import json
import logging
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from daemon.errors import ConfigError
from training import simulate
from training.data import Batch, Image, draw_batch, load_folder
from training.network import FastDenoiser, build

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
CURVE = "curve.jsonl"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the result, next to the data."""

    arguments: dict[str, Any]
    batch: int = 8
    crop: int = 128
    rate: float = 6e-4
    """Peak learning rate of AdamW."""
    warm_up: float = 0.03
    """Share of the budget over which the learning rate rises."""
    final_rate: float = 0.01
    """The cosine ends at this share of the peak."""
    averaging: float = 0.999
    """Decay of the exponential moving average of the weights, which is what is shipped."""
    simulated: float = 0.3
    """Share of crops that are simulated."""
    floor: float = 0.0001
    """Error (variance over noise variance) below which an easy crop no longer gains weight in the loss."""
    seed: int = 20181


def balanced_loss(output: Tensor, batch: Batch, floor: float) -> Tensor:
    """Mean over crops of the fourth root of the mean squared error, in units of the noise at each crop's mean dose.

    With the plain squared error, crops of high dose and contrast drown the faint ones; with its logarithm, which is
    PSNR, the easy faint ones drown the rest. The fourth root lies between.
    """
    error = (output - torch.from_numpy(batch.truth)) * torch.from_numpy(batch.weight)
    return (error.square().mean((1, 2, 3)) + floor).pow(0.25).mean()


def progress_rate(recipe: Recipe, progress: float) -> float:
    """Learning rate at `progress` in [0, 1] of the budget: linear warm-up, then half a cosine."""
    if progress < recipe.warm_up:
        return recipe.rate * max(progress, 1e-3) / recipe.warm_up
    fraction = min(1.0, (progress - recipe.warm_up) / (1 - recipe.warm_up))
    cosine = 0.5 * (1 + math.cos(math.pi * fraction))
    return recipe.rate * (recipe.final_rate + (1 - recipe.final_rate) * cosine)


@torch.no_grad()
def validate(network: nn.Module, batches: list[Batch]) -> dict[str, float]:
    """Mean gain in PSNR (dB) of output over input, by band of dose; the same crops every time."""
    network.eval()
    gains: dict[str, list[float]] = {}
    for batch in batches:
        out = network(torch.from_numpy(batch.noisy), torch.from_numpy(batch.level)).numpy()
        before = np.square(batch.noisy - batch.truth).mean((1, 2, 3))
        after = np.square(out - batch.truth).mean((1, 2, 3))
        dose = (0.5 / batch.level.ravel() * batch.weight.ravel() ** -1) ** 2
        for b, a, d in zip(before, after, dose, strict=True):
            if b == 0 or a == 0:  # a crop without a single count: there was no noise to remove
                continue
            gains.setdefault("low" if d < 200 else "ordinary", []).append(10 * math.log10(b / a))
    network.train()
    return {band: float(np.mean(values)) for band, values in sorted(gains.items())}


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)


def micrographs(folder: Path) -> dict[str, list[Image]]:
    """File name → truths. Raises ConfigError if there are none."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name a folder of micrographs (TIFF, MRC)")
    if not (loaded := load_folder(folder)):
        raise ConfigError(f"{folder}: holds no micrograph to learn from; the warnings above say why each was skipped")
    return loaded


def fit(data: Path, out: Path, recipe: Recipe, budget_minutes: float, validation: Path | None = None) -> Path:
    """Train the fast network; returns the folder with `model.safetensors` (float32 average) and the record.

    Stops when `budget_minutes` of wall-clock time are used up, time before an interruption included. Run again with
    the same `out` it goes on from the last checkpoint. Raises ConfigError if `data`, or `validation`, holds no
    micrograph to learn from.
    """
    real = micrographs(data)
    unseen = list((micrographs(validation) if validation else real).values())
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    network = build("fast", recipe.arguments)
    assert isinstance(network, FastDenoiser)
    average = copy.deepcopy(network)
    optimiser = torch.optim.AdamW(network.parameters(), recipe.rate, betas=(0.9, 0.98), weight_decay=1e-4)
    rng = np.random.default_rng(recipe.seed)
    step, spent = 0, 0.0
    if (out / CHECKPOINT).exists():
        state = torch.load(out / CHECKPOINT, weights_only=False)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        rng.bit_generator.state = state["data_order"]
        step, spent = state["step"], state["spent"]
        log.info("resumed at step %d, %.1f minutes spent", step, spent / 60)

    scenes: list[list[Image]] = [[scene] for scene in simulate.bank(recipe.seed, 160, 320)]
    groups = [(1 - recipe.simulated, list(real.values())), (recipe.simulated, scenes)]
    held_out = [[scene] for scene in simulate.bank(recipe.seed + 1, 16, 320)]
    check_rng = np.random.default_rng(1)
    checks = [draw_batch(check_rng, [(0.5, unseen), (0.5, held_out)], 16, 128) for _ in range(8)]
    log.info("%d micrographs, %d simulated scenes", len(real), len(scenes))

    budget = budget_minutes * 60
    loss_mean: float | None = None
    mark = last_saved = time.monotonic()
    network.train()
    while spent < budget:
        for group in optimiser.param_groups:
            group["lr"] = progress_rate(recipe, spent / budget)
        batch = draw_batch(rng, groups, recipe.batch, recipe.crop)
        loss = balanced_loss(network(torch.from_numpy(batch.noisy), torch.from_numpy(batch.level)), batch, recipe.floor)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            decay = min(recipe.averaging, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
        loss_mean = loss.item() if loss_mean is None else 0.98 * loss_mean + 0.02 * loss.item()
        now = time.monotonic()
        spent, mark = spent + now - mark, now
        if step % 250 == 0 or spent >= budget:
            row = {
                "step": step,
                "minutes": round(spent / 60, 2),
                "loss": round(loss_mean, 4),
                **validate(average, checks),
            }
            with (out / CURVE).open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            log.info("%s", row)
        if now - last_saved > 120 or spent >= budget:
            last_saved = now
            save(
                out / CHECKPOINT,
                {
                    "network": network.state_dict(),
                    "average": average.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "data_order": rng.bit_generator.state,
                    "step": step,
                    "spent": spent,
                    "recipe": asdict(recipe),
                },
            )
    save_file(average.state_dict(), out / "model.safetensors")
    record = {
        "steps": step,
        "minutes": round(spent / 60, 1),
        "recipe": asdict(recipe),
        "micrographs": sorted(real),
        "simulated_families": sorted(simulate.GENERATORS),
        "torch": torch.__version__,
        "hardware": f"{torch.get_num_threads()} CPU threads, float32",
    }
    (out / "record.json").write_text(json.dumps(record, indent=1))
    return out
