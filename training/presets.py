"""The two recipes, and what may be changed in them: the paper's (section 3.2, with its section 5 as options), ours."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from training.network import NetworkName

Optimiser = Literal["adam", "adamw", "rmsprop", "nesterov"]
Protocol = Literal["counts", "paper"]
Doses = Literal["low", "ordinary", "all"]


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of a stepped schedule: `batches` at one learning `rate`."""

    batches: int
    rate: float
    freeze: bool = False
    """Batch normalisation no longer learns."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the result, next to the data, the seed included."""

    network: NetworkName = "fast"
    arguments: dict[str, Any] = field(default_factory=dict)
    """What the network's class takes."""
    protocol: Protocol = "counts"
    """How pairs are made: counts in noise units at any dose and contrast, or the paper's section 3.1."""
    doses: Doses = "all"
    """Which of the paper's doses its protocol draws."""
    batch: int = 8
    crop: int = 128
    simulated: float = 0.3
    """Share of crops that are simulated."""
    contrast: bool = True
    """Half of the crops are diluted by a background, to contrasts down to 2 %."""
    real_detector: float = 0.0
    """Share of crops recorded by a detector that does more than count."""
    detector: dict[str, float] = field(default_factory=dict)
    """What its worst is like: terms of `training.exposure.Detector`, such as readout, psf, hot_pixels, x_rays."""
    flat: float = 0.0
    """Share of crops that are flat fields."""
    loss: str = "balanced"
    grid: float = 0.0
    """Weight of the network's own pattern on flat fields, next to the loss (`losses.grid`)."""
    clip_in_loss: bool = False
    ssim: float = 0.0
    optimiser: Optimiser = "adamw"
    beta1: float = 0.9
    decay: float = 1e-4
    """Weight decay; for Adam the gradient of an L2 term of half this size."""
    rate: float = 6e-4
    """Peak learning rate of the cosine; stages have their own."""
    warm_up: float = 0.03
    """Share of the training over which the learning rate rises."""
    final_rate: float = 0.01
    """The cosine ends at this share of the peak."""
    stages: tuple[Stage, ...] = ()
    """A stepped schedule instead of the cosine. Its lengths are shares of the time or the steps there are."""
    averaging: float = 0.999
    """Decay of the moving average of the weights, which is what is kept; 0: the last weights."""
    clip_gradient: float = 1.0
    """Largest norm of the gradient; 0: any."""
    half: bool = True
    """bfloat16 arithmetic where the processor is fast at it."""
    validate_every: int = 250
    validation_crops: int = 128
    seed: int = 20181

    @property
    def batches(self) -> int:
        """How many batches the paper trained, where the schedule is stepped."""
        return sum(stage.batches for stage in self.stages)

    def schedule(self, progress: float) -> tuple[float, Stage | None]:
        """Learning rate, and the stage if there are any, at `progress` in [0, 1] of the training."""
        if self.stages:
            position = progress * self.batches
            for stage in self.stages:
                position -= stage.batches
                if position < 0:
                    return stage.rate, stage
            return self.stages[-1].rate, self.stages[-1]
        if progress < self.warm_up:
            return self.rate * max(progress, 1e-3) / self.warm_up, None
        fraction = min(1.0, (progress - self.warm_up) / (1 - self.warm_up))
        cosine = 0.5 * (1 + math.cos(math.pi * fraction))
        return self.rate * (self.final_rate + (1 - self.final_rate) * cosine), None


EDE2018_LOW = Recipe(
    network="ede2018",
    arguments={"width": 1.0},
    protocol="paper",
    doses="low",
    batch=10,
    crop=512,
    simulated=0.0,
    contrast=False,
    loss="huberised",
    optimiser="adam",
    beta1=0.5,
    decay=1e-4,  # 5e-5 times the sum of the squares of all variables, differentiated
    stages=(Stage(134_108, 1e-3), Stage(17_713, 2.5e-4, freeze=True), Stage(46_690, 1e-4, freeze=True)),
    averaging=0.0,
    clip_gradient=0.0,
    half=False,
    validate_every=5,
    validation_crops=1,
)
"""Section 3.2 to the letter: 198 511 batches on low doses."""

EDE2018_ORDINARY = replace(
    EDE2018_LOW, doses="ordinary", stages=(Stage(16_773, 2.5e-4, freeze=True), Stage(17_562, 1e-4, freeze=True))
)
"""The same, fine-tuned: 34 335 batches on ordinary doses."""

FAST = Recipe(arguments={"widths": [32, 64, 128, 256]}, rate=8e-4, loss="root", flat=0.06, grid=3e4)
"""Trains better for its compute; docs/decisions/0006 says by how much, and what was tried."""

PRESETS: dict[str, dict[str, Recipe]] = {
    "fast": {"all": FAST},
    "ede2018": {"low": EDE2018_LOW, "ordinary": EDE2018_ORDINARY},
}
"""Each a sequence of phases; every phase after the first starts from the weights of the one before."""
