"""A server that cannot be used: everything waits, nothing is lost, and no attempt is counted."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_backend import FakeBackend
from site_of_daemon import until

from daemon.counts.plane import Denoised, Plane
from daemon.errors import ConfigError, ServerError, WeightsError
from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger
from daemon.service import supervisor
from daemon.service.service import Service
from daemon.settings.config import Config


class FakeServer(FakeBackend):
    """`error` is raised for everything while it is set, the canary included."""

    def __init__(self, ahead: int = 0) -> None:
        super().__init__(ahead)
        self.error: Exception | None = None
        self.asked = 0
        self.lives: list[bool] = []

    def denoise(self, planes: Iterable[Plane | None]) -> Iterator[Denoised]:
        def noted() -> Iterator[Plane | None]:
            for one in planes:
                self.asked += 1
                if self.error is not None:
                    raise self.error
                self.lives += [one.live] if one is not None and one.pixels.shape == (64, 64) else []
                yield one

        yield from super().denoise(noted())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    server = FakeServer(ahead=2)
    monkeypatch.setattr("daemon.service.inference.open_backend", lambda *arguments: server)
    return server


@pytest.fixture
def settings(config: Callable[..., Config]) -> Config:
    return config(
        backend={"kind": "server", "server": {"url": "gpu:8001"}},
        retry={"first_seconds": 0.1, "factor": 2.0, "longest_seconds": 0.4, "attempts": 1},
    )


@pytest.fixture
def service(server: FakeServer, settings: Config) -> Iterator[Service]:
    service = Service(settings)
    yield service
    service.stop()


def jobs(settings: Config) -> list[Job]:
    with Ledger(settings.folders.state, "read") as ledger:
        return ledger.recent(100)


def test_the_start_does_not_wait_for_it_and_work_begins_when_it_is_there(
    server: FakeServer, service: Service, settings: Config, write: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server.error = ServerError("server gpu:8001 does not answer")
    for seed in range(3):
        write(settings.folders.drop / f"{seed}.tif", seed)
    assert service.start()
    until(lambda: service.health.state == "degraded")
    assert service.health.detail == "server gpu:8001 does not answer; the queue is kept" and service.blocked
    until(lambda: server.asked >= 4 and service.ledger.counts()["pending"] == 3)
    assert {job.attempts for job in jobs(settings)} == {0}
    server.error = None
    until(lambda: service.ledger.counts()["done"] == 3)
    assert service.health.state == "ok" and {job.attempts for job in jobs(settings)} == {1}
    waits = [line.message.rpartition("waits ")[2] for line in caplog.records if "everything waits" in line.message]
    assert waits[0] == "0 s" and len(waits) >= 3 and any("can be used again" in one.message for one in caplog.records)


def test_micrographs_on_their_way_go_back_to_the_queue(
    server: FakeServer, service: Service, settings: Config, write: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    met = threading.Event()

    def fail(_: Any) -> None:
        if not met.is_set():
            met.set()
            server.error = ServerError("gone")
            raise server.error

    server.hook = fail
    service.start()
    for seed in range(4):
        write(settings.folders.drop / f"{seed}.tif", seed)
    until(lambda: met.is_set() and service.ledger.counts()["pending"] == 4)
    assert "back in the queue: '" in caplog.text
    server.error = None
    until(lambda: service.ledger.counts()["done"] == 4)
    found = jobs(settings)
    assert {job.attempts for job in found} == {1} and {job.revision for job in found} == {1}


def test_a_server_that_fails_while_there_is_nothing_to_do_is_noticed(
    server: FakeServer, settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.service.inference.IDLE_SECONDS", 0.05)
    service = Service(settings)
    service.start()
    until(lambda: service.health.state == "ok")
    server.error = ServerError("gone")
    until(lambda: service.health.state == "degraded")
    server.error = None
    until(lambda: service.health.state == "ok")
    service.stop()


def test_live_micrographs_are_marked_and_the_backlog_is_not(
    server: FakeServer, service: Service, settings: Config, write: Callable[..., Path]
) -> None:
    write(settings.folders.drop / "old.tif")
    service.start()
    until(lambda: service.ledger.counts()["done"] == 1)
    write(settings.folders.drop / "new.tif", 1)
    until(lambda: service.ledger.counts()["done"] == 2)
    assert server.lives == [False, True]


def test_a_server_whose_canary_tile_comes_out_wrong_is_not_used(
    server: FakeServer, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_smoothed", lambda one: Denoised(np.zeros(one.pixels.shape, np.float32), one, "zero"))
    service.start()
    until(lambda: service.health.state == "degraded")
    assert "the canary tile came out wrong" in service.health.detail and service.failure is None


@pytest.mark.parametrize("error", [ConfigError("another request"), WeightsError("another network")])
def test_what_only_a_person_can_change_ends_the_service_with_78(
    server: FakeServer, settings: Config, write: Callable[..., Path], error: Exception
) -> None:
    def fail(_: Any) -> None:
        raise error

    server.hook = fail
    write(settings.folders.drop / "a.tif")
    assert supervisor.supervise(settings) == 78
    assert [(job.state, job.attempts) for job in jobs(settings)] == [("pending", 0)]


def test_once_ends_without_success_if_it_is_away(
    server: FakeServer, settings: Config, write: Callable[..., Path]
) -> None:
    server.error = ServerError("gone")
    write(settings.folders.drop / "a.tif")
    assert supervisor.supervise(settings, once=True) == 1
    assert all(job.state == "pending" and job.attempts == 0 for job in jobs(settings))


def test_it_stops_while_it_waits(server: FakeServer, config: Callable[..., Config]) -> None:
    server.error = ServerError("gone")
    settings = config(
        backend={"kind": "server", "server": {"url": "gpu:8001"}}, retry={"first_seconds": 600, "longest_seconds": 600}
    )
    service = Service(settings)
    service.start()
    until(lambda: service.inference.away)
    begin = time.monotonic()
    service.stop()
    assert time.monotonic() - begin < 30
