"""Compares finishes of one plateau: gains on validation crops, and the guards that they move most.

    python benchmarks/finishes.py RUN... --validation OTHER --sources CSV -o benchmarks/results/fast-2/finishes.json

Each RUN is the folder of a finished `python -m training fit`. The validation crops are those of the first run's recipe,
the same for all. Without BM3D as a rival; half of the seeds of an evaluation.
"""

import argparse
import json
import platform
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from training.data.truths import load_truths
from training.evaluation import defect_guards, guards
from training.evaluation.guard import Guard
from training.evaluation.methods import on_counts, weights
from training.loop import RECORD, WEIGHTS
from training.network import build
from training.presets import Recipe
from training.validation import validator

CHANGED = ("loss", "flat", "grid", "simulated", "emphasis")


def kept(guard: Guard) -> dict[str, Any]:
    """The worst figure, and what is kept at each exposure that counts."""
    exposures = guard.numbers.get("exposures", {})
    kinds = exposures.items() if isinstance(exposures, dict) else [("all", exposures)]
    return {
        "worst": round(guard.worst, 4),
        "limit": guard.limit,
        "ok": guard.ok,
        **{
            kind: {f"{one['dose']:g} counts, {one['contrast']:.0%}": one["kept"] for one in some if one["required"]}
            for kind, some in kinds
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--sources", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = [json.loads((run / RECORD).read_text()) for run in options.runs]
    known = {field.name for field in fields(Recipe)}
    recipes = [Recipe(**{k: v for k, v in one["recipe"].items() if k in known} | {"stages": ()}) for one in records]
    unseen = load_truths(options.validation, None, options.sources, 192, "clean")
    gain = validator(recipes[0], unseen)
    rows = []
    for run, record, recipe in zip(options.runs, records, recipes, strict=True):
        network = build(recipe.network, recipe.arguments).eval()
        network.load_state_dict(load_file(run / WEIGHTS))
        denoise = on_counts(weights(str(run)))
        row = {
            "run": run.parent.name,
            "batches": record["steps"],
            **{name: getattr(recipe, name) for name in CHANGED},
            **{name: round(figure, 3) for name, figure in gain(network, 0).items()},
            "vacancy": kept(defect_guards.vacancy(denoise, seeds=20)),
            "added atom": kept(defect_guards.added_atoms(denoise, seeds=20)),
            "foreign atom": kept(defect_guards.foreign_atoms(denoise, seeds=20)),
            "camera's flat field": kept(guards.camera_fields(denoise, seeds=4)),
            "spot in the spectrum of a flat field, before the export": kept(guards.flat_fields(denoise, seeds=8)[1]),
        }
        print(json.dumps({key: value for key, value in row.items() if not isinstance(value, dict)}), flush=True)
        rows.append(row)
    result = {"what": (__doc__ or "").split("\n")[0], "machine": platform.platform(), "rows": rows}
    result["date"] = datetime.now(timezone.utc).date().isoformat()
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
