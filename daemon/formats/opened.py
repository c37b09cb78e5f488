"""Opens what strangers put into the drop folder: for reading only, and whatever it turns out to be."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from daemon.errors import MicrographError

_MOST = 1 << 24


def open_raw(path: Path) -> BinaryIO:
    """Open a raw file for reading, whatever has taken its place meanwhile.

    A pipe must not make us wait for its other end, and a link must not lead out of the drop folder. Raises
    MicrographError for both, OSError otherwise.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        stream = open(path, "rb", opener=lambda name, _: os.open(name, flags))  # noqa: SIM115 - the opener
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise MicrographError(f"{path}: is a symbolic link, which is not followed; copy the file itself") from error
        if error.errno in (errno.ENXIO, errno.EISDIR):
            raise MicrographError(f"{path}: is not a regular file; move it away") from error
        raise
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise MicrographError(f"{path}: is not a regular file; move it away")
    return stream


def beside(path: Path) -> bytes | None:
    """The bytes of a file that lies beside a micrograph and says how it was taken.

    None without one, or where it is no ordinary file of a reasonable size: the image can be had without it.
    """
    try:
        with open_raw(path) as stream:
            return stream.read() if os.fstat(stream.fileno()).st_size <= _MOST else None
    except (OSError, MicrographError):
        return None
