"""`emdenoised batch` with a backend that smooths, in this process or in a fork of it."""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_backend import FakeBackend

from daemon.batch.manifest import FOLDER
from daemon.commands.main import main


class QuickBatch:
    """Folders `source` and `out`, settings, and the command. `write` makes a micrograph, as in conftest."""

    def __init__(self, root: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self._write = root, write
        self.source, self.out, self.config = root / "source", root / "out", root / "config.yaml"
        self.source.mkdir()
        self.backend = FakeBackend()
        self.configure()
        monkeypatch.setattr("daemon.backends.open_backend", self._open)
        for module in ("batch.manifest", "output.writing"):  # a busy disk takes a second for each
            monkeypatch.setattr(f"daemon.{module}.flush", lambda path: None)

    def _open(self, *arguments: Any) -> FakeBackend:
        self.backend.progress = arguments[3]
        return self.backend

    def configure(self, **sections: Any) -> None:
        folders = {name: str(self.root / f"service-{name}") for name in ("drop", "output", "state")}
        values = {"folders": folders, "output": {"preview": False}, "backend": {"kind": "cpu"}, **sections}
        self.config.write_text(yaml.safe_dump(values))

    def write(self, *names: str) -> None:
        for seed, name in enumerate(names):
            self._write(self.source / name, seed)

    def run(self, *options: str) -> int:
        """The exit status."""
        return main([*self.words(), *options])

    def words(self) -> list[str]:
        """The command without further options."""
        return ["batch", str(self.source), "-o", str(self.out), "--config", str(self.config)]

    def fork(self, *options: str, first: Callable[[], object] = lambda: None) -> int:
        """Start it in a fork, which calls `first` before; returns its process number."""
        if (child := os.fork()) == 0:
            status = 1
            try:
                first()
                status = self.run(*options)
            finally:
                sys.stdout.flush()
                os._exit(status)
        return child

    def made(self) -> int:
        """Micrographs that the network has seen since the last call."""
        number = len(self.backend.given)
        self.backend.given.clear()
        return number

    def results(self) -> set[str]:
        """Paths of the images; each has its record."""
        found = {str(path.relative_to(self.out)) for path in self.out.rglob("*") if path.is_file()}
        kept = {name for name in found if not name.startswith(FOLDER)}
        images = {name for name in kept if not name.endswith(".json")}
        assert kept == images | {f"{name}.json" for name in images}
        return images

    def temporaries(self) -> list[Path]:
        return [path for path in self.out.rglob(".*") if path.name.endswith((".tmp", ".part"))]

    def failures(self) -> str:
        return "".join(path.read_text() for path in sorted((self.out / FOLDER).glob("failed-*.jsonl")))


def without_roots_rights() -> None:
    """From now on permissions hold for this process even if it is root's (capset(2))."""
    libc, header, sets = (
        ctypes.CDLL(None, use_errno=True),
        (ctypes.c_uint32 * 2)(0x20080522, 0),
        (ctypes.c_uint32 * 6)(),
    )
    libc.capget(header, sets)
    for index in range(3):
        sets[index] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0


def ended(child: int) -> int:
    """The exit status of a process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
