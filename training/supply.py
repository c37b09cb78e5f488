"""Sources of a recipe's samples, the device that draws them, and the loss."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from daemon.errors import ConfigError
from training.data.exposure import Detector, Image
from training.data.samples import Draw, Drawn, PaperDraw, batch, paper_batch
from training.data.truths import Truth, evened
from training.loop import Drawer
from training.losses import LOSSES, Loss, grid, huberised
from training.on_card import Stock, batch_on_card
from training.presets import Recipe

Where = Literal["host", "card"]


def drawer(recipe: Recipe, truths: Sequence[Truth], scenes: Sequence[Image]) -> Drawer:
    """A drawer of the recipe's samples, by NumPy."""
    if recipe.protocol == "paper":
        low = {"low": 1.0, "ordinary": 0.0, "all": 0.5}[recipe.doses]
        return partial(paper_batch, PaperDraw(recipe.crop, low, recipe.simulated), truths, scenes, recipe.seed)
    return partial(batch, _draw_of(recipe), evened(truths), scenes, recipe.seed)


def card_drawer(recipe: Recipe, stock: Stock) -> Drawer:
    """A drawer by the same laws, by torch on the device of the images."""
    return partial(batch_on_card, _draw_of(recipe), stock, recipe.seed)


def stock_of(truths: Sequence[Truth], scenes: Sequence[Image], device: torch.device) -> Stock:
    """All images on a device, 6 bytes a pixel; truths are drawn as often as by NumPy."""
    return Stock.of(evened(truths), scenes, device)


def drawn_on_card(where: Where | None, recipe: Recipe, device: torch.device) -> bool:
    """Whether samples are drawn on the device. Raises ConfigError if `where` demands it and it is impossible."""
    if recipe.protocol == "paper":
        if where == "card":
            raise ConfigError("--draw card: the paper's protocol is drawn on the host only; leave --draw out")
        return False
    return device.type == "cuda" if where is None else where == "card"


def _draw_of(recipe: Recipe) -> Draw:
    """Doses, contrasts and cameras of the recipe's crops, in counts."""
    return Draw(
        recipe.crop,
        recipe.simulated,
        full_contrast=0.5 if recipe.contrast else 1.0,
        flat=recipe.flat,
        real_detector=recipe.real_detector,
        worst_detector=Detector(**recipe.detector),
        misjudged=recipe.misjudged,
        emphasis=recipe.emphasis,
    )


def loss_of(recipe: Recipe) -> Loss:
    """The recipe's loss, with the grid's term if it has one."""
    loss = huberised(recipe.clip_in_loss, recipe.ssim) if recipe.loss == "huberised" else LOSSES[recipe.loss]
    return partial(_with_grid, loss, recipe.grid) if recipe.grid else loss


def _with_grid(loss: Loss, weight: float, output: Tensor, drawn: Drawn) -> Tensor:
    return loss(output, drawn) + weight * grid(output, drawn)
