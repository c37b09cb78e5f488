"""Files that cannot be opened, and the promise to leave raw data alone."""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_files import MAKERS, tiff_file, write_mrc

from daemon import formats
from daemon.errors import MicrographError, TransientError
from daemon.formats.reading import explained_reading
from daemon.service import fingerprints

LIMIT = 1 << 24


@pytest.mark.parametrize("code", [errno.EACCES, errno.EBUSY, errno.ESTALE, errno.ENOENT, errno.EIO])
def test_a_file_that_cannot_be_opened_now_is_tried_again(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiff_file(tmp_path / "a.tif")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(os, "open", refuse)
    for look in (lambda: formats.read(path, LIMIT), lambda: formats.probe(path)):
        with pytest.raises(TransientError, match=r"a\.tif: cannot be read now"):
            look()


def test_folders_and_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "folder.tif").mkdir()
    for name in ("pipe.tif", "folder.tif"):
        with pytest.raises(MicrographError, match="not a regular file"):
            formats.read(tmp_path / name, LIMIT)
    with pytest.raises(TransientError):
        formats.read(tmp_path / "gone.tif", LIMIT)


@MAKERS
def test_reading_leaves_bytes_and_times_alone(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "a.dat")
    os.utime(path, ns=(1_600_000_000_000_000_000, 1_500_000_000_123_456_789))
    path.chmod(0o400)
    before = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns, path.stat().st_ino
    formats.probe(path)
    micrograph = formats.read(path, LIMIT)
    assert (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert not micrograph.pixels.flags.writeable


def test_what_took_a_files_place_is_not_opened(tmp_path: Path) -> None:
    secret = write_mrc(tmp_path / "secret.mrc", np.ones((40, 40), np.float32))
    link, pipe, folder = tmp_path / "link.mrc", tmp_path / "pipe.mrc", tmp_path / "folder.mrc"
    link.symlink_to(secret)
    os.mkfifo(pipe)
    folder.mkdir()
    for path, said in ((link, "symbolic link"), (pipe, "not a regular file"), (folder, "not a regular file")):
        with pytest.raises(MicrographError, match=said):
            formats.read(path, LIMIT)
        with pytest.raises(MicrographError, match=said):
            fingerprints.fingerprint(path, LIMIT)


def test_errors_that_a_parser_made_up_are_about_the_file(tmp_path: Path) -> None:
    with pytest.raises(MicrographError, match="damaged"), explained_reading(tmp_path / "a.dm3"):
        raise OSError("Invalid size of an array", 0)  # as RosettaSciIO does
