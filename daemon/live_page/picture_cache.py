"""Small files in a folder of their own, at most so many bytes: those used last are kept."""

import os
import re
import threading
from contextlib import suppress
from pathlib import Path

_NAME = re.compile(r"[0-9a-z-]{1,120}")
_SPARE = 0.1
"""So much of the limit is free after a sweep; when that is used up, the next one is due."""


class Shelf:
    """Keeps bytes under names of small letters, digits and "-". Any number of threads may use it.

    A disk that refuses costs only what it does not keep; nothing is raised for it. What else lies in the folder is left
    alone and not counted.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._lock = threading.Lock()
        self._unswept = limit  # what an earlier run has left
        if limit:
            with suppress(OSError):
                folder.mkdir(mode=0o700, exist_ok=True)

    def get(self, name: str) -> bytes | None:
        """What was put under a name, if it still exists."""
        try:
            found = (self._folder / name).read_bytes()
            os.utime(self._folder / name)
        except OSError:
            return None
        return found

    def put(self, name: str, data: bytes) -> None:
        """Keep it, in place of what was under that name."""
        if len(data) > (1 - _SPARE) * self._limit:
            return
        with self._lock:
            self._unswept += len(data)
            if self._unswept > _SPARE * self._limit:
                self._sweep(len(data))
                self._unswept = 0
        unfinished = self._folder / f"{name}.{threading.get_ident()}.tmp"
        with suppress(OSError):
            unfinished.write_bytes(data)
            unfinished.replace(self._folder / name)

    def _sweep(self, coming: int) -> None:
        """Remove those used longest ago, and what an earlier run has left unfinished, until `coming` bytes fit in."""
        found: list[tuple[float, int, str]] = []
        with suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    if _NAME.fullmatch(entry.name.partition(".")[0]) and entry.is_file(follow_symlinks=False):
                        state = entry.stat(follow_symlinks=False)
                        found.append((state.st_mtime, state.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total + coming <= (1 - _SPARE) * self._limit:
                break
            total -= size
            with suppress(OSError):
                os.unlink(path)  # noqa: PTH108 - a string
