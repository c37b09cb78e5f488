"""Reports the service's state to systemd (sd_notify(3)); does nothing if no service manager listens."""

import logging
import os
import socket
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)

_SOCKET = "NOTIFY_SOCKET"
_SEND_SECONDS = 1.0
"""Longest time that a full or stuck socket holds the caller."""


class Notifier:
    """Sends states to the service manager. Used by any thread; never raises: the work does not depend on a manager.

    Each message opens the socket again, so that it reaches a restarted manager.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get(_SOCKET, "")
        # "@" stands for the zero byte of Linux's abstract names; other kinds of address are ignored.
        self._address = "\0" + address[1:] if address.startswith("@") else address if address.startswith("/") else ""

    @property
    def listened_to(self) -> bool:
        """Whether a service manager asked for messages."""
        return bool(self._address)

    def ready(self, text: str = "") -> None:
        """Start-up is done and the canary tile has passed; `text` as in `status`."""
        self._send("READY=1", text)

    def extend(self, seconds: float, text: str = "") -> None:
        """Start-up takes that much longer from now on; `text` as in `status`."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", text)

    def reloading(self, text: str = "") -> None:
        """The settings are read again; `ready` ends it. `text` as in `status`."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", text)

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send("", text)

    def watchdog(self) -> None:
        """The service is alive. Only to be called after real progress or a good canary tile."""
        self._send("WATCHDOG=1")

    def stopping(self, text: str = "") -> None:
        """Shutdown has begun; `text` as in `status`."""
        self._send("STOPPING=1", text)

    def _send(self, state: str, text: str = "") -> None:
        lines = [state] if state else []
        if text:
            lines.append("STATUS=" + " ".join(text.split()))
        if not self._address or not lines:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_SEND_SECONDS)
                sender.sendto("\n".join(lines).encode(errors="replace"), self._address)
        except OSError as error:
            log.debug("the service manager at %s did not take %r: %s", self._address, lines, error)


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between calls of `watchdog`: half of what the unit's WatchdogSec allows, or None without one."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # meant for a parent of this process
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return microseconds / 2e6 if microseconds > 0 else None
