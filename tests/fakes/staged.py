"""The emdenoised command with one thing replaced: ``python staged.py WHAT COMMAND ...``.

impatient: files that cannot be complete are given up after a second, not a minute.
failing: the network fails on every micrograph, though never on the canary.
"""

import sys
from dataclasses import replace

from fake_backend import FakeBackend

from daemon import inference, service
from daemon.cli import main
from daemon.errors import BackendError
from daemon.micrograph import Prepared

_rules = service.rules


def _fail(one: Prepared) -> None:
    raise BackendError("staged: the network cannot go on")


match sys.argv[1]:
    case "impatient":
        service.rules = lambda config: replace(_rules(config), stuck_seconds=1.0)
    case "failing":
        inference.open_backend = lambda *arguments, **options: FakeBackend(0, _fail)

raise SystemExit(main(sys.argv[2:]))
