"""`emdenoised run`, `once` and `check`: the service, and the settings it would run with."""

import argparse
import logging

from daemon import logs
from daemon.commands.shared import settings_of
from daemon.errors import TransientError
from daemon.settings import config as settings

log = logging.getLogger(__name__)


def start(options: argparse.Namespace, once: bool) -> int:
    from daemon.service.supervisor import supervise

    config = settings_of(options)
    logs.set_up(config.log.level, config.log.format)
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
    config = settings_of(options)
    print(f"{options.config or settings.default_config_path()}: usable")
    print(f"  drop    {config.folders.drop}\n  output  {config.folders.output}\n  state   {config.folders.state}")
    for profile in config.profiles.values():
        dose = "any dose" if profile.dose is None else f"{profile.dose[0]:g} to {profile.dose[1]:g} counts per pixel"
        default = " (default)" if profile.name == config.default_profile else ""
        print(f"  profile {profile.name}{default}: {dose}, weights {profile.weights}, gain {profile.gain}")
    return 0
