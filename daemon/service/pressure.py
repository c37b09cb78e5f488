"""How much the service is slowed down, and by which limit: figures of its control group (Linux), for Prometheus.

The limits are those of the systemd unit: CPUWeight, IOWeight, MemoryHigh, MemoryMax. "Pressure" is the kernel's word
for the time in which some of the work waited for processor, disk or memory (PSI).
"""

import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

OWN = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
_COMPUTER = Path("/proc/pressure")
_RESOURCES = ("cpu", "io", "memory")
_EVENTS = {"high": "slowed at MemoryHigh", "max": "stopped at MemoryMax", "oom_kill": "a process was killed"}
_MICRO = 1e-6


def figures(own: Path = OWN, groups: Path = GROUPS, computer: Path = _COMPUTER) -> list[Metric]:
    """What the kernel offers; nothing for what it does not. `own`, `groups`, `computer`: where it does."""
    group = _group(own, groups)
    found: list[Metric] = [_pressure(group, computer)]
    if group is not None:
        found += [_throttled(group), _memory_events(group), _memory(group)]
    return [one for one in found if one.samples]


def _group(own: Path, groups: Path) -> Path | None:
    """The folder of this process's control group (version 2)."""
    for line in _read(own).splitlines():
        if line.startswith("0::/"):
            folder = groups / line[4:]
            return folder if (folder / "cgroup.controllers").exists() else None
    return None


def _pressure(group: Path | None, computer: Path) -> Metric:
    family = CounterMetricFamily(
        "emdenoised_pressure_seconds",
        "Time in which some of the work of the service, or of the computer, waited for a resource.",
        labels=["of", "resource"],
    )
    for resource in _RESOURCES:
        for name, file in (("service", group and group / f"{resource}.pressure"), ("computer", computer / resource)):
            if file and (match := re.search(r"^some .*\btotal=(\d+)$", _read(file), re.MULTILINE)):
                family.add_metric([name, resource], int(match[1]) * _MICRO)
    return family


def _throttled(group: Path) -> Metric:
    family = CounterMetricFamily(
        "emdenoised_cpu_throttled_seconds", "Time in which a CPUQuota kept the service from the processor."
    )
    for name, value in _pairs(group / "cpu.stat"):
        if name == "throttled_usec":
            family.add_metric([], value * _MICRO)
    return family


def _memory_events(group: Path) -> Metric:
    family = CounterMetricFamily(
        "emdenoised_memory_events", f"Limits of memory that were met: {_EVENTS}.", labels=["event"]
    )
    for name, value in _pairs(group / "memory.events"):
        if name in _EVENTS:
            family.add_metric([name], value)
    return family


def _memory(group: Path) -> Metric:
    family = GaugeMetricFamily(
        "emdenoised_memory_bytes", "Memory of the service, file cache included, and its limits.", labels=["kind"]
    )
    for name in ("current", "high", "max"):
        if (text := _read(group / f"memory.{name}").strip()).isdecimal():  # "max": no limit
            family.add_metric([name], int(text))
    return family


def _pairs(file: Path) -> Iterator[tuple[str, int]]:
    for line in _read(file).splitlines():
        name, _, value = line.partition(" ")
        if value.isdecimal():
            yield name, int(value)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
