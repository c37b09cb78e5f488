"""The watcher with the real events of this system."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from watchdog.observers.api import BaseObserver
from watched_folder import LIMIT, RULES, Clock, names, write

from daemon.arrival.watcher import Watcher


def until_event(hint: threading.Event) -> None:
    assert hint.wait(LIMIT), "no event came"


@pytest.fixture
def hint() -> threading.Event:
    return threading.Event()


@pytest.fixture
def real(drop: Path, clock: Clock, hint: threading.Event) -> Iterator[Watcher]:
    with Watcher(drop, RULES, clock=clock, filesystem=lambda path: "ext4", hint=hint) as watcher:
        assert watcher.scan() is not None
        yield watcher


def test_a_new_file_and_one_in_a_new_sub_folder_wake_it(
    drop: Path, real: Watcher, hint: threading.Event, clock: Clock
) -> None:
    write(drop / "a.tif")
    until_event(hint)
    clock.now += 1.0
    real.wait()
    write(drop / "New" / "b.tif")
    until_event(hint)
    assert names(real) == ["New/b.tif", "a.tif"]


def test_reading_a_file_does_not_wake_it(drop: Path, real: Watcher) -> None:
    observer = real._observer
    assert observer is not None
    kinds = {kind.__name__ for emitter in observer.emitters for kind in emitter._event_filter or ()}
    assert "FileClosedEvent" in kinds
    assert not kinds & {"FileOpenedEvent", "FileClosedNoWriteEvent", "FileModifiedEvent", "FileSystemEvent"}


def test_after_two_renames_the_watch_works_again(drop: Path, real: Watcher, hint: threading.Event) -> None:
    """The trap: the watch looks alive, and no event ever comes again."""
    drop.rename(drop.with_name("away"))
    assert real.scan() is None
    drop.with_name("away").rename(drop)
    assert names(real) == []
    hint.clear()
    write(drop / "a.tif")
    until_event(hint)
    assert names(real) == ["a.tif"]


def test_after_a_rename_between_two_scans_nothing_is_lost(drop: Path, real: Watcher, hint: threading.Event) -> None:
    drop.rename(drop.with_name("away"))
    drop.with_name("away").rename(drop)
    for number in range(4):
        write(drop / f"{number}.tif")
        assert len(names(real)) == number + 1, "the rescan is the authority"
        names(real)


def test_another_folder_in_its_place_is_watched(drop: Path, real: Watcher, hint: threading.Event) -> None:
    before: BaseObserver | None = real._observer
    drop.rename(drop.with_name("old"))
    write(drop / "a.tif")
    assert names(real) == ["a.tif"]
    assert real._observer is not before
    hint.clear()
    write(drop / "b.tif")
    until_event(hint)


def test_a_folder_deleted_and_made_again_is_watched(drop: Path, real: Watcher, hint: threading.Event) -> None:
    """With the inode number of the old one, the end of the old watch shows it, perhaps later."""
    shutil.rmtree(drop)
    drop.mkdir()
    for number in range(20):
        assert len(names(real)) == number
        hint.clear()
        write(drop / f"{number}.tif")
        if hint.wait(1.0):
            return
    raise AssertionError("no event came")


def test_a_flood_is_seen_whole(drop: Path, real: Watcher) -> None:
    source = drop.with_name("session")
    for number in range(2_000):
        write(source / f"{number}.tif", b"")
    source.rename(drop / "session")
    assert len(names(real)) == 2_000
