"""Commands that work on files or on a past session, beside a running service or without one.

What loads a network's runtime is imported where it is needed: `--help` must be quick.
"""

import argparse
import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from daemon.commands.progress import Progress
from daemon.errors import ConfigError, MicrographError, StorageError, TransientError
from daemon.ledger import sessions
from daemon.ledger.jobs import Ledger
from daemon.logs import one_line
from daemon.settings import config as settings
from daemon.settings import names
from daemon.settings.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from daemon.backends import Backend
    from daemon.formats.decoder import Reader
    from daemon.service.steps import Weights, Work


def settings_of(options: argparse.Namespace) -> Config:
    """The settings, with folders replaced by the command line's."""
    given = {"drop": options.drop, "output": options.out, "state": options.state}
    return settings.load(options.config, {name: folder for name, folder in given.items() if folder is not None})


def require_profile(config: Config, name: str | None) -> None:
    """Raises ConfigError for a profile that is not there."""
    if name is not None and name not in config.profiles:
        raise ConfigError(f"--profile {name}: no profile has this name; use one of: {', '.join(config.profiles)}")


@contextlib.contextmanager
def _opened(config: Config, progress: Progress) -> "Iterator[tuple[dict[str, Weights], dict[str, Backend], Reader]]":
    """Weights, their networks, and a reader; `progress` is on the screen meanwhile."""
    from daemon.backends import open_backend
    from daemon.formats.decoder import Reader
    from daemon.service import steps

    weights = steps.load_weights(config)
    with contextlib.ExitStack() as stack:
        backends = {}
        for name, one in weights.items():
            backends[name] = open_backend(config.backend, one.folder, config.folders.engines, progress.beat)
            stack.callback(backends[name].close)
        reader = stack.enter_context(Reader(config.backend.max_pixels, config.backend.decode_seconds))
        stack.enter_context(progress)
        yield weights, backends, reader


def denoise(options: argparse.Namespace) -> int:
    """The named files, now."""
    config = settings.load(options.config)
    require_profile(config, options.profile)
    options.out.mkdir(parents=True, exist_ok=True)
    named = names.told_apart(options.files)
    progress = Progress(len(named))
    with _opened(config, progress) as (weights, backends, reader):
        return _denoise_all(options, named, config, weights, backends, reader, progress)


def _denoise_all(
    options: argparse.Namespace,
    named: "Mapping[Path, PurePath]",
    config: Config,
    weights: "dict[str, Weights]",
    backends: "dict[str, Backend]",
    reader: "Reader",
    progress: Progress,
) -> int:
    failed = 0
    for path, relative in named.items():
        progress.next(str(path))
        try:
            for one in _pictures(config, weights, path, relative, reader, options.profile):
                _denoise(config, backends, one, options.out, progress)
        except StorageError:
            raise
        except (MicrographError, TransientError) as error:
            failed += 1
            progress.say(f"failed\n    {one_line(str(error))}")
        except OSError as error:
            failed += 1
            progress.say(f"failed\n    {error.strerror}")
        except MemoryError:
            failed += 1
            progress.say("failed\n    not enough memory for this micrograph; close other programs")
    return 1 if failed else 0


def _pictures(
    config: Config, weights: "dict[str, Weights]", path: Path, relative: PurePath, reader: "Reader", profile: str | None
) -> "Iterator[Work]":
    """The micrograph of a file, or those of its sections, each with its profile. Raises as `steps.read` does."""
    from daemon.service import sections, service, steps

    path = path.resolve(strict=True)
    rules, name = service.rules(config), relative.as_posix()
    raw = steps.fingerprint(path, config.backend.max_pixels)
    seconds: dict[str, float] = {}
    with steps.timed(seconds, "read"):
        found = sections.whole(reader, config, rules, path, name, profile)
    if found is not None:
        one = steps.read(config, weights, path, relative, raw, reader, profile=profile, micrograph=found)
        one.seconds.update(seconds)
        yield one
        return
    number, of, first = 1, 1, None
    while number <= of:
        micrograph, section = sections.read(reader, path, number, first)
        noted = sections.noted(micrograph, sections.taking(config, rules, name, micrograph, profile))
        one = steps.prepare(config, weights, path, sections.name(name, number), section.raw, noted, profile=profile)
        yield replace(one, section=section)
        number, of, first = number + 1, section.of, section.first


def _denoise(config: Config, backends: "dict[str, Backend]", one: "Work", out: Path, progress: Progress) -> None:
    from daemon.service import steps

    backend = backends[one.choice.profile.weights]
    with steps.timed(one.seconds, "network"):
        (denoised,) = backend.denoise([one.plane])
    outcome = steps.finish(config, one, denoised, out, same_settings=True)
    adopted = " (was there already)" if outcome.written.adopted else ""
    which = "" if one.section is None else f"{one.section}: "
    told = f"{outcome.verdict}, {outcome.dose}, profile {outcome.profile}, {sum(outcome.seconds.values()):.1f} s"
    warnings = "".join(f"\n    warning: {warning}" for warning in outcome.warnings)
    progress.say(f"{which}{told} → {outcome.written.image}{adopted}{warnings}")


def assess(options: argparse.Namespace) -> int:
    """How good the denoising of the named files is, by two halves of their own counts."""
    from daemon.verdict.halves import assess as assessed

    config = settings.load(options.config)
    require_profile(config, options.profile)
    told: dict[str, dict[str, object]] = {}
    progress = Progress(len(options.files), sys.stderr if options.json else sys.stdout)
    with _opened(config, progress) as (weights, backends, reader):
        for path in options.files:
            progress.next(str(path))
            try:
                for one in _pictures(config, weights, path, PurePath(path.name), reader, options.profile):
                    key = str(path) if one.section is None else f"{path} ({one.section})"
                    name = one.choice.profile.weights
                    found = assessed(one.micrograph.pixels, one.choice, weights[name].manifest, backends[name])
                    told[key] = found.as_json()
                    progress.say(found.describe())
            except (MicrographError, TransientError) as error:
                told[str(path)] = {"not applicable": str(error)}
                progress.say(one_line(str(error)))
            except OSError as error:
                told[str(path)] = {"failed": error.strerror}
                progress.say(f"failed: {error.strerror}")
    if options.json:
        print(json.dumps(told, indent=1))
    return 0 if any("error" in one for one in told.values()) else 1


def report_session(options: argparse.Namespace) -> int:
    """A page about a session."""
    from daemon.commands import report
    from daemon.output import paths

    config = settings_of(options)
    with Ledger(config.folders.state, "read") as ledger:
        jobs = sessions.find(ledger, options.session)
    options.to.parent.mkdir(parents=True, exist_ok=True)
    report.write(config, jobs, options.session, options.to, max(0, options.pictures))
    number = sum(len(list(paths.of(job))) or 1 for job in jobs)
    print(f"{number} micrographs → {options.to}")
    return 0


def replay_session(options: argparse.Namespace) -> int:
    """A session through other weights."""
    from daemon.commands import replay

    config = settings_of(options)
    with Ledger(config.folders.state, "read") as ledger:
        jobs = [job for job in sessions.find(ledger, options.session) if job.state == "done"]
    weights = settings.weights_named(options.weights)
    options.to.mkdir(parents=True, exist_ok=True)
    with Progress(sum(max(1, job.sections) for job in jobs)) as progress:
        found, skipped = replay.run(config, jobs, weights, max(0, options.pictures), progress)
    replay.write(options.to, options.session, options.weights, found, skipped)
    changed = sum(one.old != one.new for one in found)
    told = f"{len(found)} compared, {changed} with another verdict, {len(skipped)} not compared"
    print(f"{told} → {options.to / 'replay.html'}")
    return 0 if found else 1
