"""Fine-tunes shipped weights on the user's own micrographs, and measures on held-out ones whether that helped.

Three kinds of data: clean micrographs, noisy pairs (or frames of stacks), and single noisy images of counts.
"""

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from daemon.backends import manifest
from daemon.backends.manifest import Manifest
from daemon.counts.scaling import NOISE_UNITS
from daemon.errors import ConfigError, StorageError, WeightsError
from daemon.files import save
from training.data import samples, simulate
from training.data.truths import Truth, load_truths, split_by_source
from training.distributed import alone
from training.finetuning import before_after, noisy
from training.finetuning.before_after import BeforeAfter, HeldOutCase
from training.finetuning.before_after_report import REPORT, advice, write
from training.finetuning.fields import PARTNERS, Reading, SkippedFile, load_fields
from training.finetuning.noisy import Field
from training.fit import keep_plan
from training.loop import RECORD, WEIGHTS, Budget, Drawer, train
from training.losses import LOSSES
from training.network import Ede2018, FastDenoiser, build
from training.presets import PRESETS, Recipe, Stage

log = logging.getLogger(__name__)

How = Literal["clean", "pairs", "thinning"]
LossName = Literal["mse", "poisson"]

NOT_RECOMMENDED = 3
"""Exit status of a fine-tuning that did not help, so that a script does not export it."""
RATE = 1e-4
"""Peak learning rate: a sixth of that of a full training, to preserve what the network has learnt."""
SCENES = 64
"""Simulated scenes besides the user's clean micrographs, to preserve what the network has learnt."""
_CHECKED = 16
"""Approximate number of held-out cases in the learning curve; the final comparison has all."""
FEW = 5
"""Fields of view below which a warning is due."""


@dataclass(frozen=True, slots=True)
class FineTuningOrder:
    """A fine-tuning to carry out. `gain`, `offset` and `partners` are for noisy data only."""

    data: Path
    out: Path
    how: How
    budget: Budget
    parent: str = "fast"
    loss: LossName | None = None
    """None: that of the recipe for clean data, the squared error for noisy data."""
    gain: float | Literal["auto"] = 1.0
    offset: float = 0.0
    partners: tuple[tuple[str, str], ...] = PARTNERS
    held_out: float = 0.2
    seed: int = 20181
    crop: int = 128
    batch: int = 8
    workers: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """Data for training and for measurement. `cases` can be iterated repeatedly."""

    draw: Drawer
    cases: Callable[[], Iterator[HeldOutCase]]
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    skipped: tuple[SkippedFile, ...]
    measured: dict[str, dict[str, float]]


def fine_tune(order: FineTuningOrder) -> BeforeAfter:
    """Fine-tune; `order.out` becomes a run that `engine_build.export` turns into weights, with a report beside it.

    A further call with the same order resumes it. Raises ConfigError (data, options, another run in `out`),
    WeightsError (the parent) or StorageError (the disk is full).
    """
    if not 0 < order.held_out < 1:
        raise ConfigError(f"--held-out {order.held_out:g}: give a share between 0 and 1")
    folder = manifest.locate(order.parent)
    parent = manifest.load(folder)
    network, before = (_load_network(folder, parent) for _ in range(2))
    if order.crop < 64 or order.crop % network.stride:
        raise ConfigError(f"--crop {order.crop}: give a multiple of {network.stride}, at least 64")
    try:
        order.out.mkdir(parents=True, exist_ok=True)
        material = _load_clean(order) if order.how == "clean" else _load_noisy(order)
        provenance = provenance_of(order, parent, material)
        keep_plan(order.out, provenance)
    except OSError as error:
        raise StorageError(
            f"{order.out}: cannot be written ({error.strerror or error}); make room there, or choose another --out, "
            "and run the same command again"
        ) from error
    recipe = recipe_of(order, parent)
    checked = before_after.spread(material.cases(), _CHECKED)
    train(
        network,
        material.draw,
        LOSSES[recipe.loss],
        recipe,
        order.out,
        order.budget,
        lambda current, _: before_after.errors(current, checked),
        provenance,
        workers=order.workers,
    )
    after = build(parent.network, parent.arguments)
    after.load_state_dict(_as_shipped(load_file(order.out / WEIGHTS)))
    device = next(network.parameters()).device
    outcome = before_after.compare(before.to(device), after.to(device), material.cases(), order.seed)
    record = json.loads((order.out / RECORD).read_text())
    record["before_after"] = outcome.as_json()
    save(order.out / RECORD, json.dumps(record, indent=1).encode() + b"\n")
    write(outcome, order.out, f"Fine-tuning of {parent.name} ({order.how})", remarks(order, material))
    return outcome


def _load_network(folder: Path, parent: Manifest) -> FastDenoiser | Ede2018:
    """The network of a weights folder, float32. Raises WeightsError if it cannot be trained here."""
    if parent.scaling != NOISE_UNITS:
        raise WeightsError(
            f"{folder}: these weights take images scaled by their own extremes, which depend on noise; only weights "
            'served in noise units can be fine-tuned: start from "fast"'
        )
    if parent.safetensors is None:
        raise WeightsError(f'{folder}: these weights can only be served, not trained: start from "fast"')
    path = folder / parent.safetensors
    try:
        network = build(parent.network, parent.arguments)
        network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    except (RuntimeError, TypeError, SafetensorError) as error:
        cause = str(error).splitlines()[0]
        raise WeightsError(
            f"{path}: does not fit the network of this version ({cause}); use the weights that came with it"
        ) from error
    return network


def _as_shipped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights rounded to float16, as export stores them, so that the measurement is of the exported weights."""
    return {
        name: value.half().to(value.dtype) if value.is_floating_point() else value for name, value in weights.items()
    }


def recipe_of(order: FineTuningOrder, parent: Manifest) -> Recipe:
    """The parent's recipe with a lower rate."""
    loss = order.loss or ("root" if order.how == "clean" else "mse")
    recipe = replace(
        next(iter(PRESETS[parent.network].values())),
        arguments=parent.arguments,
        protocol="counts",
        doses="all",
        loss=loss,
        flat=0.0,
        grid=0.0,
        optimiser="adamw",
        rate=RATE,
        course="cosine",
        warm_up=0.1,
        stages=(),
        crop=order.crop,
        batch=order.batch,
        seed=order.seed,
    )
    if parent.network == "ede2018":  # it keeps the parent's batch statistics: a few minutes give no better ones
        recipe = replace(recipe, stages=(Stage(1, RATE, freeze=True),))
    return recipe


def _load_clean(order: FineTuningOrder) -> Material:
    """Clean micrographs, exposed and mixed with simulated scenes as in training."""
    truths = load_truths(order.data, order.out / "cache", smallest=order.crop)
    training, held_out = split(truths, order)
    scenes = simulate.bank(order.seed, SCENES, max(2 * order.crop, 128))
    return Material(
        partial(samples.batch, samples.Draw(side=order.crop), training, scenes, order.seed),
        lambda: before_after.clean_cases(held_out, order.seed),
        tuple(truth.name for truth in training),
        tuple(truth.name for truth in held_out),
        (),
        {},
    )


def _load_noisy(order: FineTuningOrder) -> Material:
    """Noisy pairs, frames or single images of counts."""
    assert order.how != "clean"
    reading = Reading(order.how, order.gain, order.offset, order.partners, order.crop)
    fields, skipped = load_fields(order.data, reading, order.out / "cache", order.out)
    training, held_out = split(fields, order)
    return Material(
        partial(noisy.batch, training, order.crop, order.seed),
        lambda: before_after.noisy_cases(held_out, order.seed),
        tuple(file for field in training for file in field.files),
        tuple(file for field in held_out for file in field.files),
        tuple(skipped),
        {field.name: field.measured for field in fields},
    )


Item = TypeVar("Item", Truth, Field)


def split(items: Sequence[Item], order: FineTuningOrder) -> tuple[list[Item], list[Item]]:
    """Whole sources (sub-folders) at random for training and to be held out; single files if there is one source only.

    Raises ConfigError if there are not two to split.
    """
    if len(items) < 2:
        raise ConfigError(
            f"{order.data}: {len(items) or 'no'} usable field{'s' * (len(items) != 1)} of view; at least 2 are needed, "
            "since one is held out to measure the benefit; the warnings above state why files were skipped"
        )
    if len(items) < FEW:
        log.warning("%s: only %d usable fields of view: expect little, and little certainty", order.data, len(items))
    several = len({item.source for item in items}) > 1
    stand_ins = [Truth(item.name, item.source if several else item.name, (), ()) for item in items]
    held = {stand_in.name for stand_in in split_by_source(stand_ins, order.held_out, order.seed)[1]}
    return [item for item in items if item.name not in held], [item for item in items if item.name in held]


def provenance_of(order: FineTuningOrder, parent: Manifest, material: Material) -> dict[str, Any]:
    """Origin of the weights, for the record; a resumed run must agree with it."""
    return {
        "parent": {
            "name": parent.name,
            "network": parent.network,
            "sha256": parent.sha256[parent.safetensors or parent.onnx],
        },
        "finetune": {
            "how": order.how,
            "data": str(order.data),
            "gain": order.gain,
            "offset": order.offset,
            "seed": order.seed,
            "held_out_share": order.held_out,
        },
        "micrographs": list(material.training),
        "held_out": list(material.held_out),
        "skipped": [one._asdict() for one in material.skipped],
        "measured": material.measured,
        "simulated_families": sorted(simulate.TRAINING) if order.how == "clean" else [],
    }


def remarks(order: FineTuningOrder, material: Material) -> list[str]:
    """Remarks on the data, for the report."""
    lines = [
        f"Data: {order.data}, {order.how}: {len(material.training)} files trained on, {len(material.held_out)} "
        f"held out ({', '.join(material.held_out)}).",
    ]
    lines += [f"Not used: {one.reason}" for one in material.skipped]
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m training finetune`."""
    parser.add_argument("data", type=Path, metavar="MICROGRAPHS", help="folder of micrographs")
    parser.add_argument("--from", dest="parent", default="fast", help="shipped weights, or a weights folder")
    parser.add_argument(
        "--how", choices=get_args(How), required=True,
        help="clean: noise is simulated; pairs: noisy pairs of files, or frames of stacks; thinning: noisy counts",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder for the run; the same command resumes it")
    parser.add_argument("--budget-minutes", type=float, help="wall-clock time to train (default 30)")
    parser.add_argument("--steps", type=int, help="train for so many batches instead")
    parser.add_argument("--loss", choices=get_args(LossName), help="mse (default), or poisson likelihood")
    parser.add_argument("--gain", type=gain, default=1.0, help='units per count, or "auto" (pairs only); default 1')
    parser.add_argument("--offset", type=float, default=0.0, help="pixel value of one frame at zero counts")
    parser.add_argument(
        "--endings", nargs=2, metavar=("A", "B"), help="how the names of a pair end, after _ - . or blank (default a b)"
    )
    parser.add_argument("--held-out", type=float, default=0.2, help="share of files not trained on (default 0.2)")
    parser.add_argument("--crop", type=int, default=128, help="side of the crops, pixels; smaller files are skipped")
    parser.add_argument("--seed", type=int, default=20181)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw batches ahead (0: none)")


def gain(text: str) -> float | Literal["auto"]:
    """A number, or "auto"."""
    return "auto" if text == "auto" else float(text)


def run(options: argparse.Namespace) -> int:
    """The command. 0: better weights; 3: done, but the weights are not recommended."""
    minutes = 30.0 if options.budget_minutes is None and options.steps is None else options.budget_minutes
    first, second = (text.lower().lstrip(" _.-") for text in options.endings or PARTNERS[0])
    order = FineTuningOrder(
        data=options.data,
        out=options.out,
        how=options.how,
        budget=Budget(minutes, options.steps),
        parent=options.parent,
        loss=options.loss,
        gain=options.gain,
        offset=options.offset,
        partners=((first, second),) if options.endings else PARTNERS,
        held_out=options.held_out,
        seed=options.seed,
        crop=options.crop,
        workers=options.workers,
    )
    with alone(order.out):
        outcome = fine_tune(order)
    print(f"{advice(outcome)} Report: {order.out / REPORT}")
    if outcome.recommended:
        print(f"Make weights of them: python -m engine_build.export {order.out} --name NAME -o FOLDER")
    return 0 if outcome.recommended else NOT_RECOMMENDED
