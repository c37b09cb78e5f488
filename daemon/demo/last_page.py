"""The end of the demo: the live page stays for a minute if the demo runs in a terminal."""

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
    """Of the live page, as the daemon logged it; None if it did not."""
    found = re.search(r"the live page is (http://\S+)", log.read_text(encoding="utf-8", errors="replace"))
    return None if found is None else found[1]


def show(page: str, wait: Callable[[float], None] | None = None) -> None:
    """Print the page's address, open it where there is a display, and wait for a key or a minute.

    Returns at once where no person watches: in a pipe, in the background, or in continuous integration (CI is set).
    """
    if not _watched():
        return
    print(f"\nThe live page shows each micrograph before and after: {page}\n"
          f"It stays for {STAY_SECONDS:g} seconds; press a key to end the demo.")  # fmt: skip
    if _has_display():
        webbrowser.open(page)
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
