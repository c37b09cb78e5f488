"""Pictures for people who look: the right pixels, one contrast, within limits, and never at a micrograph's cost."""

import hashlib
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from finished import Finished, counts, smoothed
from numpy.typing import NDArray
from PIL import Image as Picture

from daemon import formats
from daemon.errors import MicrographError, TransientError
from daemon.formats.contrast import window
from daemon.formats.decoder import Reader
from daemon.formats.partial import open_result
from daemon.live_page import deep, pictures
from daemon.live_page.gallery import AT_ONCE, HELD_SECONDS, BusyError, Gallery, NotThereError
from daemon.micrograph import Micrograph, PixelSize
from daemon.output import preview
from daemon.output.record import own_record
from daemon.settings.config import Config

SHAPE = (1100, 1300)


MIB = 1 << 20


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def finished(config: Callable[..., Config], clock: Clock) -> Iterator[Finished]:
    one = Finished(config(), clock)
    yield one
    one.ledger.close()


@pytest.fixture
def gallery(finished: Finished, clock: Clock) -> Iterator[Gallery]:
    one = make(finished, clock)
    yield one
    one.close()


def make(finished: Finished, clock: Clock, memory: int = 64 * MIB, disk: int = 8 * MIB) -> Gallery:
    reader = Reader(1 << 26, 30)
    return Gallery(finished.config.folders, reader, memory=memory, disk=disk, patience=0.05, clock=clock)


def seen(picture: bytes) -> NDArray[np.uint8]:
    """The grey levels of a picture; of a tile's codes, as the browser draws them by default."""
    if picture.startswith((b"\x89PNG", b"\xff\xd8")):
        return np.asarray(Picture.open(io.BytesIO(picture)))
    levels = (codes(picture).astype(int) - deep.ZERO) // deep.FINE
    return np.clip(levels, 0, 255).astype(np.uint8)


def codes(tile: bytes) -> NDArray[np.uint16]:
    width, height, *_ = deep.HEAD.unpack_from(tile)
    return np.frombuffer(tile, "<u2", offset=deep.HEAD.size).reshape(height, width)


# Pixels


@pytest.mark.parametrize(("level", "row", "column"), [(0, 0, 0), (0, 1, 2), (0, 2, 2), (1, 0, 0), (1, 1, 1), (2, 0, 0)])
def test_tiles_are_means_by_area_in_one_contrast(
    finished: Finished, gallery: Gallery, level: int, row: int, column: int
) -> None:
    raw = counts(1, SHAPE)
    denoised = smoothed(raw)
    result = gallery.find(finished.add("a.tif", raw))
    factor = 2**level

    def part(plane: NDArray[Any]) -> NDArray[np.float64]:
        high, wide = (side // factor * factor for side in plane.shape)
        blocks = plane[:high, :wide].astype(float).reshape(high // factor, factor, wide // factor, factor)
        return blocks.mean((1, 3))[row * 512 : (row + 1) * 512, column * 512 : (column + 1) * 512]

    low, high = window(preview.binned(denoised, 4))
    for name, plane in (("raw", raw), ("denoised", denoised)):
        expected = np.clip((part(plane) - low) * 255 / (high - low), 0, 255)
        found = seen(gallery.tile(result, name, level, row, column)).astype(float)  # type: ignore[arg-type]
        assert found.shape == expected.shape
        assert np.abs(found + 0.5 - expected).max() < 0.51  # the grey level below
    left = part(raw) - part(denoised)
    residual = seen(gallery.tile(result, "residual", level, row, column)).astype(float)
    assert residual.shape == left.shape
    inside = (residual > 0) & (residual < 255)
    assert np.corrcoef(residual[inside], left[inside])[0, 1] > 0.999
    assert abs(residual.mean() - 127.5) < 12 and inside.mean() > 0.99


def test_codes_hold_far_more_than_is_shown_by_default() -> None:
    low, high = 100.0, 110.0
    values = np.array([[100, 105, 110, 90, 250, -1e9, 1e38]], np.float32)
    tile = deep.encode(values, (low, high), (90.0, 120.0))
    assert deep.HEAD.unpack_from(tile) == (7, 1, low, high, 90.0, 120.0)
    found = low + (codes(tile).astype(float) - deep.ZERO) * (high - low) / (255 * deep.FINE)
    step = (high - low) / (255 * deep.FINE)
    assert np.all((values[0, :5] - found[0, :5] >= 0) & (values[0, :5] - found[0, :5] < 1.01 * step))
    assert codes(tile)[0, 5:].tolist() == [0, 65_535]
    ramp = np.linspace(95, 115, 4097, dtype=np.float32)[None]
    np.testing.assert_array_equal(seen(deep.encode(ramp, (low, high), (low, high))), preview.grey(ramp, low, high))


def test_a_raw_tile_states_the_contrast_that_would_suit_it_alone(finished: Finished, gallery: Gallery) -> None:
    raw = counts(1, SHAPE)
    result = gallery.find(finished.add("a.tif", raw))
    shared = preview.window(preview.binned(smoothed(raw), 4))
    for level in (0, 2):
        head = deep.HEAD.unpack_from(gallery.tile(result, "raw", level, 0, 0))
        assert head[2:4] == shared and head[4:] == preview.window(preview.binned(raw, 1 << level))
    assert deep.HEAD.unpack_from(gallery.tile(result, "denoised", 0, 1, 1))[2:] == shared * 2


def test_what_is_beyond_the_image_is_not_there(finished: Finished, gallery: Gallery) -> None:
    result = gallery.find(finished.add("a.tif", counts(1, SHAPE)))
    for place in ((0, 3, 0), (0, 0, 3), (3, 0, 0), (2, 0, 1), (10**6, 0, 0), (0, 10**6, 10**6)):
        with pytest.raises(NotThereError):
            gallery.tile(result, "raw", *place)


def test_an_image_smaller_than_a_tile_and_one_pixel_wide(finished: Finished, gallery: Gallery) -> None:
    small = gallery.find(finished.add("small.tif", counts(1, (40, 50))))
    assert seen(gallery.tile(small, "raw", 0, 0, 0)).shape == (40, 50)
    assert pictures.levels((512, 512)) == 0 and pictures.levels((513, 8)) == 1 and pictures.levels((1, 4096)) == 3
    strip = pictures.tile_of(np.ones((1, 4096), np.uint8), 3, 0, 0)
    assert strip is not None and strip.shape == (1, 512)


def test_a_compressed_raw_file_is_decoded_by_another_process(finished: Finished, gallery: Gallery) -> None:
    raw = counts(3, (80, 90))
    result = gallery.find(finished.add("deflated.tif", raw, compression="zlib"))
    plain = gallery.find(finished.add("plain.tif", raw))
    assert gallery.tile(result, "raw", 0, 0, 0) == gallery.tile(plain, "raw", 0, 0, 0)


def test_a_section_of_a_stack_is_shown_as_long_as_it_is_the_one_that_was_denoised(
    finished: Finished, gallery: Gallery
) -> None:
    stack = np.stack([counts(seed, (60, 70)) for seed in range(3)])
    path = finished.config.folders.drop / "tilt.tif"
    tifffile.imwrite(path, stack, photometric="minisblack")
    micrograph = formats.read(path, 1 << 20, 1)
    raw = {
        "sha256": hashlib.sha256(np.ascontiguousarray(micrograph.pixels).data).hexdigest(),
        "section": 2,
        "shape": [60, 70],
    }
    job = finished.write("tilt.tif", micrograph, smoothed(micrograph.pixels), {"raw": raw})
    tifffile.imwrite(path, np.concatenate([stack, stack[:1]]), photometric="minisblack")  # it has grown
    result = gallery.find(job)
    assert result.raw_gone == ""
    low, high = window(smoothed(stack[1]))
    np.testing.assert_array_equal(seen(gallery.tile(result, "raw", 0, 0, 0)), preview.grey(stack[1], low, high))
    gallery.close()
    again = make(finished, Clock())
    tifffile.imwrite(path, stack[::-1][:, ::-1], photometric="minisblack")
    with pytest.raises(NotThereError, match="not the one that was denoised"):
        again.tile(result, "raw", 0, 0, 0)
    again.close()


@pytest.mark.parametrize(("kind", "name"), [("tiff", "a.tif"), ("mrc", "a.mrc"), ("tiff", "ome.tif")])
def test_parts_of_a_result_are_read_from_its_file(tmp_path: Path, kind: formats.Kind, name: str) -> None:
    pixels = np.random.default_rng(0).normal(20, 5, (130, 170)).astype(np.float32)
    size = PixelSize(0.04, 0.05 if name == "ome.tif" else 0.04, "nm")  # ImageJ's knows no unequal sides
    path = tmp_path / name
    formats.write(path, kind, pixels, Micrograph(pixels, path, kind, size), {})
    found = open_result(path, (130, 170))
    assert found is not None
    np.testing.assert_array_equal(found[:, :], formats.read(path, 1 << 20).pixels)
    np.testing.assert_array_equal(found[40:90, 17:50], pixels[40:90, 17:50])
    np.testing.assert_array_equal(found[120:999, 160:999], pixels[120:, 160:])
    assert open_result(path, (170, 130)) is None
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises((TransientError, MicrographError), match=name):
        found[100:, :]


def test_a_result_that_was_saved_again_by_another_program_is_shown_as_it_is(
    finished: Finished, gallery: Gallery
) -> None:
    raw = counts(3, (80, 90))
    job = finished.add("a.tif", raw)
    image = finished.config.folders.output / "a.tif"
    before = gallery.tile(gallery.find(job), "denoised", 0, 0, 0)
    tifffile.imwrite(image, smoothed(raw), compression="zlib")
    assert open_result(image, (80, 90)) is None
    assert gallery.tile(gallery.find(job), "denoised", 0, 0, 0) == before
    tifffile.imwrite(image, smoothed(raw)[:50], compression="zlib")
    with pytest.raises(NotThereError, match="not the result that its record describes"):
        gallery.tile(gallery.find(job), "denoised", 0, 0, 0)


# Values


def test_a_profile_has_the_values_of_both_in_the_files_units(finished: Finished, gallery: Gallery) -> None:
    raw = counts(1, (100, 120))
    result = gallery.find(finished.add("a.tif", raw))
    found = gallery.profile(result, (10, 5), (10, 104), 1)
    np.testing.assert_allclose(found["raw"], raw[10, 5:105])
    np.testing.assert_allclose(found["denoised"], smoothed(raw)[10, 5:105], rtol=1e-6)
    wide = gallery.profile(result, (20, 30), (59, 30), 5)
    np.testing.assert_allclose(wide["raw"], raw[20:60, 28:33].mean(1))
    beyond = gallery.profile(result, (0, 110), (0, 129), 1)["raw"]
    assert beyond[:10] == raw[0, 110:].tolist() and beyond[10:] == [None] * 10
    assert len(gallery.profile(result, (0, 0), (1e9, 1e9), 1)["raw"]) == pictures.SAMPLES
    assert gallery.profile(result, (3, 4), (3, 4), 1)["raw"] == [raw[3, 4]] * 2


def test_spectra_of_both_have_one_grey_scale_and_hits_of_the_record_are_filled_in(
    finished: Finished, gallery: Gallery
) -> None:
    raw = counts(1, (256, 256))
    raw[100, 100] = 60_000
    listed = [{"row": 100, "column": 100, "raw": 60000, "filled_with": 20.0}]
    bright = finished.add("hit.tif", raw, spikes=listed)
    raw[100, 100] = 20
    calm = finished.add("calm.tif", raw)
    one, other = (seen(gallery.spectrum(gallery.find(job), "raw")) for job in (bright, calm))
    np.testing.assert_array_equal(one, other)
    result = gallery.find(calm)
    scale = pictures.spectrum_window(pictures.spectrum(raw))
    expected = preview.grey(pictures.spectrum(smoothed(raw)).power, *scale)
    np.testing.assert_array_equal(seen(gallery.spectrum(result, "denoised")), expected)


# Limits


def test_memory_is_bounded_and_let_go_of_after_a_while(finished: Finished, clock: Clock) -> None:
    jobs = [finished.add(f"{number}.tif", counts(number, (512, 1024))) for number in range(4)]  # raw 1 MiB each
    gallery = make(finished, clock, memory=2 * MIB)
    for job in jobs:
        for plane in ("raw", "denoised"):
            gallery.tile(gallery.find(job), plane, 0, 0, 0)  # type: ignore[arg-type]
            assert 0 < gallery.held <= 2 * MIB
    clock.now += HELD_SECONDS - 1
    gallery.tidy()
    assert gallery.held > 0
    clock.now += 2
    gallery.tidy()
    assert gallery.held == 0
    gallery.close()


def test_what_does_not_fit_into_memory_is_shown_all_the_same(finished: Finished, clock: Clock) -> None:
    job = finished.add("a.tif", counts(1, (600, 700)))
    tight, roomy = make(finished, clock, memory=1000, disk=0), make(finished, clock, disk=0)
    for plane in ("raw", "residual"):
        assert tight.tile(tight.find(job), plane, 0, 1, 1) == roomy.tile(roomy.find(job), plane, 0, 1, 1)  # type: ignore[arg-type]
    assert tight.held == 0
    tight.close()
    roomy.close()


def test_small_pictures_are_made_once_also_across_restarts(
    finished: Finished, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = finished.add("a.tif", counts(1, SHAPE))
    first = make(finished, clock)

    def look(gallery: Gallery) -> list[bytes]:
        result = gallery.find(job)
        overviews = [gallery.tile(result, plane, 2, 0, 0) for plane in ("raw", "denoised", "residual")]  # type: ignore[arg-type]
        return [*overviews, gallery.thumbnail(result), *(gallery.spectrum(result, one) for one in ("raw", "denoised"))]  # type: ignore[arg-type]

    made = look(first)
    assert max(seen(made[3]).shape) <= 192
    first.close()

    def unread(*_: object) -> None:
        raise AssertionError("it was made once")

    monkeypatch.setattr(Reader, "read", unread)
    second = make(finished, clock)
    assert look(second) == made
    second.close()
    folder = finished.config.folders.state / "page"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_who_would_wait_too_long_is_told_to_come_back(finished: Finished, gallery: Gallery) -> None:
    result = gallery.find(finished.add("a.tif", counts(1)))
    go, begun = threading.Event(), threading.Semaphore(0)

    def slow() -> None:
        begun.release()
        go.wait(60)

    with ThreadPoolExecutor(AT_ONCE) as people:
        waiting = [people.submit(gallery.quietly, slow) for _ in range(AT_ONCE)]
        for _ in waiting:
            assert begun.acquire(timeout=60)
        for ask in (lambda: gallery.tile(result, "raw", 0, 0, 0), lambda: gallery.profile(result, (0, 0), (1, 1), 1)):
            with pytest.raises(BusyError):
                ask()
        go.set()
        for one in waiting:
            one.result(60)
    assert gallery.tile(result, "raw", 0, 0, 0)


def test_pictures_are_made_at_a_lower_priority(gallery: Gallery) -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    here = priority()
    assert gallery.quietly(priority) == min(19, here + 5)
    assert priority() == here


# What may be shown


def test_a_raw_file_that_is_gone_or_changed_leaves_the_denoised_image_alone(
    finished: Finished, gallery: Gallery
) -> None:
    job = finished.add("a.tif", counts(1))
    path = finished.config.folders.drop / "a.tif"
    whole = gallery.tile(gallery.find(job), "denoised", 0, 0, 0)
    os.utime(path, ns=(1, 1))
    changed = gallery.find(job)
    assert "has changed since" in changed.raw_gone
    path.unlink()
    gone = gallery.find(job)
    assert "no longer exists" in gone.raw_gone
    for result in (changed, gone):
        assert gallery.tile(result, "denoised", 0, 0, 0) == whole
        assert list(gallery.profile(result, (0, 0), (0, 9), 1)) == ["denoised"]
        assert seen(gallery.spectrum(result, "denoised")).shape == (64, 64)
        for plane in ("raw", "residual"):
            with pytest.raises(NotThereError, match="raw file"):
                gallery.tile(result, plane, 0, 0, 0)  # type: ignore[arg-type]


def test_a_raw_file_that_cannot_be_read_any_more_is_a_clear_answer(finished: Finished, gallery: Gallery) -> None:
    job = finished.add("a.tif", counts(1))
    path = finished.config.folders.drop / "a.tif"
    state = path.stat()
    path.write_bytes(b"II*\0" + b"\xff" * (state.st_size - 4))
    os.utime(path, ns=(state.st_mtime_ns, state.st_mtime_ns))
    result = gallery.find(job)
    with pytest.raises(NotThereError, match=r"a\.tif"):
        gallery.tile(result, "raw", 0, 0, 0)
    assert seen(gallery.spectrum(result, "denoised")).max() == 255


def test_only_results_of_ours_in_the_output_folder_are_shown(finished: Finished, gallery: Gallery) -> None:
    job = finished.add("a.tif", counts(1))
    output = finished.config.folders.output
    image = output / "a.tif"
    elsewhere = output.parent / "elsewhere"
    elsewhere.mkdir()
    for file in (image, image.with_name("a.tif.json")):
        (elsewhere / file.name).write_bytes(file.read_bytes())
    (output / "link.tif").symlink_to(image)
    (output / "link.tif.json").write_bytes((output / "a.tif.json").read_bytes())
    (output / "away").symlink_to(elsewhere)
    (output / "stranger.tif").write_bytes(image.read_bytes())
    (output / "pipe.tif").mkdir()
    for path, why in (
        (elsewhere / "a.tif", "outside"),
        (output / "away" / "a.tif", "outside"),
        (output / ".." / "elsewhere" / "a.tif", "outside"),
        (output / "link.tif", "is not a plain file"),
        (output / "pipe.tif", "is not a plain file"),
        (output / "stranger.tif", "no record"),
        (output / "lost.tif", "moved or deleted"),
        (Path("/etc/passwd"), "outside"),
    ):
        with pytest.raises(NotThereError, match=why):
            gallery.find(finished.replace_output(job, path))


def test_a_damaged_record_is_a_clear_answer(finished: Finished, gallery: Gallery) -> None:
    job = finished.add("a.tif", counts(1))
    record = finished.config.folders.output / "a.tif.json"
    text = record.read_text()
    record.write_text("{")
    with pytest.raises(NotThereError, match="no record"):
        gallery.find(job)
    record.write_text(text.replace('"shape": [', '"shape": ["x",'))
    with pytest.raises(NotThereError, match="is damaged"):
        gallery.find(job)


def test_one_without_a_result_says_why(finished: Finished, gallery: Gallery) -> None:
    with pytest.raises(NotThereError, match="it is a picture of a cat"):
        gallery.find(finished.quarantine("cat.tif", "it is a picture of a cat"))
    assert own_record(finished.config.folders.output / "cat.tif") is None
