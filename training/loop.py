"""Trains a network on pairs within a budget of minutes or steps; after a kill it resumes at the last checkpoint."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from daemon.errors import ConfigError
from daemon.files import save
from training.curve import PICTURE, Curve, draw, read
from training.data.samples import Drawn
from training.distributed import Place
from training.losses import Loss
from training.presets import Recipe
from training.progress import EVERY, left
from training.state import State

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "model.safetensors"
RECORD = "record.json"

Drawer = Callable[[int, Sequence[int]], Drawn]
"""(step, indices of samples) → batch. A pure function, so that the order of the data needs no state."""
Validate = Callable[[nn.Module, int], dict[str, float]]
"""(network in evaluation mode, step) → figures, whose names begin with "validation"."""


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
            raise ConfigError("the budget must be positive; give --budget-minutes or --steps above 0")

    def share(self, part: float) -> "Budget":
        """A part of it, at least one step."""
        return Budget(self.minutes and part * self.minutes, self.steps and max(1, round(part * self.steps)))

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget that is used up, from 0 to 1."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.minutes is not None
        return min(1.0, seconds / (60 * self.minutes))


class Steps(Dataset[Drawn]):
    """One process's share of every step from `first` on, for a loader whose workers draw ahead."""

    def __init__(self, draw_batch: Drawer, first: int, indices: Sequence[int]) -> None:
        self._draw, self._first, self._indices = draw_batch, first, indices

    def __len__(self) -> int:
        return 2**31  # the loop stops earlier

    def __getitem__(self, index: int) -> Drawn:
        return self._draw(self._first + index, self._indices)


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
    origin: Path | None = None,
    statistic: Loss | None = None,
    workers: int = 0,
    save_every: float = 120,
    compiled: bool = False,
) -> Path:
    """Train `network` in place; returns `out` with the weights to keep (float32), the curve and the record.

    With the same `out`, a further call resumes at the last checkpoint, at most `save_every` seconds old. Under
    ``torchrun`` every process draws its share of each batch and gradients are averaged; only the first writes. For the
    fast network and losses that are means over crops the result is that of one process with the whole batch. The
    paper's batch normalisation and the square root in its loss see each process's share by itself.

    Args:
        network: takes ``units`` and ``level``, as in `training.network`; with any initial weights.
        draw_batch: called with a step and the indices of samples within the batch.
        provenance: goes into the record, next to recipe, steps, minutes and hardware.
        origin: folder of a training of the same network, from whose last checkpoint this one starts.
        statistic: the loss that the curve shows, if it differs from the training's.
        workers: processes that draw batches ahead; 0: they are drawn between the steps.
        compiled: let torch compile the network's steps: takes a minute, faster on a graphics card.

    Raises ConfigError for a checkpoint of another recipe, a batch that the processes cannot share evenly, a
    failure to write, and a loss that is not finite.
    """
    place = Place.join()
    if recipe.batch % place.world:
        raise ConfigError(f"a batch of {recipe.batch} cannot be shared evenly by {place.world} processes")
    state = _begun(State(network, recipe, place, compiled), out, origin)
    keeper = _Keeper(out, state, validate, save_every) if place.rank == 0 else None
    indices = range(place.rank, recipe.batch, place.world)
    batches = iter(DataLoader(Steps(draw_batch, state.step, indices), batch_size=None, num_workers=workers))
    network.train()
    _spend(budget, state, batches, loss, loss if statistic is None else statistic, keeper)
    if keeper is not None:
        keeper.finish(provenance)
    place.gather()
    return out


def _begun(state: State, out: Path, origin: Path | None) -> State:
    """The state of the last checkpoint in `out`, or else of the one in `origin`."""
    if (out / CHECKPOINT).exists():
        state.load(out / CHECKPOINT)
        log.info("resumed at step %d, %.1f minutes spent", state.step, state.spent / 60)
    elif origin is not None:
        state.copy(origin / CHECKPOINT)
    return state


def _spend(
    budget: Budget, state: State, batches: Iterator[Drawn], loss: Loss, statistic: Loss, keeper: "_Keeper | None"
) -> None:
    """Train step by step until the budget is used up; the keeper gets the statistic of each step."""

    def used() -> float:
        return state.place.agree(budget.progress(state.step - state.begun, state.spent))

    mark = time.monotonic()
    progress = used()
    while progress < 1:
        rate, stage = state.recipe.schedule(progress, state.step)
        batch = next(batches)
        value, output = state.advance(batch, loss, rate, stage is not None and stage.freeze)
        now = time.monotonic()
        state.spent, mark = state.spent + now - mark, now
        progress = used()
        if keeper is not None:
            keeper.after(value if statistic is loss else statistic(output, batch), rate, progress, now)


class _Keeper:
    """Output of the first process: progress, curve, checkpoints, and finally weights and record."""

    def __init__(self, out: Path, state: State, validate: Validate, save_every: float) -> None:
        self._out, self._state, self._validate, self._every = out, state, validate, save_every
        self._curve = Curve(out, state.step)
        self._said = self._saved = time.monotonic()
        self._begun: tuple[float, float] | None = None
        self._bar = tqdm(total=100, unit="%", disable=None, bar_format="{l_bar}{bar}| {postfix}")

    def after(self, shown: Tensor, rate: float, progress: float, now: float) -> None:
        """After a step, write a row of the curve or a checkpoint if due. Raises ConfigError if the loss diverged."""
        state, ended = self._state, progress >= 1
        state.loss_mean = shown if state.loss_mean is None else torch.lerp(state.loss_mean, shown, 0.02)
        due = ended or now - self._saved > self._every
        validating = ended or state.step % state.recipe.validate_every == 0
        if (due or validating) and not torch.isfinite(state.loss_mean):
            raise ConfigError(
                f"step {state.step}: the loss is {state.loss_mean.item()}; the training diverged. What was saved "
                f"before is in {self._out}: run again to go on from there, or start with a lower rate in another --out"
            )
        if validating:
            self._add_row(rate)
        self._bar.update(100 * progress - self._bar.n)
        self._begun = self._begun or (progress, now)
        if self._bar.disable and not ended and now - self._said >= EVERY:
            self._said = now
            self._say(progress, now)
        if due:
            self._saved = now
            self._save()

    def _say(self, progress: float, now: float) -> None:
        """A line for a log, where there is no terminal."""
        state, (share, begin) = self._state, self._begun or (0.0, now)
        assert state.loss_mean is not None
        rest = f", {left((now - begin) * (1 - progress) / (progress - share))}" if progress > share else ""
        loss = state.loss_mean.item()
        log.info("%.0f %% of the budget, step %d, loss %.4g%s", 100 * progress, state.step, loss, rest)

    def _add_row(self, rate: float) -> None:
        state = self._state
        assert state.loss_mean is not None
        state.average.eval()
        figures = self._validate(state.average, state.step)
        state.average.train()
        row = {
            "step": state.step,
            "minutes": round(state.spent / 60, 2),
            "rate": rate,
            "loss": round(state.loss_mean.item(), 5),
            **figures,
        }
        self._curve.add(row)
        line = "  ".join(f"{name} {number:.4g}" for name, number in row.items())
        self._bar.set_postfix_str(line)
        if self._bar.disable:
            log.info(line)

    def _save(self) -> None:
        state = self._state
        save(self._out / CHECKPOINT, state.saved())
        if read(self._out):
            title = f"{state.recipe.network}, {state.step} batches, {state.spent / 60:.0f} minutes"
            save(self._out / PICTURE, draw(self._out, title))

    def finish(self, provenance: dict[str, Any]) -> None:
        """Write the weights and the record."""
        self._bar.close()
        self._curve.close()
        state = self._state
        kept = {name: value.contiguous() for name, value in state.average.state_dict().items()}
        save(self._out / WEIGHTS, to_safetensors(kept))
        record = {
            "steps": state.step,
            "minutes": round(state.spent / 60, 1),
            "recipe": asdict(state.recipe),
            **provenance,
            "torch": torch.__version__,
            "hardware": f"{state.place.described}, {'bfloat16' if state.half else 'float32'}",
        }
        save(self._out / RECORD, json.dumps(record, indent=1).encode() + b"\n")
