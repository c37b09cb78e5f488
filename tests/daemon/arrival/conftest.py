"""A drop folder and a clock for the watcher."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from watched_folder import Clock, FakeObserver


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
