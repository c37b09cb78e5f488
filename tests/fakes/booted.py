"""A systemd that really booted: in a container whose root is this computer's, copied on write.

Needs root, systemd-nspawn (Debian: systemd-container) and the right to mount; tests that need it are skipped without.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from site_of_daemon import ROOT, until

SECONDS = 300.0


class Machine:
    """A booted container. `inside` runs a command in it; `root` is its root folder, seen from here."""

    def __init__(self, place: Path) -> None:
        self.place, self.root = place, place / "root"
        self._run("mount", "-t", "tmpfs", "none", str(place))
        for name in ("upper", "work", "root"):
            (place / name).mkdir()
        layers = f"lowerdir=/,upperdir={place}/upper,workdir={place}/work"
        self._run("mount", "-t", "overlay", "overlay", "-o", layers, str(self.root))
        self.systemd: int | None = None

    def boot(self) -> None:
        binds = [f"--bind-ro={path}" for path in {str(ROOT), sys.prefix, sys.base_prefix}]
        with (self.place / "console").open("wb") as console:
            self._nspawn = subprocess.Popen(
                ["systemd-nspawn", "-D", str(self.root), "--boot", "--register=no", "--keep-unit", "--private-network",
                 "--console=pipe", *binds, "systemd.unit=basic.target"],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console,
            )  # fmt: skip
        until(lambda: self._found() or self._nspawn.poll() is not None)
        assert self.systemd is not None, (self.place / "console").read_text(errors="replace")
        until(lambda: "running" in self.inside("systemctl", "is-system-running", check=False))

    def _found(self) -> bool:
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        for child in children:
            if (Path("/proc") / child / "comm").read_text().strip() == "systemd":
                self.systemd = int(child)
        return self.systemd is not None

    def inside(self, *command: str, check: bool = True) -> str:
        """What it printed. With `check`, it must have succeeded."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.systemd), "-m", "-p", "-u", "-i", "-n", *command],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout}\n{self.journal()}"
        return done.stdout

    def journal(self) -> str:
        return self.inside("journalctl", "-u", "emdenoised*", "--no-pager", check=False)

    def change_root(self, *command: str) -> None:
        self._run("chroot", str(self.root), *command)

    def shown(self, name: str) -> str:
        return self.inside("systemctl", "show", "-p", name, "--value", "emdenoised").strip()

    def close(self) -> None:
        if self.systemd is not None:
            os.kill(self.systemd, signal.SIGRTMIN + 4)  # power off
            try:
                self._nspawn.wait(20)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
        subprocess.run(["umount", "-R", "-l", str(self.root)], check=False)
        subprocess.run(["umount", "-l", str(self.place)], check=False)

    @staticmethod
    def _run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, text=True)


@contextmanager
def booted(tmp_path: Path) -> Iterator[Machine]:
    """A machine that has not booted yet, and is gone afterwards; skips the test where there can be none."""
    if os.geteuid() != 0 or shutil.which("systemd-nspawn") is None:
        pytest.skip("needs root and systemd-nspawn (Debian: systemd-container)")
    place = tmp_path / "machine"
    place.mkdir()
    try:
        one = Machine(place)
    except subprocess.CalledProcessError as error:
        subprocess.run(["umount", "-l", str(place)], check=False)
        pytest.skip(f"needs the right to mount: {error.stderr.strip()}")
    try:
        yield one
    finally:
        one.close()


def wait_for(machine: Machine, condition: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, machine.journal()
        time.sleep(0.3)
