"""A cache of small pictures: files in one folder, limited in bytes; the latest used are kept."""

import os
import re
import threading
from contextlib import suppress
from pathlib import Path

_NAME = re.compile(r"[0-9a-z-]{1,120}")
_SPARE = 0.1
"""Share of the limit that is free after a sweep; the next sweep comes when it is used up."""


class PictureCache:
    """Keeps bytes under names of small letters, digits and "-". Used by any thread.

    Never raises: what the disk refuses is not kept. Other files in the folder are left alone and not counted.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._lock = threading.Lock()
        self._unswept = limit  # unknown: an earlier run may have filled it
        if limit:
            with suppress(OSError):
                folder.mkdir(mode=0o700, exist_ok=True)

    def get(self, name: str) -> bytes | None:
        """The bytes under a name, or None."""
        try:
            found = (self._folder / name).read_bytes()
            os.utime(self._folder / name)
        except OSError:
            return None
        return found

    def put(self, name: str, data: bytes) -> None:
        """Keep `data` under a name, replacing earlier bytes."""
        if len(data) > (1 - _SPARE) * self._limit:
            return
        unfinished = self._folder / f"{name}.tmp"
        with self._lock:  # one writer at a time: what a sweep does not see in the folder yet would not count
            self._unswept += len(data)
            if self._unswept > _SPARE * self._limit:
                self._sweep(len(data))
                self._unswept = 0
            with suppress(OSError):
                unfinished.write_bytes(data)
                unfinished.replace(self._folder / name)

    def clear(self) -> None:
        """Remove all pictures that can be removed."""
        with self._lock:
            self._sweep(self._limit)

    def _sweep(self, coming: int) -> None:
        """Remove files, half-written ones included, from the least recently used, until `coming` bytes fit in."""
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
