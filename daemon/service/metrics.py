"""Counters and gauges of the service, for Prometheus."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from daemon.backends.cpu import cores_of
from daemon.errors import EmdenoisedError
from daemon.ledger.jobs import Ledger
from daemon.settings.config import BackendConfig

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_WAITS = (0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 36_000.0, 360_000.0)
_LANES = ("live", "backlog")
VERDICTS = ("good", "check", "reject")
OUTCOMES = ("done", "adopted", "unchanged", "retried", "held", "quarantined", "forgotten", "released")


class Metrics:
    """Counters that any thread may increment, and gauges that are computed when they are read.

    Counting starts with the process; a reload of the settings does not reset it.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._outcomes = Counter(
            "emdenoised_micrographs", "Micrographs by outcome.", ["outcome"], registry=self._registry
        )
        for outcome in OUTCOMES:
            self._outcomes.labels(outcome)
        self._seconds = Histogram(
            "emdenoised_step_seconds",
            "Duration of each step of a finished micrograph.",
            ["step"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._waited = Histogram(
            "emdenoised_waiting_seconds",
            "How long a micrograph waited for its turn, from its registration or the end of a pause after a failure.",
            ["lane"],
            buckets=_WAITS,
            registry=self._registry,
        )
        for lane in _LANES:
            self._waited.labels(lane)
        self._verdicts = Counter("emdenoised_verdicts", "Results by verdict.", ["verdict"], registry=self._registry)
        for verdict in VERDICTS:
            self._verdicts.labels(verdict)
        self._bytes = Counter("emdenoised_raw_bytes", "Bytes of the raw files denoised.", registry=self._registry)
        self._spikes = Counter(
            "emdenoised_spikes", "X-ray hits and hot pixels filled in, in all micrographs.", registry=self._registry
        )
        self._registry.register(_Asked(lambda: self._service))
        self._service: Callable[[], Iterable[Metric]] = tuple

    def count(self, outcome: str) -> None:
        """Count a micrograph; `outcome` is one of OUTCOMES."""
        self._outcomes.labels(outcome).inc()

    def waited(self, seconds: float, live: bool) -> None:
        """Count the wait of a micrograph whose turn it is."""
        self._waited.labels(_LANES[not live]).observe(seconds)

    def finished(self, seconds: Mapping[str, float], raw_bytes: int, spikes: int, verdict: str) -> None:
        """Count a result: seconds by step, bytes of the raw file, spikes filled in, and one of VERDICTS."""
        self._verdicts.labels(verdict).inc()
        for step, value in seconds.items():
            self._seconds.labels(step).observe(value)
        self._bytes.inc(raw_bytes)
        self._spikes.inc(spikes)

    def ask(self, service: Callable[[], Iterable[Metric]]) -> None:
        """Take the gauges (queue, health, GPU) from `service` from now on."""
        self._service = service

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


class _Asked(Collector):
    def __init__(self, service: Callable[[], Callable[[], Iterable[Metric]]]) -> None:
        self._service = service

    def describe(self) -> Iterable[Metric]:
        return ()  # or the registry would call `collect` before a service exists

    def collect(self) -> Iterable[Metric]:
        return self._service()()


def gauge(name: str, text: str, values: Mapping[str, float], label: str = "") -> Metric:
    """A gauge with one value, or with one for each value of `label`."""
    family = GaugeMetricFamily(f"emdenoised_{name}", text, labels=[label] if label else [])
    for key, value in values.items():
        family.add_metric([key] if label else [], value)
    return family


def graphics_card(device: int) -> list[Metric]:
    """Memory and utilisation of the GPU that nvidia-smi calls `device`; empty without NVIDIA's library."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # no package, no driver, another version: the figures are for information
        return []
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(device)
        memory, busy = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetUtilizationRates(handle)
        return [
            gauge(
                "gpu_memory_bytes",
                "Memory of the graphics card.",
                {"used": float(memory.used), "total": float(memory.total)},
                "kind",
            ),
            gauge("gpu_utilisation", "Share of time the graphics card was busy, 0 to 1.", {"": busy.gpu / 100}),
        ]
    except nvml.NVMLError:
        return []
    finally:
        nvml.nvmlShutdown()


def queue_figures(ledger: Ledger) -> list[Metric]:
    """Gauges of the ledger; empty while it cannot be read."""
    try:
        found, waiting, problems = ledger.counts(), ledger.oldest_waiting(), ledger.problems()
    except EmdenoisedError:
        return []
    return [
        gauge(
            "ledger_micrographs",
            "Micrographs in the ledger, by state.",
            {state: float(number) for state, number in found.items()},
            "state",
        ),
        gauge("open_problems", "Quarantined and rejected micrographs that nobody has acknowledged.",
              {"": float(problems)}),
        gauge("oldest_waiting_seconds", "How long the oldest waiting micrograph has waited; 0 if none waits.",
              {"": waiting}),
    ]  # fmt: skip


def limits(backend: BackendConfig) -> list[Metric]:
    """Gauges of what the settings allow the service to take of the computer."""
    found = [gauge("threads", "Processor threads that the network may use.", {"": float(cores_of(backend.threads))})]
    if backend.gpu_bytes is not None:
        text = "Memory of the graphics card that the settings allow (backend.gpu_memory)."
        found.append(gauge("gpu_memory_limit_bytes", text, {"": float(backend.gpu_bytes)}))
    return found
