"""Small files in a folder of their own, at most so many bytes: those used last are kept."""

import logging
import os
import re
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

_NAME = re.compile(r"[0-9a-z-]{1,120}")
_SPARE = 0.9
"""When it is full, it is brought down to this share, so that not every file that comes has another one removed."""


class Shelf:
    """Keeps bytes under names of small letters, digits and "-". Any number of threads may use it.

    A disk that refuses costs only what it does not keep; nothing is raised for it. The folder is private and belongs
    to the shelf alone: what else lies in it is left alone and not counted.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._lock = threading.Lock()
        self._lengths: OrderedDict[str, int] = OrderedDict()
        self.bytes = 0
        """How much it holds."""
        if limit:
            with suppress(OSError):
                folder.mkdir(mode=0o700, exist_ok=True)
        self._find()

    def get(self, name: str) -> bytes | None:
        """What was put under a name, if it is still there."""
        with self._lock:
            if name not in self._lengths:
                return None
            self._lengths.move_to_end(name)
        try:
            return (self._folder / name).read_bytes()
        except OSError:
            self._drop(name)
            return None

    def put(self, name: str, data: bytes) -> None:
        """Keep it, in place of what was under that name."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a shelf")
        if len(data) > self._limit:
            return
        unfinished = self._folder / f"{name}.{threading.get_ident()}.tmp"
        try:
            unfinished.write_bytes(data)
            unfinished.replace(self._folder / name)
        except OSError as error:
            log.debug("%s: %s", unfinished, error)
            with suppress(OSError):
                unfinished.unlink()
            return
        with self._lock:
            self.bytes += len(data) - self._lengths.pop(name, 0)
            self._lengths[name] = len(data)
            full = self.bytes > self._limit
            while full and self._lengths and self.bytes > _SPARE * self._limit:
                oldest, length = self._lengths.popitem(last=False)
                self.bytes -= length
                with suppress(OSError):
                    (self._folder / oldest).unlink()

    def _find(self) -> None:
        """What an earlier run has left, the oldest first; its unfinished files are removed."""
        found: list[tuple[float, str, int]] = []
        with suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.name.endswith(".tmp"):
                        Path(entry.path).unlink()
                    elif _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        state = entry.stat(follow_symlinks=False)
                        found.append((state.st_mtime, entry.name, state.st_size))
        for _, name, length in sorted(found):
            self._lengths[name] = length
            self.bytes += length
        while self._lengths and self.bytes > self._limit:  # it was allowed more
            name, length = self._lengths.popitem(last=False)
            self.bytes -= length
            with suppress(OSError):
                (self._folder / name).unlink()

    def _drop(self, name: str) -> None:
        with self._lock:
            self.bytes -= self._lengths.pop(name, 0)
