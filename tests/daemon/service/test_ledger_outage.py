"""A full disk under the ledger: a line at growing intervals, whatever the number of files and attempts."""

import logging

import pytest

from daemon.ledger.database import LedgerUnavailableError
from daemon.service.ledger_outage import LedgerOutage
from daemon.settings.config import Retry

FULL = LedgerUnavailableError("ledger.db: the disk is full")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_line_a_retry_with_the_number_of_waiting_files(caplog: pytest.LogCaptureFixture) -> None:
    clock, retry = Clock(), Retry()
    outage = LedgerOutage(retry, clock)
    with caplog.at_level(logging.INFO):
        for _ in range(600):  # a minute, ten attempts a second
            for path in ("a.tif", "b.tif", "c.tif"):
                outage.met(FULL, path)
            outage.met(FULL)
            clock.now += 0.1
    assert caplog.messages[0] == "ledger.db: the disk is full; 'a.tif' is registered later"
    assert set(caplog.messages[1:]) == {"ledger.db: the disk is full; 3 micrographs are registered later"}
    ends = [sum(retry.pause(number) for number in range(1, lines)) for lines in range(1, 10)]
    assert len(caplog.messages) == sum(end < 60 for end in ends) < 6


def test_the_end_is_reported_once_and_the_next_outage_at_once(caplog: pytest.LogCaptureFixture) -> None:
    outage = LedgerOutage(Retry(), Clock())
    with caplog.at_level(logging.INFO):
        outage.over()
        outage.met(FULL)
        outage.over()
        outage.over()
        outage.met(FULL)
    assert caplog.messages == [
        "ledger.db: the disk is full; the queue is tried again",
        "the ledger can be written again",
        "ledger.db: the disk is full; the queue is tried again",
    ]
