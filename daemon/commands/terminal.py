"""Colours and line breaks for people at a terminal; files and pipes get neither."""

import errno
import os
import shutil
import sys
import textwrap
from typing import TextIO

_GREEN, _YELLOW, _RED = 32, 33, 31
_COLOURS = {
    **dict.fromkeys(("good", "ok"), _GREEN),
    **dict.fromkeys(("check", "note", "retry"), _YELLOW),
    **dict.fromkeys(("reject", "failed", "fault", "quarantined"), _RED),
}
_NARROWEST = 40

_REMEDIES = {
    errno.ENOENT: "check the path, and that its disk or share is connected",
    errno.ENOTDIR: "check the path: a part of it is a file",
    errno.EEXIST: "a file has this name: choose another",
    errno.EISDIR: "a folder has this name: choose another",
    errno.EACCES: "give this user access to it",
    errno.EPERM: "give this user access to it",
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EROFS: "choose a folder that can be written to",
}


def coloured(word: str, text: str = "", stream: TextIO | None = None) -> str:
    """`text`, or else the word itself, in the colour of a word such as "good"; NO_COLOR turns colours off."""
    colour = _COLOURS.get(word)
    shown = text or word
    plain = not (stream or sys.stdout).isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return shown if colour is None or plain else f"\x1b[{colour}m{shown}\x1b[0m"


def wrapped(text: str, indent: int = 2, stream: TextIO | None = None) -> str:
    """Each line broken between words at the terminal's width; what follows is indented `indent` columns more."""
    if not (stream or sys.stdout).isatty():
        return text
    width = max(_NARROWEST, shutil.get_terminal_size().columns)
    return "\n".join(_broken(line, indent, width) for line in text.split("\n"))


def _broken(line: str, indent: int, width: int) -> str:
    further = " " * (len(line) - len(line.lstrip(" ")) + indent)
    return textwrap.fill(
        line, width, subsequent_indent=further, break_long_words=False, break_on_hyphens=False,
        replace_whitespace=False, expand_tabs=False,
    )  # fmt: skip


def in_words(error: OSError) -> str:
    """Cause and remedy of an error of a file or folder, without its path."""
    remedy = _REMEDIES.get(error.errno or 0, "check that its disk or share is connected, and that this user may use it")
    return f"{error.strerror or error}; {remedy}"
