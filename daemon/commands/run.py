"""`emdenoised run`, `once` and `check`: the service, and a test of its settings."""

import argparse
import logging
from collections.abc import Iterator

from daemon import logs
from daemon.commands.shared import settings_file, settings_of
from daemon.errors import EmdenoisedError, TransientError, WeightsError
from daemon.settings import config as settings
from daemon.settings.config import Config
from daemon.settings.folders import prepare_state

log = logging.getLogger(__name__)


def start(options: argparse.Namespace, once: bool) -> int:
    from daemon.service.supervisor import supervise

    config = settings_of(options)
    logs.set_up(config.log.level, config.log.format)
    prepare_state(config.folders)
    try:
        settings.prepare_folders(config, options.create_drop)
    except TransientError as error:
        if once:
            raise
        log.warning("%s; the service starts and waits for it", error)
    return supervise(config, once, lambda: settings_of(options))


def run_service(options: argparse.Namespace) -> int:
    return start(options, once=False)


def run_once(options: argparse.Namespace) -> int:
    return start(options, once=True)


def run_check(options: argparse.Namespace) -> int:
    """The settings in words, if `run` could start with them and their weights."""
    from daemon.live_page import access

    config, path = settings_of(options), settings_file(options)
    access.load(config.monitor.token_file)
    if problems := list(_unusable_weights(config)):
        raise WeightsError("\n".join(f"{path}: {problem}" for problem in problems))
    print(f"{path}: usable")
    print(f"  drop    {config.folders.drop}\n  output  {config.folders.output}\n  state   {config.folders.state}")
    for profile in config.profiles.values():
        dose = "any dose" if profile.dose is None else f"{profile.dose[0]:g} to {profile.dose[1]:g} counts per pixel"
        default = " (default)" if profile.name == config.default_profile else ""
        print(f"  profile {profile.name}{default}: {dose}, weights {profile.weights}, gain {profile.gain}")
    return 0


def _unusable_weights(config: Config) -> Iterator[str]:
    """A line for each weights that do not load.

    A GPU's engine is not built here, and a server is not asked: `doctor` and `run` do that.
    """
    from daemon.backends import manifest, open_backend, resolve

    for name in sorted({profile.weights for profile in config.profiles.values()}):
        users = [one.name for one in config.profiles.values() if one.weights == name]
        try:
            weights = manifest.verified(name)
            if resolve(config.backend.kind) != "tensorrt":
                open_backend(config.backend, weights, config.folders.engines).close()
        except EmdenoisedError as error:
            yield f"weights {name} of profile {', '.join(users)}: {error}"
