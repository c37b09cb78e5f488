"""`emdenoised assess`: estimates the error of denoised files."""

import argparse
import json
import sys
from pathlib import PurePath

from daemon.commands.progress import Progress
from daemon.commands.shared import micrographs, opened, settings_for_files
from daemon.commands.terminal import in_words
from daemon.errors import MicrographError, TransientError
from daemon.logs import one_line


def assess(options: argparse.Namespace) -> int:
    """Estimate each file's error from two halves of its own counts; 0 if at least one could be estimated."""
    from daemon.verdict.halves import assess as assessed

    config = settings_for_files(options)
    results: dict[str, dict[str, object]] = {}
    progress = Progress(len(options.files), sys.stderr if options.json else sys.stdout)
    with opened(config, progress) as (weights, backends, reader):
        for path in options.files:
            progress.next(str(path))
            try:
                for one in micrographs(config, weights, path, PurePath(path.name), reader, options.profile):
                    key = str(path) if one.section is None else f"{path} ({one.section})"
                    name = one.choice.profile.weights
                    found = assessed(one.micrograph.pixels, one.choice, weights[name].manifest, backends[name])
                    results[key] = found.as_json()
                    progress.say(found.describe())
            except (MicrographError, TransientError) as error:
                results[str(path)] = {"not applicable": str(error)}
                progress.say(one_line(str(error)))
            except OSError as error:
                results[str(path)] = {"failed": in_words(error)}
                progress.say(f"failed: {in_words(error)}")
    if options.json:
        print(json.dumps(results, indent=1))
    return 0 if any("error" in one for one in results.values()) else 1
