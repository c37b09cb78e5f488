"""The ledger: nothing lost, nothing done twice, across restarts, crashes and clocks that jump."""

import threading
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from ledgers import RETRY, Clock, arrive, claim, killed, start

from daemon.ledger.database import (
    LedgerError,
)
from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger


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


def test_how_long_a_job_waited_for_its_turn_without_the_pause_after_a_failure(ledger: Ledger, clock: Clock) -> None:
    arrive(ledger)
    clock.now += 7
    job = claim(ledger)
    assert job.waited == 7 and ledger.get(job.id).waited == 0
    ledger.fail_transient(job, "share gone")
    clock.now += (ledger.next_retry() or 0) + 2
    assert claim(ledger).waited == 2
    ledger.release(job)
    clock.now -= 100  # set back
    assert claim(ledger).waited == 0


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
