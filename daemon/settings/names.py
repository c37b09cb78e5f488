"""Names of files and folders: how rules compare them, and distinct names for the results of one call."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath


def folded(name: str) -> str:
    """Lower case, with accents composed (NFC): a Mac stores them apart (NFD), other systems do not."""
    return unicodedata.normalize("NFC", name).lower()


def distinct_names(paths: Sequence[Path]) -> dict[Path, PurePath]:
    """A distinct name for each file: its last part, after as many of its folders as namesakes need to differ.

    A link keeps its own name. A file given twice has one entry. Names in one folder that differ in letter case or
    composition only stay as they are: no folder tells them apart.
    """
    parts = {path: Path(os.path.abspath(path)).parts for path in paths}  # noqa: PTH100 - resolve() would lose the link
    depth = dict.fromkeys(paths, 1)
    while True:
        places: dict[str, dict[tuple[str, ...], list[Path]]] = {}
        for path, names in parts.items():
            place = folded("/".join(names[-depth[path] :]))
            places.setdefault(place, {}).setdefault(names, []).append(path)
        alike = [path for same in places.values() if _folders(same) > 1 for one in same.values() for path in one]
        deeper = [path for path in alike if depth[path] < len(parts[path]) - 1]
        if not deeper:
            return {path: PurePath(*names[-depth[path] :]) for path, names in parts.items()}
        for path in deeper:
            depth[path] += 1


def _folders(paths: Iterable[tuple[str, ...]]) -> int:
    return len({folded("/".join(names[:-1])) for names in paths})
