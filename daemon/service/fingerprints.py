"""A raw file before it is read: its fingerprint, and whether it has changed or gone."""

import os
from pathlib import Path

from daemon.errors import MicrographError, TransientError
from daemon.files import digest
from daemon.formats import RawFile
from daemon.output.record import Raw

LONGEST = 512
"""Largest file, in bytes for each of `max_pixels`: a movie of hundreds of frames."""


class ChangedError(TransientError):
    """The file has changed since it was registered; the scan registers it again."""


def fingerprint(file: Path | RawFile, max_pixels: int) -> Raw:
    """Path, SHA-256, size and modification time of a raw file.

    Raises MicrographError if it is not a regular file or longer than any stack of `max_pixels` frames, TransientError
    if it cannot be read now.
    """
    raw = RawFile.of(file)
    path = raw.path
    try:
        with raw.open() as stream:
            state = os.fstat(stream.fileno())
            if state.st_size > max_pixels * LONGEST:  # a sparse file costs nothing and would be read for hours
                raise MicrographError(
                    f"{path}: is {state.st_size / 2**30:.0f} GiB long, more than backend.max_pixels allows for; raise "
                    "that if it is its true size"
                )
            sha256 = digest(stream)
            state = os.fstat(stream.fileno())
    except OSError as error:
        raise TransientError(
            f"{path}: cannot be read now ({error.strerror}): check that the share is connected"
        ) from error
    return Raw(path=str(path), sha256=sha256, size=state.st_size, mtime_ns=state.st_mtime_ns)


def gone(path: Path) -> bool:
    """Whether a file does not exist; False if that cannot be found out."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
