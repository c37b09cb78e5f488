"""The demo's live page: opened at a terminal as soon as the daemon serves it, and kept for a minute at the end."""

import os
import re
import select
import sys
import termios
import tty
import webbrowser
from collections.abc import Callable
from pathlib import Path

STAY_SECONDS = 60.0


def address(log: Path) -> str | None:
    """Of the live page, as the daemon logged it; None if it has not yet."""
    found = re.search(r"the live page is (http://\S+)", log.read_text(encoding="utf-8", errors="replace"))
    return None if found is None else found[1]


def show(page: str) -> None:
    """Print the page's address, and open it where there is a display.

    Does nothing where no person watches: in a pipe, in the background, or in continuous integration (CI is set).
    """
    if not _watched():
        return
    print(f"The live page shows each micrograph before and after: {page}\n")
    if _has_display():
        webbrowser.open(page)


def keep(page: str, wait: Callable[[float], None] | None = None) -> None:
    """Wait for a key or a minute at the end of the demo, where a person watches."""
    if not _watched():
        return
    print(f"\nThe live page stays for {STAY_SECONDS:g} seconds: {page}\nPress a key to end the demo.")
    (wait or _wait_for_key)(STAY_SECONDS)


def _watched() -> bool:
    """Whether this process has the terminal that its output goes to."""
    if os.environ.get("CI") or sys.stdin is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:  # another session's
        return False


def _has_display() -> bool:
    """Whether a browser would open a window: one in this terminal would take the keys."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    return type(browser) is not webbrowser.GenericBrowser


def _wait_for_key(seconds: float) -> None:
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)  # discards what was typed earlier
        select.select([keyboard], [], [], seconds)
    finally:
        termios.tcsetattr(keyboard, termios.TCSAFLUSH, before)
