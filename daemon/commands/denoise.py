"""`emdenoised denoise`: the named files, now, without drop folder or ledger."""

import argparse
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from daemon.commands.progress import Progress
from daemon.commands.shared import _denoise, _pictures, opened, require_profile
from daemon.errors import MicrographError, StorageError, TransientError
from daemon.logs import one_line
from daemon.settings import config as settings
from daemon.settings import names
from daemon.settings.config import Config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.backends.manifest import Weights
    from daemon.backends.protocol import Backend
    from daemon.formats.decoder import Reader


def denoise(options: argparse.Namespace) -> int:
    """The named files, now."""
    config = settings.load(options.config)
    require_profile(config, options.profile)
    if options.passes is not None:
        config = settings.with_profiles(config, passes=options.passes)
    options.out.mkdir(parents=True, exist_ok=True)
    named = names.told_apart(options.files)
    progress = Progress(len(named))
    with opened(config, progress) as (weights, backends, reader):
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
    failed, said = 0, set[str]()
    for path, relative in named.items():
        progress.next(str(path))
        try:
            for one in _pictures(config, weights, path, relative, reader, options.profile):
                _denoise(config, backends, one, options.out, progress, said)
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
