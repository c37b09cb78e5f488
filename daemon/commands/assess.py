"""`emdenoised assess`: how good the denoising of the named files is."""

import argparse
import json
import sys
from pathlib import PurePath

from daemon.commands.progress import Progress
from daemon.commands.shared import _pictures, opened, require_profile, settings_file
from daemon.errors import MicrographError, TransientError
from daemon.logs import one_line
from daemon.settings import config as settings


def assess(options: argparse.Namespace) -> int:
    """How good the denoising of the named files is, by two halves of their own counts."""
    from daemon.verdict.halves import assess as assessed

    config = settings.load(settings_file(options))
    require_profile(config, options.profile)
    told: dict[str, dict[str, object]] = {}
    progress = Progress(len(options.files), sys.stderr if options.json else sys.stdout)
    with opened(config, progress) as (weights, backends, reader):
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
