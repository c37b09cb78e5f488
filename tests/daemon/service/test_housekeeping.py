"""What grows is kept within limits, and nothing else is ever removed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture
from site_of_daemon import Site

from daemon.ledger.jobs import Ledger
from daemon.output import preview
from daemon.service import housekeeping
from daemon.service.housekeeping import DAY, Pruned, prune
from daemon.settings.config import Config

NOW = 2e9


class Past:
    """A ledger of finished micrographs, one a day, the last today; each with image, JSON and preview on the disk."""

    def __init__(self, config: Config, number: int) -> None:
        self.config, self.now = config, NOW - number * DAY
        self.ledger = Ledger(config.folders.state, clock=lambda: self.now)
        for index in range(number):
            self.now += DAY
            name = f"{index}.tif"
            (config.folders.drop / name).write_bytes(b"raw")
            self.ledger.register(name, 3, index, live=True)
            job = self.ledger.claim()
            assert job is not None
            image = config.folders.output / name
            image.write_bytes(b"image")
            image.with_name(name + ".json").write_text("{}")
            preview.save(Picture.new("L", (200, 100), index), image.with_name(name + ".png"), "emdenoised")
            self.ledger.finish(job, str(image))

    def previews(self) -> list[str]:
        return sorted(path.name for path in self.config.folders.output.glob("*.png"))

    def prune(self, **options: Any) -> Pruned:
        return prune(self.config, self.ledger, clock=lambda: NOW, **options)


@pytest.fixture
def past(config: Callable[..., Config]) -> Callable[..., Past]:
    return lambda number, **keep: Past(config(keep=keep), number)


def test_the_newest_previews_are_kept_and_results_never_touched(past: Callable[..., Past]) -> None:
    one = past(5, previews_gib=1.0)
    size = (one.config.folders.output / "4.tif.png").stat().st_size
    assert one.prune() == Pruned(0, 0, 0)
    one.config = one.config.model_copy(
        update={"keep": one.config.keep.model_copy(update={"previews_gib": 2.5 * size / 2**30})}
    )
    would = one.prune(dry_run=True)
    assert would.previews == 3 and len(one.previews()) == 5
    assert one.prune() == would
    assert one.previews() == ["3.tif.png", "4.tif.png"]
    assert one.prune() == Pruned(0, 0, 0)
    assert (
        len(list(one.config.folders.output.glob("*.tif"))) == len(list(one.config.folders.output.glob("*.json"))) == 5
    )


def test_a_picture_somebody_else_put_there_is_left_alone(past: Callable[..., Past]) -> None:
    one = past(3, previews_gib=0.0)
    output = one.config.folders.output
    Picture.new("L", (10, 10)).save(output / "0.tif.png")
    (output / "1.tif.png").unlink()
    (output / "mine.png").write_bytes(b"mine")
    (output / "1.tif.png").symlink_to(output / "mine.png")
    assert one.prune().previews == 1
    assert one.previews() == ["0.tif.png", "1.tif.png", "mine.png"]


def test_the_ledger_forgets_only_what_is_old_and_gone(past: Callable[..., Past]) -> None:
    one = past(6, previews_gib=None, ledger_days=2.5)
    assert one.prune() == Pruned(0, 0, 0), "old, but the raw files are there"
    for name in ("0.tif", "1.tif", "5.tif"):
        (one.config.folders.drop / name).unlink()
    assert one.prune(dry_run=True).rows == 2 and one.ledger.counts()["done"] == 6
    assert one.prune().rows == 2
    assert {job.path for job in one.ledger.recent(10)} == {"2.tif", "3.tif", "4.tif", "5.tif"}
    assert one.ledger.counts()["done"] == 4
    assert len(one.previews()) == 6


def test_while_the_drop_folder_is_away_nothing_counts_as_gone(past: Callable[..., Past]) -> None:
    one = past(3, ledger_days=0.0)
    drop = one.config.folders.drop
    drop.rename(drop.with_name("away"))
    assert one.prune() == Pruned(0, 0, 0)


def test_it_stops_when_it_is_no_longer_wanted(past: Callable[..., Past]) -> None:
    one = past(3, previews_gib=0.0)
    assert one.prune(wanted=lambda: False) == Pruned(0, 0, 0)


def test_prune_beside_a_running_service_and_a_forgotten_micrograph_that_comes_back(site: Site) -> None:
    site.configure(keep={"previews_gib": 0.0, "ledger_days": 0.0})
    raw = site.write("a.tif", 1)
    content = raw.read_bytes()
    assert site.finish("once")[0] == 0
    raw.unlink()
    process = site.launch("run", staged="quick")
    site.ready(process)
    status, said = site.finish("prune", "--dry-run")
    assert status == 0 and "would be removed: 1 previews" in said and "1 micrographs in the ledger" in said
    status, said = site.finish("prune")
    assert status == 0 and "removed: 1 previews" in said
    assert not (site.output / "a.tif.png").exists() and (site.output / "a.tif").exists()
    process.terminate()
    process.wait(60)
    Path(raw).write_bytes(content)
    status, said = site.finish("once")
    assert status == 0 and "adopted 'a.tif'" in said
    site.check_outputs()


def test_purged_files_that_are_gone_are_forgotten_and_a_slow_share_does_not_lock_the_ledger(
    past: Callable[..., Past], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = past(2, ledger_days=30)
    one.ledger.purge(one.ledger.recent(9))
    (one.config.folders.drop / "0.tif").unlink()
    locked = []
    real = housekeeping.gone

    def gone(path: Path) -> bool:
        locked.append(one.ledger._db.in_transaction)
        return real(path)

    monkeypatch.setattr(housekeeping, "gone", gone)
    one.prune(wanted=lambda: False)
    assert not locked and one.ledger.purged() == ["0.tif", "1.tif"], "it stops when the service stops"
    one.prune()
    assert locked == [False, False] and one.ledger.purged() == ["1.tif"]
