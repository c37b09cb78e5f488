"""A ledger that refuses, is damaged or taken away, and a crash before its entry."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from fake_backend import FakeBackend
from service_bench import Bench
from site_of_daemon import LIMIT, until

from daemon.counts.plane import Prepared
from daemon.ledger.database import LedgerReplacedError, LedgerUnavailableError
from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger
from daemon.service.service import Service


def test_a_crash_between_image_and_ledger_is_made_good_by_adoption(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write("a.tif")
    monkeypatch.setattr(Ledger, "finish", lambda *arguments, **options: (_ for _ in ()).throw(OSError("crash")))
    monkeypatch.setattr(Ledger, "fail_transient", lambda self, job, error: job)
    service = bench.start()
    until(lambda: bench.images() == {"a.tif"} and service.unsuccessful)
    bench.stop()
    monkeypatch.undo()
    monkeypatch.setattr("daemon.service.inference.open_backend", bench._open)
    image = bench.output / "a.tif"
    before = image.stat().st_mtime_ns, image.stat().st_ino
    assert bench.states() == {"a.tif#1": "running"}
    bench.finish()
    assert bench.states() == {"a.tif#1": "done"}
    assert (image.stat().st_mtime_ns, image.stat().st_ino) == before and len(bench.backend.given) == 1


def test_entries_that_the_ledger_refuses_are_repeated_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing, refused = threading.Event(), threading.Event()
    refusing.set()

    def sometimes(real: Callable[..., Any]) -> Callable[..., Any]:
        def method(*arguments: Any, **options: Any) -> Any:
            if refusing.is_set():
                refused.set()
                raise LedgerUnavailableError("the disk is full")
            return real(*arguments, **options)

        return method

    for name in ("finish", "fail_transient"):
        monkeypatch.setattr(Ledger, name, sometimes(getattr(Ledger, name)))
    bench.write("a.tif")
    service = bench.start()
    until(refused.is_set)
    until(lambda: service._accounts.behind)
    assert not service.idle
    refusing.clear()
    until(lambda: service.ledger.counts()["done"] == 1)
    bench.finish()
    assert bench.images() == {"a.tif"} and len(bench.backend.given) == 1 and service.failure is None
    assert service.unsuccessful == 0 and bench.jobs()["a.tif", 1].attempts == 1, "its image lay there: no failure"


def test_a_ledger_that_refuses_to_keep_a_hash_costs_no_attempt(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = Ledger.same_content, 0

    def same_content(self: Ledger, job: Job, sha256: str) -> Job | None:
        nonlocal refused
        refused += 1
        if refused <= bench.config.retry.attempts + 1:
            raise LedgerUnavailableError("the disk is full")
        return real(self, job, sha256)

    monkeypatch.setattr(Ledger, "same_content", same_content)
    bench.write("a.tif")
    service = bench.finish()
    assert bench.states() == {"a.tif#1": "done"} and bench.jobs()["a.tif", 1].attempts == 1
    assert service.unsuccessful == 0


def test_a_damaged_ledger_ends_the_service_instead_of_hanging_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    service = bench.start()

    def claim(*arguments: Any) -> Any:
        raise RuntimeError("the ledger is damaged")

    monkeypatch.setattr(Ledger, "claim", claim)
    bench.write("a.tif")
    until(lambda: service.failure is not None)
    assert "damaged" in str(service.failure)


def test_a_ledger_that_was_taken_away_ends_the_service_and_is_reported_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def hold(_: Prepared) -> None:
        arrived.set()
        assert go_on.wait(LIMIT)

    bench.backends["fast"] = FakeBackend(0, hold)
    service = bench.start()
    for number in range(6):
        bench.write(f"{number}.tif", number)
    assert arrived.wait(LIMIT)
    service.check_ledger()
    assert service.health.state == "ok"
    for end in ("-wal", "-shm"):
        (bench.config.folders.state / f"ledger.db{end}").unlink()
    for _ in range(3):
        service.check_ledger()
    words = "ledger.db-wal was moved, deleted or replaced while emdenoised used it; the service ends with status 1"
    assert service.health.state == "failed" and words in service.health.detail
    go_on.set()
    bench.stop()
    assert [record.levelname for record in caplog.records if words in record.getMessage()] == ["CRITICAL"]
    with pytest.raises(LedgerReplacedError):  # its descriptors are open until this process ends
        Service(bench.config)
