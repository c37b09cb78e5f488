"""`python -m training`: make weights from micrographs."""

import argparse
import logging
from pathlib import Path

from daemon.errors import EmdenoisedError
from training.fit import Recipe, fit


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    fitting = commands.add_parser("fit", help="train the fast network on a folder of clean micrographs")
    fitting.add_argument("data", type=Path, help="folder of micrographs (TIFF, MRC)")
    fitting.add_argument("--out", type=Path, required=True, help="folder for checkpoints and weights; rerun to resume")
    fitting.add_argument("--budget-minutes", type=float, default=60, help="wall-clock time to train (default 60)")
    fitting.add_argument("--validation", type=Path, help="folder of micrographs not trained on")
    fitting.add_argument("--widths", type=int, nargs=4, default=[24, 48, 96, 192], help="features per resolution")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe = Recipe(arguments={"widths": options.widths})
    try:
        fit(options.data, options.out, recipe, options.budget_minutes, options.validation)
    except EmdenoisedError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
