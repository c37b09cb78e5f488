"""The `emdenoised` command."""

import argparse
import io
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from daemon import __version__, logs
from daemon.commands import calibrate
from daemon.commands import shared as offline
from daemon.errors import ConfigError, EmdenoisedError, TransientError, WeightsError
from daemon.ledger import sessions
from daemon.ledger.database import LedgerDamagedError
from daemon.ledger.jobs import Ledger
from daemon.logs import one_line
from daemon.settings import config as settings
from daemon.settings.config import EX_CONFIG

log = logging.getLogger(__name__)

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
        "denoise", offline.denoise, "denoise the named files now, without drop folder or ledger", shared=False
    )
    how_good = add(
        "assess",
        offline.assess,
        "how good the denoising of the named files is, told from two halves of their own counts, at half the dose",
        shared=False,
    )
    for command in (one_off, how_good):
        command.add_argument(
            "files",
            nargs="+",
            type=Path,
            metavar="FILE",
            help="micrographs: TIFF, MRC, EER; with the extra `formats` DM3/DM4, SER, EMD, HyperSpy",
        )
        command.add_argument("--config", type=Path, metavar="FILE", help=SETTINGS)
        command.add_argument(
            "--profile",
            metavar="NAME",
            help="dose profile (default: by the files' names, as the settings say; rules on sub-folders do not apply)",
        )
    one_off.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="where results go")
    how_good.add_argument("--json", action="store_true", help="print as JSON, with the ring correlations")
    lab = add("report", offline.report_session, "a session as one HTML page for a lab book: pictures, verdicts, hashes")
    again = add("replay", offline.replay_session, "run a past session through other weights and compare the verdicts")
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


def start(options: argparse.Namespace, once: bool) -> int:
    from daemon.service.supervisor import supervise

    config = offline.settings_of(options)
    logs.set_up(config.log.level, config.log.format)
    try:
        settings.prepare_folders(config, options.create_drop)
    except TransientError as error:
        if once:
            raise
        log.warning("%s; the service starts and waits for it", error)
    return supervise(config, once, lambda: offline.settings_of(options))


def run_service(options: argparse.Namespace) -> int:
    return start(options, once=False)


def run_once(options: argparse.Namespace) -> int:
    return start(options, once=True)


def run_check(options: argparse.Namespace) -> int:
    config = offline.settings_of(options)
    print(f"{options.config or settings.default_config_path()}: usable")
    print(f"  drop    {config.folders.drop}\n  output  {config.folders.output}\n  state   {config.folders.state}")
    for profile in config.profiles.values():
        dose = "any dose" if profile.dose is None else f"{profile.dose[0]:g} to {profile.dose[1]:g} counts per pixel"
        default = " (default)" if profile.name == config.default_profile else ""
        print(f"  profile {profile.name}{default}: {dose}, weights {profile.weights}, gain {profile.gain}")
    return 0


def run_doctor(options: argparse.Namespace) -> int:
    from daemon.commands.doctor import examine

    given = {"drop": options.drop, "output": options.out, "state": options.state}
    faults = 0
    for finding in examine(options.config, {name: folder for name, folder in given.items() if folder is not None}):
        faults += finding.verdict == "fault"
        print(f"{ {'ok': '  ok  ', 'note': ' note ', 'fault': 'FAULT '}[finding.verdict] } {finding.text}")
        if finding.remedy:
            print(f"        → {finding.remedy}")
    print("all is well" if not faults else f"{faults} fault{'s' if faults > 1 else ''} to mend")
    return 1 if faults else 0


def run_status(options: argparse.Namespace) -> int:
    with Ledger(offline.settings_of(options).folders.state, "read") as ledger:
        counts = ledger.counts()
        recent, set_aside = ledger.recent(10), ledger.recent(1_000_000 if options.json else 100, "quarantined")
    if options.json:
        print(
            json.dumps(
                {
                    "counts": counts,
                    "recent": [asdict(job) for job in recent],
                    "quarantined": [asdict(job) for job in set_aside],
                },
                indent=1,
                default=str,
            )
        )
        return 0
    print(", ".join(f"{number} {state}" for state, number in counts.items()))
    for job in recent:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.updated))
        remark = job.error or job.warning or ""
        word = job.verdict if job.state == "done" and job.verdict else job.state
        print(f"  {when}  {word:11}  {job.path!r}{f'  ({one_line(remark)})' if remark else ''}")
    if set_aside:
        print("quarantined; looked at again when they change, or with: emdenoised retry")
        for job in set_aside:
            print(f"  {job.path!r}: {one_line(job.error or '')}")
        if (more := counts["quarantined"] - len(set_aside)) > 0:
            print(f"  and {more} more: emdenoised status --json")
    return 0


def run_retry(options: argparse.Namespace) -> int:
    with Ledger(offline.settings_of(options).folders.state, "edit") as ledger:
        jobs = ledger.retry(options.pattern)
    for job in jobs:
        print(f"again: {job.path!r}")
    print(f"{len(jobs)} to be tried again" if jobs else f"nothing quarantined matches {options.pattern!r}")
    return 0


def run_prune(options: argparse.Namespace) -> int:
    from daemon.service.housekeeping import prune

    config = offline.settings_of(options)
    with Ledger(config.folders.state, "read" if options.dry_run else "edit") as ledger:
        pruned = prune(config, ledger, dry_run=options.dry_run)
    print(f"{'would be removed' if options.dry_run else 'removed'}: {pruned}")
    return 0


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


if __name__ == "__main__":
    raise SystemExit(main())
