"""The state of a training, as checkpoints hold it, and one step of it."""

import copy
import io
import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from daemon.errors import ConfigError
from training.data.samples import Drawn
from training.distributed import Place
from training.losses import Loss, on
from training.network import BATCHNORM_MOMENTUM
from training.optimisers import optimisers
from training.presets import Recipe

_HALF_FAST = ("amx_bf16", "avx512_bf16")
"""Names in /proc/cpuinfo of instructions that make bfloat16 faster."""


class State:
    """Weights, their average, the optimisers' state and the count of batches and seconds, on one process's device."""

    def __init__(self, network: nn.Module, recipe: Recipe, place: Place, compiled: bool = False) -> None:
        self.recipe, self.place = recipe, place
        # Tensor cores and AMX want the channels of a pixel side by side.
        self.network = network.to(place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(network) if recipe.averaging else network
        self.step, self.begun, self.spent = 0, 0, 0.0
        """Batches so far, batches of the training that this one copies, and seconds."""
        self.loss_mean: Tensor | None = None
        self.half = recipe.half and fast_half(place.device)
        self._optimisers = optimisers(recipe, network)
        wrapped = DistributedDataParallel(network) if place.world > 1 else network
        self._wrapped: nn.Module = torch.compile(wrapped, dynamic=False) if compiled else wrapped  # type: ignore[assignment]

    def load(self, path: Path) -> None:
        """Resume at a checkpoint of the same recipe. Raises ConfigError for another one, or a damaged file."""
        kept = read(path, self.place.device)
        if kept["recipe"] != plain(self.recipe):
            raise ConfigError(
                f"{path.parent}: holds a training by another recipe; give another --out, or the same options"
            )
        self._take(kept)
        self.begun, self.spent, self.loss_mean = kept["begun"], kept["spent"], kept["loss"]

    def copy(self, path: Path) -> None:
        """Copy weights, averages, optimisers and batch number of another training of the same network."""
        self._take(read(path, self.place.device))
        self.begun = self.step

    def saved(self) -> bytes:
        """The checkpoint."""
        content = io.BytesIO()
        torch.save(
            {
                "network": self.network.state_dict(),
                "average": self.average.state_dict(),
                "optimisers": [one.state_dict() for one in self._optimisers],
                "recipe": plain(self.recipe),
                "step": self.step,
                "begun": self.begun,
                "spent": self.spent,
                "loss": self.loss_mean,
            },
            content,
        )
        return content.getvalue()

    def advance(self, batch: Drawn, loss: Loss, rate: float, frozen: bool) -> tuple[Tensor, Tensor]:
        """One step along the gradient of `loss`; returns its value and the output. `frozen`: batch normalisation."""
        for one in self._optimisers:
            for group in one.param_groups:
                group["lr"] = rate * group["share"]
        set_norms(self.network, self.step, frozen)
        first = next(self.network.parameters())
        with torch.autocast(self.place.device.type, torch.bfloat16) if self.half else nullcontext():
            output = self._wrapped(on(batch.noisy, first), on(batch.level, first)).float()
        value = loss(output, batch)
        for one in self._optimisers:
            one.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        if frozen:
            for parameter in _norm_parameters(self.network):
                parameter.grad = None  # no step for it
        if self.recipe.clip_gradient:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_gradient)
        for one in self._optimisers:
            one.step()
        self.step += 1
        if self.recipe.averaging:
            follow(self.average, self.network, min(self.recipe.averaging, (1 + self.step) / (10 + self.step)))
        return value.detach(), output.detach()

    def _take(self, kept: dict[str, Any]) -> None:
        self.network.load_state_dict(kept["network"])
        self.average.load_state_dict(kept["average"])
        for one, state in zip(self._optimisers, kept["optimisers"], strict=True):
            one.load_state_dict(state)
        self.step = kept["step"]


def read(path: Path, device: torch.device | None = None) -> dict[str, Any]:
    """The content of a checkpoint. Raises ConfigError if it is missing or damaged."""
    try:
        kept: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        kept["recipe"], kept["optimisers"], kept["begun"]
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such checkpoint; name the folder of a training") from error
    except Exception as error:  # a damaged pickle raises any exception
        raise ConfigError(
            f"{path}: damaged ({error}), or of another version; delete it to start again, or choose another --out"
        ) from error
    return kept


def plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe in JSON types."""
    known: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return known


def set_norms(network: nn.Module, step: int, frozen: bool) -> None:
    """Batch normalisation at this step: its decay of 0.999 (section 3.2), or, frozen, constant statistics.

    Until step 1000 the running statistics are plain averages: with a decay of 0.999 their initial values would still
    dominate, which matters for trainings much shorter than the paper's 134 108 batches.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = max(BATCHNORM_MOMENTUM, 1 / (step + 1))
            module.train(not frozen)


def _norm_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Scales and shifts of all batch normalisations."""
    norms = (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    return [parameter for norm in norms for parameter in norm.parameters()]


def fast_half(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether bfloat16 arithmetic is faster: on GPUs, and on processors with instructions for it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    known = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return any(name in known for name in _HALF_FAST)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average a step towards the network; running statistics are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    for kept, current in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(current)
