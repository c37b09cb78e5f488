"""Log formats: lines for people, or one JSON object per line for programs that collect logs."""

import json
import logging
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

_TURNING = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Characters that reverse the direction of writing: with them "exe.tif" can look like "fit.exe"."""
_HARMLESS = {number: f"\\x{number:02x}" for number in (*range(32), 127, *range(0x80, 0xA0))} | {
    9: "\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
    **{number: f"\\u{number:04x}" for number in _TURNING},
}


def one_line(text: str) -> str:
    """Untrusted text, such as a file name, with line breaks, control and direction characters escaped."""
    return text.translate(_HARMLESS)


def without_paths(text: str, drop: Path, path: str) -> str:
    """A message about the micrograph `path` below `drop`, without its path, and with others relative to `drop`."""
    for whole in (f"{drop / path}: ", f"{drop}/"):
        text = text.replace(whole, "").replace(whole.encode("utf-8", "backslashreplace").decode(), "")
    return text.removeprefix(f"{path}: ")


def reason(text: str | None, drop: Path, path: str) -> str:
    """`without_paths`, on one harmless line; empty for None."""
    return one_line(without_paths(text or "", drop, path))


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = f"{self.formatTime(record)} {record.levelname} {one_line(record.getMessage())}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "source": record.name,
            "message": record.getMessage(),
        }
        for name in ("micrograph", "outcome"):
            if hasattr(record, name):
                fields[name] = getattr(record, name)
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def set_up(level: str = "info", style: Literal["text", "json"] = "text") -> None:
    """Send all log messages to standard error in this form. May be called again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if style == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [one for one in root.handlers if not isinstance(one.formatter, (_Text, _Json))]
    root.addHandler(handler)
    root.setLevel(level.upper())
