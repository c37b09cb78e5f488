"""Local disks and network shares are distinguished by their mounts."""

import errno
import os
from pathlib import Path

import pytest

from daemon import files
from daemon.files import filesystem_type, is_folder, is_network

MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:30 / /mnt/share rw,relatime shared:2 master:1 - cifs //microscope/data rw
31 30 8:1 / /mnt/share/local rw - xfs /dev/sda1 rw
32 27 0:31 / /mnt/my\040old\134share rw - nfs4 server:/x rw
33 27 0:32 / /mnt/twice rw - nfs server:/y rw
34 27 0:33 / /mnt/twice rw - ext4 /dev/sdb rw
35 27 0:34 / /mnt/ssh rw - fuse.sshfs host: rw
nonsense
36 27 0:35
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "ext4"),
        ("/home/x/y", "ext4"),
        ("/mnt/share", "cifs"),
        ("/mnt/share/a/b", "cifs"),
        ("/mnt/shared", "ext4"),
        ("/mnt/share/local/a", "xfs"),
        ("/mnt/share/../other", "ext4"),
        (r"/mnt/my old\share/a", "nfs4"),
        ("/mnt/twice/a", "ext4"),
        ("/mnt/ssh/a", "fuse.sshfs"),
    ],
)
def test_the_deepest_mount_decides_the_filesystem(path: str, expected: str) -> None:
    assert filesystem_type(Path(path), MOUNTS) == expected


def test_a_symlink_is_followed_to_its_filesystem(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/mnt/share")
    assert filesystem_type(tmp_path / "link/file", MOUNTS) == "cifs"


def test_this_machine_answers_and_others_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if files.MOUNTINFO.exists():
        assert filesystem_type(Path("/proc/self")) == "proc"
    monkeypatch.setattr(files, "MOUNTINFO", tmp_path / "none")
    assert filesystem_type(tmp_path) == files.UNKNOWN
    assert not is_network(files.UNKNOWN)


@pytest.mark.parametrize(
    ("fstype", "network"),
    [
        ("cifs", True),
        ("smb3", True),
        ("nfs", True),
        ("nfs4", True),
        ("fuse.sshfs", True),
        ("9p", True),
        ("virtiofs", True),
        ("autofs", True),
        ("ext4", False),
        ("xfs", False),
        ("btrfs", False),
        ("fuseblk", False),
        ("tmpfs", False),
        ("overlay", False),
    ],
)
def test_network_filesystems_are_known(fstype: str, network: bool) -> None:
    assert is_network(fstype) is network


def test_a_folder_of_a_share_that_has_failed_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_folder(tmp_path) and not is_folder(tmp_path / "missing")

    def failed(path: Path, **_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(Path, "stat", failed)
    assert not is_folder(tmp_path)
