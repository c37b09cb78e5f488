"""A disk that stays full: everything waits, longer each time, and the log has one line for each attempt."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from daemon.errors import StorageError
from daemon.ledger.database import LedgerUnavailableError
from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger
from daemon.service.accounts import Accounts
from daemon.service.blockage import Blockage
from daemon.service.metrics import Metrics
from daemon.service.workers import Workers
from daemon.settings.config import Config, Retry


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr("daemon.service.blockage.time", SimpleNamespace(monotonic=lambda: clock[0]))
    return clock


def test_one_line_for_each_attempt_and_none_for_other_jobs(
    now: list[float], caplog: pytest.LogCaptureFixture, config: Any
) -> None:
    blockage = Blockage(Retry(first_seconds=5, factor=2), lambda: False, lambda: None)
    accounts = cast(Accounts, SimpleNamespace(release=lambda job: None))
    settings: Config = config()
    workers = Workers(settings, {}, cast(Ledger, None), accounts, Metrics(), blockage, lambda claimed: None)

    def refused(job: Job) -> bool:
        raise StorageError("/out/a.tif: cannot be written now, the disk is full")

    job = cast(Job, SimpleNamespace(path="a.tif"))
    for time in (100.0, 100.1, 104.9, 105.0, 105.2, 114.9, 115.0):
        now[0] = time
        workers.attempt(job, refused, job)
    workers.close()
    assert [record.getMessage().rpartition("; ")[2] for record in caplog.records] == [
        f"the queue is kept and everything waits {pause} s" for pause in (5, 10, 20)
    ]
    assert blockage.until == 135.0 and blockage.holds
    blockage.over()
    now[0] = 135.0
    assert blockage.refused(StorageError("full again")) == 5


def test_a_ledger_that_cannot_be_written_is_reported_once_for_each_attempt(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    full = True

    def release(job: Job) -> None:
        if full:
            raise LedgerUnavailableError("ledger.db: the disk is full")

    ledger = cast(Ledger, SimpleNamespace(release=release))
    accounts = Accounts(tmp_path, ledger, Metrics(), lambda path: None, lambda: None)
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            accounts.release(cast(Job, None))
        caplog.clear()
        for _ in range(2):
            accounts.catch_up()
    assert len(caplog.records) == 2 and accounts.behind
    full = False
    accounts.catch_up()
    assert not accounts.behind
