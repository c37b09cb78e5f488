"""`python -m training fit`: clean micrographs → weights, by one of the recipes."""

import argparse
import dataclasses
import json
import logging
from collections.abc import Sequence
from functools import partial
from math import log10
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from daemon.errors import ConfigError
from daemon.manifest import sha256
from daemon.whole import save
from training import simulate
from training.curve import PICTURE
from training.data import Batch, Draw, PaperDraw, batch, paper_batch
from training.exposure import Detector, Image
from training.loop import WEIGHTS, Budget, Drawer, Validate, train
from training.losses import GRID, LOSSES, Loss, grid, huberised, on
from training.network import NetworkName, build
from training.presets import PRESETS, Doses, Optimiser, Protocol, Recipe
from training.processes import alone
from training.truths import Rule, Truth, load_truths, split_by_source, write_split

log = logging.getLogger(__name__)

CACHE, SPLIT, PLAN = "cache", "split.json", "plan.json"
VALIDATION_SHARE = 0.1
SCENES, SCENE_SIDE = 640, 320
VALIDATION_STEP = 2**40
"""Samples of steps that no training reaches."""
ORDINARY = 200
"""Mean counts per pixel from which on validation counts a crop as of ordinary dose."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `fit` takes."""
    parser.add_argument("data", type=Path, help="folder of clean micrographs (TIFF, MRC), sub-folders included")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; give it again to resume")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="fast", help="recipe to start from (fast)")
    parser.add_argument("--budget-minutes", type=float, help="wall-clock time to train; every schedule is scaled to it")
    parser.add_argument("--steps", type=int, help="batches to train instead: the same curve on every machine")
    parser.add_argument(
        "--validation", type=Path, help="folder of micrographs to validate on; else a tenth of the data"
    )
    parser.add_argument("--sources", type=Path, help="CSV with columns name and source; sources are never split")
    parser.add_argument("--start", type=Path, help="folder of an earlier run whose weights to start from")
    parser.add_argument("--save-every", type=float, default=120, help="seconds between checkpoints (120)")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that draw batches ahead; with a GPU, about 6 (0: none)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
        help="change the recipe: a field of training.presets.Recipe and its value in JSON, for instance rate=3e-4, "
        "loss='\"mse\"', arguments='{\"width\": 0.5}'; may be repeated",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Carry out `fit`: every phase of the preset, each in a sub-folder if there are several."""
    phases = {name: changed(recipe, options.changes) for name, recipe in PRESETS[options.preset].items()}
    minutes = 60.0 if options.budget_minutes is None and options.steps is None else options.budget_minutes
    Budget(minutes, options.steps)  # said at once, not after the data were read
    start = options.start
    for name, recipe in phases.items():
        share = recipe.batches / sum(other.batches for other in phases.values()) if len(phases) > 1 else 1.0
        budget = Budget(minutes and share * minutes, options.steps and max(1, round(share * options.steps)))
        out = options.out / name if len(phases) > 1 else options.out
        with alone(out):
            fit(
                options.data,
                out,
                recipe,
                budget,
                validation=options.validation,
                sources=options.sources,
                start=start,
                workers=options.workers,
                save_every=options.save_every,
            )
        start = out
        print(f"{out}: weights, {PICTURE} and record; to serve them:")
        print(f"    python -m engine_build.export {out} --name NAME -o FOLDER")
    return 0


def changed(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """The recipe with "name=value" changes, values in JSON. Raises ConfigError for what no recipe has."""
    known = {field.name: field for field in dataclasses.fields(Recipe)}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in known or name == "stages":
            raise ConfigError(f"--set {change}: a recipe has no {name}; it has {', '.join(sorted(known))}")
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"--set {change}: the value must be JSON (a text in double quotes): {error}") from error
        wanted = type(getattr(recipe, name))
        if not isinstance(value, (int, float) if wanted is float else wanted) or (
            isinstance(value, bool) and wanted is not bool
        ):
            raise ConfigError(f"--set {change}: {name} must be of type {wanted.__name__}")
        change_of: dict[str, Any] = {name: value}
        recipe = dataclasses.replace(recipe, **change_of)
    for name, choices in (("optimiser", Optimiser), ("network", NetworkName), ("protocol", Protocol), ("doses", Doses)):
        if getattr(recipe, name) not in get_args(choices):
            raise ConfigError(f"{name} must be one of {', '.join(get_args(choices))}, not {getattr(recipe, name)}")
    try:
        Detector(**recipe.detector)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"detector: {error}; see training.exposure.Detector") from error
    for name in ("batch", "crop", "validate_every", "validation_crops"):
        if getattr(recipe, name) < 1:
            raise ConfigError(f"{name} must be at least 1, not {getattr(recipe, name)}")
    if not (recipe.rate > 0 and 0 <= recipe.averaging < 1 and 0 <= recipe.simulated <= 1 and recipe.seed >= 0):
        raise ConfigError("rate must be above 0, averaging in [0, 1), simulated in [0, 1], seed not negative")
    try:
        network = build(recipe.network, recipe.arguments)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ConfigError(f"arguments {json.dumps(recipe.arguments)}: no such network ({error})") from error
    if recipe.crop % network.stride:
        raise ConfigError(f"crop must be a multiple of {network.stride}, the network's stride, not {recipe.crop}")
    if recipe.grid and (recipe.crop % GRID or not recipe.flat):
        raise ConfigError(f"grid needs flat crops (flat above 0) whose side, crop, is a multiple of {GRID}")
    if recipe.loss not in LOSSES:
        raise ConfigError(f"no loss is called {recipe.loss}; there are {', '.join(sorted(LOSSES))}")
    return recipe


def fit(
    data: Path,
    out: Path,
    recipe: Recipe,
    budget: Budget,
    *,
    validation: Path | None = None,
    sources: Path | None = None,
    start: Path | None = None,
    workers: int = 0,
    save_every: float = 120,
) -> Path:
    """Train the recipe's network on a folder of micrographs; returns `out`, with weights, curve, record and split.

    Without a folder for `validation`, whole sources, a tenth of the micrographs, are held out for it (`split.json`
    says which). Raises ConfigError as `load_truths` and `train` do.
    """
    rule: Rule = "paper" if recipe.protocol == "paper" else "clean"
    smallest = min(recipe.crop, 192)
    truths = load_truths(data, out / CACHE, sources, smallest, rule)
    if validation:
        unseen = load_truths(validation, out / CACHE, sources, smallest, rule)
    else:
        truths, unseen = split_by_source(truths, VALIDATION_SHARE, recipe.seed)
    for name in sorted({truth.source for truth in truths} & {truth.source for truth in unseen}):
        log.warning("%s: %s is trained on and validated on: the validation flatters", validation, name)
    provenance = {
        "micrographs": sorted(truth.name for truth in truths),
        "sources": sorted({truth.source for truth in truths}),
        "held_out": sorted(truth.name for truth in unseen),
        "simulated_families": sorted(simulate.TRAINING) if recipe.simulated else [],
        "started_from": start.name if start else None,
        "start_sha256": sha256(start / WEIGHTS) if start and (start / WEIGHTS).is_file() else None,
    }
    out.mkdir(parents=True, exist_ok=True)
    keep_plan(out, provenance)
    write_split(out / SPLIT, truths, unseen, 0 if validation else VALIDATION_SHARE, recipe.seed)
    torch.manual_seed(recipe.seed)
    network = build(recipe.network, recipe.arguments)
    if start:
        try:
            network.load_state_dict(weights_of(start))
        except RuntimeError as error:
            raise ConfigError(
                f"{start}: weights of another network ({error}); start from one of the same kind"
            ) from error
    scenes: list[Image] = []
    if recipe.simulated:
        log.info("simulating %d scenes", SCENES)
        scenes = simulate.bank(recipe.seed, SCENES, max(SCENE_SIDE, recipe.crop))
    loss = huberised(recipe.clip_in_loss, recipe.ssim) if recipe.loss == "huberised" else LOSSES[recipe.loss]
    if recipe.grid:
        loss = partial(_with_grid, loss, recipe.grid)
    return train(
        network,
        drawer(recipe, truths, scenes),
        loss,
        recipe,
        out,
        budget,
        validator(recipe, unseen),
        provenance,
        # Section 3.2: outputs are clipped for every statistic, the losses shown during training among them.
        statistic=huberised(clip=True, ssim=recipe.ssim) if recipe.protocol == "paper" else None,
        workers=workers,
        save_every=save_every,
    )


def _with_grid(loss: Loss, weight: float, output: Tensor, drawn: Batch) -> Tensor:
    return loss(output, drawn) + weight * grid(output, drawn)


def keep_plan(out: Path, provenance: dict[str, Any]) -> None:
    """Write down what is learnt from, and from where. Raises ConfigError if `out` holds another training."""
    path = out / PLAN
    plan = json.loads(json.dumps(provenance))
    try:
        known = json.loads(path.read_text()) if path.exists() else plan
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); choose another --out") from error
    if known != plan:
        raise ConfigError(
            f"{path}: belongs to another training (other weights, options or micrographs); choose another --out, or "
            "restore what has changed to go on with it"
        )
    save(path, json.dumps(plan, indent=1).encode() + b"\n")


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """The weights a run left behind. Raises ConfigError if there are none."""
    path = run / WEIGHTS
    if not path.is_file():
        raise ConfigError(f"{run}: holds no {WEIGHTS}; name the folder of a finished run")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"{path}: damaged ({error}); name another run") from error


def drawer(recipe: Recipe, truths: Sequence[Truth], scenes: Sequence[Image]) -> Drawer:
    """What the recipe's protocol draws."""
    if recipe.protocol == "paper":
        low = {"low": 1.0, "ordinary": 0.0, "all": 0.5}[recipe.doses]
        return partial(paper_batch, PaperDraw(recipe.crop, low, recipe.simulated), truths, scenes, recipe.seed)
    draw = Draw(
        recipe.crop,
        recipe.simulated,
        full_contrast=0.5 if recipe.contrast else 1.0,
        flat=recipe.flat,
        real_detector=recipe.real_detector,
        worst_detector=Detector(**recipe.detector),
    )
    return partial(batch, draw, truths, scenes, recipe.seed)


def validator(recipe: Recipe, unseen: Sequence[Truth]) -> Validate:
    """Figures on micrographs that are not trained on, at the same batch sizes and crops.

    By the paper's protocol one new example after another, with outputs clipped to [0, 1]; else the same crops every
    time, half of them simulated afresh, as gains in PSNR (dB) by band of dose.
    """
    if recipe.protocol == "paper":
        draw_one = drawer(recipe, unseen, ())

        def clipped(network: nn.Module, step: int) -> dict[str, float]:
            errors = []
            for index in range(recipe.validation_crops):
                one = draw_one(VALIDATION_STEP + step, [index])
                out = apply(network, one).clip(0, 1)
                errors.append(float(np.square(out - one.truth.clip(0, 1)).mean()))
            return {"validation_mse": float(np.mean(errors))}

        return clipped
    scenes = simulate.bank(recipe.seed + 1, 16, max(SCENE_SIDE, recipe.crop)) if recipe.simulated else []
    half = dataclasses.replace(recipe, simulated=0.5 if scenes else 0.0, flat=0.0)
    fixed = drawer(half, unseen, scenes)
    sizes = [min(16, recipe.validation_crops - first) for first in range(0, recipe.validation_crops, 16)]
    checks = [fixed(VALIDATION_STEP + index, range(size)) for index, size in enumerate(sizes)]
    return lambda network, _: gains(network, checks)


@torch.no_grad()
def apply(network: nn.Module, drawn: Batch) -> Image:
    """The network's output for a batch, (N, 1, S, S) float32, in evaluation mode."""
    where = next(network.parameters())
    out: Image = network(on(drawn.noisy, where), on(drawn.level, where)).float().cpu().numpy()
    return out


def gains(network: nn.Module, batches: Sequence[Batch]) -> dict[str, float]:
    """Mean gain in PSNR (dB) of output over input, by band of dose."""
    found: dict[str, list[float]] = {}
    for drawn in batches:
        before = np.square(drawn.noisy - drawn.truth).mean((1, 2, 3))
        after = np.square(apply(network, drawn) - drawn.truth).mean((1, 2, 3))
        dose = (0.5 / drawn.level.ravel() / drawn.weight.ravel()) ** 2
        for b, a, d in zip(before, after, dose, strict=True):
            if b > 0 and a > 0:  # a crop without a single count had no noise to remove
                found.setdefault("low" if d < ORDINARY else "ordinary", []).append(10 * log10(b / a))
    return {f"validation_gain_{band}": float(np.mean(values)) for band, values in sorted(found.items())}
