"""Images prepared once, kept in a folder and memory-mapped from then on. The folder may be deleted at any time that
nothing trains on it.

An entry is ``KEY-0.npy, KEY-1.npy, ...`` and, written last, ``KEY.json``, without which the others are ignored. Files
are written atomically, so processes may write the same entry at the same time.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, overload

import numpy as np

from daemon.errors import ConfigError
from daemon.files import write_atomically
from training.data.exposure import Image


class Stored(Sequence[Image]):
    """Images in .npy files, memory-mapped read-only on access, so that few files are open."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> "Stored": ...
    def __getitem__(self, index: int | slice) -> "Image | Stored":
        """Raises ConfigError if the file is missing or damaged."""
        if isinstance(index, slice):
            return Stored(self._paths[index])
        try:
            return _mapped(self._paths[index])
        except (OSError, EOFError, ValueError) as error:
            raise ConfigError(
                f"{self._paths[index]}: the cache was deleted or damaged while in use ({error}); run the same command "
                "again to resume"
            ) from error


def key_of(*parts: object) -> str:
    """The key of an entry that these parts, of JSON types, determine."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def get(folder: Path, key: str) -> tuple[Stored, dict[str, Any]] | None:
    """The images of an entry and their notes; None if it is missing or incomplete."""
    try:
        entry = json.loads((folder / f"{key}.json").read_bytes())
        stored = Stored([folder / f"{key}-{index}.npy" for index in range(len(entry["shapes"]))])
        whole = [list(image.shape) for image in stored] == entry["shapes"]
        return (stored, dict(entry["notes"])) if whole else None
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return None


def put(folder: Path, key: str, images: Sequence[Image], notes: dict[str, Any]) -> Stored:
    """Write an entry. `notes` are of JSON types. Raises OSError (disk full, no right to write)."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{key}-{index}.npy" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        write_atomically(path, partial(np.save, arr=image, allow_pickle=False))
    entry = json.dumps({"shapes": [image.shape for image in images], "notes": notes}).encode()
    write_atomically(folder / f"{key}.json", lambda stream: stream.write(entry))
    return Stored(paths)


@lru_cache(maxsize=256)
def _mapped(path: Path) -> Image:
    """A memory-mapped .npy file as a plain array: slices of NumPy's memmap class are slow."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
