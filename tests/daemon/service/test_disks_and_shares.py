"""Disks and shares that fail, and files that cannot be read or written: what waits, and what is given up."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from service_bench import Bench
from site_of_daemon import LIMIT, until

from daemon.errors import StorageError
from daemon.formats import RawFile
from daemon.output import writing
from daemon.output.disk import Mounted
from daemon.output.record import Raw
from daemon.service import fingerprints, steps
from daemon.service import service as service_module
from daemon.settings.config import Config


def test_a_share_that_hangs_shows_in_the_health(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_full_disk_pauses_keeps_the_queue_and_resumes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
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
    real = fingerprints.fingerprint

    def fingerprint(file: RawFile, limit: int) -> Raw:
        if gone.is_set():
            assert gate.wait(LIMIT)
        return real(file, limit)

    for number in range(3):
        bench.write(f"{number}.tif", number)
    service = bench.start()
    until(lambda: len(bench.images()) == 3)
    monkeypatch.setattr(fingerprints, "fingerprint", fingerprint)
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
    real, calls = fingerprints.fingerprint, 0

    def fingerprint(file: RawFile, limit: int) -> Raw:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise steps.TransientError(f"{file.path}: locked")
        return real(file, limit)

    monkeypatch.setattr(fingerprints, "fingerprint", fingerprint)
    bench.write("a.tif")
    bench.start()
    until(lambda: bench.images() == {"a.tif"})
    bench.finish()
    assert bench.jobs()["a.tif", 1].attempts == 2


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


def test_half_written_files_of_an_interrupted_run_are_removed(bench: Bench) -> None:
    leftover = bench.output / "sub" / ".emdenoised-0123.tmp"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    os.utime(leftover, (1e9, 1e9))
    bench.start()
    assert not leftover.exists()


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
    service.workers.output = Mounted(bench.output, lambda path: path == bench.output and mounted.is_set())
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
