"""A folder that is listed once: what counts as its micrographs, and which folders for results are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.arrival.folder import micrographs_below
from daemon.errors import UsageError
from daemon.settings.config import Arrival


def test_all_but_results_and_links_sorted_by_path(write: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("b.tif", "a/deep/c.mrc", "a.tif", "done/a.tif", "done too/d.tif"):
        write(tmp_path / name)
    (tmp_path / "note.txt").touch()
    (tmp_path / "link.tif").symlink_to(tmp_path / "a.tif")
    found, unreadable = micrographs_below(tmp_path, tmp_path / "done", Arrival(recursive=False))
    assert [one.path for one in found] == ["a.tif", "a/deep/c.mrc", "b.tif", "done too/d.tif"] and unreadable == []
    assert found[0].size == (tmp_path / "a.tif").stat().st_size
    (tmp_path / "also done").symlink_to(tmp_path / "done")
    assert micrographs_below(tmp_path, tmp_path / "also done", Arrival())[0] == found


@pytest.mark.parametrize(
    ("results", "words"),
    [("in", "is the folder for the results"), (".", "results could land"), ("out", "has no micrographs")],
)
def test_folders_that_are_refused(tmp_path: Path, results: str, words: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UsageError, match=words):
        micrographs_below(tmp_path / "in", tmp_path / results, Arrival())
