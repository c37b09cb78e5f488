"""Raw files that change, are touched or vanish, before, during and after their work."""

import hashlib
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fake_backend import FakeBackend
from hyperspy_file import write_hyperspy
from mrc_bytes import write_mrc
from service_bench import Bench
from site_of_daemon import LIMIT, until

from daemon.counts.plane import Prepared
from daemon.formats import RawFile
from daemon.output.record import Raw
from daemon.service import fingerprints, steps


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
    module = {"fingerprint": fingerprints, "read": steps}[step]
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


def test_a_file_touched_while_it_is_processed_has_one_output(bench: Bench) -> None:
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


@pytest.mark.parametrize("step", ["fingerprint", "read"])
def test_a_raw_file_that_vanishes_is_forgotten_and_done_when_it_comes_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    away = bench.drop.with_name("away.tif")
    module = {"fingerprint": fingerprints, "read": steps.formats}[step]
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
    real, calls = fingerprints.fingerprint, 0

    def fingerprint(file: RawFile, limit: int) -> Raw:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise fingerprints.ChangedError(f"{file.path}: was another one for a moment")
        return real(file, limit)

    monkeypatch.setattr(fingerprints, "fingerprint", fingerprint)
    bench.write("a.tif")
    service = bench.finish()
    assert bench.images() == {"a.tif"} and bench.states() == {"a.tif#1": "done"} and service.unsuccessful == 0


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
