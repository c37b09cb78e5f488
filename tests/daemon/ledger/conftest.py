"""A ledger in a temporary folder, and its clock."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ledgers import Clock, start

from daemon.ledger.jobs import Ledger


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with start(tmp_path / "state", clock) as one:
        yield one
