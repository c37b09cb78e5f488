"""Fit a network to pairs, within a budget of minutes or steps; killed at any moment it goes on where it was."""

import copy
import io
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from daemon.errors import ConfigError
from daemon.whole import save
from training.curve import PICTURE, Curve, draw, read
from training.data import Batch
from training.losses import Loss, on
from training.network import BATCHNORM_MOMENTUM
from training.presets import Recipe
from training.processes import Place

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "model.safetensors"
RECORD = "record.json"

Drawer = Callable[[int, Sequence[int]], Batch]
"""(step, indices of samples) → Batch. A pure function, so that the order of the data needs no state."""
Validate = Callable[[nn.Module, int], dict[str, float]]
"""Figures of a network in evaluation mode, at a step; their names begin with "validation"."""


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop: after so many minutes of wall-clock time, earlier sessions included, or exactly after `steps`.

    Learning rates follow the share that is used up. Only a budget of steps gives the same curve on every machine.
    """

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ConfigError("a budget is either minutes or steps: give --budget-minutes or --steps, not both")
        amount = self.minutes if self.steps is None else self.steps
        if amount is None or not 0 < amount < inf:
            raise ConfigError("the budget must be more than nothing; give --budget-minutes or --steps above 0")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget that is used up, from 0 to 1."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.minutes is not None
        return min(1.0, seconds / (60 * self.minutes))


class Steps(Dataset[Batch]):
    """One process's share of every step from `first` on, for a loader whose workers draw ahead."""

    def __init__(self, draw_batch: Drawer, first: int, indices: Sequence[int]) -> None:
        self._draw, self._first, self._indices = draw_batch, first, indices

    def __len__(self) -> int:
        return 2**31  # the loop decides when to stop

    def __getitem__(self, index: int) -> Batch:
        return self._draw(self._first + index, self._indices)


def optimiser(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimiser over all parameters."""
    parameters = list(network.parameters())
    decay = recipe.decay
    match recipe.optimiser:
        case "adamw":
            return torch.optim.AdamW(parameters, recipe.rate, betas=(recipe.beta1, 0.98), weight_decay=decay)
        case "adam":
            return torch.optim.Adam(parameters, recipe.rate, betas=(recipe.beta1, 0.999), weight_decay=decay)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, recipe.rate, alpha=0.9, weight_decay=decay)
        case "nesterov":
            return torch.optim.SGD(parameters, recipe.rate, momentum=0.9, nesterov=True, weight_decay=decay)


def set_norms(network: nn.Module, step: int, frozen: bool) -> None:
    """Batch normalisation at this step: its decay of 0.999 (section 3.2), or, frozen, statistics that stay as they are.

    Until step 1000 the running statistics are plain averages: a decay of 0.999 would still be full of their initial
    values, which matters where the paper's 134 108 batches are rescaled to the time there is.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = max(BATCHNORM_MOMENTUM, 1 / (step + 1))
            module.train(not frozen)


def norm_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Scales and shifts of all batch normalisations."""
    norms = (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    return [parameter for norm in norms for parameter in norm.parameters()]


def fast_half(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is worth using: on GPUs, and on processors with instructions for it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "amx_bf16" in cpuinfo.read_text()


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average a step towards the network; running statistics are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    for kept, current in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(current)


def train(
    network: nn.Module,
    draw_batch: Drawer,
    loss: Loss,
    recipe: Recipe,
    out: Path,
    budget: Budget,
    validate: Validate,
    provenance: dict[str, Any],
    *,
    statistic: Loss | None = None,
    workers: int = 0,
    save_every: float = 120,
) -> Path:
    """Train `network` in place; returns `out` with the weights to keep (float32), the curve and the record.

    Run again with the same `out`, it goes on from the last checkpoint, at most `save_every` seconds old. Under
    ``torchrun`` every process draws its share of each batch and gradients are averaged; only the first writes. For the
    fast network and losses that are means over crops the result is that of one process with the whole batch. The
    paper's batch normalisation and the square root in its loss see each process's share by itself.

    Args:
        network: takes ``units`` and ``level``, as in `training.network`; start it as you like.
        draw_batch: called with a step and the indices of samples within the batch.
        provenance: goes into the record, next to recipe, steps, minutes and hardware.
        statistic: what the curve shows as the loss, if not the loss itself.
        workers: processes that draw batches ahead; 0: they are drawn between the steps.

    Raises ConfigError for a checkpoint of another recipe, a batch that the processes cannot share evenly, a disk
    that refuses, and a loss that is no longer a number.
    """
    place = Place.join()
    if recipe.batch % place.world:
        raise ConfigError(f"a batch of {recipe.batch} cannot be shared evenly by {place.world} processes")
    network.to(place.device)
    average = copy.deepcopy(network) if recipe.averaging else network
    optimise = optimiser(recipe, network)
    step, spent = 0, 0.0
    loss_mean: Tensor | None = None
    if (out / CHECKPOINT).exists():
        try:
            state = torch.load(out / CHECKPOINT, map_location=place.device, weights_only=True)
            known = state["recipe"]
        except Exception as error:  # a damaged pickle raises whatever it likes
            raise ConfigError(
                f"{out / CHECKPOINT}: damaged ({error}); delete it to train anew, or choose another --out"
            ) from error
        if known != json.loads(json.dumps(asdict(recipe))):
            raise ConfigError(f"{out}: holds a training by another recipe; give another --out, or the same options")
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimise.load_state_dict(state["optimiser"])
        step, spent, loss_mean = state["step"], state["spent"], state["loss"]
        log.info("resumed at step %d, %.1f minutes spent", step, spent / 60)
    wrapped = DistributedDataParallel(network) if place.world > 1 else network
    half = recipe.half and fast_half(place.device)
    indices = range(place.rank, recipe.batch, place.world)
    curve = Curve(out, step) if place.rank == 0 else None
    batches = iter(DataLoader(Steps(draw_batch, step, indices), batch_size=None, num_workers=workers))
    bar = tqdm(total=100, unit="%", disable=None if place.rank == 0 else True, bar_format="{l_bar}{bar}| {postfix}")

    def keep() -> None:
        content = io.BytesIO()
        recorded = json.loads(json.dumps(asdict(recipe)))
        torch.save(
            {
                "network": network.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimise.state_dict(),
                "recipe": recorded,
                "step": step,
                "spent": spent,
                "loss": loss_mean,
            },
            content,
        )
        save(out / CHECKPOINT, content.getvalue())
        if read(out):
            save(out / PICTURE, draw(out, f"{recipe.network}, {step} batches, {spent / 60:.0f} minutes"))

    mark = last_saved = time.monotonic()
    network.train()
    progress = place.agree(budget.progress(step, spent))
    while progress < 1:
        rate, stage = recipe.schedule(progress)
        for group in optimise.param_groups:
            group["lr"] = rate
        frozen = stage is not None and stage.freeze
        set_norms(network, step, frozen)
        batch = next(batches)
        with torch.autocast(place.device.type, torch.bfloat16) if half else nullcontext():
            output = wrapped(on(batch.noisy, _first(network)), on(batch.level, _first(network)))
        value = loss(output.float(), batch)
        optimise.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        if frozen:
            for parameter in norm_parameters(network):
                parameter.grad = None  # no step for it
        if recipe.clip_gradient:
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_gradient)
        optimise.step()
        step += 1
        if recipe.averaging:
            follow(average, network, min(recipe.averaging, (1 + step) / (10 + step)))
        now = time.monotonic()
        spent, mark = spent + now - mark, now
        progress = place.agree(budget.progress(step, spent))
        if curve is None:
            continue
        shown = value.detach() if statistic is None else statistic(output.detach().float(), batch)
        loss_mean = shown if loss_mean is None else torch.lerp(loss_mean, shown, 0.02)
        due = progress >= 1 or now - last_saved > save_every
        if (due or step % recipe.validate_every == 0) and not torch.isfinite(loss_mean):
            raise ConfigError(
                f"step {step}: the loss is {loss_mean.item()}; the training diverged. What was saved before is "
                f"in {out}: run again to go on from there, or start with a lower rate in another --out"
            )
        if step % recipe.validate_every == 0 or progress >= 1:
            average.eval()
            figures = validate(average, step)
            average.train()
            row = {
                "step": step,
                "minutes": round(spent / 60, 2),
                "rate": rate,
                "loss": round(loss_mean.item(), 5),
                **figures,
            }
            curve.add(row)
            bar.set_postfix_str("  ".join(f"{name} {number:.4g}" for name, number in row.items()))
        bar.update(100 * progress - bar.n)
        if due:
            last_saved = now
            keep()
    bar.close()
    if curve is not None:
        curve.close()
        save(out / WEIGHTS, to_safetensors({name: value.contiguous() for name, value in average.state_dict().items()}))
        record = {
            "steps": step,
            "minutes": round(spent / 60, 1),
            "recipe": asdict(recipe),
            **provenance,
            "torch": torch.__version__,
            "hardware": f"{place.described}, {'bfloat16' if half else 'float32'}",
        }
        save(out / RECORD, json.dumps(record, indent=1).encode() + b"\n")
    place.gather()
    return out


def _first(network: nn.Module) -> Tensor:
    """A parameter, which knows where the network is."""
    return next(network.parameters())
