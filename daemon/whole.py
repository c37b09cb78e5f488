"""Files written whole or not at all: under another name, flushed, then moved into place."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from daemon.errors import ConfigError


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file, whoever else writes it. Raises OSError, and leaves what was there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        with temporary.open("xb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save(path: Path, content: bytes) -> None:
    """Write a file of a run. Raises ConfigError where the disk refuses."""
    try:
        write_whole(path, lambda stream: stream.write(content))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror or error}); what was saved before is untouched. "
            "Make room, or choose another --out, and run the same command again to go on"
        ) from error
