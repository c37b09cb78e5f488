"""The main thread: starts the service, waits for signals, feeds the watchdog, and ends with the right exit status."""

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable

from daemon import logs
from daemon.backends import manifest
from daemon.errors import ConfigError, EmdenoisedError, TransientError, WeightsError
from daemon.files import is_folder
from daemon.live_page import access
from daemon.live_page.routes import Page
from daemon.live_page.server import Health, Monitor
from daemon.service.metrics import Metrics
from daemon.service.service import Service
from daemon.service.systemd import Notifier, watchdog_interval
from daemon.settings import config as settings
from daemon.settings.config import EX_CONFIG, Config
from daemon.settings.monitor import MonitorConfig

log = logging.getLogger(__name__)

STOP = (signal.SIGTERM, signal.SIGINT)
TICK = 0.25
_STATUS_SECONDS = 5.0
_EXTENSION_SECONDS = 60.0
_WATCHDOG_SECONDS = 5.0


def supervise(config: Config, once: bool = False, reload: Callable[[], Config] | None = None) -> int:
    """Run the service until a signal, a failure, or (`once`) until everything in the folder is done.

    On SIGHUP `reload` reads the settings again; without `reload`, with `once` or in a terminal, SIGHUP stops the
    service. Returns the exit status: 0 after a clean stop, 1 after a failure or (`once`) if a micrograph could not be
    done, 78 if settings or weights turned out to be unusable, as with another network on the server. Raises the error
    that prevents the start.
    """
    return _Supervisor(config, once, reload).run()


class _Signals:
    """Its handler only sets flags, because it may run inside a log call of the main thread."""

    def __init__(self, reloads: bool) -> None:
        self.stop: signal.Signals | None = None
        self.reload = False
        numbers = [*STOP]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            numbers.append(signal.SIGHUP)
        for number in numbers:
            signal.signal(number, self._note)
        self._numbers, self._reloads = numbers, reloads

    def _note(self, number: int, _: object) -> None:
        if number == signal.SIGHUP and self._reloads:
            self.reload = True
        else:
            self.stop = self.stop or signal.Signals(number)

    def give_back(self) -> None:
        """Restore the default handlers: a further signal ends the process at once, and nothing is lost."""
        for number in self._numbers:
            signal.signal(number, signal.SIG_DFL)


class _Supervisor:
    def __init__(self, config: Config, once: bool, reload: Callable[[], Config] | None) -> None:
        self._config, self._once, self._reload = config, once, reload
        self._notifier, self._metrics = Notifier(), Metrics()
        self._interval = watchdog_interval()
        self._beats, self._beat_at, self._status_at = -1, 0.0, 0.0
        """Progress and monotonic time at the watchdog's last message, and the time of the last status."""
        self._service = self._make(config)
        self._monitor: Monitor | None = None
        self._page: Page | None = None
        self._signals = _Signals(reload is not None and not once and not sys.stdin.isatty())

    def _make(self, config: Config) -> Service:
        return Service(
            config,
            idle_canary_seconds=self._interval / 2 if self._interval else None,
            once=self._once,
            metrics=self._metrics,
            progress=self._notifier.watchdog,  # the wait has an end, and may be longer than WatchdogSec
        )

    def run(self) -> int:
        self._listen()
        try:
            if not self._start(self._service):
                log.info("%s: stopped before it was ready", self._stopped_by)
                return 1 if self._once else 0
            finished = False
            try:
                self._ready()
                while (why := self._loop()) == "reload":
                    before = self._config.monitor
                    if not self._renew():
                        return 0
                    if _listens_again(before, self._config.monitor):
                        self._listen()
                    else:
                        self._show_page()
                finished = why == "finished"
            finally:
                failure = self._service.failure
                self._notifier.stopping("finishing current micrographs" if failure is None else f"failed: {failure}")
                self._signals.give_back()
                self._service.stop()
        finally:
            if self._monitor:
                self._monitor.close()
            if self._page:
                self._page.close()
        if self._service.failure is not None:
            log.critical("stopped: %s", self._service.failure)
            return EX_CONFIG if isinstance(self._service.failure, (ConfigError, WeightsError)) else 1
        if self._once and not finished:
            log.error("stopped before everything was done; the rest is done at the next start")
            return 1
        log.info("stopped")
        return 1 if self._once and self._service.unsuccessful else 0

    @property
    def _stopped_by(self) -> str:
        return self._signals.stop.name if self._signals.stop else ""

    def _listen(self) -> None:
        """Start the monitor, with metrics, health and page, as the settings demand."""
        if self._monitor is not None:
            self._monitor.close()
        self._metrics.ask(lambda: self._service.figures())
        address = self._config.monitor.address
        self._monitor = None
        if address is not None and not self._once:
            try:
                allowed = access.load(self._config.monitor.token_file)
            except ConfigError as error:
                log.error("%s; until then neither the live page nor metrics are served", error)
            else:
                self._monitor = Monitor(address, self._health, self._metrics.text, allowed)
        self._show_page()

    def _show_page(self) -> None:
        """Show a page with the current settings; the previous one answers until then."""
        before, self._page = self._page, None
        if self._monitor is not None and self._monitor.listens and self._config.monitor.page:
            try:
                self._page = Page(self._config, self._health)
            except EmdenoisedError as error:
                log.warning("monitor.page: there is no live page: %s", error)
        if self._monitor is not None:
            self._monitor.show(self._page)
        if before is not None:
            before.close()

    def _health(self) -> Health:
        return self._service.health

    def _ready(self) -> None:
        backend, folders = self._service.inference.backend_name or "waiting for the server", self._config.folders
        doing = "watching" if is_folder(folders.drop) else "waiting for the drop folder"
        log.info("ready: %s; %s %s, results go to %s", backend, doing, folders.drop, folders.output)
        if self._page is not None and self._monitor is not None:
            log.info("the live page is %s", self._monitor.address)
        self._notifier.ready(f"ready, {backend}")

    def _start(self, service: Service) -> bool:
        """False if a signal came first. The service manager gets messages as long as there is progress."""
        sent_at, sent_beats = time.monotonic(), 0

        def patient() -> bool:
            nonlocal sent_at, sent_beats
            now, beats = time.monotonic(), service.inference.beats
            if now - sent_at >= _STATUS_SECONDS and beats != sent_beats:
                sent_at, sent_beats = now, beats
                text = "preparing the network; building an engine may take minutes"
                self._notifier.extend(_EXTENSION_SECONDS, text)
                self._notifier.watchdog()
            return self._signals.stop is None

        return service.start(patient)

    def _loop(self) -> str:
        """Returns why it ended: "stop", "reload", or (`once`) "finished", when nothing is left to do."""
        while self._service.failure is None:
            time.sleep(TICK)
            if self._signals.stop:
                log.info("%s: finishing current micrographs", self._stopped_by)
                return "stop"
            self._service.check_ledger()
            if self._signals.reload and self._service.failure is None:
                self._signals.reload = False
                return "reload"
            self._notify()
            if self._once and self._service.idle:
                return "finished"
            if self._once and self._service.blocked:
                return "stop"
        return "stop"

    def _notify(self) -> None:
        """Feed the watchdog, if there was progress, and send the status every _STATUS_SECONDS."""
        self._beat()
        service, now = self._service, time.monotonic()
        if self._notifier.listened_to and now - self._status_at >= _STATUS_SECONDS:
            self._status_at = now
            with contextlib.suppress(TransientError):  # the ledger's disk is full: no status this time
                counts = service.ledger.counts()
                self._notifier.status(
                    f"{counts['pending'] + counts['running'] + counts['retry']} waiting, {counts['done']} done, "
                    f"{counts['quarantined']} quarantined; {service.watcher.health.detail}"
                )

    def _beat(self) -> None:
        beats, now = self._service.inference.beats, time.monotonic()
        if self._interval and now - self._beat_at >= min(self._interval, _WATCHDOG_SECONDS) and beats != self._beats:
            self._beats, self._beat_at = beats, now
            self._notifier.watchdog()

    # New settings

    def _renew(self) -> bool:
        """SIGHUP: start a service with the new settings, or with the old ones if the new cannot be used.

        False if a signal to stop came meanwhile: no service runs then.
        """
        assert self._reload is not None
        self._notifier.reloading("reading the settings again")
        old = self._config
        try:
            new = self._reload()
            with contextlib.suppress(TransientError):  # a share is missing: the service waits for it
                settings.prepare_folders(new)
            manifest.load_weights(new)
        except EmdenoisedError as error:
            log.error("the settings were not changed: %s", error)
            self._notifier.ready(
                f"the new settings cannot be used, see the log; {self._service.inference.backend_name}"
            )
            return True
        log.info("the settings are read again; the current micrographs are finished first")
        self._drain()
        for config in (new, old):
            try:
                self._service, self._config = self._make(config), config
                logs.set_up(config.log.level, config.log.format)
                if not self._start(self._service):
                    log.info("%s: stopped before it was ready", self._stopped_by)
                    return False
            except Exception as error:  # of any kind: the old settings worked
                if config is old:
                    raise
                log.error("the new settings cannot be used, the old ones are taken again: %s", error)
            else:
                self._ready()
                return True
        raise AssertionError("unreachable")

    def _drain(self) -> None:
        """Stop the service, feeding the watchdog as long as there is progress."""
        stopper = threading.Thread(target=self._service.stop, name="stopper")
        stopper.start()
        while stopper.is_alive():
            stopper.join(TICK)
            self._beat()


def _listens_again(before: MonitorConfig, now: MonitorConfig) -> bool:
    """Whether new settings concern the server itself, and not only what it shows. A token may have changed."""
    return (before.address, before.token_file) != (now.address, now.token_file) or now.token_file is not None
