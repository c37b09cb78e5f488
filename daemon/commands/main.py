"""The `emdenoised` command: its options, and which module does what. Quick: `--help` loads no image library."""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from daemon import __version__, logs
from daemon.commands import assess, calibrate, denoise
from daemon.commands.run import run_check, run_once, run_service
from daemon.commands.status import run_prune, run_retry, run_status
from daemon.errors import ConfigError, EmdenoisedError, WeightsError
from daemon.ledger import sessions
from daemon.ledger.database import LedgerDamagedError
from daemon.settings import config as settings
from daemon.settings.config import EX_CONFIG

SETTINGS = f"settings (default: {settings.default_config_path()})".replace("%", "%%")

EPILOG = """\
a first try:
  emdenoised demo                         a simulated camera, the real daemon, two minutes
  emdenoised denoise image.tif -o out/    one file, now
  emdenoised run --create-drop            watch the folder that config.yaml names

exit status: 0 all is well; 1 something failed, the last lines say what; 78 the configuration, the weights or the
ledger cannot be used, and starting again would not help.
"""


def parser() -> argparse.ArgumentParser:
    """The command line; every subcommand sets `run`, a function of the parsed options that returns the exit status."""
    top = argparse.ArgumentParser(
        prog="emdenoised",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Denoises each electron micrograph that lands in a drop folder: same units, same mean, same pixel\n"
        "size, with a record of how it was made. Raw files are never changed.",
    )
    top.add_argument("--version", action="version", version=f"emdenoised {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, metavar="FILE", help=SETTINGS)
    for name, what in (
        ("drop", "where micrographs arrive"),
        ("out", "where results go"),
        ("state", "the ledger's folder"),
    ):
        common.add_argument(f"--{name}", type=Path, metavar="DIR", help=f"{what}; replaces the setting in the file")

    def add(
        name: str, run: Callable[[argparse.Namespace], int], text: str, shared: bool = True
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common] if shared else []
        )
        command.set_defaults(run=run)
        return command

    for name, run, text in (
        ("run", run_service, "watch the drop folder until stopped (what the service runs)"),
        ("once", run_once, "process what lies in the drop folder, then exit: 0 if all of it came out, else 1"),
    ):
        add(name, run, text).add_argument(
            "--create-drop", action="store_true", help="make the drop folder if it is missing"
        )
    one_off = add(
        "denoise", denoise.denoise, "denoise the named files now, without drop folder or ledger", shared=False
    )
    how_good = add(
        "assess",
        assess.assess,
        "how good the denoising of the named files is, told from two halves of their own counts, at half the dose",
        shared=False,
    )
    for command in (one_off, how_good):
        command.add_argument(
            "files",
            nargs="+",
            type=Path,
            metavar="FILE",
            help="micrographs: TIFF, MRC, EER, DM3/DM4, SER, EMD, HyperSpy",
        )
        command.add_argument("--config", type=Path, metavar="FILE", help=SETTINGS)
        command.add_argument(
            "--profile",
            metavar="NAME",
            help="dose profile (default: by the files' names, as the settings say; rules on sub-folders do not apply)",
        )
    one_off.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="where results go")
    one_off.add_argument(
        "--passes",
        type=int,
        choices=(1, 8),
        help="8: average over the eight orientations of the image, in eight times the time (default: by profile)",
    )
    how_good.add_argument("--json", action="store_true", help="print as JSON, with the ring correlations")
    lab = add("report", run_report, "a session as one HTML page for a lab book: pictures, verdicts, hashes")
    again = add("replay", run_replay, "run a past session through other weights and compare the verdicts")
    for command in (lab, again):
        command.add_argument("session", metavar="SESSION", help=sessions.HELP)
        command.add_argument(
            "--pictures",
            type=int,
            default=60,
            metavar="N",
            help="so many pictures at most, the doubtful ones first (60)",
        )
    lab.add_argument("-o", "--to", type=Path, required=True, metavar="FILE", help="the page, such as session.html")
    again.add_argument(
        "--weights", required=True, metavar="NAME", help="of weights that came with the program, or a folder of weights"
    )
    again.add_argument(
        "-o", "--to", type=Path, required=True, metavar="DIR", help="replay.html and replay.json go here"
    )
    calibrate.add_arguments(
        add(
            "calibrate",
            calibrate.run,
            "measure a camera from flat-field exposures and darks: gain, offset, read-out, point spread, defects",
            shared=False,
        )
    )
    add("check", run_check, "read the settings and say what is wrong with them; change nothing")
    add("doctor", run_doctor, "test this installation: settings, folders, weights, backend")
    add("status", run_status, "what was done, what waits, what failed and why").add_argument(
        "--json", action="store_true", help="print as JSON"
    )
    add(
        "retry",
        run_retry,
        "try quarantined micrographs again: those set aside with a reason; a running service sees to it",
    ).add_argument(
        "pattern",
        nargs="?",
        default="*",
        help="only those whose path below the drop folder, or name, matches, such as 'low/*' (default: all)",
    )
    add(
        "prune", run_prune, "remove the oldest previews and forgotten micrographs, as `keep` in the settings says"
    ).add_argument("--dry-run", action="store_true", help="only say how much it would be")
    demo = add(
        "demo", run_demo, "a simulated camera writes, the real daemon denoises, every result is measured", shared=False
    )
    demo.add_argument("-o", "--out", type=Path, default=Path("demo-output"), metavar="DIR", help="default: demo-output")
    return top


def run_doctor(options: argparse.Namespace) -> int:
    from daemon.commands import doctor

    return doctor.run_doctor(options)


def run_report(options: argparse.Namespace) -> int:
    from daemon.commands import report

    return report.report_session(options)


def run_replay(options: argparse.Namespace) -> int:
    from daemon.commands import replay

    return replay.replay_session(options)


def run_demo(options: argparse.Namespace) -> int:
    from daemon.demo import run as demo

    return demo.run(options.out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Expected failures end in one readable message, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    logs.set_up()
    try:
        status: int = options.run(options)
        return status
    except (ConfigError, WeightsError, LedgerDamagedError) as error:  # starting again would not help
        print(f"emdenoised: {error}", file=sys.stderr)
        return EX_CONFIG
    except (EmdenoisedError, OSError) as error:
        print(f"emdenoised: {error}", file=sys.stderr)
        return 1
    except MemoryError:
        print("emdenoised: not enough memory; close other programs, or lower backend.queue", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
