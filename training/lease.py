"""`python -m training.lease`: train on a card that is lent for minutes, on a machine with little software.

`pack` makes one file with the input of a training; `run` trains from it on the lent machine within a given time, and
keeps results in a folder, so it may be killed at any moment. docs/training.md shows both.

`run` needs Python 3.10, torch from 2.9 on, numpy, safetensors, tqdm, matplotlib and tensorboard, which the lent machine
has. It imports neither pydantic, watchdog, imagecodecs, mrcfile nor tifffile.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import nn

from daemon.errors import ConfigError, EmdenoisedError
from daemon.files import save
from training.curve import CURVE, PICTURE
from training.data import simulate
from training.data.exposure import Image
from training.data.truths import Truth, load_truths, split_by_source
from training.distributed import Place
from training.loop import CHECKPOINT, RECORD, WEIGHTS, Budget, Validate, train
from training.network import build
from training.on_card import CardBatch, Stock
from training.packed import Pack, cut, pack, unpack
from training.presets import PRESETS, Recipe
from training.state import State, read
from training.supply import card_drawer, loss_of, stock_of
from training.validation import validator

log = logging.getLogger(__name__)

_PLATEAU, RUN, _EVALUATION, LOG = "plateau", "run", "evaluation.json", "log.txt"
SCENE_SIDE, _SCENES_A_PIECE = 320, 56
"""Side of simulated scenes, pixels, and number that one process draws at a time."""
_AFTERWARDS = 20.0
"""Seconds kept for the evaluation."""
_EVALUATED = 4
"""Times as many crops as during the training are evaluated in the end."""


def prepare(options: argparse.Namespace) -> int:
    """Carry out `pack`."""
    from training.changes import changed
    from training.fit import VALIDATION_SHARE, begin_from, provenance_of  # not importable on the lent machine

    recipe = changed(PRESETS["lease"]["all"], options.changes)
    if recipe.protocol != "counts" or recipe.course != "plateau":
        raise ConfigError("a lease trains on counts, and on a plateau that is finished: leave protocol and course")
    cache = options.out.parent / "cache"
    truths: list[Truth] = []
    for folder, listed in zip_longest(options.data, options.sources):
        truths += load_truths(folder, cache, listed, min(recipe.crop, 192))
    if options.validation:
        unseen = load_truths(options.validation, cache, smallest=min(recipe.crop, 192))
    else:
        truths, unseen = split_by_source(truths, VALIDATION_SHARE, recipe.seed)
    if options.start:
        begin_from(build(recipe.network, recipe.arguments), options.start)  # refuses weights of another network
    provenance = provenance_of(recipe, truths, unseen, options.start) | {"samples": "drawn on the device"}
    start = (options.start / WEIGHTS).read_bytes() if options.start else b""
    truths, unseen = ([cut(truth, options.largest) for truth in part] for part in (truths, unseen))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    size = pack(Pack(recipe, truths, unseen, provenance, start), options.out, int(options.limit * 2**20))
    print(f"{options.out}: {len(truths)} micrographs, {len(unseen)} to validate on, {size / 2**20:.1f} MiB")
    return 0


@dataclass(frozen=True, slots=True)
class Published:
    """Validates a network, and copies its weights and all other results so far to `out`.

    `engine_build.export` takes the run `out` / run; beside it is the checkpoint from which another call resumes.
    """

    out: Path
    work: Path
    folder: Path
    """Output folder of the loop."""
    recipe: Recipe
    provenance: dict[str, Any]
    validate: Validate

    def __call__(self, network: nn.Module, step: int) -> dict[str, float]:
        figures = self.validate(network, step)
        record = {"steps": step, "recipe": asdict(self.recipe), "unfinished": True, **self.provenance}
        weights = {name: value.contiguous() for name, value in network.state_dict().items()}
        save(self.out / RUN / WEIGHTS, to_safetensors(weights))
        save(self.out / RUN / RECORD, json.dumps(record, indent=1).encode() + b"\n")
        self._copy({CURVE, PICTURE, CHECKPOINT})
        return figures

    def publish(self) -> None:
        """Copy the loop's final output."""
        self._copy({WEIGHTS, RECORD, CURVE, PICTURE, CHECKPOINT})

    def _copy(self, names: set[str]) -> None:
        plateau = self.work / _PLATEAU
        for name in names:
            source = plateau / name if name == CHECKPOINT else self.folder / name
            kept = self.out / name if name == CHECKPOINT else self.out / RUN / name
            if not source.exists() or (kept.exists() and kept.stat().st_mtime_ns > source.stat().st_mtime_ns):
                continue
            rows_before = (plateau / CURVE).read_bytes() if name == CURVE and self.folder != plateau else b""
            save(kept, rows_before + source.read_bytes())


@dataclass(frozen=True, slots=True)
class Deadline:
    """Divides the remaining time, or the steps, between plateau and finish."""

    end: float
    """`time.monotonic` by which the weights must exist."""
    steps: int | None
    finish: float

    def plateau(self, spent: float) -> Budget:
        """Budget of a plateau that was trained for `spent` seconds before."""
        if self.steps:
            return Budget(steps=max(1, round(self.steps * (1 - self.finish))))
        return Budget(minutes=(spent + self._left() * (1 - self.finish)) / 60)

    def decay(self) -> Budget:
        """Budget of the finish: the remaining time."""
        return Budget(steps=max(1, round(self.steps * self.finish))) if self.steps else Budget(self._left() / 60)

    def _left(self) -> float:
        left = self.end - time.monotonic()
        if left <= 0:
            raise ConfigError(f"--minutes: used up {-left:.0f} s ago by what comes before the training; give more")
        return left


@dataclass(frozen=True, slots=True)
class LeaseCourse:
    """Common settings of the plateau and its finish."""

    content: Pack
    stock: Stock
    validate: Validate
    out: Path
    work: Path
    compiled: bool
    save_every: float

    def fit(self, recipe: Recipe, folder: Path, budget: Callable[[], Budget], origin: Path | None = None) -> None:
        """Train in `folder`; results go to `out` at every validation and at the end."""
        content = self.content
        torch.manual_seed(recipe.seed)
        network = build(recipe.network, recipe.arguments)
        if content.start:
            network.load_state_dict(from_safetensors(content.start))
        published = Published(self.out, self.work, folder, recipe, content.provenance, self.validate)
        folder.mkdir(parents=True, exist_ok=True)
        train(
            network,
            card_drawer(recipe, self.stock),
            loss_of(recipe),
            recipe,
            folder,
            budget(),
            published,
            content.provenance,
            origin=origin,
            save_every=self.save_every,
            compiled=self.compiled,
        )
        published.publish()


def run(options: argparse.Namespace) -> int:
    """Carry out `run`."""
    began = time.monotonic()
    if not 0 <= options.finish <= 1:
        raise ConfigError(f"--finish {options.finish:g}: give a share of the time between 0 and 1")
    (options.out / RUN).mkdir(parents=True, exist_ok=True)
    plateau: Path = options.work / _PLATEAU
    plateau.mkdir(parents=True, exist_ok=True)
    logging.getLogger().addHandler(logging.FileHandler(options.out / LOG))
    content = unpack(options.pack)
    recipe = content.recipe
    if options.resume and not (plateau / CHECKPOINT).exists():
        save(plateau / CHECKPOINT, options.resume.read_bytes())
    with ProcessPoolExecutor(options.processes, mp_context=get_context("fork")) as makers:
        scenes = recipe.scenes if recipe.simulated else 0
        # Submitted, and so forked, before the card is used.
        pieces = [makers.submit(scenes_of, recipe, first) for first in range(0, scenes, _SCENES_A_PIECE)]
        place = Place.join()
        torch.backends.cudnn.benchmark = True
        compiled = options.compile and compiles(recipe, place)
        stock = stock_of(content.truths, [scene for piece in pieces for scene in piece.result()], place.device)
        validate = validator(recipe, content.unseen)
    taken = time.monotonic() - began
    log.info("%s: %d micrographs and %d scenes after %.0f s", place.described, len(content.truths), scenes, taken)
    deadline = Deadline(began + 60 * options.minutes - _AFTERWARDS, options.steps, options.finish)
    course = LeaseCourse(content, stock, validate, options.out, options.work, compiled, options.save_every)
    if options.finish < 1:
        spent = read(plateau / CHECKPOINT, place.device)["spent"] if (plateau / CHECKPOINT).exists() else 0.0
        course.fit(recipe, plateau, partial(deadline.plateau, spent))
    if options.finish > 0:
        step = read(plateau / CHECKPOINT, place.device)["step"]
        course.fit(recipe.finishing(step), options.work / f"finished-{step}", deadline.decay, origin=plateau)
    evaluate(content, options.out, place)
    print(f"{options.out / RUN}: weights, curve and record; to serve them, where this project is installed:")
    print(f"    python -m engine_build.export {options.out / RUN} --name NAME -o FOLDER")
    return 0


def scenes_of(recipe: Recipe, first: int) -> list[Image]:
    """The recipe's scenes from number `first` on, one piece, independent of the process."""
    seed = int(np.random.SeedSequence([recipe.seed, first]).generate_state(1)[0])
    return simulate.marked_bank(seed, min(_SCENES_A_PIECE, recipe.scenes - first), max(SCENE_SIDE, recipe.crop))


def compiles(recipe: Recipe, place: Place) -> bool:
    """Whether torch can compile the network here: tries a step of the plateau and one of its finish, without effect."""
    try:
        for one in (recipe, recipe.finishing(0)):
            state = State(build(one.network, one.arguments), one, place, compiled=True)
            images = torch.zeros(one.batch, 1, one.crop, one.crop, device=place.device)
            level = torch.full((one.batch, 1, 1, 1), 0.1, device=place.device)
            state.advance(CardBatch(images, images, level, level), loss_of(one), 0.0, frozen=False)
    except Exception:  # compilers raise various errors; training works without
        log.warning("torch cannot compile the network here; trains without, more slowly", exc_info=True)
        return False
    return True


def evaluate(content: Pack, out: Path, place: Place) -> None:
    """Write figures of the weights, and of those it started from, on more crops than during the training."""
    crops = _EVALUATED * content.recipe.validation_crops
    measured = validator(replace(content.recipe, validation_crops=crops), content.unseen)
    found: dict[str, Any] = {"crops": crops, "hardware": place.described}
    weights = {"trained": (out / RUN / WEIGHTS).read_bytes(), "started_from": content.start}
    for name, state in weights.items():
        if state:
            network = build(content.recipe.network, content.recipe.arguments)
            network.load_state_dict(from_safetensors(state))
            found[name] = measured(network.to(place.device).eval(), 0)
    log.info("%s", found)
    save(out / _EVALUATION, json.dumps(found, indent=1).encode() + b"\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.lease", description=(__doc__ or "").split("\n\n")[1])
    commands = parser.add_subparsers(required=True, dest="command")
    packing = commands.add_parser("pack", help="make one file to take along, here")
    packing.add_argument("data", type=Path, nargs="+", help="folders of clean micrographs")
    packing.add_argument("--sources", type=Path, nargs="*", default=[], help="a CSV of sources for each of them")
    packing.add_argument("--validation", type=Path, help="folder to validate on; else a tenth of the data")
    packing.add_argument(
        "--start-from", dest="start", type=Path, help="folder of an earlier run whose weights to start from"
    )
    packing.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes", help="as for fit")
    packing.add_argument("--largest", type=int, default=1024, help="micrographs are cut to this side, pixels (1024)")
    packing.add_argument("--limit", type=float, default=38, help="largest size of the file, MiB (38)")
    packing.add_argument("--out", type=Path, default=Path("runs/lease.npz"))
    packing.set_defaults(carry_out=prepare)
    running = commands.add_parser("run", help="train from it, there")
    running.add_argument("pack", type=Path)
    running.add_argument("--out", type=Path, required=True, help="folder for what comes back, at most 8 files")
    running.add_argument("--work", type=Path, default=Path("runs/lease"), help="folder for all else, and to resume in")
    running.add_argument("--minutes", type=float, default=8, help="from now to the weights (8)")
    running.add_argument("--steps", type=int, help="steps of plateau and finish together, whatever time they take")
    running.add_argument(
        "--finish", type=float, default=0.35, help="share that brings the rate down; 0: none yet (0.35)"
    )
    running.add_argument("--resume", type=Path, help="checkpoint.pt of an earlier call, if the work folder is gone")
    running.add_argument("--save-every", type=float, default=45, help="seconds between checkpoints (45)")
    running.add_argument("--processes", type=int, default=os.cpu_count(), help="that draw scenes (all cores)")
    running.add_argument("--no-compile", dest="compile", action="store_false", help="do not compile the network")
    running.set_defaults(carry_out=run)
    return parser.parse_args()


def main() -> int:
    options = parsed()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    try:
        status: int = options.carry_out(options)
    except (EmdenoisedError, OSError) as error:
        raise SystemExit(f"python -m training.lease: {error}") from error
    return status


if __name__ == "__main__":
    raise SystemExit(main())
