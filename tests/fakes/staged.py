"""The emdenoised command with one thing replaced: ``python staged.py WHAT COMMAND ...``.

impatient: files that cannot be complete are given up after a second, not a minute.
quick: the network is a box filter, which takes no time.
kill-at: the process kills itself at the STAGED_CALLS-th call that changes a disk; at the place that it prints before.
mounts: the kernel's list of mounts is the file named by STAGED_MOUNTS; a request for events on a share fails the test.
poisoned: a graphics card whose context fails after STAGED_CALLS waits; without it, a sound one.
building: an engine is being built and does not get finished.
crashing-codec: the codec for files called crash.tif aborts its process.
failing: the network fails on every micrograph, though never on the canary.
hands-off: the network as in quick; whatever but SQLite itself opens a file of the ledger fails.
"""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_backend import FakeBackend
from fake_cuda import FakeCuda
from fake_gpu import plug_in

from daemon import files
from daemon.arrival import tracker
from daemon.backends.gpu import provision
from daemon.commands.main import main
from daemon.counts.plane import Prepared
from daemon.errors import BackendError
from daemon.formats import decoder
from daemon.ledger.jobs import Ledger
from daemon.service import inference, workers


def _fail(one: Prepared) -> None:
    raise BackendError("staged: the network cannot go on")


def _build(settings: object, weights: object, engines: object, progress: Callable[[], None]) -> FakeBackend:
    provision.run([sys.executable, "-c", "print('measuring', flush=True); import time; time.sleep(3600)"], progress)
    return FakeBackend()


def _forgetful(*arguments: object, **options: object) -> FakeBackend:
    """A session that keeps none of its inputs, for tests that measure memory."""
    backend = FakeBackend()
    backend.given = deque(maxlen=0)  # type: ignore[assignment]
    return backend


def _kill_at(number: int) -> None:
    """Before and after each call: a power cut may come between any two."""
    passed = 0

    def point(name: str) -> None:
        nonlocal passed
        passed += 1
        if passed == number:
            os.write(2, f"killed at call {number}: {name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(module: object, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: object, **options: object) -> object:
            point(f"before {name}")
            done = real(*arguments, **options)
            point(f"after {name}")
            return done

        setattr(module, name, call)

    for name in ("fsync", "replace", "rename", "link", "unlink", "mkdir"):
        watched(os, name)
    for name in ("finish", "claim", "register"):  # each is a transaction of its own
        watched(Ledger, name)


def _poison() -> None:
    real, left = FakeCuda.synchronise, int(os.environ.get("STAGED_CALLS", "1000000000"))

    def synchronise(driver: FakeCuda, event: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise BackendError("CUDA failed: an illegal memory access was encountered")
        real(driver, event)  # type: ignore[arg-type]

    FakeCuda.synchronise = synchronise  # type: ignore[method-assign, assignment]


def _keep_hands_off(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook: SQLite's own opening of files is no event of Python's."""
    if event == "open" and Path(os.fsdecode(str(arguments[0]))).name.startswith("ledger.db"):
        raise RuntimeError(f"staged: {arguments[0]} was opened by hand")


match sys.argv[1]:
    case "quick":
        inference.open_backend = _forgetful
    case "kill-at":
        inference.open_backend = _forgetful
        _kill_at(int(os.environ["STAGED_CALLS"]))
    case "mounts":
        files.MOUNTINFO = Path(os.environ["STAGED_MOUNTS"])
        inference.open_backend = lambda *arguments, **options: FakeBackend()
    case "poisoned":
        plug_in(pytest.MonkeyPatch())
        _poison()
    case "building":
        inference.open_backend = _build
    case "impatient":
        tracker.STUCK_SECONDS = 1.0
    case "crashing-codec":
        inference.open_backend = _forgetful
        staged = "import os; from daemon import formats as f; from daemon.formats import decoder; r = f.read; "
        staged += "f.read = lambda raw, *most, **o: ("
        staged += "os.abort() if raw.path.name == 'crash.tif' else r(raw, *most, **o)); decoder.main()"
        workers.Reader = lambda *limits, **more: decoder.Reader(*limits, staged, **more)  # type: ignore[misc, assignment]
    case "hands-off":
        inference.open_backend = _forgetful
        sys.addaudithook(_keep_hands_off)
    case "failing":
        inference.open_backend = lambda *arguments, **options: FakeBackend(0, _fail)

raise SystemExit(main(sys.argv[2:]))
