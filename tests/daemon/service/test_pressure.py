"""Throttling and pressure as the kernel's files state them; the files are made."""

from pathlib import Path

import pytest

from daemon.service.pressure import figures

UNIT = "emdenoised.slice/emdenoised.service"
PSI = "some avg10=0.00 avg60=1.20 avg300=0.50 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
FILES = {
    "cgroup.controllers": "cpu io memory\n",
    "cpu.stat": "usage_usec 9000000\nnr_periods 20\nnr_throttled 4\nthrottled_usec 1500000\n",
    "memory.events": "low 0\nhigh 12\nmax 1\noom 0\noom_kill 0\nsock_throttled 3\n",
    "memory.current": "1073741824\n",
    "memory.high": "4294967296\n",
    "memory.max": "max\n",
    "cpu.pressure": PSI.format(2_000_000),
    "io.pressure": PSI.format(500_000),
    "memory.pressure": "",
}


def told(root: Path) -> dict[str, float]:
    found = figures(root / "cgroup", root / "fs", root / "pressure")
    return {
        " ".join((sample.name.removeprefix("emdenoised_"), *sample.labels.values())): sample.value
        for family in found
        for sample in family.samples
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "cgroup").write_text(f"12:memory:/old\n0::/{UNIT}\n")
    for folder, files in ((f"fs/{UNIT}", FILES), ("pressure", {"cpu": PSI.format(3_000_000)})):
        (tmp_path / folder).mkdir(parents=True)
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text)
    return tmp_path


def test_the_figures_of_the_services_group(root: Path) -> None:
    assert told(root) == {
        "pressure_seconds_total service cpu": 2.0,
        "pressure_seconds_total computer cpu": 3.0,
        "pressure_seconds_total service io": 0.5,
        "cpu_throttled_seconds_total": 1.5,
        "memory_events_total high": 12,
        "memory_events_total max": 1,
        "memory_events_total oom_kill": 0,
        "memory_bytes current": 1 << 30,
        "memory_bytes high": 1 << 32,
    }


def test_what_the_kernel_does_not_offer_is_left_out(root: Path) -> None:
    (root / "cgroup").write_text("4:memory:/docker/abc\n0::/\n")  # version 1: its files have other names
    assert told(root) == {"pressure_seconds_total computer cpu": 3.0}
    (root / "pressure/cpu").write_text("some nonsense\n\xff")
    assert told(root) == {}
    assert told(root / "no") == {}
