"""Micrographs to truths: what cannot be one is said and skipped, what is one is prepared once, and never split."""

import json
import logging
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile

from daemon.errors import ConfigError, MicrographError
from training.data import cache as store
from training.data import truths as module
from training.data.exposure import Image
from training.data.truths import (
    Truth,
    bin2,
    clean_versions,
    guess_source,
    load_truths,
    own_noise,
    paper_version,
    prepare,
    read_sources,
    split_by_source,
    write_split,
)
from training.progress import Bar

MICROGRAPHS = Path(__file__).parents[2] / "data"


def smooth(side: int = 256) -> Image:
    """A noiseless image in [0, 1]."""
    wave = np.sin(np.arange(side) / 20)
    return (0.5 + 0.5 * wave[:, None] * wave).astype(np.float32)


def save(path: Path, side: int = 200) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, (1000 * smooth(side)).astype(np.uint16))
    return path


@pytest.mark.parametrize("shape", [(256, 256), (255, 257), (256, 255)])
@pytest.mark.parametrize("sigma", [0.01, 0.2])
def test_own_noise_sees_the_noise_and_not_the_specimen(shape: tuple[int, int], sigma: float) -> None:
    image = smooth(300)[: shape[0], : shape[1]]
    noisy = image + np.random.default_rng(0).normal(0, sigma, shape).astype(np.float32)
    assert own_noise(noisy) == pytest.approx(sigma, rel=0.05)
    assert own_noise(image) < 0.002


def test_bin2_averages_areas_and_drops_an_odd_edge() -> None:
    image = np.arange(35, dtype=np.float32).reshape(5, 7)
    assert bin2(image).tolist() == [[4, 6, 8], [18, 20, 22]]
    assert bin2(image).dtype == np.float32


def test_a_clean_micrograph_serves_as_it_is_and_binned() -> None:
    versions, binned = clean_versions(smooth(400) * 1000 + 7, 192)
    assert [v.shape for v in versions] == [(400, 400), (200, 200)]
    assert binned == (1, 2)
    assert all(v.dtype == np.float32 and v.min() >= 0 and v.max() <= 1 for v in versions)


def test_a_noisy_micrograph_is_binned_until_it_is_clean_or_small() -> None:
    noise = np.random.default_rng(0).normal(0, 0.06, (800, 800)).astype(np.float32)
    assert clean_versions(smooth(800) + noise, 192)[1] == (2, 4)
    assert clean_versions(smooth(800) + 20 * noise, 192)[1] == (4,)
    assert clean_versions(smooth(100), 192) == ([], ())


def test_one_hot_pixel_does_not_decide_the_grey_scale() -> None:
    image = smooth(400)
    image[7, 7] = 1e6
    assert float(np.median(clean_versions(image, 192)[0][0])) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("side", "factor"), [(1024, 2), (1023, 1), (300, 1)])
def test_the_papers_rule_bins_by_two_where_512_pixels_are_left(side: int, factor: int) -> None:
    (version,), binned = paper_version(smooth(side) * 3000 - 500)
    assert binned == (factor,)
    assert version.shape == (side // factor, side // factor)
    assert version.dtype == np.float32
    assert version.min() == 0
    assert version.max() == 1


def test_what_was_not_downsized_for_the_paper_is_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "small.tif", 300)
    save(tmp_path / "large.tif", 1024)
    with caplog.at_level(logging.INFO):
        large, small = load_truths(tmp_path, rule="paper")
    assert (large.binned, small.binned) == ((2,), (1,))
    assert "1 of 2 micrographs: not downsized" in caplog.text
    assert "1 of 2 micrographs: smaller than the paper's crops" in caplog.text


def test_what_cannot_be_a_truth_is_reported_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = (1000 * smooth(200)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "good.tif", image)
    tifffile.imwrite(tmp_path / "flat.tif", np.full_like(image, 3))
    tifffile.imwrite(tmp_path / "small.tif", image[:100, :100])
    tifffile.imwrite(tmp_path / "full.tif", np.minimum(image * 100, 65535).astype(np.uint16) | (image > 300) * 65535)
    holed = image.astype(np.float32)
    holed[5, 5] = np.nan
    tifffile.imwrite(tmp_path / "holed.tif", holed)
    (tmp_path / "cut.tif").write_bytes((tmp_path / "good.tif").read_bytes()[:4000])
    (tmp_path / "notes.txt").write_text("not a micrograph")
    (tmp_path / "link.tif").symlink_to(tmp_path / "nowhere.tif")
    (tmp_path / ".DS_Store").write_bytes(b"hidden")
    (tmp_path / "folder.tif").mkdir()
    with caplog.at_level(logging.WARNING):
        assert [truth.name for truth in load_truths(tmp_path, tmp_path / "cache")] == ["good.tif"]
    names = ("flat.tif", "small.tif", "full.tif", "holed.tif", "cut.tif", "notes.txt", "link.tif", "good.tif", ".DS")
    said = {name: [r.getMessage() for r in caplog.records if name in r.getMessage()] for name in names}
    assert {name: len(lines) for name, lines in said.items()} == {n: int(n not in ("good.tif", ".DS")) for n in names}
    words = {"flat.tif": "every pixel is 3", "small.tif": "100 × 100 pixels; at least 192", "full.tif": "saturated",
             "holed.tif": "finite", "notes.txt": "export it as TIFF or MRC"}  # fmt: skip
    for name, word in words.items():
        assert word in said[name][0]


def test_unusual_but_usable_files_are_used_with_a_remark(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = 1000 * smooth(200)
    tifffile.imwrite(tmp_path / "display.tif", (image / 5).astype(np.uint8))
    tifffile.imwrite(tmp_path / "negative.tif", image.astype(np.int16) - 200)
    tifffile.imwrite(tmp_path / "bright.tif", np.minimum(image, 900).astype(np.uint16))
    with caplog.at_level(logging.INFO):
        loaded = load_truths(tmp_path)
    assert len(loaded) == 3
    assert all(v.min() == 0 and v.max() == 1 for truth in loaded for v in truth.versions)
    for word in ("8-bit", "negative values", "saturated"):
        assert sum(word in r.getMessage() and "1 of 3" in r.getMessage() for r in caplog.records) == 1
    assert "3 micrographs of 3 sources, 0 files skipped" in caplog.text


def test_images_of_nearly_one_value_and_of_no_camera_are_refused(tmp_path: Path) -> None:
    nearly = np.zeros((200, 200), np.uint16)
    nearly[3, 5], nearly[50, 60] = 400, 9
    huge = smooth(200).astype(np.float64) * 1.7e308 * np.where(np.arange(200) % 2, 1, -1)
    tiny = smooth(200).astype(np.float64) * 1e-30
    for name, image, reason in (("nearly", nearly, "nearly constant"), ("huge", huge, "no camera gives")):
        tifffile.imwrite(tmp_path / f"{name}.tif", image)
        with pytest.raises(MicrographError, match=reason):
            prepare(tmp_path / f"{name}.tif", 192, "clean")
    tifffile.imwrite(tmp_path / "tiny.tif", tiny)
    prepared = prepare(tmp_path / "tiny.tif", 192, "clean")
    assert float(np.std(prepared.versions[0])) > 0.05


@pytest.mark.parametrize("missing", [True, False], ids=["no folder", "nothing in it"])
def test_nothing_to_learn_from_is_an_error(tmp_path: Path, missing: bool) -> None:
    folder = tmp_path / "data"
    if not missing:
        folder.mkdir()
        (folder / "notes.txt").write_text("nothing")
    with pytest.raises(ConfigError, match=r"data: .*micrograph"):
        load_truths(folder)


# Sources


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("gummy_C1-3.tif", "gummy"),
        ("gold 3.mrc", "gold"),
        ("fiber-7.tif", "fiber"),
        ("scan0012.tif", "scan"),
        ("0012.tif", "0012"),
        ("plain.tif", "plain"),
        ("grid 2/a_1.tif", "grid 2"),
        ("day/grid/a_1.tif", "day/grid"),
    ],
)
def test_a_source_is_guessed_from_folder_or_name(path: str, source: str) -> None:
    assert guess_source(Path(path)) == source


def test_sources_come_from_a_table_and_omissions_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data"
    for name in ("a_1.tif", "deep/a_2.tif", "b_1.tif"):
        save(data / name)
    table = tmp_path / "sources.csv"
    table.write_text("\ufeffname,licence,source\na_1,MIT,the lab\na_2,,the lab\n", encoding="utf-8")
    with caplog.at_level(logging.INFO):
        assert [(t.name, t.source) for t in load_truths(data, sources=table)] == [
            ("a_1.tif", "the lab"), ("b_1.tif", "b"), ("deep/a_2.tif", "the lab")]  # fmt: skip
    assert "names no source for 1 micrograph" in caplog.text


@pytest.mark.parametrize("content", [b"file,from\na,b\n", b"", b"name,source\n\xff\xfe\n"])
def test_a_table_that_is_none_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sources.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=r"sources\.csv: .*CSV|sources\.csv: needs the columns"):
        read_sources(tmp_path / "sources.csv")
    with pytest.raises(ConfigError, match=r"other\.csv: cannot be read"):
        read_sources(tmp_path / "other.csv")


def named(*sizes: int) -> list[Truth]:
    return [Truth(f"{s}_{i}", f"source {s}", (), (1,)) for s, size in enumerate(sizes) for i in range(size)]


@pytest.mark.parametrize("seed", range(20))
def test_a_split_keeps_sources_whole_and_is_the_same_for_the_same_seed(seed: int) -> None:
    truths = named(20, 12, 7, 5, 3, 2, 2, 1)
    training, held = split_by_source(truths, 0.15, seed)
    assert sorted(training + held, key=truths.index) == truths
    assert {t.source for t in training}.isdisjoint(t.source for t in held)
    assert training
    assert 1 <= len(held) <= 20
    again = split_by_source(truths[::-1], 0.15, seed)
    assert {t.name for t in again[1]} == {t.name for t in held}


def test_another_seed_gives_another_split_and_two_sources_are_enough() -> None:
    truths = named(*[2] * 10)
    assert len({tuple(t.name for t in split_by_source(truths, 0.2, seed)[1]) for seed in range(10)}) > 3
    assert all(len(split_by_source(truths, 0.2, seed)[1]) == 4 for seed in range(10))
    for seed in range(5):
        training, held = split_by_source(named(30, 1), 0.3, seed)
        assert (len(training), len(held)) in ((30, 1), (1, 30))


def test_what_cannot_be_split_is_an_error() -> None:
    with pytest.raises(ConfigError, match="one source"):
        split_by_source(named(5), 0.2, 0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_by_source(named(5, 5), 1.0, 0)


def test_a_split_is_written_down(tmp_path: Path) -> None:
    training, held = split_by_source(named(3, 1), 0.25, 4)
    write_split(tmp_path / "split.json", training, held, 0.25, 4)
    record = json.loads((tmp_path / "split.json").read_text())
    assert (record["seed"], record["share"]) == (4, 0.25)
    assert record["training"] == {"source 0": {"0_0": [1], "0_1": [1], "0_2": [1]}}
    assert record["held_out"] == {"source 1": {"1_0": [1]}}
    assert [p.name for p in tmp_path.iterdir()] == ["split.json"]


# Cache


def test_a_second_start_reads_the_cache_and_not_the_micrographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "data" / "a.tif", 400)
    plain = load_truths(tmp_path / "data")
    first = load_truths(tmp_path / "data", tmp_path / "cache")
    monkeypatch.setattr(module, "prepare", lambda *_: pytest.fail("read again"))
    second = load_truths(tmp_path / "data", tmp_path / "cache")
    for loaded in (first, second):
        assert loaded[0].binned == plain[0].binned == (1, 2)
        for one, two in zip(loaded[0].versions, plain[0].versions, strict=True):
            assert np.array_equal(one, two)
            assert isinstance(one.base, np.memmap)
            assert not one.flags.writeable


def test_a_cache_within_the_data_is_not_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "a.tif")
    for _ in range(2):
        assert len(load_truths(tmp_path, tmp_path / "run" / ".." / "cache")) == 1
    assert caplog.text == ""
    assert (tmp_path / "cache").exists()


@pytest.mark.parametrize("change", ["content", "rule", "smallest", "version"])
def test_what_would_give_other_truths_is_prepared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = save(tmp_path / "data" / "a.tif", 300)
    load_truths(tmp_path / "data", tmp_path / "cache")
    read: list[Path] = []
    prepare = module.prepare
    monkeypatch.setattr(module, "prepare", lambda path, *rest: (read.append(path), prepare(path, *rest))[1])
    load_truths(tmp_path / "data", tmp_path / "cache")
    assert read == []
    if change == "content":
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    elif change == "version":
        monkeypatch.setattr(module, "CACHE_VERSION", -1)
    load_truths(
        tmp_path / "data", tmp_path / "cache",
        smallest=100 if change == "smallest" else 192, rule="paper" if change == "rule" else "clean",
    )  # fmt: skip
    assert read == [path]


@pytest.mark.parametrize("damage", ["cut", "emptied", "gone", "other shape", "no notes", "not JSON", "a list"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    save(tmp_path / "data" / "a.tif")
    load_truths(tmp_path / "data", tmp_path / "cache")
    store._mapped.cache_clear()
    (image,) = (tmp_path / "cache").glob("*-0.npy")
    (notes,) = (tmp_path / "cache").glob("*.json")
    if damage == "cut":
        image.write_bytes(image.read_bytes()[:-1000])
    elif damage == "emptied":
        image.write_bytes(b"")
    elif damage == "gone":
        image.unlink()
    elif damage == "other shape":
        np.save(image, np.zeros((3, 3), np.float32))
    else:
        notes.write_text({"no notes": '{"shapes": [[200, 200]]}', "not JSON": "{", "a list": "[]"}[damage])
    (truth,) = load_truths(tmp_path / "data", tmp_path / "cache")
    store._mapped.cache_clear()
    assert np.array_equal(truth.versions[0], load_truths(tmp_path / "data")[0].versions[0])


def test_a_cache_that_cannot_be_written_leaves_the_images_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "data" / "a.tif")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (truth,) = load_truths(tmp_path / "data", tmp_path / "cache")
    assert truth.versions[0].shape == (200, 200)
    assert "No space left" in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_deleted_in_use_is_reported(tmp_path: Path) -> None:
    save(tmp_path / "data" / "a.tif")
    (truth,) = load_truths(tmp_path / "data", tmp_path / "cache")
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    store._mapped.cache_clear()
    with pytest.raises(ConfigError, match="cache was deleted"):
        truth.versions[0]


def test_many_that_fill_one_cache_at_the_same_time_get_the_same_truths(tmp_path: Path) -> None:
    for name in ("a.tif", "b.tif", "c.tif"):
        save(tmp_path / "data" / name)
    found: list[list[float]] = []

    def load() -> None:
        loaded = load_truths(tmp_path / "data", tmp_path / "cache")
        found.append([float(truth.versions[0].mean()) for truth in loaded])

    threads = [threading.Thread(target=load) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(means == found[0] for means in found)
    assert {p.suffix for p in (tmp_path / "cache").iterdir()} == {".npy", ".json"}


def test_hundreds_of_micrographs_do_not_use_up_the_open_files(tmp_path: Path) -> None:
    images = [np.full((4, 4), index, np.float32) for index in range(400)]
    stored = store.put(tmp_path, "many", images, {})
    store._mapped.cache_clear()
    assert [float(image[0, 0]) for image in stored] == list(range(400))
    assert store._mapped.cache_info().currsize < 400
    assert len(stored[10:12]) == 2


def test_vendors_formats_are_read_as_by_the_daemon(tmp_path: Path) -> None:
    for name in ("jeol_haadf.dm4", "tia_old_64x64_TEM_images_acquire_1.ser"):
        shutil.copy(MICROGRAPHS / name, tmp_path)
    assert [truth.name for truth in load_truths(tmp_path, smallest=64)] == [
        "jeol_haadf.dm4",
        "tia_old_64x64_TEM_images_acquire_1.ser",
    ]


def test_reading_many_files_reports_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a/1.tif", "b/2.tif"):
        save(tmp_path / name)
    times = iter([0.0, 5.0, 70.0])
    monkeypatch.setattr(module, "Bar", lambda what: Bar(what, lambda: next(times)))
    with caplog.at_level(logging.INFO):
        load_truths(tmp_path)
    assert "2 of 2 files read, less than a minute left" in caplog.messages
