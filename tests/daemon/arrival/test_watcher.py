"""The watcher: what a scan sees, when the next one is due, and how it mends itself. The clock is a fake; tests of real
events wait for the event, with a limit, never for time to pass."""

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from watchdog.events import FileCreatedEvent
from watchdog.observers.api import BaseObserver

from daemon.arrival.tracker import Tracker
from daemon.arrival.watcher import LONGEST_BACK_OFF, FolderGoneError, Watcher, scan
from daemon.settings.config import Arrival

RULES = Arrival()
LIMIT = 20.0


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeHint(threading.Event):
    """An event whose `wait` moves the clock instead of waiting; `at` are the times at which hints come."""

    clock: Clock
    at: list[float] = field(default_factory=list)
    event: Callable[[], None] = lambda: None
    """What the operating system's events call."""

    def __post_init__(self) -> None:
        super().__init__()

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        if self.is_set():
            return True
        end = self.clock.now + max(timeout, 1e-9)  # a real clock moves on by itself
        if self.at and self.at[0] <= end:
            self.clock.now = max(self.clock.now, self.at.pop(0))
            self.event()
            return True
        self.clock.now = end
        return False

    __hash__ = object.__hash__


class FakeObserver:
    """Stands for a watchdog observer that never tells anything."""

    made: "list[FakeObserver]"
    fails = False

    def __init__(self) -> None:
        self.alive = False
        self.emitters: set[object] = set()
        FakeObserver.made.append(self)

    def schedule(self, *args: object, **options: object) -> None:
        if FakeObserver.fails:
            raise OSError(28, "inotify watch limit reached")

    def start(self) -> None:
        self.alive = True

    def stop(self) -> None:
        self.alive = False

    def join(self, timeout: float) -> None:
        assert not self.alive

    def is_alive(self) -> bool:
        return self.alive


@pytest.fixture(autouse=True)
def _no_observers_left() -> Iterator[None]:
    FakeObserver.made, FakeObserver.fails = [], False
    yield
    assert not any(one.alive for one in FakeObserver.made)


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    folder = tmp_path / "drop"
    folder.mkdir()
    return folder


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fake(drop: Path, clock: Clock, **options: object) -> Watcher:
    hint = options.pop("hint", None) or FakeHint(clock)
    stated = {name: options.pop(name) for name in Arrival.model_fields if name in options}
    options = {"filesystem": lambda path: "ext4", **options}
    arrival = Arrival.model_validate(stated)
    watcher = Watcher(drop, arrival, clock=clock, observer=FakeObserver, hint=hint, **options)  # type: ignore[arg-type]
    if isinstance(hint, FakeHint):
        hint.event = lambda: watcher._events.on_any_event(FileCreatedEvent(str(drop)))
    return watcher


def write(path: Path, content: bytes = b"II*\0") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def names(watcher: Watcher) -> list[str]:
    found = watcher.scan()
    assert found is not None
    return sorted(one.path for one in found.listing.sightings)


def state(watcher: Watcher) -> str:
    return watcher.health.state


# What a scan sees


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


# When the next scan is due


def test_it_waits_for_the_rescan_if_nothing_happens(drop: Path, clock: Clock) -> None:
    with fake(drop, clock, rescan_seconds=10.0) as watcher:
        watcher.wait()
        assert clock.now == 100.0, "the first scan is due at once"
        assert state(watcher) == "starting"
        watcher.scan()
        watcher.wait()
        assert clock.now == pytest.approx(110.0)
        assert state(watcher) == "events"


def test_it_returns_when_something_settles_or_an_event_comes_but_not_too_often(drop: Path, clock: Clock) -> None:
    hint = FakeHint(clock, [103.0, 103.01, 103.02])
    with fake(drop, clock, hint=hint) as watcher:
        watcher.scan()
        watcher.wait(until=101.5)
        assert clock.now == pytest.approx(101.5)
        watcher.scan()
        watcher.wait(until=150.0)
        assert clock.now == pytest.approx(103.0)
        watcher.scan()
        watcher.wait()
        assert clock.now == pytest.approx(103.1), "a burst of events makes one more scan"
        watcher.scan()
        watcher.wait(until=103.1)
        assert clock.now == pytest.approx(103.2), "even when something is due already"
        watcher.scan()
        watcher.wait()
        assert clock.now == pytest.approx(113.2)


def test_a_slow_scan_makes_the_next_one_later(drop: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def slow(path: str) -> "os._ScandirIterator[str]":
        clock.now += 2.0
        return real(path)

    monkeypatch.setattr(os, "scandir", slow)
    with fake(drop, clock) as watcher:
        found = watcher.scan()
        assert found is not None and (found.began, found.ended) == (100.0, 102.0)
        watcher.wait(until=102.0)
        assert clock.now == pytest.approx(108.0)


def test_wake_ends_the_wait_once(drop: Path, clock: Clock) -> None:
    with fake(drop, clock) as watcher:
        watcher.scan()
        watcher.wake()
        assert not watcher.wait() and clock.now == 100.0
        watcher.scan()
        assert watcher.wait() and clock.now > 105.0


def test_a_new_file_is_ready_soon_after_it_has_settled(drop: Path, clock: Clock) -> None:
    hint = FakeHint(clock, [105.0])
    tracker = Tracker(RULES, lambda path: pytest.fail("the ledger knows it"), known=lambda one: True)
    with fake(drop, clock, hint=hint, rescan_seconds=60.0) as watcher:
        for step in range(4):
            watcher.wait(tracker.next_due())
            if step == 1:
                write(drop / "a.tif")
            found = watcher.scan()
            assert found is not None
            tracker.observe(found.listing.sightings, found.ended, began=found.began)
            tracker.ready(found.ended)
            if step >= 1 and tracker.unfinished == 0:
                break
        assert clock.now <= 105.0 + RULES.settle_seconds + 0.3


# Events or polling


@pytest.mark.parametrize(
    ("fstype", "polling", "state"),
    [
        ("ext4", "auto", "events"),
        ("cifs", "auto", "polling"),
        ("fuse.sshfs", "auto", "polling"),
        ("ext4", "always", "polling"),
        ("nfs4", "never", "events"),
    ],
)
def test_how_it_watches_follows_the_filesystem_and_is_said(
    drop: Path, clock: Clock, caplog: pytest.LogCaptureFixture, fstype: str, polling: str, state: str
) -> None:
    with (
        caplog.at_level(logging.INFO),
        fake(drop, clock, filesystem=lambda path: fstype, polling=polling, poll_seconds=2.0) as watcher,
    ):
        watcher.scan()
        assert watcher.health.state == state
        watcher.wait()
        assert clock.now == pytest.approx(102.0 if state == "polling" else 110.0)
        watcher.scan()
    said = "is polled every 2 s" if state == "polling" else "is watched for events"
    assert [said in one.getMessage() for one in caplog.records] == [True]


def test_without_free_watches_it_polls(drop: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    FakeObserver.fails = True
    with fake(drop, clock) as watcher:
        write(drop / "a.tif")
        assert names(watcher) == ["a.tif"]
        assert watcher.health.state == "polling"
    assert "inotify watch limit reached" in caplog.text


def test_files_without_events_are_found_by_the_rescan(drop: Path, clock: Clock) -> None:
    with fake(drop, clock, rescan_seconds=10.0) as watcher:
        names(watcher)
        for number in range(1, 6):
            write(drop / f"{number}.tif")
            before = clock.now
            assert watcher.wait() and clock.now == before + 10.0
            assert len(names(watcher)) == number
        assert watcher.health.state == "events"
    assert len(FakeObserver.made) == 1


def test_a_dead_watch_is_renewed(drop: Path, clock: Clock) -> None:
    with fake(drop, clock) as watcher:
        watcher.scan()
        FakeObserver.made[0].alive = False
        watcher.scan()
        assert [one.alive for one in FakeObserver.made] == [False, True]


# The folder goes and comes back


def test_an_outage_is_degraded_with_growing_pauses_and_ends_by_itself(
    drop: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    write(drop / "a.tif")
    away = drop.with_name("away")
    with fake(drop, clock) as watcher, caplog.at_level(logging.INFO):
        assert names(watcher) == ["a.tif"]
        drop.rename(away)
        pauses = []
        for _ in range(8):
            assert watcher.scan() is None
            before = clock.now
            watcher.wait(until=before)
            pauses.append(clock.now - before)
        assert pauses == pytest.approx([1, 2, 4, 8, 16, LONGEST_BACK_OFF, LONGEST_BACK_OFF, LONGEST_BACK_OFF])
        assert state(watcher) == "degraded" and "is missing" in watcher.health.detail
        away.rename(drop)
        found = watcher.scan()
        assert found is not None and found.interrupted
        assert state(watcher) == "events"
        again = watcher.scan()
        assert again is not None and not again.interrupted
    assert [one.getMessage() for one in caplog.records if "waits for it" in one.getMessage()] != []
    assert sum("waits for it" in one.getMessage() for one in caplog.records) == 1


def test_a_folder_that_is_missing_at_the_start_is_waited_for_and_reported_once_by_the_start(
    drop: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    drop.rmdir()
    with fake(drop, clock) as watcher:
        assert watcher.scan() is None
        assert state(watcher) == "degraded" and not caplog.records
        write(drop / "a.tif")
        assert names(watcher) == ["a.tif"]
        drop.rename(drop.with_name("away"))
        assert watcher.scan() is None
    assert [one.getMessage() for one in caplog.records] == [
        f"{drop}: the drop folder is missing (No such file or directory); mount the share it is on, or create it; "
        "the service waits for it, nothing is lost"
    ]


def test_the_empty_mount_point_of_a_share_is_not_taken_for_the_share(drop: Path, clock: Clock) -> None:
    share = drop.with_name("share")
    write(share / "a.tif")
    types = {"now": "cifs"}
    with fake(share, clock, filesystem=lambda path: types["now"]) as watcher:
        assert names(watcher) == ["a.tif"]
        mounted = share.rename(share.with_name("mounted"))
        share.mkdir()
        types["now"] = "ext4"
        device = share.stat().st_dev
        watcher._identity = (device + 1, 0)  # what the mounted share had
        assert watcher.scan() is None
        assert "not mounted" in watcher.health.detail
        assert watcher.scan() is None
        share.rmdir()
        mounted.rename(share)
        types["now"] = "cifs"
        found = watcher.scan()
        assert found is not None and found.interrupted and len(found.listing.sightings) == 1
        assert watcher.health.state == "polling"


# With the real events of this system


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


def test_after_a_rename_there_and_back_it_hears_again(drop: Path, real: Watcher, hint: threading.Event) -> None:
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
    """It may have the number of the one before: then the end of the old watch tells, at a later look if it is late."""
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
