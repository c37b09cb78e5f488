"""Figures of a network in training, on fixed crops that are not in the training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import log10

import numpy as np
import torch
from torch import nn

from training.data import simulate
from training.data.exposure import Detector, Image
from training.data.samples import Batch, Draw, PaperDraw, batch, paper_sample
from training.data.truths import Truth
from training.loop import Validate
from training.losses import on
from training.presets import Recipe

STEP = 2**40
"""A step that no training reaches."""
SCENES, SIDE = 24, 320
"""Simulated scenes, different from those of the training, and their side in pixels."""

_BANDS: Mapping[str, Draw] = {
    "low": Draw(low=1.0, ordinary=0.0, full_contrast=1.0),
    "ordinary": Draw(low=0.0, ordinary=1.0, full_contrast=1.0),
    "faint": Draw(low=1.0, ordinary=0.0, full_contrast=0.0, contrasts=(0.05, 0.2)),
    "camera": Draw(
        low=0.5, ordinary=0.5, full_contrast=1.0, real_detector=1.0, worst_detector=Detector(readout=2.0, psf=1.2)
    ),
}
"""Bands measured separately: the paper's two laws of dose at full contrast, faint crops, and correlated noise."""


def validator(recipe: Recipe, unseen: Sequence[Truth]) -> Validate:
    """Figures on micrographs that are not in the training, always on the same crops.

    With the paper's protocol one new example after another, with outputs clipped to [0, 1]; else gains in PSNR (dB) of
    each band. Half of these crops are from other simulated scenes of the same families.
    """
    if recipe.protocol == "paper":
        low = {"low": 1.0, "ordinary": 0.0, "all": 0.5}[recipe.doses]
        return partial(_paper, PaperDraw(recipe.crop, low), unseen, recipe)
    scenes = simulate.bank(recipe.seed + 1, SCENES, max(SIDE, recipe.crop))
    each = max(1, recipe.validation_crops // len(_BANDS))
    checks = {
        name: [
            batch(
                replace(draw, side=recipe.crop, simulated=0.5), unseen, scenes, recipe.seed, STEP + first, range(size)
            )
            for first in range(0, each, 16)
            for size in [min(16, each - first)]
        ]
        for name, draw in _BANDS.items()
    }

    def measured(network: nn.Module, _: int) -> dict[str, float]:
        return {f"validation_gain_{name}": gain(network, drawn) for name, drawn in checks.items()}

    return measured


def _paper(draw: PaperDraw, unseen: Sequence[Truth], recipe: Recipe, network: nn.Module, step: int) -> dict[str, float]:
    errors = []
    for index in range(recipe.validation_crops):
        one = paper_sample(draw, unseen, (), recipe.seed, STEP + step, index)
        out = apply(network, one).clip(0, 1)
        errors.append(float(np.square(out - one.truth.clip(0, 1)).mean()))
    return {"validation_mse": float(np.mean(errors))}


@torch.no_grad()
def apply(network: nn.Module, drawn: Batch) -> Image:
    """The network's output for a batch, (N, 1, S, S) float32, in evaluation mode."""
    where = next(network.parameters())
    out: Image = network(on(drawn.noisy, where), on(drawn.level, where)).float().cpu().numpy()
    return out


def gain(network: nn.Module, batches: Sequence[Batch]) -> float:
    """Mean gain in PSNR (dB) of output over input."""
    found = []
    for drawn in batches:
        before = np.square(drawn.noisy - drawn.truth).mean((1, 2, 3))
        after = np.square(apply(network, drawn) - drawn.truth).mean((1, 2, 3))
        # A crop without a single count had no noise to remove.
        found += [10 * log10(b / a) for b, a in zip(before, after, strict=True) if b > 0 and a > 0]
    return float(np.mean(found))
