"""The main thread: starts the service, waits for signals, feeds the watchdog, and ends with the right exit status."""

import contextlib
import logging
import signal
import time

from daemon.config import Config
from daemon.errors import TransientError
from daemon.notify import Notifier, watchdog_interval
from daemon.service import Service

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TICK = 0.25
STATUS_SECONDS = 5.0
EXTENSION_SECONDS = 60.0


def supervise(config: Config, once: bool = False, notifier: Notifier | None = None) -> int:
    """Run the service until a signal, a failure, or (`once`) until everything in the folder is done.

    Returns the exit status: 0 after a clean stop, 1 after a failure or (`once`) if a micrograph could not be done.
    Raises what keeps the service from starting.
    """
    notifier = notifier or Notifier()
    interval = watchdog_interval()
    service = Service(config, idle_canary_seconds=interval / 2 if interval else None, once=once)
    received: list[int] = []
    for number in SIGNALS:
        # It only takes a note: it runs between any two bytecodes of this thread, also inside a log call.
        signal.signal(number, lambda arrived, _: received.append(arrived))
    if not service.start(_Patience(service, notifier, received)):
        log.info("%s: stopped before it was ready", signal.Signals(received[0]).name)
        return 1 if once else 0
    finished = False
    try:
        log.info(
            "ready: %s; watching %s, results go to %s",
            service.inference.backend_name,
            config.folders.drop,
            config.folders.output,
        )
        notifier.ready(f"ready, {service.inference.backend_name}")
        finished = _loop(service, notifier, interval, once, received)
    finally:
        notifier.stopping("finishing the micrograph in hand")
        # A second signal ends the process at once; nothing is lost by that.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        service.stop()
    if service.failure is not None:
        log.critical("stopped: %s", service.failure)
        return 1
    if once and not finished:
        log.error("stopped before everything was done; what is left is done at the next start")
        return 1
    log.info("stopped")
    return 1 if once and service.unsuccessful else 0


class _Patience:
    """While the networks are opened: whether to go on waiting. The service manager is told while there is life."""

    def __init__(self, service: Service, notifier: Notifier, received: list[int]) -> None:
        self._service, self._notifier, self._received = service, notifier, received
        self._told_at, self._told_beats = time.monotonic(), 0

    def __call__(self) -> bool:
        now, beats = time.monotonic(), self._service.inference.beats
        if now - self._told_at >= STATUS_SECONDS and beats != self._told_beats:
            self._told_at, self._told_beats = now, beats
            self._notifier.extend(EXTENSION_SECONDS, "preparing the network; building an engine may take minutes")
        return not self._received


def _loop(service: Service, notifier: Notifier, interval: float | None, once: bool, received: list[int]) -> bool:
    """Returns when there is a reason to stop: whether it is (`once`) that nothing is left to do."""
    told_beats, told_at, said_at = -1, 0.0, 0.0
    while service.failure is None:
        time.sleep(TICK)
        if received:
            log.info("%s: finishing the micrograph in hand", signal.Signals(received[0]).name)
            return False
        now = time.monotonic()
        if interval and now - told_at >= min(interval, 5.0) and service.inference.beats != told_beats:
            told_beats, told_at = service.inference.beats, now
            notifier.watchdog()
        if notifier.listened_to and now - said_at >= STATUS_SECONDS:
            said_at = now
            with contextlib.suppress(TransientError):  # the ledger's disk is full: the next status says more
                counts = service.ledger.counts()
                notifier.status(
                    f"{counts['pending'] + counts['running'] + counts['retry']} waiting, {counts['done']} done, "
                    f"{counts['quarantined']} quarantined; {service.watcher.health.detail}"
                )
        if once and service.idle:
            return True
        if once and service.blocked:
            return False
    return False
