"""What the tests of the running service share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from service_bench import Bench

from daemon.settings.config import Config


@pytest.fixture
def bench(
    monkeypatch: pytest.MonkeyPatch, config: Callable[..., Config], write: Callable[..., Path]
) -> Iterator[Bench]:
    bench = Bench(monkeypatch, config(), write)
    yield bench
    bench.stop()
