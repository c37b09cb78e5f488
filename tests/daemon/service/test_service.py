"""The running service in this process, with a fake backend: whatever happens, every micrograph has exactly one fate."""

import hashlib
import json
import os
import shutil
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from fake_backend import FakeBackend
from fake_gpu import plug_in
from hyperspy_file import write_hyperspy
from mrc_bytes import write_mrc

from daemon.backends import manifest
from daemon.backends.gpu import provision
from daemon.backends.manifest import Weights
from daemon.counts.plane import Denoised, Plane, Prepared
from daemon.errors import BackendError, MicrographError, StorageError
from daemon.formats import RawFile
from daemon.ledger.database import LedgerReplacedError, LedgerUnavailableError
from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger
from daemon.output import writing
from daemon.output.disk import Mounted
from daemon.output.record import Raw
from daemon.service import raw_file, steps, supervisor
from daemon.service import service as service_module
from daemon.service.service import Service
from daemon.settings.config import Config

LIMIT = 60.0
"""Seconds after which a test gives up waiting; nothing here takes more than a few on an idle machine."""


def until(condition: Callable[[], object]) -> None:
    """Wait for something to become true, however slow the machine."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


class Bench:
    """Starts services on one temporary set of folders, with fake backends, and looks at what they did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, config: Config, write: Callable[..., Path]) -> None:
        self.config, self._write = config, write
        self.drop, self.output = config.folders.drop, config.folders.output
        self.backends: dict[str, FakeBackend] = {}
        self.service: Service | None = None
        monkeypatch.setattr("daemon.service.inference.open_backend", self._open)

    def _open(self, settings: Any, weights: Weights, engines: Path, progress: Callable[[], None]) -> FakeBackend:
        shipped = weights.folder == manifest.locate("fast")
        backend = self.backends.setdefault("fast" if shipped else weights.folder.name, FakeBackend())
        backend.progress = progress
        return backend

    @property
    def backend(self) -> FakeBackend:
        return self.backends.setdefault("fast", FakeBackend())

    def write(self, name: str, seed: int = 0, **options: Any) -> Path:
        return self._write(self.drop / name, seed, **options)

    def start(self, **options: Any) -> Service:
        self.service = Service(self.config, **options)
        self.service.start()
        return self.service

    def stop(self) -> None:
        if self.service is not None:
            service, self.service = self.service, None
            service.stop()

    def finish(self) -> Service:
        """Start if need be, wait until everything is done, stop."""
        service = self.service or self.start()
        until(lambda: service.idle or service.failure is not None)
        self.stop()
        return service

    def jobs(self) -> dict[tuple[str, int], Job]:
        with Ledger(self.config.folders.state, "read") as ledger:
            return {(job.path, job.revision): job for job in ledger.recent(1000)}

    def states(self) -> dict[str, str]:
        return {f"{path}#{revision}": job.state for (path, revision), job in self.jobs().items()}

    def images(self) -> set[str]:
        return {str(path.relative_to(self.output)) for path in self.output.rglob("*.tif")}

    def record(self, name: str) -> dict[str, Any]:
        """An output's JSON, after a check that it belongs to the image beside it."""
        record: dict[str, Any] = json.loads((self.output / f"{name}.json").read_text())
        assert record["output"]["sha256"] == hashlib.sha256((self.output / name).read_bytes()).hexdigest()
        return record


@pytest.fixture
def bench(
    monkeypatch: pytest.MonkeyPatch, config: Callable[..., Config], write: Callable[..., Path]
) -> Iterator[Bench]:
    bench = Bench(monkeypatch, config(), write)
    yield bench
    bench.stop()


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
    # All are waiting before the first is looked at, so those read ahead of the refused one must be given again.
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


def test_a_share_that_hangs_is_told_by_the_health(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, goes_on = threading.Event(), threading.Event()
    real = writing.write_outputs

    def write_outputs(*arguments: Any, **options: Any) -> Any:
        hangs.set()
        goes_on.wait()
        return real(*arguments, **options)

    monkeypatch.setattr(writing, "write_outputs", write_outputs)
    monkeypatch.setattr(service_module, "STUCK_SECONDS", 0.2)
    bench.write("a.tif", 0)
    service = bench.start()
    assert hangs.wait(LIMIT)
    until(lambda: service.health.state == "degraded")
    assert "'a.tif' is not read or written after" in service.health.detail
    goes_on.set()
    until(lambda: service.health.state == "ok" and bench.images() == {"a.tif"})
    bench.finish()


def test_a_full_disk_pauses_keeps_the_queue_and_goes_on_by_itself(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()
    full.set()
    refused = 0
    real = writing.write_outputs

    def write_outputs(*arguments: Any, **options: Any) -> Any:
        nonlocal refused
        if full.is_set():
            refused += 1
            raise StorageError("the disk is full")
        return real(*arguments, **options)

    monkeypatch.setattr(writing, "write_outputs", write_outputs)
    for number in range(5):
        bench.write(f"{number}.tif", number)
    service = bench.start()
    until(lambda: service.health.state == "degraded")
    seen = set()

    def tried_again() -> bool:
        seen.add(service.health.state)
        return refused >= 6  # at least once more than there are places in memory

    until(tried_again)
    assert seen == {"degraded"}, "well between two attempts"
    assert service.health.detail == "the disk is full; the queue is kept"
    full.clear()
    until(lambda: len(bench.images()) == 5)
    until(lambda: service.health.state == "ok")
    bench.finish()
    assert service.failure is None and service.unsuccessful == 0
    jobs = bench.jobs().values()
    assert all(job.state == "done" and job.attempts == 1 for job in jobs), "a full disk is no attempt"


def test_the_share_may_go_and_come_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, away = threading.Event(), bench.drop.with_name("elsewhere")
    gone = threading.Event()
    real = raw_file.fingerprint

    def fingerprint(file: RawFile, limit: int) -> Raw:
        if gone.is_set():
            assert gate.wait(LIMIT)
        return real(file, limit)

    for number in range(3):
        bench.write(f"{number}.tif", number)
    service = bench.start()
    until(lambda: len(bench.images()) == 3)
    monkeypatch.setattr(raw_file, "fingerprint", fingerprint)
    gone.set()
    for number in range(3, 9):
        bench.write(f"{number}.tif", number)
    until(lambda: service.ledger.counts()["running"] > 0)
    bench.drop.rename(away)
    gate.set()
    until(lambda: service.watcher.health.state == "degraded" and service.ledger.counts()["running"] == 0)
    assert service.blocked and service.failure is None
    away.rename(bench.drop)
    until(lambda: len(bench.images()) == 9)
    bench.finish()
    assert service.unsuccessful == 0
    assert all(job.state == "done" and job.attempts == 1 for job in bench.jobs().values())


def test_a_file_that_changes_after_its_result_is_a_new_revision(bench: Bench) -> None:
    bench.write("a.tif", 1)
    service = bench.start()
    until(lambda: bench.images() == {"a.tif"})
    changed = bench.write("a.tif", 2)
    until(lambda: len(bench.images()) == 2)
    bench.finish()
    assert service.unsuccessful == 0
    assert bench.images() == {"a.tif", "a.r2.tif"}
    assert bench.record("a.r2.tif")["raw"]["sha256"] == hashlib.sha256(changed.read_bytes()).hexdigest()
    assert bench.record("a.tif")["raw"]["sha256"] != bench.record("a.r2.tif")["raw"]["sha256"]


@pytest.mark.parametrize("step", ["fingerprint", "read"])
def test_a_file_that_changes_while_it_is_read_has_one_good_output(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    module = {"fingerprint": raw_file, "read": steps}[step]
    real = getattr(module, step)
    calls = 0

    def interfering(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            bench.write("a.tif", 2, dose=25)
        return real(*arguments, **options)

    monkeypatch.setattr(module, step, interfering)
    bench.write("a.tif", 1)
    service = bench.start()
    until(lambda: bench.images())
    until(lambda: service.idle)
    bench.stop()
    now = hashlib.sha256((bench.drop / "a.tif").read_bytes()).hexdigest()
    assert bench.images() == {"a.tif"} and bench.record("a.tif")["raw"]["sha256"] == now
    assert bench.states() == {"a.tif#1": "done"}, "nothing is left of the version that was never read whole"
    assert service.unsuccessful == 0


def test_a_file_that_changes_in_the_network_has_one_output_per_revision(bench: Bench) -> None:
    gate, inside = threading.Event(), threading.Event()

    def hook(one: Prepared) -> None:
        inside.set()
        assert gate.wait(LIMIT)

    bench.backends["fast"] = FakeBackend(0, hook)
    bench.write("a.tif", 1)
    service = bench.start()
    until(inside.is_set)
    bench.write("a.tif", 2)
    until(lambda: sum(service.ledger.counts().values()) == 2)
    gate.set()
    bench.finish()
    assert bench.images() == {"a.tif", "a.r2.tif"}
    assert bench.record("a.tif")["raw"]["sha256"] != bench.record("a.r2.tif")["raw"]["sha256"]


def test_a_touched_file_is_not_done_again(bench: Bench) -> None:
    path = bench.write("a.tif")
    service = bench.start()
    until(lambda: service.idle)
    os.utime(path, (1.5e9, 1.5e9))
    until(lambda: service.ledger.counts()["done"] == 2)
    bench.finish()
    assert bench.images() == {"a.tif"} and len(bench.backend.given) == 1
    assert bench.jobs()["a.tif", 2].output == str(bench.output / "a.tif")


def test_a_touched_stack_of_a_vendors_format_is_not_done_again(bench: Bench, counts: Callable[..., Any]) -> None:
    path = bench.drop / "a.hspy"
    write_hyperspy(path, np.stack([counts(number) for number in range(3)]))
    with h5py.File(path, "r+") as file:
        (one,) = file["Experiments"].values()
        one["axis-0"].attrs.update(name="tilt", units="deg")
    bench.finish()
    names = {"a.s0001.hspy.tif", "a.s0002.hspy.tif", "a.s0003.hspy.tif"}
    assert bench.images() == names
    os.utime(path, (1.5e9, 1.5e9))
    bench.finish()
    assert bench.images() == names and len(bench.backend.given) == 3 and bench.states() == {"a.hspy#1": "done"}


def test_a_file_touched_while_it_is_in_hand_has_one_output(bench: Bench) -> None:
    gate, inside = threading.Event(), threading.Event()

    def hook(one: Prepared) -> None:
        inside.set()
        assert gate.wait(LIMIT)

    bench.backends["fast"] = FakeBackend(0, hook)
    path = bench.write("a.tif")
    service = bench.start()
    until(inside.is_set)
    os.utime(path, (1.5e9, 1.5e9))
    until(lambda: service.ledger.counts()["running"] == 2)
    gate.set()
    bench.finish()
    assert len(bench.images()) == 1
    assert {job.output for job in bench.jobs().values()} == {str(bench.output / "a.tif")}


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


def test_an_unforeseen_error_costs_an_attempt_of_one_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = steps.read

    def read(config: Any, weights: Any, path: Path, *arguments: Any) -> Any:
        if path.name == "odd.tif":
            raise ZeroDivisionError("a defect")
        return real(config, weights, path, *arguments)

    monkeypatch.setattr(steps, "read", read)
    bench.write("odd.tif", 1)
    bench.write("good.tif", 2)
    service = bench.start()
    until(lambda: service.ledger.counts()["quarantined"] == 1)
    bench.finish()
    assert service.failure is None and bench.images() == {"good.tif"}
    odd = bench.jobs()["odd.tif", 1]
    assert odd.attempts == bench.config.retry.attempts
    assert "given up after 3 attempts" in (odd.error or "") and "a defect" in (odd.error or "")


def test_a_passing_failure_is_tried_again_when_its_time_comes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, config: Callable[..., Config]
) -> None:
    # Nothing else wakes the service: no rescan within the test's patience.
    bench.config = config(arrival={"settle_seconds": 0.05, "rescan_seconds": 3600.0})
    real, calls = raw_file.fingerprint, 0

    def fingerprint(file: RawFile, limit: int) -> Raw:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise steps.TransientError(f"{file.path}: locked")
        return real(file, limit)

    monkeypatch.setattr(raw_file, "fingerprint", fingerprint)
    bench.write("a.tif")
    bench.start()
    until(lambda: bench.images() == {"a.tif"})
    bench.finish()
    assert bench.jobs()["a.tif", 1].attempts == 2


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


def test_vendors_files_wait_for_their_reader_and_are_done_once_it_is_installed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = Path(__file__).parents[2] / "data"
    vendors = ["gatan_stem.dm3", "jeol_haadf.dm4", "tia_old_64x64_TEM_images_acquire_1.ser"]
    for name in vendors:
        shutil.copyfile(data / name, bench.drop / name)
    bench.write("a.tif")
    with monkeypatch.context() as patch:
        patch.setattr("daemon.formats.rosettasciio.find_spec", lambda name: None)
        service = bench.finish()
        assert service.unsuccessful == len(vendors), "`once` ends with 1"
        (line,) = [one for one in caplog.messages if "will wait" in one]
        assert "-m pip install 'rosettasciio[hdf5]>=0.7'" in line
        for name in vendors:
            job = bench.jobs()[name, 1]
            assert (job.state, job.attempts) == ("retry", 0) and "waits for its reader" in str(job.error)
        assert bench.images() == {"a.tif"}
        assert bench.finish().unsuccessful == len(vendors), "still missing: they wait on"
    service = bench.finish()
    assert service.unsuccessful == 0
    assert set(bench.states().values()) == {"done"}
    assert bench.images() == {"a.tif", *(f"{name}.tif" for name in vendors)}


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


def test_a_ledger_that_refuses_for_a_while_is_told_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_idle_network_proves_itself_on_the_canary_again_and_again(bench: Bench) -> None:
    service = bench.start(idle_canary_seconds=0.02)
    before = service.inference.beats
    until(lambda: service.inference.beats > before + 2)


def test_half_written_files_of_an_interrupted_run_are_removed(bench: Bench) -> None:
    leftover = bench.output / "sub" / ".emdenoised-0123.tmp"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    os.utime(leftover, (1e9, 1e9))
    bench.start()
    assert not leftover.exists()


@pytest.mark.parametrize("step", ["fingerprint", "read"])
def test_a_raw_file_that_vanishes_is_forgotten_and_done_when_it_comes_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    away = bench.drop.with_name("away.tif")
    module = {"fingerprint": raw_file, "read": steps.formats}[step]
    real = getattr(module, step)

    def vanishing(file: Path | RawFile, *arguments: Any, **options: Any) -> Any:
        path = RawFile.of(file).path
        if path.name == "gone.tif" and not away.exists():
            path.rename(away)
        return real(file, *arguments, **options)

    monkeypatch.setattr(module, step, vanishing)
    bench.write("gone.tif", 1)
    bench.write("good.tif", 2)
    service = bench.start()
    until(lambda: bench.images() == {"good.tif"} and sum(service.ledger.counts().values()) == 1)
    away.rename(bench.drop / "gone.tif")  # the same size and time as before
    away.mkdir()
    until(lambda: len(bench.images()) == 2)
    service = bench.finish()
    assert service.failure is None and service.unsuccessful == 0
    assert bench.states() == {"gone.tif#1": "done", "good.tif#1": "done"}
    assert bench.jobs()["gone.tif", 1].attempts == 1


def test_a_file_that_is_back_before_anybody_looked_is_done(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = raw_file.fingerprint, 0

    def fingerprint(file: RawFile, limit: int) -> Raw:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise raw_file.ChangedError(f"{file.path}: was another one for a moment")
        return real(file, limit)

    monkeypatch.setattr(raw_file, "fingerprint", fingerprint)
    bench.write("a.tif")
    service = bench.finish()
    assert bench.images() == {"a.tif"} and bench.states() == {"a.tif#1": "done"} and service.unsuccessful == 0


def test_a_name_the_output_disk_cannot_have_costs_that_one_only(bench: Bench) -> None:
    (bench.output / "low").write_text("a file where a folder is needed")
    bench.write("low/a.tif", 1)
    bench.write("b.tif", 2)
    service = bench.finish()
    assert bench.states() == {"low/a.tif#1": "quarantined", "b.tif#1": "done"} and service.failure is None
    assert "move it away" in (bench.jobs()["low/a.tif", 1].error or "")


def test_an_output_share_that_is_unmounted_is_waited_for(bench: Bench) -> None:
    mounted = threading.Event()
    mounted.set()
    service = bench.start()
    service.making.output = Mounted(bench.output, lambda path: path == bench.output and mounted.is_set())
    bench.write("a.tif", 1)
    until(lambda: bench.images() == {"a.tif"})
    mounted.clear()
    bench.write("b.tif", 2)
    until(lambda: service.blocked)
    assert bench.images() == {"a.tif"}, "written below the mount point"
    mounted.set()
    until(lambda: bench.images() == {"a.tif", "b.tif"})
    bench.finish()
    assert service.unsuccessful == 0 and all(job.attempts == 1 for job in bench.jobs().values())


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


def test_what_is_registered_while_idle_is_asked_is_not_overlooked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
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


# On a GPU


def test_the_whole_service_on_a_gpu_writes_what_it_writes_on_the_processor(
    monkeypatch: pytest.MonkeyPatch, config: Callable[..., Config], write: Callable[..., Path]
) -> None:
    names = [f"{folder}/{number}.tif" for folder in ("low", "x") for number in range(4)] + ["x/0.r2.tif"]
    images: dict[str, dict[str, Any]] = {}
    for kind in ("cpu", "tensorrt"):
        settings = config(backend={"kind": kind, "queue": 3}, folders={"output": str(config().folders.output) + kind})
        Path(settings.folders.output).mkdir()
        for seed, name in enumerate(names):
            write(settings.folders.drop / name, seed, 20, (256, 256))  # a tile: smaller ones are reflected to fill one
        with monkeypatch.context() as patch:
            drivers = plug_in(patch, seed=5) if kind == "tensorrt" else []
            service = Service(settings.model_copy(update={"folders": fresh(settings.folders, kind)}))
            service.start()
            until(lambda service=service: service.idle or service.failure is not None)  # type: ignore[misc]
            service.stop()
        assert service.failure is None
        assert all(driver.closed for driver in drivers)
        assert service.inference.backend_name.startswith(kind)
        images[kind] = {name: tifffile.imread(settings.folders.output / name) for name in names}
    for name in names:
        np.testing.assert_allclose(images["tensorrt"][name], images["cpu"][name], atol=2e-3)


def test_the_engines_of_all_networks_are_built_before_the_card_is_opened_for_the_first(
    monkeypatch: pytest.MonkeyPatch, config: Callable[..., Config], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(manifest.locate("fast"), other)
    drivers = plug_in(monkeypatch)
    real, built = provision.engine, list[tuple[str, int]]()

    def engine(order: provision.Order, *rest: Any, **more: Any) -> Any:
        built.append((order.folder.name, len(drivers)))
        return real(order, *rest, **more)

    monkeypatch.setattr(provision, "engine", engine)
    profiles = {"one": {"weights": "fast"}, "two": {"weights": str(other), "match": {"name": "two*"}}}
    service = Service(config(backend={"kind": "tensorrt"}, profiles=profiles, default_profile="one"))
    service.start()
    service.stop()
    assert len(drivers) == 2
    assert {name for name, opened in built if not opened} == {manifest.locate("fast").name, "other"}
    assert service.failure is None


def fresh(folders: Any, name: str) -> Any:
    """The same folders with a memory of its own."""
    state = folders.state / name
    state.mkdir()
    return folders.model_copy(update={"state": state})


def test_a_tilt_series_known_by_its_header_grows_section_by_section_and_a_movie_is_summed(
    bench: Bench, counts: Callable[..., Any]
) -> None:
    tilts = np.stack([counts(number).astype(np.int16) for number in range(3)])

    def grown_to(number: int) -> None:
        records = struct.pack("<3h", -6000, 0, 6000)[: 2 * number].ljust(1024, b"\0")
        write_mrc(bench.drop / "TS_1.mrc", tilts[:number], extended=records, named=b"SERI", shorts=(2, 1), flags=0)

    grown_to(2)
    write_mrc(bench.drop / "a_movie.mrc", tilts)
    bench.finish()
    done = {path.name for path in bench.output.rglob("*.mrc")}
    assert done == {"TS_1.s0001.mrc", "TS_1.s0002.mrc", "a_movie.mrc"}
    assert bench.record("a_movie.mrc")["raw"]["metadata"]["stack"]["taken"] == "summed"
    grown_to(3)
    bench.finish()
    assert {path.name for path in bench.output.rglob("*.mrc")} - done == {"TS_1.s0003.mrc"}
    assert len(bench.backend.given) == 4 and bench.states() == {"TS_1.mrc#1": "done", "a_movie.mrc#1": "done"}
    assert bench.record("TS_1.s0003.mrc")["raw"]["metadata"]["stack"]["are"] == "tilts"
