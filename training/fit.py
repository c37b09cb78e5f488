"""`python -m training fit`: clean micrographs → weights, by one of the recipes."""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from daemon.backends.manifest import sha256
from daemon.errors import ConfigError
from daemon.files import save
from training.changes import changed
from training.curve import PICTURE
from training.data import cache as store
from training.data import simulate
from training.data.exposure import Image
from training.data.truths import Rule, Truth, load_truths, split_by_source, write_split
from training.distributed import Place, alone
from training.growth import grown
from training.loop import CHECKPOINT, WEIGHTS, Budget, train
from training.losses import huberised
from training.network import build
from training.presets import PRESETS, Recipe
from training.progress import Bar
from training.state import read as read_state
from training.supply import Where, card_drawer, drawer, drawn_on_card, loss_of, stock_of
from training.validation import validator

log = logging.getLogger(__name__)

CACHE, SPLIT, PLAN = "cache", "split.json", "plan.json"
VALIDATION_SHARE = 0.1
SCENE_SIDE = 320
FINISH = 0.25
"""Share of the budget in which the rate of a plateau falls to 0."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fit`."""
    parser.add_argument("data", type=Path, help="folder of clean micrographs, sub-folders included")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; give it again to resume")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="fast", help="recipe to start from (fast)")
    parser.add_argument("--budget-minutes", type=float, help="wall-clock time to train, earlier calls included (60)")
    parser.add_argument("--steps", type=int, help="batches to train instead: the same curve on every machine")
    parser.add_argument(
        "--finish", type=float, metavar="SHARE", default=FINISH,
        help="share of the budget in which the rate of the fast recipe falls to 0, on a copy in "
        f"OUT/finished-STEP ({FINISH}); what comes before is prolonged by a later call with a larger budget. 0: only "
        "train on, 1: only finish what there is",
    )  # fmt: skip
    parser.add_argument(
        "--validation", type=Path, help="folder of micrographs to validate on; else a tenth of the data"
    )
    parser.add_argument("--sources", type=Path, help="CSV with columns name and source; sources are never split")
    parser.add_argument(
        "--start-from", dest="start", type=Path, help="folder of an earlier run whose weights to start from"
    )
    parser.add_argument("--save-every", type=float, default=120, help="seconds between checkpoints (120)")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that draw batches ahead; with a GPU, about 6 (0: none)"
    )
    parser.add_argument(
        "--draw", choices=get_args(Where),
        help="where crops are drawn and exposed: by NumPy on the processor (host), or by torch on the device that "
        "trains (card); card where there is a GPU",
    )  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="compile the network first: for a GPU, takes a minute")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
        help="change the recipe: a field of training.presets.Recipe and its value in JSON, for instance rate=3e-4, "
        "loss='\"mse\"', arguments='{\"width\": 0.5}'; may be repeated",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Carry out `fit`: every phase of the preset, each in a sub-folder if there are several."""
    phases = {name: changed(recipe, options.changes) for name, recipe in PRESETS[options.preset].items()}
    minutes = 60.0 if options.budget_minutes is None and options.steps is None else options.budget_minutes
    budget = Budget(minutes, options.steps)  # refused at once if it is wrong, not after the data were read
    if not 0 <= options.finish <= 1:
        raise ConfigError(f"--finish {options.finish:g}: give a share of the budget between 0 and 1")
    order = FitOrder(
        options.data,
        options.out,
        options.validation,
        options.sources,
        options.start,
        options.workers,
        options.save_every,
        draw=options.draw,
        compiled=options.compile,
    )
    for name, recipe in phases.items():
        share = recipe.batches / sum(other.batches for other in phases.values()) if len(phases) > 1 else 1.0
        order = replace(order, out=options.out / name if len(phases) > 1 else options.out)
        with alone(order.out):
            made = fit_and_finish(order, recipe, budget.share(share), options.finish)
        order = replace(order, start=made)
        print(f"{made}: weights, {PICTURE} and record; to serve them:")
        print(f"    python -m engine_build.export {made} --name NAME -o FOLDER")
    return 0


def fit_and_finish(order: "FitOrder", recipe: Recipe, budget: Budget, finish: float) -> Path:
    """Train; a plateau for the budget less its share `finish`, then a copy of it with a rate falling to 0.

    Returns the folder of the weights. The plateau's own state stays in `order.out`, to be prolonged by another call.
    """
    if recipe.course != "plateau":
        return fit(order, recipe, budget)
    if finish < 1:
        fit(order, recipe, budget.share(1 - finish))
    if finish == 0:
        return order.out
    step = read_state(order.out / CHECKPOINT)["step"]
    copy = replace(order, out=order.out / f"finished-{step}", cache=order.folder_of_cache)
    return fit(copy, recipe.finishing(step), budget.share(finish), origin=order.out)


@dataclass(frozen=True, slots=True)
class FitOrder:
    """Input and output folders of a training."""

    data: Path
    """Folder of clean micrographs."""
    out: Path
    """Folder of the run."""
    validation: Path | None = None
    """Folder of micrographs to validate on; None: whole sources, a tenth of the micrographs, are held out for it."""
    sources: Path | None = None
    """CSV of names, sources and grades (`training.data.truths.load_truths`)."""
    start: Path | None = None
    """Folder of an earlier run whose weights to start from."""
    workers: int = 0
    """Processes that draw batches ahead."""
    save_every: float = 120
    """Seconds between checkpoints."""
    cache: Path | None = None
    """Folder of prepared micrographs; None: in `out`."""
    draw: Where | None = None
    """Where crops are drawn; None: on the graphics card if there is one."""
    compiled: bool = False
    """Whether torch compiles the network first."""

    @property
    def folder_of_cache(self) -> Path:
        return self.cache or self.out / CACHE


def fit(order: FitOrder, recipe: Recipe, budget: Budget, *, origin: Path | None = None) -> Path:
    """Train the recipe's network on a folder of micrographs; returns `order.out`: weights, curve, record and split.

    `split.json` lists the micrographs held out for validation. `origin`: folder of a run whose state is copied. Raises
    ConfigError as `load_truths` and `train` do.
    """
    out = order.out
    truths, unseen = material(order, recipe)
    device = Place.join().device
    on_card = drawn_on_card(order.draw, recipe, device)
    provenance = provenance_of(recipe, truths, unseen, order.start)
    if on_card:
        provenance["samples"] = "drawn on the device"
    out.mkdir(parents=True, exist_ok=True)
    keep_plan(out, provenance)
    write_split(out / SPLIT, truths, unseen, 0 if order.validation else VALIDATION_SHARE, recipe.seed)
    torch.manual_seed(recipe.seed)
    network = build(recipe.network, recipe.arguments)
    if order.start:
        begin_from(network, order.start)
    scenes = simulated(recipe, order.folder_of_cache) if recipe.simulated else ()
    return train(
        network,
        card_drawer(recipe, stock_of(truths, scenes, device)) if on_card else drawer(recipe, truths, scenes),
        loss_of(recipe),
        recipe,
        out,
        budget,
        validator(recipe, unseen),
        provenance,
        origin=origin,
        # Section 3.2: outputs are clipped for every statistic, also for the losses shown during training.
        statistic=huberised(clip=True, ssim=recipe.ssim) if recipe.protocol == "paper" else None,
        workers=0 if on_card else order.workers,
        save_every=order.save_every,
        compiled=order.compiled,
    )


def provenance_of(
    recipe: Recipe, truths: Sequence[Truth], unseen: Sequence[Truth], start: Path | None
) -> dict[str, Any]:
    """Data and start of a training, for the record."""
    return {
        "micrographs": sorted(truth.name for truth in truths),
        "sources": sorted({truth.source for truth in truths}),
        "held_out": sorted(truth.name for truth in unseen),
        "simulated_families": sorted(simulate.TRAINING) if recipe.simulated else [],
        "started_from": start.name if start else None,
        "start_sha256": _start_hash(start),
    }


def material(order: FitOrder, recipe: Recipe) -> tuple[list[Truth], list[Truth]]:
    """Truths for training, and others for validation."""
    rule: Rule = "paper" if recipe.protocol == "paper" else "clean"
    smallest = min(recipe.crop, 192)
    truths = load_truths(order.data, order.folder_of_cache, order.sources, smallest, rule)
    if not order.validation:
        return split_by_source(truths, VALIDATION_SHARE, recipe.seed)
    unseen = load_truths(order.validation, order.folder_of_cache, order.sources, smallest, rule)
    for name in sorted({truth.source for truth in truths} & {truth.source for truth in unseen}):
        log.warning("%s: %s is in training and validation: validation figures are too good", order.validation, name)
    return truths, unseen


def simulated(recipe: Recipe, cache: Path) -> Sequence[Image]:
    """The recipe's simulated scenes, from the cache if the same code has made them before."""
    side = max(SCENE_SIDE, recipe.crop)
    what = [simulate.fingerprint(), recipe.seed, recipe.scenes, side]
    key = f"marked-{store.key_of(*what)}"
    if found := store.get(cache, key):
        return found[0]
    log.info("simulating %d scenes of %d × %d pixels", recipe.scenes, side, side)
    bank = simulate.marked_bank(recipe.seed, recipe.scenes, side, Bar("scenes").show)
    return store.put(cache, key, bank, {"what": what})


def begin_from(network: nn.Module, start: Path) -> None:
    """Load the weights of an earlier run, also into a deeper network. Raises ConfigError if they do not fit."""
    weights = _weights_of(start)
    if "pattern" not in network.state_dict():
        weights.pop("pattern", None)  # of released weights; the export measures it anew
    try:
        network.load_state_dict(grown(weights, network))
    except RuntimeError as error:
        raise ConfigError(f"{start}: weights of another network ({error}); start from one of the same kind") from error


def _start_hash(start: Path | None) -> str | None:
    """SHA-256 of the weights to start from."""
    return sha256(start / WEIGHTS) if start and (start / WEIGHTS).is_file() else None


def keep_plan(out: Path, provenance: dict[str, Any]) -> None:
    """Save data and start of a training. Raises ConfigError if `out` holds another training."""
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


def _weights_of(run: Path) -> dict[str, torch.Tensor]:
    """The weights of a finished run. Raises ConfigError if there are none."""
    path = run / WEIGHTS
    if not path.is_file():
        raise ConfigError(f"{run}: holds no {WEIGHTS}; name the folder of a finished run")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"{path}: damaged ({error}); name another run") from error
