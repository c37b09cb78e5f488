"""The running service in this process, with a fake backend: whatever happens, every micrograph has exactly one fate."""

import hashlib
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from fake_backend import FakeBackend
from service_bench import Bench
from site_of_daemon import LIMIT, until

from daemon.backends import manifest
from daemon.counts.plane import Prepared
from daemon.errors import MicrographError
from daemon.ledger.jobs import Ledger
from daemon.service import steps, supervisor
from daemon.service.service import Service
from daemon.settings.config import Config


def test_everything_in_the_folder_is_denoised_once_in_its_sub_folder(bench: Bench) -> None:
    raw = {name: bench.write(name, seed) for seed, name in enumerate(("a.tif", "low/b.tif", "ordinary/x/c.tif"))}
    before = {name: (path.read_bytes(), path.stat().st_mtime_ns) for name, path in raw.items()}
    service = bench.finish()
    assert bench.images() == set(raw) and service.unsuccessful == 0 and service.failure is None
    for name, path in raw.items():
        assert bench.record(name)["raw"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before[name]
    assert bench.record("low/b.tif")["profile"]["name"] == "low"
    assert bench.backend.closed.is_set()
    bench.finish()
    assert len(bench.backend.given) == 3, "the second run did something again"
    assert set(bench.states().values()) == {"done"}


def test_finished_work_is_not_redone_when_the_results_were_moved_away(bench: Bench) -> None:
    bench.write("a.tif")
    bench.finish()
    shutil.rmtree(bench.output)
    bench.output.mkdir()
    bench.finish()
    assert len(bench.backend.given) == 1


def test_backlog_goes_in_the_order_in_which_it_was_written(bench: Bench) -> None:
    doses = [10, 20, 30, 40, 50, 60]
    for number, dose in enumerate(doses):
        path = bench.write(f"{9 - number}.tif", number, dose=dose)
        os.utime(path, (1e9 + number, 1e9 + number))
    bench.finish()
    seen = [float(one.pixels.mean()) for one in bench.backend.given]
    # Two readers, and at most four in hand: one may overtake another that is slow to read, but not the queue.
    assert all(abs(dose - mean) < 35 for dose, mean in zip(doses, seen, strict=True)), seen


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_memory_is_bounded_however_many_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    gate, most, held = threading.Event(), 0, 0
    lock = threading.Lock()
    real_read, real_finish = steps.read, steps.finish

    def count(step: int) -> None:
        nonlocal most, held
        with lock:
            held += step
            most = max(most, held)

    def read(*arguments: Any, **options: Any) -> Any:
        count(1)
        return real_read(*arguments, **options)

    def finish(*arguments: Any, **options: Any) -> Any:
        try:
            return real_finish(*arguments, **options)
        finally:
            count(-1)

    monkeypatch.setattr(steps, "read", read)
    monkeypatch.setattr(steps, "finish", finish)
    bench.backends["fast"] = FakeBackend(ahead, lambda one: gate.wait(LIMIT) and None)
    for number in range(12):
        bench.write(f"{number}.tif", number)
    service = bench.start()
    room = bench.config.backend.queue + 2
    until(lambda: held == room)
    gate.set()
    bench.finish()
    assert most <= room and service.failure is None
    assert len(bench.images()) == 12
    assert bench.backend.most_held <= room


def test_two_networks_take_turns_and_lose_nothing(bench: Bench, tmp_path: Path, config: Callable[..., Config]) -> None:
    other = tmp_path / "other"
    shutil.copytree(manifest.locate("fast"), other)
    bench.config = config(
        profiles={
            "one": {"weights": "fast", "match": {"name": "one*"}},
            "two": {"weights": str(other), "match": {"name": "two*"}},
            "auto": {"gain": "auto"},
        }
    )

    def refuse(one: Prepared) -> None:
        if one.pixels.mean() > 100:
            raise MicrographError("refused")

    bench.backends = {"fast": FakeBackend(2, refuse), "other": FakeBackend(1, refuse)}
    for number in range(10):
        bench.write(f"{('one', 'two')[number % 2]}-{number}.tif", number, dose=200 if number in (4, 7) else 20)
    service = bench.finish()
    assert service.failure is None and service.unsuccessful == 2
    assert len(bench.images()) == 8
    assert len(bench.backends["fast"].given) == len(bench.backends["other"].given) == 5
    assert all(backend.closed.is_set() for backend in bench.backends.values())


def test_an_upgrade_in_the_middle_of_a_session_leaves_it_the_weights_it_began_with(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = manifest.load(manifest.locate("fast"))
    bench.write("a.tif")
    bench.finish()
    told = {"asked": "fast", "name": first.name, "sha256": first.sha256[first.onnx]}
    assert bench.jobs()["a.tif", 1].facts["weights"] == told
    shelf = tmp_path / "upgraded"
    shutil.copytree(manifest.locate("fast"), shelf / first.name)
    (shelf / "fast-9").mkdir()
    (shelf / "fast-9" / first.onnx).write_bytes(b"newer")
    newer = first.model_copy(update={"name": "fast-9", "sha256": {first.onnx: hashlib.sha256(b"newer").hexdigest()}})
    (shelf / "fast-9" / manifest.MANIFEST).write_text(newer.model_dump_json())
    monkeypatch.setattr(manifest, "shipped_weights", lambda: shelf)
    monkeypatch.setattr(manifest, "aliases", lambda: {"fast": "fast-9"})
    bench.write("b.tif")
    bench.finish()
    assert bench.record("b.tif")["weights"] == bench.record("a.tif")["weights"]
    monkeypatch.setattr("daemon.ledger.sessions.PAUSE_SECONDS", -1.0)  # as if the session was over
    bench.write("c.tif")
    bench.finish()
    assert bench.record("c.tif")["weights"] == {
        "asked": "fast", "name": "fast-9", "network": "fast", "sha256": newer.sha256
    }  # fmt: skip
    assert bench.record("c.tif")["passes"] == 1


@pytest.mark.parametrize("ahead", [0, 3])
def test_stop_finishes_what_is_in_the_network_and_releases_the_rest(bench: Bench, ahead: int) -> None:
    gate, inside = threading.Event(), threading.Event()

    def hook(one: Prepared) -> None:
        inside.set()
        assert gate.wait(LIMIT)

    bench.backends["fast"] = FakeBackend(ahead, hook)
    for number in range(10):
        bench.write(f"{number}.tif", number)
    service = bench.start()
    until(inside.is_set)
    until(lambda: service.ledger.counts()["running"] == bench.config.backend.queue + 2)  # everything is full
    stopper = threading.Thread(target=bench.stop)
    stopper.start()
    until(service._stopping.is_set)
    gate.set()
    stopper.join(LIMIT)
    assert not stopper.is_alive(), "stop() hangs"
    jobs = bench.jobs().values()
    assert {job.state for job in jobs} == {"done", "pending"}
    done = [job for job in jobs if job.state == "done"]
    assert 1 <= len(done) <= 1 + ahead and len(bench.images()) == len(done)
    assert all(job.attempts == 0 for job in jobs if job.state == "pending")
    bench.backends["fast"] = FakeBackend()
    bench.finish()
    assert len(bench.images()) == 10


def test_a_job_registered_while_idle_is_asked_is_not_missed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    service = bench.service = Service(bench.config)  # not started: this test plays the arrival thread

    def busy(self: Ledger) -> bool:
        service.arrivals.settled = True  # the arrival thread has just taken something in, and is through
        return False

    monkeypatch.setattr(Ledger, "busy", busy)
    assert not service.idle


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize(("idle", "blocked"), [(True, False), (False, True), (False, False)])
def test_once_succeeds_only_if_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, config: Callable[..., Config], once: bool, idle: bool, blocked: bool
) -> None:
    class Stub:
        """A service in that state, whose pause is over by the time it has stopped."""

        failure, unsuccessful = None, 0
        inference = SimpleNamespace(backend_name="stub", beats=0)

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.idle, self.blocked = idle, blocked

        def start(self, patient: Callable[[], bool]) -> bool:
            return patient()

        def check_ledger(self) -> None:
            """It is there."""

        def stop(self) -> None:
            self.blocked = False

    handlers: dict[int, Any] = {}
    ticks: list[float] = []

    def sleep(seconds: float) -> None:
        ticks.append(seconds)
        if len(ticks) == 2:
            handlers[signal.SIGTERM](signal.SIGTERM, None)

    monkeypatch.setattr(supervisor, "Service", Stub)
    monkeypatch.setattr(supervisor.signal, "signal", handlers.setdefault)
    monkeypatch.setattr(supervisor.time, "sleep", sleep)
    assert supervisor.supervise(config(), once=once) == (1 if once and not idle else 0)


def test_spikes_and_units_reach_the_record(bench: Bench, counts: Callable[..., Any]) -> None:
    image = counts(5)
    image[7, 9] = 30_000
    tifffile.imwrite(bench.drop / "a.tif", image)
    bench.finish()
    record = bench.record("a.tif")
    assert record["spikes"]["count"] == 1
    assert (record["spikes"]["listed"][0]["row"], record["spikes"]["listed"][0]["column"]) == (7, 9)
    assert record["backend"] == "fake: box filter" and record["scaling"]["kind"] == "noise_units"
    assert record["dose_evidence"]["measured"]["noise"] == pytest.approx(20**0.5, rel=0.1)
    assert record["dose_evidence"]["stated_gain"] is None
    result = tifffile.imread(bench.output / "a.tif")
    assert result.dtype == np.float32 and float(result.mean()) == pytest.approx(20, rel=0.1)
