"""Compares networks after longer trainings at equal processor time, by all guards.

`python benchmarks/controls.py DATA --validation OTHER --runs FOLDER -o benchmarks/results/controls.json [--only NAME]`
trains the missing controls in FOLDER and measures all; it can be killed and run again. Short trainings (`ablations.py`)
favour small networks, so this comparison decides. Each control is a plateau and its finish. The steps are those of
45 minutes on one core with AMX, by the processor seconds per step, measured in turn, which the result states, too.
"""

import argparse
import json
import logging
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file

from training.changes import changed
from training.data import simulate
from training.distributed import Place
from training.evaluation import guards
from training.evaluation.methods import on_counts, weights
from training.fit import FitOrder, fit_and_finish, material
from training.loop import WEIGHTS, Budget
from training.network import build
from training.presets import FAST, Recipe
from training.state import State
from training.supply import drawer, loss_of
from training.validation import validator

FINISH = 0.25
SHIPPED = 'arguments={"widths": [32, 64, 128, 256], "blocks": [1, 1, 2, 2]}'
SHALLOWER = 'arguments={"widths": [64, 64, 96, 128], "blocks": [1, 1, 1, 1]}'
OTHER_SEED = "seed=20182"


@dataclass(frozen=True, slots=True)
class Control:
    """One training: changes to the recipe `fast`, batches, and whether simulated crystals have defects."""

    changes: tuple[str, ...]
    steps: int
    defects: bool = True

    @property
    def recipe(self) -> Recipe:
        return changed(FAST, self.changes)


CONTROLS = {
    "shipped shape": Control((SHIPPED,), 10_000, defects=False),
    "new shape": Control((), 10_000, defects=False),
    "new shape, other seed": Control((OTHER_SEED,), 10_000, defects=False),
    "new shape, defects": Control((), 10_000),
    "new shape, defects, other seed": Control((OTHER_SEED,), 10_000),
    "shallower at the bottom, defects": Control((SHALLOWER,), 10_000),
}


@contextmanager
def crystals(defects: bool) -> Iterator[None]:
    """Simulated crystals with defects, or perfect ones."""
    with nullcontext() if defects else patch("training.data.crystal_scenes.with_defects", lambda _, crystal: crystal):
        yield


def costs(rounds: int = 9) -> dict[str, float]:
    """Median processor seconds of one thread per batch, all shapes in turn."""
    torch.set_num_threads(1)
    place, made = Place.join(), {}
    for name, control in CONTROLS.items():
        recipe = control.recipe
        made[name] = (State(build(recipe.network, recipe.arguments), recipe, place), loss_of(recipe))
    drawn = drawer(FAST, [], simulate.bank(1, 16, 160))(0, range(FAST.batch))
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, (state, loss) in made.items():
            begin = time.process_time()
            state.advance(drawn, loss, 1e-6, frozen=False)
            seconds[name].append(time.process_time() - begin)
    return {name: round(statistics.median(found[2:]), 3) for name, found in seconds.items()}


def measured(folder: Path, order: FitOrder, recipe: Recipe) -> dict[str, Any]:
    """Gains on crops outside the training (two draws of 128 crops a band), and every guard."""
    network = build(recipe.network, recipe.arguments)
    network.load_state_dict(load_file(folder / WEIGHTS))
    network.eval()
    _, unseen = material(order, recipe)
    draws = [
        validator(replace(recipe, seed=seed, crop=128, validation_crops=512), unseen)(network, 0) for seed in (1, 2)
    ]
    gains = {name.rpartition("_")[2]: [round(draw[name], 3) for draw in draws] for name in draws[0]}
    torch.set_num_threads(1)
    return {"gains": gains, "guards": [guard.as_json() for guard in guards.run_all(on_counts(weights(str(folder))))]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--sources", type=Path, help="CSV of names, sources and grades")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the trainings, a sub-folder each")
    parser.add_argument("--only", action="append", choices=list(CONTROLS), help="these controls; may be repeated (all)")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    result = json.loads(options.out.read_text()) if options.out.exists() else {"controls": {}}
    for name in options.only or CONTROLS:
        control = CONTROLS[name]
        # The same code makes other scenes of perfect crystals: they need a separate cache.
        folder = options.runs / name.replace(" ", "-").replace(",", "")
        cache = options.runs / ("cache" if control.defects else "cache-perfect")
        order = FitOrder(options.data, folder, options.validation, options.sources, workers=1, cache=cache)
        with crystals(control.defects):
            made = fit_and_finish(order, control.recipe, Budget(steps=control.steps), FINISH)
        found = measured(made, order, control.recipe)
        result["controls"][name] = {
            "changes": control.changes,
            "defects": control.defects,
            "steps": control.steps,
            **found,
        }
        result["what"] = (
            "gain in PSNR (dB) over the input on crops not trained on, and the guards, after equal processor time"
        )
        result["seconds per batch of 16, one thread, in turn"] = costs()
        result["torch"], result["machine"] = torch.__version__, Place.join().described
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        print(name, found["gains"], flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
