"""The ledger: nothing lost, nothing done twice, across restarts, crashes and clocks that jump."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from daemon.errors import ConfigError, TransientError
from daemon.ledger import database as ledger_file
from daemon.ledger.database import (
    MIGRATIONS,
    LedgerDamagedError,
    LedgerError,
    LedgerLockedError,
    LedgerReplacedError,
    LedgerUnavailableError,
    Mode,
    explain,
)
from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger
from daemon.settings.config import Retry

ROOT = Path(__file__).parents[3]
RETRY = Retry(first_seconds=5, factor=2, longest_seconds=600, attempts=4)


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def start(folder: Path, clock: Clock | None = None) -> Ledger:
    return Ledger(folder, retry=RETRY, clock=clock or Clock())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with start(tmp_path / "state", clock) as one:
        yield one


def arrive(ledger: Ledger, path: str = "a.tif", size: int = 100, mtime_ns: int = 1, live: bool = True) -> Job:
    job = ledger.register(path, size, mtime_ns, live=live)
    assert job is not None
    return job


def claim(ledger: Ledger, live_first: bool = True) -> Job:
    job = ledger.claim(live_first)
    assert job is not None
    return job


def killed(folder: Path, copy: Path) -> Path:
    """The state folder as a kill -9 at this moment leaves it: the database still open, its log not merged.

    Another process copies it: closing the files here would drop the locks of the connection that is open.
    """
    subprocess.run(["cp", "-r", folder, copy], check=True)
    return copy


def test_one_micrograph_from_arrival_to_done(ledger: Ledger, clock: Clock) -> None:
    job = arrive(ledger, "Grid 1/a.tif")
    assert (job.state, job.revision, job.attempts) == ("pending", 1, 0)
    running = claim(ledger)
    assert (running.id, running.state, running.attempts) == (job.id, "running", 1)
    assert ledger.claim() is None
    assert ledger.same_content(running, "ab" * 32) is None
    clock.now += 2
    done = ledger.finish(running, "Grid 1/a.tif", profile="low", timings={"read": 0.1, "denoise": 1.5})
    assert (done.state, done.sha256, done.profile, done.output) == ("done", "ab" * 32, "low", "Grid 1/a.tif")
    assert done.timings == {"read": 0.1, "denoise": 1.5}
    assert done.updated == clock.now and done.created == clock.now - 2
    assert ledger.counts() == {"pending": 0, "running": 0, "retry": 0, "done": 1, "quarantined": 0}
    assert ledger.recent(5) == [done]


def test_the_same_file_is_registered_once_whatever_became_of_it(ledger: Ledger) -> None:
    ends: dict[str, Callable[[Job, str], Job]]
    ends = {"done": ledger.finish, "bad": ledger.quarantine, "failed": ledger.fail_transient}
    for path, end in ends.items():
        arrive(ledger, path)
        assert ledger.register(path, 100, 1, live=True) is None
        end(claim(ledger), "x")
        assert ledger.register(path, 100, 1, live=True) is None
        assert ledger.known(path, 100, 1)
    assert not ledger.known("done", 100, 2) and not ledger.known("done", 101, 1) and not ledger.known("other", 100, 1)


def test_a_change_after_work_is_a_new_revision_and_going_back_is_not(ledger: Ledger) -> None:
    arrive(ledger)
    ledger.finish(claim(ledger), "a.tif")
    second = arrive(ledger, mtime_ns=2)
    assert second.revision == 2
    running = claim(ledger)
    third = arrive(ledger, mtime_ns=3)
    assert third.revision == 3, "the second one is being worked on"
    ledger.finish(running, "a.r2.tif")
    assert ledger.register("a.tif", 100, 1, live=True) is None


@pytest.mark.parametrize("state", ["pending", "retry", "quarantined"])
def test_a_change_before_any_output_keeps_the_number_and_starts_anew(ledger: Ledger, state: str) -> None:
    first = arrive(ledger, live=False)
    if state == "retry":
        ledger.fail_transient(claim(ledger), "locked")
    elif state == "quarantined":
        ledger.quarantine(first, "truncated")
    assert ledger.get(first.id).state == state
    again = arrive(ledger, size=200, mtime_ns=2)
    assert (again.id, again.revision, again.size, again.state) == (first.id, 1, 200, "pending")
    assert (again.attempts, again.error, again.live, again.not_before) == (0, None, True, 0.0)
    assert claim(ledger).id == first.id


def test_a_touched_file_is_recognised_by_its_bytes(ledger: Ledger) -> None:
    arrive(ledger)
    first = claim(ledger)
    assert ledger.same_content(first, "aa") is None
    ledger.finish(first, "a.tif")
    arrive(ledger, mtime_ns=2)
    second = claim(ledger)
    earlier = ledger.same_content(second, "aa")
    assert earlier is not None and earlier.output == "a.tif"
    assert ledger.finish(second, "a.tif", warning="unchanged content").revision == 2
    arrive(ledger, mtime_ns=3)
    assert ledger.same_content(claim(ledger), "bb") is None


def test_live_newest_first_backlog_oldest_first(ledger: Ledger) -> None:
    for number in range(3):
        arrive(ledger, f"old{number}", live=False)
        arrive(ledger, f"new{number}", live=True)
    order = [claim(ledger, live_first=turn).path for turn in (True, False, True, False, False, False)]
    assert order == ["new2", "old0", "new1", "old1", "old2", "new0"]
    assert ledger.claim() is None


def test_transient_failures_wait_longer_each_time_and_are_given_up(ledger: Ledger, clock: Clock) -> None:
    arrive(ledger)
    for pause in (5, 10, 20):
        failed = ledger.fail_transient(claim(ledger), "a.tif is locked")
        assert failed.state == "retry" and failed.error == "a.tif is locked"
        assert ledger.next_retry() == pause
        clock.now += pause - 0.5
        assert ledger.claim() is None
        clock.now += 0.5
        assert ledger.next_retry() == 0.0
    given_up = ledger.fail_transient(claim(ledger), "a.tif is locked")
    assert (given_up.state, given_up.error) == ("quarantined", "given up after 4 attempts: a.tif is locked")
    assert ledger.next_retry() is None


def test_the_longest_pause_bounds_all_others() -> None:
    assert [RETRY.pause(attempts) for attempts in (1, 2, 8, 9, 10_000)] == [5, 10, 600, 600, 600]


@pytest.mark.parametrize(("jump", "due"), [(-3600.0, True), (+3600.0, True), (-60.0, False)])
def test_a_clock_that_jumps_never_delays_beyond_the_longest_pause(
    ledger: Ledger, clock: Clock, jump: float, due: bool
) -> None:
    arrive(ledger)
    ledger.fail_transient(claim(ledger), "locked")
    clock.now += jump
    assert (ledger.next_retry() == 0.0) is due
    assert (ledger.claim() is not None) is due


def test_what_waits_for_an_installation_is_no_attempt_and_due_at_the_next_start(tmp_path: Path, clock: Clock) -> None:
    with start(tmp_path / "state", clock) as ledger:
        arrive(ledger, "a.dm3")
        for _ in range(RETRY.attempts + 1):  # it is never given up
            held = ledger.hold(claim(ledger), "waits for its reader")
            assert (held.state, held.attempts, held.error) == ("retry", 0, "waits for its reader")
            assert ledger.next_retry() is None and not ledger.busy()
            for jump in (1e6, -2e6, 1e6):
                clock.now += jump
                assert ledger.claim() is None
            assert [job.path for job in ledger.retry("*.dm3")] == ["a.dm3"]
        ledger.hold(claim(ledger), "waits for its reader")
        arrive(ledger, "b.tif")
        ledger.fail_transient(claim(ledger), "locked")
        assert ledger.next_retry() == pytest.approx(RETRY.first_seconds)
    with start(tmp_path / "state", clock) as ledger:
        assert ledger.recover() == []
        assert claim(ledger).path == "a.dm3"


def test_back_off_and_attempts_survive_a_crash(tmp_path: Path, clock: Clock) -> None:
    with start(tmp_path / "state", clock) as ledger:
        arrive(ledger)
        ledger.fail_transient(claim(ledger), "locked")
        after = killed(tmp_path / "state", tmp_path / "after")
    with start(after, clock) as ledger:
        assert ledger.recover() == []
        assert ledger.claim() is None
        clock.now += 5
        assert claim(ledger).attempts == 2


def test_what_was_running_at_a_crash_is_done_again_and_what_was_done_is_not(tmp_path: Path) -> None:
    with start(tmp_path / "state") as ledger:
        for path in ("done", "running", "pending"):
            arrive(ledger, path, live=False)
        ledger.finish(claim(ledger), "done.tif")
        claim(ledger)
        after = killed(tmp_path / "state", tmp_path / "after")
    with start(after) as ledger:
        assert [(job.path, job.state) for job in ledger.recover()] == [("running", "pending")]
        assert ledger.recover() == []
        assert [claim(ledger).path for _ in range(2)] == ["running", "pending"]
        assert ledger.claim() is None
        assert ledger.register("done", 100, 1, live=True) is None


def test_a_file_that_kills_the_service_again_and_again_is_given_up(tmp_path: Path) -> None:
    folder = tmp_path / "0"
    with start(folder) as ledger:
        arrive(ledger)
    for life in range(1, 5):
        with start(folder) as ledger:
            ledger.recover()
            assert claim(ledger).attempts == life
            folder = killed(folder, tmp_path / str(life))
    with start(folder) as ledger:
        [job] = ledger.recover()
        assert job.state == "quarantined"
        assert job.error == "given up after 4 attempts; the service died during the last one"


def test_a_job_given_back_on_the_way_out_loses_no_attempt(ledger: Ledger) -> None:
    arrive(ledger)
    for _ in range(10):
        assert ledger.release(claim(ledger)).state == "pending"
    assert claim(ledger).attempts == 1


def test_a_truncated_file_is_quarantined_on_arrival_and_never_claimed(ledger: Ledger) -> None:
    job = ledger.register("a.tif", 100, 1, live=True, refused="4 of 9 bytes are missing")
    assert job is not None and (job.state, job.error) == ("quarantined", "4 of 9 bytes are missing")
    assert ledger.claim() is None
    again = arrive(ledger, size=200)
    assert (again.id, again.state, again.error) == (job.id, "pending", None)


def test_retry_by_pattern(ledger: Ledger) -> None:
    for path in ("Grid/a.tif", "Grid/b.tif", "c.mrc", "d.tif"):
        arrive(ledger, path, live=False)
    for path in ("Grid/a.tif", "Grid/b.tif", "c.mrc"):
        job = claim(ledger)
        assert job.path == path
        ledger.quarantine(job, "bad header")
    ledger.fail_transient(claim(ledger), "locked")
    assert [job.path for job in ledger.retry("Grid/*")] == ["Grid/a.tif", "Grid/b.tif"]
    assert [job.path for job in ledger.retry("c.mrc")] == ["c.mrc"]
    assert [job.path for job in ledger.retry()] == ["d.tif"]
    assert ledger.retry() == []
    job = claim(ledger)
    assert (job.attempts, job.error) == (1, None)


def test_a_forgotten_file_is_taken_in_anew(ledger: Ledger) -> None:
    arrive(ledger, "other.tif", live=False)
    arrive(ledger)
    ledger.forget(claim(ledger))
    assert not ledger.known("a.tif", 100, 1)
    assert ledger.counts() == {"pending": 1, "running": 0, "retry": 0, "done": 0, "quarantined": 0}
    again = arrive(ledger)
    assert (again.revision, again.state, again.attempts) == (1, "pending", 0)
    with pytest.raises(LedgerError, match="is pending and not running"):
        ledger.forget(again)
    assert ledger.busy()


def test_a_version_never_read_leaves_its_number_to_the_next(ledger: Ledger) -> None:
    arrive(ledger)
    first = claim(ledger)
    arrive(ledger, mtime_ns=2)
    ledger.forget(first)
    [job] = ledger.recent(5)
    assert (job.revision, job.mtime_ns, job.state) == (1, 2, "pending")
    second = claim(ledger)
    arrive(ledger, mtime_ns=3)
    running = claim(ledger)
    ledger.forget(second)
    assert ledger.get(running.id).revision == 2, "its output may lie there already"
    ledger.finish(running, "a.r2.tif")
    assert not ledger.busy() and ledger.counts()["done"] == 1


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("typed", ["NFC", "NFD"])
def test_a_pattern_of_retry_is_compared_as_those_of_the_settings_are(ledger: Ledger, stored: str, typed: str) -> None:
    path = unicodedata.normalize(stored, "Müller/Grün 1.TIF")
    arrive(ledger, path)
    for pattern in ("müller/*", "GRÜN*.tif"):
        ledger.quarantine(claim(ledger), "bad header")
        assert [job.path for job in ledger.retry(unicodedata.normalize(typed, pattern))] == [path]


def test_retry_leaves_superseded_revisions_alone(ledger: Ledger) -> None:
    arrive(ledger)
    first = claim(ledger)
    arrive(ledger, mtime_ns=2)
    ledger.quarantine(first, "it changed while it was read")
    assert ledger.retry() == []


def test_a_step_that_makes_no_sense_is_refused_and_changes_nothing(ledger: Ledger) -> None:
    arrive(ledger)
    done = ledger.finish(claim(ledger), "a.tif")
    for step in (ledger.fail_transient, ledger.quarantine, ledger.finish, ledger.same_content):
        with pytest.raises(LedgerError, match=r"a\.tif is done and not"):
            step(done, "x")
    with pytest.raises(LedgerError, match="no job 77"):
        ledger.get(77)
    assert ledger.get(done.id) == done


@pytest.mark.parametrize("name", ["\udcff\udc80.tif", "Größe µ.tif", "a\nb\t'\";--.tif", "x" * 250 + ".tif", " .tif"])
def test_any_name_round_trips(ledger: Ledger, name: str) -> None:
    arrive(ledger, f"sub/{name}", mtime_ns=2**64)
    job = claim(ledger)
    assert (job.path, job.mtime_ns) == (f"sub/{name}", 2**64)
    assert ledger.finish(job, f"out/{name}", warning=f"odd name {name}").output == f"out/{name}"
    assert ledger.known(f"sub/{name}", 100, 2**64)


def test_only_one_service_owns_a_state_folder(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    own = rf"in use by another emdenoised \(process {os.getpid()}\)"
    with start(folder), pytest.raises(LedgerLockedError, match=own):
        start(folder)
    with start(folder) as ledger:
        assert ledger.counts()["done"] == 0


def test_status_and_retry_work_beside_a_running_service(tmp_path: Path) -> None:
    with start(tmp_path) as ledger:
        arrive(ledger)
        ledger.quarantine(claim(ledger), "bad header")
        with Ledger(tmp_path, "read") as reader:
            assert reader.counts()["quarantined"] == 1
            assert [job.error for job in reader.recent(3, "quarantined")] == ["bad header"]
            with pytest.raises(LedgerError, match="cannot be opened or written"):
                reader.retry()
        with Ledger(tmp_path, "edit") as editor:
            assert len(editor.retry("a.*")) == 1
        assert claim(ledger).path == "a.tif"
    with Ledger(tmp_path, "read") as reader:
        assert reader.counts()["running"] == 1, "also when no service runs"


def test_looking_at_a_ledger_that_does_not_exist_says_so_and_makes_none(tmp_path: Path) -> None:
    modes: tuple[Mode, ...] = ("read", "edit")
    for mode in modes:
        with pytest.raises(LedgerError, match="the service has not run"):
            Ledger(tmp_path, mode)
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_made_this_moment_and_still_empty_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").touch()
    with pytest.raises(LedgerError, match="the service has not run"):
        Ledger(tmp_path, "read")
    with start(tmp_path) as ledger:
        arrive(ledger)


def test_a_ledger_this_user_may_not_open_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tmp_path).close()
    (tmp_path / "file").touch()
    with pytest.raises(
        LedgerError, match=r"file/ledger\.db cannot be opened: Not a directory; give this user the right"
    ):
        Ledger(tmp_path / "file", "read")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may open everything
    with pytest.raises(
        LedgerError, match=r"ledger\.db cannot be opened: Permission denied; give this user the right to"
    ):
        Ledger(tmp_path, "read")


# Locks, and files that are not the same any more


def elsewhere(folder: Path, program: str) -> None:
    """Run Python in another process, which knows the folder and `Ledger`."""
    begin = "import pathlib, sys; from daemon.ledger.jobs import Ledger; folder = pathlib.Path(sys.argv[1])\n"
    subprocess.run([sys.executable, "-c", begin + program, folder], check=True, cwd=ROOT)


def test_a_connection_that_comes_and_goes_takes_no_locks_of_another_in_the_same_process(tmp_path: Path) -> None:
    """Or a program that closes the ledger takes itself for its last user, and deletes the log in use."""
    with start(tmp_path) as ledger:
        arrive(ledger, "broken")
        ledger.quarantine(claim(ledger), "broken")
        log = (tmp_path / "ledger.db-wal").stat()
        Ledger(tmp_path, "read").close()
        elsewhere(tmp_path, "with Ledger(folder, 'read') as one: one.counts()")
        assert (tmp_path / "ledger.db-wal").stat().st_ino == log.st_ino and log.st_size
        elsewhere(tmp_path, "with Ledger(folder, 'edit') as one: one.retry()")
        assert claim(ledger).path == "broken", "what another process wrote is not seen"


def unlink(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    path.with_name("copy").write_bytes(path.with_name("kept").read_bytes())
    path.with_name("copy").replace(path)


@pytest.mark.parametrize("take", [unlink, replace])
@pytest.mark.parametrize("name", ["ledger.db", "ledger.db-wal", "ledger.db-shm", "lock"])
def test_nothing_is_written_to_a_file_that_lost_its_name(
    tmp_path: Path, name: str, take: Callable[[Path], None]
) -> None:
    ledger = start(tmp_path)
    (tmp_path / "kept").touch()
    arrive(ledger, "a.tif")
    ledger.require_in_place()
    take(tmp_path / name)
    with pytest.raises(LedgerReplacedError, match=f"{name} was moved, deleted or replaced.*next start.*Keep programs"):
        ledger.require_in_place()
    with pytest.raises(LedgerReplacedError):
        ledger.claim()
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerReplacedError):
        Ledger(tmp_path, "read")


def test_the_end_of_a_process_whose_log_was_deleted_does_not_undo_what_others_wrote(tmp_path: Path) -> None:
    """SQLite would copy the deleted log over the database, newer rows and all, when the last connection is closed."""
    with start(tmp_path) as ledger:
        for number in range(300):
            arrive(ledger, f"{number}.tif")
            ledger.quarantine(claim(ledger), "broken")
    elsewhere(
        tmp_path,
        "import subprocess\n"
        "with Ledger(folder) as one:\n"
        "    one.register('late.tif', 1, 1, live=True)\n"
        "    for name in ('ledger.db-wal', 'ledger.db-shm'):\n"
        "        (folder / name).unlink()\n"
        "    other = 'import sys, pathlib as p; from daemon.ledger.jobs import Ledger as L\\n'\n"
        "    other += 'with L(p.Path(sys.argv[1]), mode=\"edit\") as other: other.retry()'\n"
        "    subprocess.run([sys.executable, '-c', other, folder], check=True)\n",
    )
    with start(tmp_path) as ledger:
        assert ledger._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert ledger.counts() == {"pending": 300, "running": 0, "retry": 0, "done": 0, "quarantined": 0}


def test_files_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    before = os.umask(0)
    try:
        with start(folder) as ledger:
            arrive(ledger)
            modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in folder.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("ledger.db", "ledger.db-wal", "ledger.db-shm", "lock"), 384)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_unusable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        start(tmp_path / "file")


def test_a_damaged_a_foreign_and_a_newer_ledger_are_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is no database" * 100)
    before = path.read_bytes()
    with pytest.raises(LedgerDamagedError, match=r"move ledger\.db, ledger\.db-wal and ledger\.db-shm away"):
        start(tmp_path)
    assert path.read_bytes() == before
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE recipes (id)")
    database.close()
    with pytest.raises(LedgerError, match="not a ledger of emdenoised"):
        start(tmp_path)
    path.unlink()
    start(tmp_path).close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    database.close()
    with pytest.raises(LedgerError, match="newer emdenoised"):
        start(tmp_path)


def test_a_page_damaged_later_is_named_too(tmp_path: Path) -> None:
    with start(tmp_path) as ledger:
        for number in range(500):
            arrive(ledger, f"{number}.tif")
    path = tmp_path / "ledger.db"
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(LedgerDamagedError):
        start(tmp_path).claim()


def test_a_full_disk_changes_nothing_and_is_tried_again(tmp_path: Path) -> None:
    with start(tmp_path) as ledger:
        pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
        ledger._db.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(LedgerUnavailableError, match="disk is full") as caught:
            for number in range(10_000):
                arrive(ledger, f"{number}.tif")
        assert isinstance(caught.value, TransientError)
        count = ledger.counts()["pending"]
        assert 0 < count < 10_000
        ledger._db.execute("PRAGMA max_page_count = 100000")
        arrive(ledger, f"{count}.tif")
        assert ledger.counts()["pending"] == count + 1


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("disk I/O error", LedgerUnavailableError),
        ("database is locked", LedgerUnavailableError),
        ("attempt to write a readonly database", LedgerError),
        ("something new", LedgerError),
    ],
)
def test_sqlite_errors_in_words(text: str, kind: type[Exception]) -> None:
    error = explain(Path("/state/ledger.db"), sqlite3.OperationalError(text))
    assert type(error) is kind and "/state/ledger.db" in str(error)


def test_threads_share_it_and_no_job_is_given_twice(ledger: Ledger) -> None:
    for number in range(200):
        arrive(ledger, f"{number}.tif", live=number % 2 == 0)
    taken: list[str] = []
    problems: list[BaseException] = []

    def work(live_first: bool) -> None:
        try:
            while (job := ledger.claim(live_first)) is not None:
                taken.append(job.path)
                ledger.finish(job, job.path)
        except BaseException as error:
            problems.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    assert sorted(taken) == sorted(f"{number}.tif" for number in range(200))
    assert ledger.counts()["done"] == 200


def test_claims_stay_quick_in_a_long_ledger(ledger: Ledger, clock: Clock) -> None:
    """The plan is what keeps it quick at a million rows; the timing only catches a blunder."""
    with ledger._transaction():
        ledger._db.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)"
            " INSERT INTO jobs (path, revision, size, mtime_ns, state, live, created, updated)"
            " SELECT CAST(i || '.tif' AS BLOB), 1, 1, '1', 'done', i % 2, i, i FROM n"
        )
    for number in range(100):
        arrive(ledger, f"new{number}", live=number % 2 == 0)
    begin = time.perf_counter()
    for number in range(100):
        ledger.finish(claim(ledger, number % 2 == 0), "x")
    assert time.perf_counter() - begin < 2
    statements: list[str] = []
    arrive(ledger, "last", live=False)
    ledger._db.set_trace_callback(statements.append)
    claim(ledger)
    ledger.register("last", 5, 5, live=True)
    ledger.next_retry()
    ledger._db.set_trace_callback(None)
    plans = [
        row["detail"]
        for statement in statements
        if statement.startswith(("SELECT", "UPDATE"))
        for row in ledger._db.execute(f"EXPLAIN QUERY PLAN {statement}")
    ]
    assert len(plans) >= 8
    assert [plan for plan in plans if plan.startswith("SCAN") and "USING" not in plan] == []


def test_a_ledger_of_the_first_version_is_brought_up_to_date(tmp_path: Path, clock: Clock) -> None:
    """What the first version that landed wrote, by its own code."""
    first = (Path(__file__).parent / "ledger_first.sql").read_text()
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.executescript(first)
        before = database.execute("SELECT * FROM jobs ORDER BY id").fetchall()
    database.close()
    with pytest.raises(LedgerError, match="older version; start the service once"):
        Ledger(tmp_path, "read")
    clock.now = 1_760_000_100.0
    with start(tmp_path, clock) as ledger:
        now = [tuple(row) for row in ledger._db.execute("SELECT * FROM jobs ORDER BY id")]
        assert now == [(*row, 0, None, "{}") for row in before]  # no section of a stack, no verdict
        assert ledger.counts() == {"pending": 3, "running": 1, "retry": 1, "done": 2, "quarantined": 1}
        assert ledger.oldest_waiting() == 96.0
        assert [job.path for job in ledger.recover()] == ["running.tif"]
        done = []
        while (job := ledger.claim()) is not None:
            done.append(job.path)
            ledger.finish(job, f"/out/{job.path}")
        assert len(done) == 5 and ledger.counts()["done"] == 7
        assert ledger.known("low/wären \udcff.tif", 1001, 1_759_999_999_000_000_001)
    with Ledger(tmp_path, "read") as reader:
        assert reader.counts()["done"] == 7


def test_verdict_and_facts_are_kept_and_asked_for_by_page(tmp_path: Path, clock: Clock) -> None:
    with start(tmp_path, clock) as ledger:
        for number in range(25):
            clock.now += number % 3  # several within one tick of the clock
            ledger.register(f"{number}.tif", 1, number, live=True)
            job = ledger.claim()
            assert job is not None
            word = ("good", "check", "reject")[number % 3]
            ledger.finish(job, f"/out/{number}", verdict=word, facts={"dose": number, "reasons": ["a", "b"]})
        seen, before = [], None
        while page := ledger.recent(4, "done", before=before):
            seen += page
            before = page[-1].updated, page[-1].id
        assert [job.path for job in seen] == [f"{number}.tif" for number in range(24, -1, -1)]
        assert seen[0].facts == {"dose": 24, "reasons": ["a", "b"]}
        checked = ledger.recent(100, verdict="check")
        assert [job.facts["dose"] for job in checked] == list(range(22, 0, -3))
        assert ledger.recent(100, verdict="check", before=(checked[0].updated, checked[0].id)) == checked[1:]


def test_an_upgrade_that_is_cut_off_leaves_the_ledger_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.executescript((Path(__file__).parent / "ledger_first.sql").read_text())
    database.close()
    whole = ledger_file.MIGRATIONS
    monkeypatch.setattr(ledger_file, "MIGRATIONS", (whole[0], whole[1] + "; no such statement"))
    with pytest.raises(LedgerError):
        start(tmp_path)
    monkeypatch.setattr(ledger_file, "MIGRATIONS", whole)
    with start(tmp_path) as ledger:
        assert ledger.counts()["done"] == 2


def test_a_stack_goes_on_where_it_was(ledger: Ledger) -> None:
    def grown(size: int) -> Job | None:
        return ledger.register("tilt.st", size, size, live=True, by_section=True)

    assert grown(100) is not None and grown(100) is None
    job = ledger.finish(claim(ledger), "/out/1", sections=1, more=True, sha256="first")
    assert (job.state, job.sections, job.attempts) == ("pending", 1, 0)
    grown(200)
    second = claim(ledger)
    assert (second.sections, second.sha256, second.size, second.revision) == (1, "first", 200, 1)
    grown(300)  # while it is in hand, and so it is not the last
    assert ledger.finish(second, "/out/2", sections=2).state == "pending"
    assert ledger.finish(claim(ledger), "/out/3", sections=3).state == "done"
    assert ledger.known("tilt.st", 300, 300)
    grown(400)
    ledger.quarantine(claim(ledger), "broken")
    job = grown(500)
    assert job is not None and (job.state, job.sections, job.error, job.output) == ("pending", 3, None, "/out/3")
    assert ledger.counts()["pending"] == 1 and len(ledger.recent(9)) == 1


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (("good", "good"), "good"),
        (("good", "reject", "good"), "reject"),
        (("check", "good"), "check"),
        (("check", "reject"), "reject"),
        ((None, "good"), "good"),
    ],
)
def test_a_stack_has_the_worst_verdict_of_its_sections(
    ledger: Ledger, words: tuple[str | None, ...], kept: str
) -> None:
    ledger.register("tilt.st", 1, 1, live=True, by_section=True)
    for number, word in enumerate(words, 1):
        told = {"verdict": word, "facts": {}, "sections": number, "more": number < len(words)}
        job = ledger.finish(claim(ledger), f"/out/{number}", **told)  # type: ignore[arg-type]
    assert job.verdict == kept
    ledger.register("tilt.st", 2, 2, live=True, by_section=True)
    ledger.replaced(claim(ledger))  # another stack: nothing of the one before counts
    assert ledger.finish(claim(ledger), "/out/1", sections=1, verdict="good", facts={}).verdict == "good"


def test_a_file_of_which_only_decoding_tells_is_taken_as_it_was_the_last_time(ledger: Ledger) -> None:
    for path, sections in (("tilt.dm4", 3), ("movie.dm4", 0)):
        ledger.register(path, 1, 1, live=True, by_section=None)
        ledger.finish(claim(ledger), "/out/1", sections=sections or None, sha256="first")
    touched = [ledger.register(path, 1, 2, live=True, by_section=None) for path in ("tilt.dm4", "movie.dm4")]
    assert [(job.path, job.revision, job.sections) for job in touched if job] == [
        ("tilt.dm4", 1, 3),
        ("movie.dm4", 2, 0),
    ]


def test_another_stack_under_the_same_name_is_the_next_revision(ledger: Ledger) -> None:
    ledger.register("tilt.st", 1, 1, live=True, by_section=True)
    ledger.finish(claim(ledger), "/out/1", sections=1, sha256="first")
    ledger.register("tilt.st", 2, 2, live=True, by_section=True)
    job = ledger.replaced(claim(ledger))
    assert (job.state, job.revision, job.sections, job.sha256, job.attempts) == ("pending", 2, 0, None, 0)


def test_how_long_the_oldest_has_waited(ledger: Ledger, clock: Clock) -> None:
    assert ledger.oldest_waiting() == 0
    arrive(ledger, "a.tif")
    clock.now += 10
    arrive(ledger, "b.tif", live=False)
    clock.now += 5
    assert ledger.oldest_waiting() == 15
    ledger.finish(claim(ledger), "/out/a.tif")
    assert ledger.oldest_waiting() == 5
    ledger.fail_transient(claim(ledger), "locked")
    assert ledger.oldest_waiting() == 5
    clock.now -= 100
    assert ledger.oldest_waiting() == 0, "a clock that was set back"


class Lives(RuleBasedStateMachine):
    """Any order of arrivals, work, failures and crashes: every version of every file ends once, or still waits."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.folder = self.root / "0"
        self.clock = Clock()
        self.ledger = start(self.folder, self.clock)
        self.lives = 0
        self.running: list[Job] = []
        self.finished: set[tuple[str, int]] = set()
        self.latest: dict[str, int] = {}

    @rule(path=st.sampled_from("abc"), version=st.integers(1, 4), live=st.booleans())
    def arrives(self, path: str, version: int, live: bool) -> None:
        known = self.ledger.known(path, 1, version)
        job = self.ledger.register(path, 1, version, live=live)
        assert (job is None) == known
        if job is not None:
            assert (path, version) not in self.finished
            self.latest[path] = version

    @rule(live_first=st.booleans())
    def claims(self, live_first: bool) -> None:
        if (job := self.ledger.claim(live_first)) is not None:
            assert job.id not in {one.id for one in self.running}
            assert (job.path, job.mtime_ns) not in self.finished
            self.running.append(job)

    @precondition(lambda self: self.running)
    @rule(end=st.sampled_from(["finish", "fail", "quarantine", "release"]))
    def ends(self, end: str) -> None:
        job = self.running.pop(0)
        match end:
            case "finish":
                self.ledger.finish(job, "x")
                self.finished.add((job.path, job.mtime_ns))
            case "fail":
                self.ledger.fail_transient(job, "locked")
            case "quarantine":
                self.ledger.quarantine(job, "bad")
            case "release":
                self.ledger.release(job)

    @rule(seconds=st.sampled_from([1.0, 60.0, 3600.0, -3600.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def everything_is_tried_again(self) -> None:
        self.ledger.retry()

    @rule()
    def dies_and_starts_again(self) -> None:
        self.lives += 1
        after = killed(self.folder, self.root / str(self.lives))
        self.ledger.close()
        self.folder, self.ledger = after, start(after, self.clock)
        recovered = {job.id for job in self.ledger.recover()}
        assert recovered == {job.id for job in self.running}
        self.running.clear()

    @invariant()
    def counts_are_what_counting_gives(self) -> None:
        rows = self.ledger._db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall()
        assert {state: number for state, number in self.ledger.counts().items() if number} == dict(rows)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.ledger.counts()["done"] == len(self.finished)
        assert self.ledger.counts()["running"] == len(self.running)
        assert all(self.ledger.known(path, 1, version) for path, version in self.latest.items())

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.root)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


def test_an_impatient_start_makes_failed_jobs_due_now(tmp_path: Path) -> None:
    with start(tmp_path) as ledger:
        arrive(ledger, "a.tif")
        job = ledger.claim()
        assert job is not None
        ledger.fail_transient(job, "locked")
        ledger.recover()
        assert ledger.claim() is None
        ledger.recover(impatient=True)
        again = ledger.claim()
        assert again is not None and again.attempts == 2
