"""The computer's free memory."""

import re
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


def memory_available(meminfo: Path = _MEMINFO) -> int | None:
    """Bytes of memory that the computer can give to programs; None if the system does not report it (not Linux).

    `meminfo` replaces /proc/meminfo (proc(5)).
    """
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) << 10 if found else None
