"""What a scan of the drop folder lists."""

import logging
import os
from pathlib import Path

import pytest
from watched_folder import RULES, Clock, fake, names, write

from daemon.arrival.watcher import FolderGoneError, scan
from daemon.settings.config import Arrival


def test_a_scan_lists_regular_files_by_relative_path(drop: Path) -> None:
    write(drop / "a.tif", b"12345")
    write(drop / "Grid 1" / "Square" / "b.MRC")
    for passed_over in (".hidden.tif", "c.tif.part", ".cache/d.tif", "e.txt", "f.h5"):
        write(drop / passed_over)
    os.mkfifo(drop / "pipe.tif")
    (drop / "link.tif").symlink_to(drop / "a.tif")
    (drop / "loop").symlink_to(drop)
    listing = scan(drop, RULES)
    assert sorted(one.path for one in listing.sightings) == ["Grid 1/Square/b.MRC", "a.tif"]
    [a] = [one for one in listing.sightings if one.path == "a.tif"]
    found = (drop / "a.tif").stat()
    assert (a.size, a.mtime_ns, a.inode) == (5, found.st_mtime_ns, found.st_ino)
    assert listing.unreadable == []
    assert set(listing.strangers) == {".txt", ".h5", "symbolic link", "special file"}
    assert scan(drop, RULES, inodes=False).sightings[0].inode == 0
    assert [one.path for one in scan(drop, Arrival(recursive=False)).sightings] == ["a.tif"]


def test_a_scan_brings_the_sidecars_that_the_rules_need(drop: Path) -> None:
    for name in ("a.tif", "a.xml", "a.tif.mdoc"):
        write(drop / name)
    assert {one.path for one in scan(drop, Arrival(require_sidecar="epu")).sightings} == {"a.tif", "a.xml"}
    assert {one.path for one in scan(drop, Arrival(require_sidecar="serialem")).sightings} == {"a.tif", "a.tif.mdoc"}


def test_names_that_are_not_utf_8_survive(drop: Path) -> None:
    raw = os.fsencode(drop) + b"/\xff\xfe.tif"
    os.close(os.open(raw, os.O_CREAT | os.O_WRONLY))
    [sighting] = scan(drop, RULES).sightings
    assert os.fsencode(drop / sighting.path) == raw


def test_a_missing_folder_and_a_file_in_its_place_are_named(drop: Path) -> None:
    with pytest.raises(FolderGoneError, match="nowhere: this folder cannot be listed: No such file"):
        scan(drop / "nowhere", RULES)
    write(drop / "file")
    with pytest.raises(FolderGoneError, match="Not a directory"):
        scan(drop / "file", RULES)


def test_an_unreadable_sub_folder_is_reported_and_the_rest_is_seen(
    drop: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(drop / "a.tif")
    write(drop / "secret" / "b.tif")
    real = os.scandir

    def scandir(path: str) -> "os._ScandirIterator[str]":
        if path.endswith("secret/"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with fake(drop, clock) as watcher, caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert names(watcher) == ["a.tif"]
        assert "1 folders or files cannot be read" in watcher.health.detail
    assert [one.getMessage() for one in caplog.records] == [
        f"{drop}/secret cannot be read: Permission denied; it is tried again at every scan"
    ]
