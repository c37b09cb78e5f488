"""Records the operations of the pipeline's streams over time, with events around each, and draws them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COLOURS = {"upload": "#4c72b0", "survey": "#64b5cd", "kernels": "#8172b3", "network": "#c44e52", "download": "#55a868"}
ROWS = {"upload": 2, "survey": 2, "kernels": 1, "network": 1, "download": 0}


class Timeline:
    """A driver that records the calls of another one, and `network`, which does the same."""

    def __init__(self, driver: Any, network: Any) -> None:
        self._driver, self._recording = driver, False
        self._found: list[tuple[str, Any, Any]] = []
        self._origin: Any = None
        self._upload: Any = None
        self.network = _Recorded(network, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def begin(self) -> None:
        """Record from now on."""
        stream = self._driver.stream()
        self._origin = self._driver.event(timing=True)
        self._driver.record(self._origin, stream)
        self._recording = True

    def spans(self) -> list[dict[str, Any]]:
        """The operations with start and end, in milliseconds since `begin`."""
        found = []
        for kind, begin, end in self._found:
            self._driver.synchronise(end)
            found.append({"kind": kind, "from": begin.time_since(self._origin), "to": end.time_since(self._origin)})
        return found

    @contextmanager
    def span(self, kind: str, stream: Any) -> Iterator[None]:
        if not self._recording:
            yield
            return
        begin, end = (self._driver.event(timing=True) for _ in range(2))
        self._driver.record(begin, stream)
        yield
        self._driver.record(end, stream)
        self._found.append((kind, begin, end))

    def upload(self, source: Any, target: Any, nbytes: int, stream: Any) -> None:
        self._upload = stream
        with self.span("upload", stream):
            self._driver.upload(source, target, nbytes, stream)

    def download(self, source: Any, target: Any, nbytes: int, stream: Any) -> None:
        # The survey's results come back on the stream of the uploads.
        with self.span("survey" if stream is self._upload else "download", stream):
            self._driver.download(source, target, nbytes, stream)

    def launch(self, kernel: str, threads: int, arguments: Sequence[Any], stream: Any) -> None:
        with self.span("survey" if kernel.startswith("survey") else "kernels", stream):
            self._driver.launch(kernel, threads, arguments, stream)


class _Recorded:
    def __init__(self, network: Any, timeline: Timeline) -> None:
        self.tile, self.batch, self._network, self._timeline = network.tile, network.batch, network, timeline

    def enqueue(self, units: Any, level: Any, result: Any, stream: Any) -> None:
        with self._timeline.span("network", stream):
            self._network.enqueue(units, level, result, stream)


def draw(spans: list[dict[str, Any]], path: Path, title: str) -> None:
    """One row for each stream."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(12, 3), layout="constrained")
    for kind, colour in COLOURS.items():
        bars = [(span["from"], max(span["to"] - span["from"], 1e-3)) for span in spans if span["kind"] == kind]
        if bars:
            axes.broken_barh(bars, (ROWS[kind] - 0.4, 0.8), color=colour, label=kind)
    axes.set_yticks([2, 1, 0], ["upload", "compute", "download"])
    axes.set_xlabel("milliseconds")
    axes.set_title(title)
    axes.legend(ncols=len(COLOURS), loc="upper center", bbox_to_anchor=(0.5, -0.25), frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
