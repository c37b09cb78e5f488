"""Filesystem types (network filesystems send no events and are unsafe for the ledger), hashes, and atomic writing."""

import hashlib
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from daemon.errors import ConfigError

MOUNTINFO = Path("/proc/self/mountinfo")
UNKNOWN = "unknown"
"""The answer where the kernel does not list its mounts (not Linux)."""

# Shared between machines, or with the host of a virtual machine: changes made elsewhere send no inotify
# events here, and SQLite's write-ahead log needs memory that both sides of a lock can see.
# autofs mounts a share when its folder is first opened.
_NETWORK = frozenset(
    [
        "9p",
        "acfs",
        "afs",
        "autofs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "drvfs",
        "fhgfs",
        "fuse",
        "gfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "lustre_lite",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "panfs",
        "prl_fs",
        "pvfs2",
        "shfs",
        "smb2",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
        "vmhgfs",
    ]
)


def filesystem_type(path: Path, mountinfo: str | None = None) -> str:
    """The kernel's name of the filesystem that holds `path` ("ext4", "cifs", ...), or "unknown".

    `path` need not exist: the deepest existing folder above it counts. Symlinks are followed.
    `mountinfo` replaces the text of /proc/self/mountinfo (proc(5)).
    """
    if mountinfo is None:
        try:
            mountinfo = os.fsdecode(MOUNTINFO.read_bytes())
        except OSError:
            return UNKNOWN
    target = os.path.realpath(path)
    longest, found = -1, UNKNOWN
    for line in mountinfo.split("\n"):
        mount, separator, filesystem = line.partition(" - ")
        fields = mount.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = _unescape(fields[4])
        # Of two mounts on one point the later hides the earlier.
        if len(point) >= longest and (target == point or target.startswith(point.rstrip("/") + "/")):
            longest, found = len(point), _unescape(filesystem.split(" ")[0])
    return found


def is_network(fstype: str) -> bool:
    """Whether changes may come from another machine unseen. FUSE counts (sshfs, rclone), fuseblk (a disk) does not."""
    return fstype in _NETWORK or fstype.startswith("fuse.")


def is_folder(path: Path) -> bool:
    """Whether a folder can be reached now: unlike `Path.is_dir`, False also for that of a share that has failed."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _unescape(text: str) -> str:
    """The kernel writes space, tab, newline and backslash as octal escapes of bytes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def sha256(path: Path) -> str:
    """A file's SHA-256, hexadecimal."""
    with path.open("rb") as stream:
        return digest(stream)


def digest(stream: BinaryIO, *before: bytes | memoryview) -> str:
    """SHA-256, hexadecimal, of the bytes `before`, then of an open file from its position to its end."""
    found = hashlib.sha256()
    for content in before:
        found.update(content)
    while block := stream.read(1 << 20):
        found.update(block)
    return found.hexdigest()


def sha256_around(path: Path, start: int, content: memoryview) -> str:
    """SHA-256, hexadecimal, of a file that holds `content` from byte `start` on, without reading that part again."""
    with path.open("rb") as stream:
        before = stream.read(start)
        stream.seek(start + content.nbytes)
        return digest(stream, before, content)


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file atomically, also if others write it. Raises OSError, and keeps the old file then."""
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
    """Write a file of a run atomically. Raises ConfigError if it cannot be written."""
    try:
        write_atomically(path, lambda stream: stream.write(content))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror or error}); what was saved before is untouched. "
            "Make room, check the rights or choose another folder, and run the same command again"
        ) from error
