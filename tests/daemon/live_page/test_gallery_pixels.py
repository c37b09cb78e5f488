"""The pixels of the live page: tiles, spectra and profiles, each compared with the files."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from finished import Clock, Finished, counts, smoothed
from gallery_pictures import SHAPE, codes, make, seen
from numpy.typing import NDArray

from daemon import formats
from daemon.errors import MicrographError, TransientError
from daemon.formats.contrast import window
from daemon.formats.partial import open_result
from daemon.live_page import deep, pictures
from daemon.live_page.gallery import Gallery, NotThereError
from daemon.micrograph import Micrograph, PixelSize
from daemon.output import preview


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


def test_tiles_beyond_the_image_do_not_exist(finished: Finished, gallery: Gallery) -> None:
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
def test_parts_of_a_result_are_read_from_its_file(tmp_path: Path, kind: formats.FileKind, name: str) -> None:
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
