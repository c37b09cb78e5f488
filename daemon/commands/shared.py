"""Shared by several commands: settings, the service's ledger, open networks, and the micrographs of a file.

Modules that load a network's runtime or start programs are imported inside functions: `--help` must be quick.
"""

import argparse
import contextlib
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal

from daemon.commands.progress import Progress
from daemon.errors import UsageError
from daemon.ledger.database import LedgerError
from daemon.ledger.jobs import Ledger
from daemon.settings import config as settings
from daemon.settings.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.backends.manifest import Weights
    from daemon.backends.protocol import Backend
    from daemon.formats.decoder import Reader
    from daemon.service.steps import Work


def settings_of(options: argparse.Namespace) -> Config:
    """The settings, with folders replaced by the command line's."""
    return settings.load(settings_file(options), folders_of(options))


def folders_of(options: argparse.Namespace) -> dict[str, Path]:
    """The folders that the command line names, by their names in the settings."""
    given = {"drop": options.drop, "output": options.out, "state": options.state}
    return {name: folder for name, folder in given.items() if folder is not None}


def settings_file(options: argparse.Namespace) -> Path:
    """That of the command line, else that of the installed service, else the one that came with the program."""
    given: Path | None = options.config
    if given is not None:
        return given
    from daemon.commands import systemd_unit

    unit = systemd_unit.load(systemd_unit.UNIT)
    return (unit and unit.config) or settings.default_config_path()


def open_ledger(config: Config, mode: Literal["edit", "read"]) -> Ledger:
    """The ledger of the service. Raises LedgerError, with whose it is where this user may not open it."""
    folder = config.folders.state
    if folder.is_dir() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        from daemon.commands import systemd_unit

        owner = systemd_unit.name_of(folder.stat().st_uid)
        raise LedgerError(
            f"{folder}: only the user {owner} may use the ledger; type: sudo -u {owner} {shlex.join(sys.argv)}"
        )
    return Ledger(folder, mode)


def settings_for_files(options: argparse.Namespace, passes: int | None = None) -> Config:
    """The settings, with `passes` in all profiles if given. Raises UsageError if they lack the named profile."""
    config = settings.load(settings_file(options))
    if options.profile not in (None, *config.profiles):
        known = ", ".join(config.profiles)
        raise UsageError(f"--profile {options.profile}: no profile has this name; use one of: {known}")
    return config if passes is None else settings.with_profiles(config, passes=passes)


@contextlib.contextmanager
def opened(config: Config, progress: Progress) -> "Iterator[tuple[dict[str, Weights], dict[str, Backend], Reader]]":
    """Weights, their networks and a reader, all closed at the end; `progress` is shown in the block."""
    from daemon.backends import manifest, open_backend
    from daemon.backends.canary import canary
    from daemon.formats.decoder import Reader

    weights = manifest.load_weights(config)
    with contextlib.ExitStack() as stack:
        backends: dict[str, Backend] = {}
        for name, one in weights.items():
            backends[name] = open_backend(config.backend, one, config.folders.engines, progress.beat)
            stack.callback(backends[name].close)
            if config.backend.kind == "server":  # nothing has asked it so far
                canary(backends[name])
        reader = stack.enter_context(Reader(config.backend.max_pixels, config.backend.decode_seconds))
        stack.enter_context(progress)
        yield weights, backends, reader


def micrographs(
    config: Config, weights: "dict[str, Weights]", path: Path, relative: PurePath, reader: "Reader", profile: str | None
) -> "Iterator[Work]":
    """The micrograph of a file, or those of its sections, each with its profile. Raises as `steps.read` does."""
    from daemon.output import paths
    from daemon.service import fingerprints, sections, steps

    path = path.resolve(strict=True)
    name = relative.as_posix()
    raw = fingerprints.fingerprint(path, config.backend.max_pixels)
    seconds: dict[str, float] = {}
    with steps.timed(seconds, "read"):
        found = sections.whole(reader, config, path, name, profile)
    if found is not None:
        one = steps.read(config, weights, path, relative, raw, reader, profile=profile, micrograph=found)
        one.seconds.update(seconds)
        yield one
        return
    number, of, first = 1, 1, None
    while number <= of:
        micrograph, section = sections.read(reader, path, number, first)
        noted = sections.noted(micrograph, sections.taking(config, name, micrograph, profile))
        one = steps.prepare(
            config, weights, path, paths.section_name(name, number), section.raw, noted, profile=profile
        )
        yield replace(one, section=section)
        number, of, first = number + 1, section.of, section.first
