"""Faults of the disk or share: what is tried again, what is this micrograph's fate, and what is cleaned up."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_results import listing, save

from daemon import formats
from daemon.errors import MicrographError, StorageError, TransientError
from daemon.output import disk as output_disk


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "input/output error"),
        (errno.ESTALE, "share went away"),
    ],
)
@pytest.mark.parametrize("step", ["write", "flush", "rename"])
def test_disk_faults_are_tried_again_and_leave_nothing_behind(
    tmp_path: Path, code: int, words: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "sub").mkdir()
    target = {"write": (formats, "write"), "flush": (os, "fsync"), "rename": (Path, "replace")}[step]
    with monkeypatch.context() as patch:
        patch.setattr(*target, fail)
        with pytest.raises(TransientError, match=words) as caught:
            save(tmp_path)
    assert "a.tif" in str(caught.value) and listing(tmp_path) == set()
    assert not save(tmp_path).adopted


def test_a_short_write_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> None:
        raise OSError("12288 requested and 4096 written")

    monkeypatch.setattr(formats, "write", short)
    with pytest.raises(TransientError, match="disk is probably full"):
        save(tmp_path)


def test_only_abandoned_temporary_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    host = output_disk._HOST
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    ours = [f".emdenoised-{host}-{os.getpid()}-ab.tmp", f"sub/.emdenoised-{host}-{ended.pid}-cd.tmp"]
    old = [".emdenoised-0123.tmp", f"sub/.emdenoised-{host}-{os.getppid()}-ef.tmp"]
    kept = [f".emdenoised-{host}-{os.getppid()}-ab.tmp", ".emdenoised-elsewhere-1-ab.tmp", ".emdenoised-4567.tmp"]
    kept += ["a.tmp", ".emdenoised-notes.txt", "sub/.tmp"]
    for name in (*ours, *old, *kept):
        (tmp_path / name).write_bytes(b"x")
    for name in (*old, "a.tmp"):
        os.utime(tmp_path / name, (1e9, 1e9))
    assert output_disk.clean_temporary(tmp_path) == 4
    assert listing(tmp_path) == set(kept)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EILSEQ, errno.EFBIG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR])
def test_what_ails_one_name_is_that_micrographs_fate(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(formats, "write", fail)
    with pytest.raises(MicrographError, match=r"a\.tif: cannot be written, "):
        save(tmp_path)


@pytest.mark.parametrize("name", ["sub", "sub/a.tif.json"])
def test_a_file_where_a_folder_is_needed_or_the_reverse_is_named(tmp_path: Path, name: str) -> None:
    if name == "sub":
        (tmp_path / name).write_text("")
    else:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(MicrographError, match="move"):
        save(tmp_path)


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENXIO])
def test_a_refusal_concerns_one_micrograph_unless_the_whole_disk_refuses(
    tmp_path: Path, code: int, everywhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(formats, "write", fail)
    real = Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.parent == tmp_path:
            fail()
        return real(self, *arguments, **options)

    if everywhere:
        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(TransientError) as caught:
        save(tmp_path)
    assert isinstance(caught.value, StorageError) is everywhere
    assert listing(tmp_path) == set()


def test_the_place_of_an_unmounted_share_is_not_taken_for_it(tmp_path: Path) -> None:
    points = {Path("/"), tmp_path}
    root = tmp_path / "out"
    root.mkdir()
    disk = output_disk.Mounted(root, points.__contains__)
    disk.require()
    points.remove(tmp_path)
    for _ in range(2):
        with pytest.raises(StorageError, match=f"no longer mounted at {tmp_path}"):
            disk.require()
    points.add(tmp_path)
    disk.require()
    points.add(root)  # something mounted on top is where results go from now on
    disk.require()
    points.remove(root)
    with pytest.raises(StorageError, match="mount it again"):
        disk.require()
