"""The watcher: when the next scan is due, and how it recovers. The clock is a fake; tests of real
events wait for the event, with a limit, never for time to pass."""

import logging
import os
from pathlib import Path

import pytest
from watched_folder import RULES, Clock, FakeHint, FakeObserver, fake, names, state, write

from daemon.arrival.tracker import Tracker
from daemon.arrival.watcher import LONGEST_BACK_OFF


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
