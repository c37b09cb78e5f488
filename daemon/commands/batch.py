"""`emdenoised batch`: a folder of any size, on one computer or many, by shards of one frozen list.

Modules that load image libraries are imported inside functions: `--help` must be quick.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.batch.shard import EndedError, Shard
from daemon.commands.shared import settings_file, settings_for_files
from daemon.commands.terminal import wrapped
from daemon.errors import BackendError, TransientError, UsageError
from daemon.logs import one_line
from daemon.settings.config import Config

if TYPE_CHECKING:
    from daemon.batch.manifest import BatchManifest

_TASKS = 16


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    command.add_argument("source", type=Path, metavar="SRC", help="folder of micrographs; sub-folders are included")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="where results go")
    command.add_argument(
        "--shard", type=_shard, metavar="I/N", help="only part I of N, counted from 0; several computers share the work"
    )
    mode = command.add_mutually_exclusive_group()
    mode.add_argument("--slurm", action="store_true", help="submit the shards as an array job of SLURM")
    mode.add_argument("--status", action="store_true", help="count what is done, failed and to do; change nothing")
    command.add_argument(
        "--verify", action="store_true",
        help="compare hashes of raw files and results, not only size and time; results that are damaged or out of "
        "date are made again",
    )  # fmt: skip
    command.add_argument("--template", type=Path, metavar="FILE", help="with --slurm: your own script for the job")
    command.add_argument("--tasks", type=int, metavar="N", help=f"with --slurm: number of shards ({_TASKS})")
    command.add_argument("--dry-run", action="store_true", help="with --slurm: print the script, submit nothing")
    command.add_argument(
        "--manifest", metavar="SHA256",
        help="only with the list of this hash, or its beginning, and never list the folder (what --slurm does)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """0 if all is done, 1 if something failed, 75 if the same command has to be run again."""
    _require_fitting(options)
    for name in ("source", "out"):  # as the shell shows it: a link keeps its name
        setattr(options, name, Path(os.path.abspath(getattr(options, name))))  # noqa: PTH100
    config = settings_for_files(options, options.passes)
    try:
        if options.status:
            return _status(options, config)
        if options.slurm:
            return _submit(options, config)
        return _run(options, config)
    except (TransientError, BackendError, EndedError) as error:
        print(wrapped(f"emdenoised: {one_line(str(error))}", stream=sys.stderr), file=sys.stderr)
        return os.EX_TEMPFAIL


def _shard(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _require_fitting(options: argparse.Namespace) -> None:
    for name in ("template", "tasks", "dry_run"):
        if getattr(options, name) and not options.slurm:
            raise UsageError(f"--{name.replace('_', '-')} is for --slurm only")
    if options.slurm and options.shard is not None:
        raise UsageError("--slurm submits all shards; leave out --shard, and give their number by --tasks")
    if options.slurm and options.tasks is not None and options.tasks < 1:
        raise UsageError(f"--tasks {options.tasks}: give 1 or more")
    if os.path.lexists(options.source) and not options.source.is_dir():
        raise UsageError(f"{options.source}: is not a folder; for single files: emdenoised denoise")


def _run(options: argparse.Namespace, config: Config) -> int:
    from daemon.commands.batch_run import run_shard

    manifest = _manifest(options, config)
    shard = options.shard or Shard()
    print(f"{manifest}: {manifest.entries} micrographs; shard {shard} has {shard.share(manifest.entries)}")
    print(f"to list {manifest.source} again: remove {manifest.file}", flush=True)
    return run_shard(options, config, manifest, shard)


def _manifest(options: argparse.Namespace, config: Config) -> "BatchManifest":
    """The frozen list; made now where there is none, unless the command line demands a certain one."""
    from daemon.batch import manifest as manifests
    from daemon.output.disk import require_filled

    source, out = options.source, options.out
    found = manifests.load(out)
    if found is None and options.manifest is not None:
        raise TransientError(f"{out}: has no manifest; mount its share, and run the same command again")
    if found is None and options.status:
        raise UsageError(f"{out}: has no manifest; start the batch first: emdenoised batch {source} -o {out}")
    require_filled(source)
    if found is None:
        _make(out)
        print(f"listing {source} ...", flush=True)
        found = manifests.freeze(source, out, config.arrival)
    if found.source != source:
        raise UsageError(f"{out}: has results of {found.source}, not of {source}; choose another with -o")
    if options.manifest is not None and not found.sha256.startswith(options.manifest):
        raise UsageError(
            f"{found.file}: is another list ({found.sha256[:12]}) than that of --manifest; start the batch again"
        )
    return found


def _make(out: Path) -> None:
    """Only one level: the folder above it may be a share that is not mounted."""
    try:
        out.mkdir(exist_ok=True)
    except FileNotFoundError as error:
        raise TransientError(f"{out}: cannot be made because {out.parent} is missing; mount or make that") from error
    except FileExistsError as error:
        raise UsageError(f"{out}: is a file; choose another folder with -o") from error
    except OSError as error:
        raise TransientError(f"{out}: cannot be made ({error.strerror}); check its disk or share") from error


def _submit(options: argparse.Namespace, config: Config) -> int:
    from daemon.batch import slurm
    from daemon.batch.manifest import FOLDER
    from daemon.files import save

    out, tasks = options.out, options.tasks or _TASKS
    command = [*slurm.program(), "batch", str(options.source), "-o", str(out)]
    command += [f"--config={settings_file(options).absolute()}"]
    command += [f"--{name}={given}" for name in ("profile", "passes") if (given := getattr(options, name)) is not None]
    command += ["--verify"] if options.verify else []
    if options.dry_run:
        print(slurm.script(out, command, tasks, options.template), end="")
        return 0
    slurm.script(out, command, tasks, options.template)  # refused at once, not after the folder was listed
    manifest = _manifest(options, config)
    tasks = min(tasks, manifest.entries)
    text = slurm.script(out, [*command, f"--manifest={manifest.sha256}"], tasks, options.template)
    file = out / FOLDER / slurm.SCRIPT
    save(file, text.encode(errors="surrogateescape"))
    print(f"{manifest}: {manifest.entries} micrographs in {tasks} shards")
    print(f"{file}: {slurm.submit(file)}")
    print(f"how it gets on: {shlex.join([*command, '--status'])}")
    return 0


def _status(options: argparse.Namespace, config: Config) -> int:
    from daemon.commands.batch_run import print_status

    return print_status(options, config, _manifest(options, config), options.shard or Shard())
