"""Services in this process, with fake backends, and what they left on the disk and in the ledger."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_backend import FakeBackend
from site_of_daemon import until

from daemon.backends import manifest
from daemon.backends.manifest import Weights
from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger
from daemon.service.service import Service
from daemon.settings.config import Config


class Bench:
    """Starts services on one temporary set of folders, with fake backends, and reads what they left."""

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
