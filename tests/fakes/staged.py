"""The emdenoised command with one thing replaced: ``python staged.py WHAT COMMAND ...``.

impatient: files that cannot be complete are given up after a second, not a minute.
building: an engine is being built and does not get finished.
failing: the network fails on every micrograph, though never on the canary.
"""

import sys
from collections.abc import Callable
from dataclasses import replace

from fake_backend import FakeBackend

from daemon import inference, service
from daemon.backends import provision
from daemon.cli import main
from daemon.errors import BackendError
from daemon.micrograph import Prepared

_rules = service.rules


def _fail(one: Prepared) -> None:
    raise BackendError("staged: the network cannot go on")


def _build(settings: object, weights: object, engines: object, progress: Callable[[], None]) -> FakeBackend:
    provision.run([sys.executable, "-c", "print('measuring', flush=True); import time; time.sleep(3600)"], progress)
    return FakeBackend()


match sys.argv[1]:
    case "building":
        inference.open_backend = _build
    case "impatient":
        service.rules = lambda config: replace(_rules(config), stuck_seconds=1.0)
    case "failing":
        inference.open_backend = lambda *arguments, **options: FakeBackend(0, _fail)

raise SystemExit(main(sys.argv[2:]))
