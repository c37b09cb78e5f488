"""A network that fails: one micrograph, or the service, and no micrograph without an end."""

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from fake_backend import FakeBackend
from service_bench import Bench
from site_of_daemon import LIMIT, until

from daemon.counts.plane import Denoised, Plane, Prepared
from daemon.errors import BackendError, MicrographError
from daemon.ledger.jobs import Ledger


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_micrograph_the_backend_refuses_costs_that_one_only(bench: Bench, ahead: int) -> None:
    def hook(one: Prepared) -> None:
        if one.pixels.mean() > 100:
            raise MicrographError("nothing to be seen in it")

    bench.backends["fast"] = FakeBackend(ahead, hook)
    for number in range(6):
        bench.write(f"{number}.tif", number, dose=200 if number in (1, 4) else 20)
    service = bench.finish()
    assert service.failure is None and service.unsuccessful == 2
    assert bench.images() == {"0.tif", "2.tif", "3.tif", "5.tif"}
    refused = bench.jobs()["1.tif", 1]
    assert refused.state == "quarantined" and "nothing to be seen" in (refused.error or "")


def test_one_of_many_refused_by_a_backend_that_reads_ahead(bench: Bench) -> None:
    # All are waiting before the first is computed, so those read ahead of the refused one must be given again.
    gate = threading.Event()

    def hook(one: Prepared) -> None:
        assert gate.wait(LIMIT)
        if one.pixels.mean() > 100:
            raise MicrographError("refused")

    bench.backends["fast"] = FakeBackend(2, hook)
    for number in range(4):
        bench.write(f"{number}.tif", number, dose=200 if number == 0 else 20)
    service = bench.start()
    until(lambda: service.ledger.counts()["running"] == 4)
    gate.set()
    bench.finish()
    assert service.failure is None and service.unsuccessful == 1
    assert bench.images() == {"1.tif", "2.tif", "3.tif"}


@pytest.mark.parametrize("error", [BackendError("the card fell off the bus"), RuntimeError(), MemoryError()], ids=repr)
def test_a_failing_network_ends_the_service_and_releases_what_waits(bench: Bench, error: Exception) -> None:
    def hook(one: Prepared) -> None:
        raise error

    bench.backends["fast"] = FakeBackend(1, hook)
    for number in range(8):
        bench.write(f"{number}.tif", number)
    service = bench.start()
    until(lambda: service.failure is not None)
    bench.stop()
    assert service.failure is error and bench.backend.closed.is_set()
    jobs = bench.jobs().values()
    assert {job.state for job in jobs} == {"pending", "retry"}, "nothing may be left running"
    # What was in the network has its attempt counted, so that a micrograph which kills it is given up in the end.
    assert 1 <= sum(job.attempts for job in jobs) <= 2
    bench.backends["fast"] = FakeBackend()
    service = bench.start()
    until(lambda: len(bench.images()) == 8)
    bench.finish()
    assert service.failure is None and set(bench.states().values()) == {"done"}


def test_a_micrograph_that_kills_the_network_every_time_is_given_up(bench: Bench) -> None:
    def hook(one: Prepared) -> None:
        if one.pixels.mean() > 100:
            raise RuntimeError("out of luck")

    bench.backends["fast"] = FakeBackend(0, hook)
    bench.write("poison.tif", 1, dose=200)
    starts = 0
    while bench.states().get("poison.tif#1") != "quarantined" if starts else True:
        service = bench.start()
        until(lambda service=service: service.failure is not None)  # type: ignore[misc]
        bench.stop()
        starts += 1
    assert starts == bench.config.retry.attempts
    bench.write("good.tif", 2)
    assert bench.finish().failure is None
    assert bench.images() == {"good.tif"}
    assert "out of luck" in (bench.jobs()["poison.tif", 1].error or "")


def test_a_backend_that_cannot_be_opened_keeps_the_service_from_starting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> Any:
        raise BackendError("no engine")

    monkeypatch.setattr("daemon.service.inference.open_backend", refuse)
    with pytest.raises(BackendError, match="no engine"):
        bench.start()
    with Ledger(bench.config.folders.state) as ledger:  # the folder was let go
        assert ledger.counts()["done"] == 0


def test_an_idle_network_proves_itself_on_the_canary_again_and_again(bench: Bench) -> None:
    service = bench.start(idle_canary_seconds=0.02)
    before = service.inference.beats
    until(lambda: service.inference.beats > before + 2)


def test_a_network_that_swallows_a_micrograph_has_its_attempt_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Swallowing(FakeBackend):
        def denoise(self, planes: Iterable[Plane | None]) -> Iterator[Denoised]:
            for result in super().denoise(planes):
                if result.image.shape == (64, 64):
                    return
                yield result

    bench.backends["fast"] = Swallowing()
    bench.write("a.tif")
    service = bench.start()
    until(lambda: service.failure is not None)
    bench.stop()
    job = bench.jobs()["a.tif", 1]
    assert job.state == "retry" and job.attempts == 1 and "never came out" in (job.error or "")
