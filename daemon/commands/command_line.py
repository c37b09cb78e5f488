"""The command line: commands, their options, and an example for each. Quick: `--help` loads no image library."""

import argparse
from collections.abc import Callable
from pathlib import Path

from daemon import __version__
from daemon.commands import assess, batch, calibrate, denoise, purge, star
from daemon.commands.run import run_check, run_once, run_service
from daemon.commands.status import run_acknowledge, run_prune, run_retry, run_status
from daemon.ledger import sessions
from daemon.settings import config as settings

Run = Callable[[argparse.Namespace], int]

_EPILOG = """\
a first try:
  emdenoised demo                         a simulated camera, the real daemon, two minutes
  emdenoised denoise image.tif -o out/    one file, now
  emdenoised run --create-drop            watch the folder that config.yaml names

exit status:
  0   success
  1   something failed; the last lines give the reason
  2   wrong arguments
  75  not everything could be done now: run the same command again (batch)
  78  the settings, their weights or the state folder cannot be used; starting again would not help
  130, 141  interrupted; the reader of the output has gone
"""
_SETTINGS = f"settings (default: those of the installed service, else {settings.default_config_path()})".replace(
    "%", "%%"
)


def parser() -> argparse.ArgumentParser:
    """The command line; every subcommand sets `run`, a function of the parsed options that returns the exit status."""
    top = argparse.ArgumentParser(
        prog="emdenoised",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Denoises each electron micrograph that lands in a drop folder: same units, same mean, same pixel\n"
        "size, with a record of how it was made. Raw files are never changed.",
    )
    top.add_argument("--version", action="version", version=f"emdenoised {__version__}")
    commands = _Commands(top)
    _add_service(commands)
    _add_files(commands)
    _add_sessions(commands)
    _add_star(commands)
    calibrate.add_arguments(
        commands.add(
            "calibrate",
            calibrate.run,
            "measure a camera from flat-field exposures and darks: gain, offset, read-out, point spread, defects",
            shared=False,
        )
    )
    _add_demo(commands)
    return top


class _Commands:
    """Adds commands to the command line `top`."""

    def __init__(self, top: argparse.ArgumentParser) -> None:
        self._commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
        self._shared = argparse.ArgumentParser(add_help=False)
        _add_settings(self._shared)
        for name, what in (
            ("drop", "where micrographs arrive"),
            ("out", "where results go"),
            ("state", "the ledger's folder"),
        ):
            text = f"{what}; replaces the setting in the file"
            self._shared.add_argument(f"--{name}", type=Path, metavar="DIR", help=text)

    def add(self, name: str, run: Run, text: str, *examples: str, shared: bool = True) -> argparse.ArgumentParser:
        """A command; `shared`: with the options for settings and folders."""
        command: argparse.ArgumentParser = self._commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog="\n".join(("examples:" if len(examples) > 1 else "example:", *(f"  {one}" for one in examples))),
            formatter_class=_Formatter,
            parents=[self._shared] if shared else [],
        )
        command.set_defaults(run=run)
        return command


class _Formatter(argparse.HelpFormatter):
    """Breaks the lines of the description, and keeps those of the examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "".join(indent + line for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, metavar="FILE", help=_SETTINGS)


def _add_service(commands: _Commands) -> None:
    for name, run, text, example in (
        (
            "run",
            run_service,
            "watch the drop folder until stopped (what the service runs)",
            "emdenoised run --create-drop --config config.yaml",
        ),
        (
            "once",
            run_once,
            "process the micrographs in the drop folder, then exit: 0 if all of them succeeded, else 1",
            "emdenoised once --drop /data/today --out /data/denoised --state ~/.local/state/today",
        ),
    ):
        commands.add(name, run, text, example).add_argument(
            "--create-drop", action="store_true", help="make the drop folder if it is missing"
        )
    commands.add(
        "check",
        run_check,
        "read the settings, load the weights that they name, and report errors; change nothing",
        "emdenoised check --config /etc/emdenoised/config.yaml",
    )
    commands.add(
        "doctor",
        _run_doctor,
        "test this installation: settings, folders, weights, backend",
        "sudo -u emdenoised emdenoised doctor",
    )
    commands.add(
        "status",
        run_status,
        "what was done, what waits, what failed and why",
        "emdenoised status",
        "emdenoised status --json",
    ).add_argument("--json", action="store_true", help="print as JSON")
    for name, run, text in (
        ("retry", run_retry, "try quarantined micrographs again; a running service does so at once"),
        (
            "acknowledge",
            run_acknowledge,
            "mark quarantined and rejected micrographs as seen, so that they no longer count as open problems",
        ),
    ):
        commands.add(name, run, text, f"emdenoised {name}", f"emdenoised {name} 'grid 2/*'").add_argument(
            "pattern",
            nargs="?",
            default="*",
            help="only those whose path below the drop folder, or name, matches, such as 'low/*' (default: all)",
        )
    commands.add(
        "prune",
        run_prune,
        "remove the oldest previews, and micrographs in the ledger whose raw files are gone, as `keep` in the settings "
        "states",
        "emdenoised prune --dry-run",
    ).add_argument("--dry-run", action="store_true", help="only report how much would be removed")
    _add_purge(commands)


def _add_purge(commands: _Commands) -> None:
    command = commands.add(
        "purge",
        purge.run_purge,
        "remove the results, records and previews of a project, and its micrographs in the ledger; raw files are not "
        "touched, and not denoised again automatically",
        "emdenoised purge 'alice/grid 2'",
        "emdenoised purge 'alice/grid 2' --yes",
    )
    command.add_argument("folders", nargs="+", metavar="FOLDER", help="sub-folder of the drop folder, and all below it")
    command.add_argument("--yes", action="store_true", help="do it; without, only report what would be removed")
    command.add_argument(
        "--again", action="store_true", help="instead, denoise purged micrographs of these folders again"
    )


def _add_files(commands: _Commands) -> None:
    one_off = commands.add(
        "denoise",
        denoise.denoise,
        "denoise the named files, and the micrographs in named folders and their sub-folders, now, without drop folder "
        "or ledger",
        "emdenoised denoise image.tif other.mrc -o denoised/",
        "emdenoised denoise /data/today -o /data/denoised",
        shared=False,
    )
    how_good = commands.add(
        "assess",
        assess.assess,
        "estimate the error of the denoised files from two halves of their own counts, at half the dose",
        "emdenoised assess image.tif",
        shared=False,
    )
    kinds = "TIFF, MRC, EER, DM3/DM4, SER, EMD, HyperSpy"
    one_off.add_argument(
        "files", nargs="+", type=Path, metavar="FILE|FOLDER", help=f"micrographs ({kinds}), or folders of them"
    )
    how_good.add_argument("files", nargs="+", type=Path, metavar="FILE", help=f"micrographs: {kinds}")
    archive = commands.add(
        "batch",
        batch.run,
        "denoise a folder of any size, on one computer or many, in parts that can be interrupted and repeated",
        "emdenoised batch /archive/2026 -o /archive/2026-denoised",
        "emdenoised batch /archive/2026 -o /archive/2026-denoised --slurm --tasks 32",
        "emdenoised batch /archive/2026 -o /archive/2026-denoised --status",
        shared=False,
    )
    batch.add_arguments(archive)
    for command in (one_off, how_good, archive):
        _add_settings(command)
        command.add_argument(
            "--profile",
            metavar="NAME",
            help="dose profile (default: by the files' names, as the settings state; rules on sub-folders apply only "
            "below a named folder)",
        )
    one_off.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="where results go")
    for command in (one_off, archive):
        command.add_argument(
            "--passes",
            type=int,
            choices=(1, 8),
            help="8: average over the eight orientations of the image, in eight times the time (default: by profile)",
        )
    how_good.add_argument("--json", action="store_true", help="print as JSON, with the ring correlations")


def _add_sessions(commands: _Commands) -> None:
    lab = commands.add(
        "report",
        _run_report,
        "a session as one HTML page for a lab book: pictures, verdicts, hashes",
        "emdenoised report last -o session.html",
        "emdenoised report 'grid 2' -o grid2.html --pictures 10",
    )
    again = commands.add(
        "replay",
        _run_replay,
        "run a past session through other weights and compare the verdicts",
        "emdenoised replay today --weights /path/to/mine -o compared/",
    )
    for command in (lab, again):
        command.add_argument("session", metavar="SESSION", help=sessions.HELP)
        command.add_argument(
            "--pictures",
            type=int,
            default=60,
            metavar="N",
            help="so many pictures at most, the doubtful ones first (60)",
        )
    lab.add_argument(
        "-o", "--to", required=True, metavar="FILE",
        help="the page, such as session.html; in a folder (DIR/) it is named by the session's day and time",
    )  # fmt: skip
    again.add_argument(
        "--weights", required=True, metavar="NAME", help="of weights that came with the program, or a folder of weights"
    )
    again.add_argument(
        "-o", "--to", type=Path, required=True, metavar="DIR", help="folder for replay.html and replay.json"
    )


def _add_star(commands: _Commands) -> None:
    command = commands.add(
        "star",
        star.run,
        "list denoised micrographs in a STAR file for RELION, for picking particles only",
        "emdenoised star /data/denoised -o denoised_for_picking.star",
        shared=False,
    )
    command.add_argument("results", type=Path, metavar="RESULTS", help="the folder of the results")
    command.add_argument(
        "-o", "--to", type=Path, required=True, metavar="FILE",
        help="in the folder of the RELION project; beside it a folder of links to the results is made",
    )  # fmt: skip
    command.add_argument("--kv", type=float, metavar="KV", help="voltage (default: as the raw files state it)")
    command.add_argument("--cs", type=float, default=2.7, metavar="MM", help="spherical aberration (2.7)")
    command.add_argument("--amplitude-contrast", type=float, default=0.1, metavar="Q0", help="0 to 1 (0.1)")


def _add_demo(commands: _Commands) -> None:
    commands.add(
        "demo",
        _run_demo,
        "a simulated camera writes, the real daemon denoises, every result is measured",
        "emdenoised demo -o /tmp/emdenoised-demo",
        shared=False,
    ).add_argument("-o", "--out", type=Path, default=Path("demo-output"), metavar="DIR", help="default: demo-output")


def _run_doctor(options: argparse.Namespace) -> int:
    from daemon.commands import doctor

    return doctor.run_doctor(options)


def _run_report(options: argparse.Namespace) -> int:
    from daemon.commands import report

    return report.report_session(options)


def _run_replay(options: argparse.Namespace) -> int:
    from daemon.commands import replay

    return replay.replay_session(options)


def _run_demo(options: argparse.Namespace) -> int:
    from daemon.demo import run as demo

    return demo.run(options.out)
