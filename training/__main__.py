"""`python -m training`: train weights on micrographs, evaluate them, and fine-tune them on your own."""

import argparse
import importlib
import logging
import os
import signal
import sys
from types import ModuleType
from typing import NoReturn

from daemon.errors import EmdenoisedError

COMMANDS = {
    "fit": ("training.fit", "train a network on a folder of clean micrographs"),
    "finetune": (
        "training.finetuning.command",
        "go on from shipped weights with your own micrographs: clean ones, noisy pairs, or single noisy counts",
    ),
    "evaluate": (
        "training.evaluation.command",
        "compare weights with the paper's filters and BM3D on the same noisy micrographs; writes a report",
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    chosen = next((word for word in sys.argv[1:] if word in COMMANDS), None)
    for name, (where, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if name == chosen:  # the others may need libraries that are not installed
            module = _loaded(where, name)
            command.description = (module.__doc__ or summary).split("\n\n")[0]
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    try:
        options = parser.parse_args()
    except SystemExit as end:
        _end(int(end.code or 0))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        status: int = options.run(options)
    except EmdenoisedError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr, flush=True)
        _end(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        parser.exit(
            1,
            f"{parser.prog}: {where}{error.strerror or error}; make room, check the rights, or choose another --out; "
            "the same command continues from the last checkpoint\n",
        )
    return status


def _loaded(where: str, command: str) -> ModuleType:
    """A command's module; ends with the remedy where one of its libraries is not installed."""
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        extra = "train,evaluate" if command == "evaluate" else "train"
        print(f"python -m training {command}: {error}; pip install 'emdenoised[{extra}]'", file=sys.stderr, flush=True)
        _end(1)


def _end(status: int) -> NoReturn:
    """Exit; after a mistake also end `torchrun`, which would start all processes again only to meet the same one."""
    if status and "TORCHELASTIC_RUN_ID" in os.environ:
        os.kill(os.getppid(), signal.SIGTERM)
    raise SystemExit(status)


if __name__ == "__main__":
    raise SystemExit(main())
