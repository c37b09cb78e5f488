"""The processor backend leaves a core to the microscope's own software unless the settings say otherwise."""

import os

import pytest

from daemon.backends import manifest
from daemon.backends.cpu import CpuBackend
from daemon.settings.config import BackendConfig


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (16, 15)])
def test_by_default_one_core_stays_free(monkeypatch: pytest.MonkeyPatch, cores: int, threads: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    folder = manifest.locate("fast")
    names = [
        CpuBackend(folder, manifest.load(folder), threads=wanted).name
        for wanted in (BackendConfig().threads, 0, min(cores, 2))
    ]
    words = {1: "1 thread", 2: "2 threads", 15: "15 threads", 16: "16 threads"}
    assert [name.split(", ")[-1] for name in names] == [words[n] for n in (threads, cores, min(cores, 2))]
