"""The recipes and their options: the paper's (section 3.2, with its section 5 as options) and ours."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from training.network import NetworkName

Optimiser = Literal["adam", "adamw", "muon", "rmsprop", "nesterov"]
Course = Literal["cosine", "plateau", "decay"]
Protocol = Literal["counts", "paper"]
Doses = Literal["low", "ordinary", "all"]


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of a stepped schedule: `batches` at one learning `rate`."""

    batches: int
    rate: float
    freeze: bool = False
    """Batch normalisation is frozen."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All parameters that determine the result besides the data, with the seed."""

    network: NetworkName = "fast"
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network's class."""
    protocol: Protocol = "counts"
    """Kind of pairs: counts in noise units at any dose and contrast, or those of the paper's section 3.1."""
    doses: Doses = "all"
    """The paper's doses that its protocol draws."""
    batch: int = 8
    crop: int = 128
    simulated: float = 0.3
    """Share of crops that are simulated."""
    scenes: int = 640
    """Number of simulated scenes from which crops are taken."""
    contrast: bool = True
    """Half of the crops are diluted by a background, to contrasts down to 2 %."""
    misjudged: float = 0.0
    """Relative error of the gain in the scaling of crops (`training.data.samples.Draw`)."""
    real_detector: float = 0.0
    """Share of crops recorded by a detector that adds read-out noise, point spread and spikes."""
    detector: dict[str, float] = field(default_factory=dict)
    """The worst such detector: terms of `training.data.exposure.Detector`, such as readout, psf, hot_pixels, x_rays."""
    flat: float = 0.0
    """Share of crops that are flat fields."""
    emphasis: float = 0.0
    """How much more a squared error weighs at the point defects and single atoms of simulated scenes."""
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
    """Peak learning rate; stages have their own."""
    course: Course = "cosine"
    """Course of the rate: a cosine over the budget; a plateau, independent of the budget, which later calls prolong; or
    a straight line from a plateau's last state to 0 over the budget."""
    warm_up: float = 0.03
    """Share of a cosine over which the learning rate rises."""
    warm_up_batches: int = 300
    """The same for a plateau."""
    halving: int = 0
    """Batches after which a plateau's rate is half of the peak; it falls as the root of the time. 0: constant rate."""
    finish: dict[str, Any] = field(default_factory=dict)
    """Fields of the recipe that change while the rate of a plateau falls."""
    final_rate: float = 0.01
    """The cosine ends at this share of the peak."""
    stages: tuple[Stage, ...] = ()
    """A stepped schedule instead of the cosine; its lengths are shares of the budget."""
    averaging: float = 0.999
    """Decay of the moving average of the weights, which becomes the result; 0: the last weights."""
    clip_gradient: float = 1.0
    """Largest norm of the gradient; 0: no limit."""
    half: bool = True
    """bfloat16 arithmetic where the processor is fast at it."""
    validate_every: int = 250
    validation_crops: int = 128
    seed: int = 20181

    @property
    def batches(self) -> int:
        """Number of batches of a stepped schedule in the paper."""
        return sum(stage.batches for stage in self.stages)

    def schedule(self, progress: float, step: int) -> tuple[float, Stage | None]:
        """Learning rate, and the stage if there are any, at `progress` in [0, 1] of the budget and batch `step`."""
        if self.stages:
            position = progress * self.batches
            for stage in self.stages:
                position -= stage.batches
                if position < 0:
                    return stage.rate, stage
            return self.stages[-1].rate, self.stages[-1]
        match self.course:
            case "plateau":
                return self.rate * self._plateau(step), None
            case "decay":
                return self.rate * (1 - progress), None
            case "cosine":
                return self.rate * self._cosine(progress), None

    def _plateau(self, step: int) -> float:
        rise = min(1.0, (step + 1) / self.warm_up_batches)
        return rise / math.sqrt(1 + 3 * step / self.halving) if self.halving else rise

    def _cosine(self, progress: float) -> float:
        if progress < self.warm_up:
            return max(progress, 1e-3) / self.warm_up
        fraction = min(1.0, (progress - self.warm_up) / (1 - self.warm_up))
        cosine = 0.5 * (1 + math.cos(math.pi * fraction))
        return self.final_rate + (1 - self.final_rate) * cosine

    def finishing(self, step: int) -> "Recipe":
        """The recipe that continues this plateau from `step` with a rate falling to 0."""
        rate, _ = self.schedule(1.0, step)
        return replace(self, course="decay", rate=rate, finish={}, **self.finish)


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
"""Section 3.2 exactly: 198 511 batches on low doses."""

EDE2018_ORDINARY = replace(
    EDE2018_LOW, doses="ordinary", stages=(Stage(16_773, 2.5e-4, freeze=True), Stage(17_562, 1e-4, freeze=True))
)
"""The same, fine-tuned: 34 335 batches on ordinary doses."""

_QUARTER_FIRST = replace(
    EDE2018_LOW,
    arguments={"width": 0.25},
    batch=4,
    crop=256,
    half=True,
    stages=(Stage(68, 1e-3), Stage(9, 2.5e-4, freeze=True), Stage(23, 1e-4, freeze=True)),
    validate_every=100,
    validation_crops=32,
)
"""The paper's network at a quarter of its width, for some hours on two cores: first with the paper's optimiser and
shares of its rates, above all for the statistics of batch normalisation. Stages are shares of the budget."""

_QUARTER_LOW = replace(
    _QUARTER_FIRST,
    optimiser="muon",
    beta1=0.9,
    clip_gradient=1.0,
    stages=(
        Stage(60, 1e-3, freeze=True),
        Stage(15, 5e-4, freeze=True),
        Stage(15, 2.5e-4, freeze=True),
        Stage(10, 8e-5, freeze=True),
    ),
)
"""Then with Muon and frozen statistics: of all that was tried the fastest way to a small error (docs/paper.md)."""

_QUARTER_ORDINARY = replace(
    _QUARTER_LOW, doses="ordinary", stages=tuple(replace(stage, rate=stage.rate / 2) for stage in _QUARTER_LOW.stages)
)
"""The same, fine-tuned on ordinary doses at half the rates."""

FAST = Recipe(
    arguments={"widths": [64, 64, 96, 128], "blocks": [1, 1, 1, 4], "smooth": True},
    batch=16,
    simulated=0.4,
    scenes=4000,
    real_detector=0.3,
    detector={"readout": 3.0, "psf": 1.2},
    misjudged=0.05,
    loss="root",
    optimiser="muon",
    rate=2e-3,
    course="plateau",
    halving=20_000,
    finish={"crop": 192, "batch": 8, "flat": 0.14, "grid": 2e4, "emphasis": 60.0},
    validate_every=500,
)
"""Trains better for its computing time (docs/decisions/0011 and 0012); `fast-1` came from an earlier one (0006)."""

LEASE = replace(
    FAST,
    batch=256,
    rate=3e-3,
    warm_up_batches=400,
    halving=4_000,
    finish=FAST.finish | {"batch": 96},
    validate_every=400,
)
"""The same for minutes on one large graphics card (docs/training.md): 16 times as many crops a step, at a higher rate
that falls sooner. Not tried on one yet."""

PRESETS: dict[str, dict[str, Recipe]] = {
    "fast": {"all": FAST},
    "lease": {"all": LEASE},
    "ede2018": {"low": EDE2018_LOW, "ordinary": EDE2018_ORDINARY},
    "ede2018-quarter": {"first": _QUARTER_FIRST, "low": _QUARTER_LOW, "ordinary": _QUARTER_ORDINARY},
}
"""Each a sequence of phases; every phase after the first starts from the weights of the one before."""
