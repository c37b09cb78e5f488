"""A UNIX socket in place of a port: only those who may use its file can connect."""

import errno
import os
import shutil
import socket
import stat
from pathlib import Path

from daemon.settings.monitor import SocketFile


def bind(server: socket.socket, where: SocketFile) -> None:
    """Make the file, for its group if it has one; nobody can connect before the server listens.

    The file of a service that has ended is replaced. Raises OSError, whose `strerror` gives cause and remedy.
    """
    path = where.path
    _clear(path)
    try:
        server.bind(str(path))
    except FileNotFoundError as error:
        raise OSError(errno.ENOENT, f"the folder {path.parent} is missing; make it for the service's user") from error
    try:
        if where.group is not None:
            shutil.chown(path, group=where.group)
        path.chmod(0o600 if where.group is None else 0o660)
    except LookupError as error:
        path.unlink()
        raise OSError(errno.EINVAL, f"monitor.group: there is no group {where.group}; make it") from error
    except PermissionError as error:
        path.unlink()
        raise OSError(
            errno.EPERM,
            f"monitor.group: the service's user is not a member of the group {where.group}; add it "
            "(usermod -aG), and start the service again",
        ) from error


def _clear(path: Path) -> None:
    """Remove the socket of a service that has ended; nothing else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, f"{path} is not a socket; remove it, or choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise OSError(errno.EADDRINUSE, "another program listens there, perhaps another emdenoised")
