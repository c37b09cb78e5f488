"""The cache of small pictures: within its limit, across restarts, and never an error."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from daemon.live_page.picture_cache import PictureCache


def kept(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_a_shelf_keeps_what_was_used_last_within_its_limit(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    shelf = PictureCache(folder, 1000)
    for number in range(30):
        shelf.put(f"a-{number}", bytes([number]) * 50)
        os.utime(folder / f"a-{number}", (number, number))
        assert shelf.get("a-0") == b"\0" * 50, "asked for all the time"
        assert kept(folder) <= 1000
    assert shelf.get("a-29") == bytes([29]) * 50 and shelf.get("a-1") is None
    shelf.put("large", b"x" * 500)
    assert shelf.get("large") is not None and kept(folder) <= 1000
    shelf.put("too-large", b"x" * 901)
    assert shelf.get("too-large") is None


def test_a_shelf_finds_what_it_had_and_clears_up_what_was_not_finished(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    first = PictureCache(folder, 10_000)
    for number in range(1, 5):
        first.put(f"a-{number}", bytes(200))
        os.utime(folder / f"a-{number}", (number, number))
    (folder / "a-0.123.tmp").write_bytes(b"half")
    os.utime(folder / "a-0.123.tmp", (0, 0))
    (folder / "Not Ours.txt").write_bytes(b"x")
    second = PictureCache(folder, 500)
    assert second.get("a-4") == bytes(200)
    second.put("b", bytes(10))
    assert sorted(path.name for path in folder.iterdir()) == ["Not Ours.txt", "a-3", "a-4", "b"]
    (folder / "a-3").unlink()
    assert second.get("a-3") is None


def test_a_shelf_of_nothing_and_one_whose_disk_refuses_cost_nothing(tmp_path: Path) -> None:
    none = PictureCache(tmp_path / "none", 0)
    none.put("a", b"x")
    assert none.get("a") is None and not (tmp_path / "none").exists()
    (tmp_path / "file").write_bytes(b"")
    refused = PictureCache(tmp_path / "file", 1000)
    refused.put("a", b"x")
    assert refused.get("a") is None


def test_a_shelf_is_used_by_many_at_once(tmp_path: Path) -> None:
    shelf = PictureCache(tmp_path / "page", 5000)

    def use(seed: int) -> None:
        for number in range(60):
            name = f"a-{(seed * 7 + number) % 40}"
            shelf.put(name, name.encode() * 60)
            found = shelf.get(name)
            assert found is None or found == name.encode() * 60

    with ThreadPoolExecutor(8) as people:
        for one in [people.submit(use, seed) for seed in range(8)]:
            one.result(60)
    assert kept(tmp_path / "page") <= 5000
