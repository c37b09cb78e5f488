"""What the fuzzer starts from, and what it once found, through the same checks; `make fuzz` goes on from there."""

from pathlib import Path

import pytest
from fuzz import CORPUS, TARGETS, target

KNOWN = sorted(path for name in TARGETS for path in (CORPUS / name).iterdir())


@pytest.mark.parametrize("path", KNOWN, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_nothing_but_our_own_errors_comes_of_it(path: Path) -> None:
    target(path.parent.name)(path.read_bytes())


@pytest.mark.parametrize("path", KNOWN, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_nor_of_any_beginning_of_it(path: Path) -> None:
    one, data = target(path.parent.name), path.read_bytes()
    for length in range(0, len(data), max(1, len(data) // 100)):
        one(data[:length])


def test_sizes_that_two_readings_disagree_about_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    from daemon import formats
    from daemon.errors import MicrographError

    for name in ("found-size-given-twice.tif", "found-lengths-given-twice.tif"):
        with pytest.raises(MicrographError, match="contradicts itself"):
            formats.read(CORPUS / "tiff" / name, 1 << 18)
