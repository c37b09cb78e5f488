"""Folders with a config.yaml, and real emdenoised processes that work on them."""

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

LIMIT = 120.0
STAGED = Path(__file__).parent / "staged.py"
ROOT = Path(__file__).parents[2]


def until(condition: Callable[[], object], pause: float = 0.02) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(pause)


def folder_state(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file's SHA-256 and modification time."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def free_port() -> int:
    """A port of this computer's own address that no process listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Site:
    """A temporary set of folders with a config.yaml, and the processes that work on it."""

    def __init__(self, root: Path, write: Callable[..., Path]) -> None:
        self.root, self._write = root, write
        self.drop, self.output, self.state = (root / name for name in ("drop", "output", "state"))
        self.drop.mkdir()
        self.config = root / "config.yaml"
        self.started: list[subprocess.Popen[bytes]] = []
        self.configure()

    def configure(self, **sections: Any) -> None:
        self.config.write_text(
            yaml.safe_dump(
                {
                    "folders": {"drop": "drop", "output": "output", "state": "state"},
                    "arrival": {"settle_seconds": 0.2, "rescan_seconds": 1.0, "suspicious_tail_seconds": 1.0},
                    "backend": {"kind": "cpu"},
                    "monitor": {"listen": None},
                    **sections,
                }
            )
        )

    def write(self, name: str, seed: int = 0, **options: Any) -> Path:
        return self._write(self.drop / name, seed, **options)

    def launch(
        self, *command: str, staged: str | None = None, environ: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start `emdenoised COMMAND --config ...`; what it says goes to said-N.txt."""
        program = ["-m", "emdenoised"] if staged is None else [str(STAGED), staged]
        with (self.root / f"said-{len(self.started)}.txt").open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, *program, *command, "--config", str(self.config)],
                stdout=said,
                stderr=subprocess.STDOUT,
                cwd=self.root,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(environ or {})},
                # Under nohup the tests ignore SIGHUP, and the daemon would inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL) and None,
            )
        self.started.append(process)
        return process

    def said(self, process: subprocess.Popen[bytes]) -> str:
        return (self.root / f"said-{self.started.index(process)}.txt").read_text()

    def finish(self, *command: str, **options: Any) -> tuple[int, str]:
        """Run a command to its end: exit status and what it said, which is never a traceback."""
        process = self.launch(*command, **options)
        status = process.wait(LIMIT)
        said = self.said(process)
        assert "Traceback" not in said, said
        return status, said

    def ready(self, process: subprocess.Popen[bytes]) -> None:
        until(lambda: "ready: " in self.said(process) or process.poll() is not None)
        assert process.poll() is None, self.said(process)

    def lost_files(self, process: subprocess.Popen[bytes]) -> list[str]:
        """The ledger's files that a process has open and no other process can open any more."""
        links = []
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            for one in Path(f"/proc/{process.pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    links.append(str(one.readlink()))
        return [link for link in links if link.startswith(f"{self.state}/ledger.db") and link.endswith(" (deleted)")]

    def images(self) -> set[str]:
        return {
            str(path.relative_to(self.output))
            for path in self.output.rglob("*")
            if path.suffix in (".tif", ".mrc", ".st")
        }

    def check_outputs(self) -> None:
        """Each raw file has exactly one whole output, which its JSON proves, and nothing is left lying about."""
        raw = {str(path.relative_to(self.drop)) for path in self.drop.rglob("*") if path.is_file()}
        assert self.images() == raw
        for name in raw:
            record = json.loads((self.output / f"{name}.json").read_text())
            assert record["raw"]["sha256"] == hashlib.sha256((self.drop / name).read_bytes()).hexdigest()
            assert record["output"]["sha256"] == hashlib.sha256((self.output / name).read_bytes()).hexdigest()
        assert not [path for path in self.output.rglob("*") if path.name.startswith(".emdenoised")]
