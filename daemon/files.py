"""Which filesystem a folder lies on: network filesystems send no events and cannot hold the ledger safely."""

import os
import re
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
UNKNOWN = "unknown"
"""The answer where the kernel does not list its mounts (not Linux)."""

# Shared between machines, or with the host of a virtual machine: changes made elsewhere send no inotify
# events here, and SQLite's write-ahead log needs memory that both sides of a lock can see.
# autofs is the place where a share will be mounted once somebody looks inside.
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

    `path` need not exist: the deepest folder above it that does is what counts. Symlinks are followed.
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


def _unescape(text: str) -> str:
    """The kernel writes space, tab, newline and backslash as octal escapes of bytes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
