"""The preview: both images in one contrast, with a scale bar, whatever their shape."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from small_results import denoised, micrograph

from daemon.micrograph import PixelSize
from daemon.output import preview


def render(height: int, width: int, pixels: int, size: PixelSize | None = None, title: str = "a.tif") -> Picture.Image:
    return preview.render(
        micrograph(height, width).pixels,
        denoised(height, width),
        pixels=pixels,
        size=size,
        title=title,
        caption="20 counts/px · low",
    )


def test_both_sides_use_one_contrast(tmp_path: Path) -> None:
    truth = denoised(512, 512)
    picture = np.asarray(preview.render(truth, truth, pixels=512, size=None, title="a", caption=""))
    np.testing.assert_array_equal(picture[100:500, 100:500], picture[100:500, 616:1016])
    brighter = np.asarray(preview.render(truth + 100, truth, pixels=512, size=None, title="a", caption=""))
    assert (brighter[100:500, 100:500] == 255).all()
    np.testing.assert_array_equal(brighter[100:500, 616:1016], picture[100:500, 616:1016])


def test_binning_keeps_the_mean_by_area() -> None:
    plane = np.zeros((600, 900), np.uint16)
    plane[:, 450:] = 400
    found = preview.binned(plane, 6)
    assert found.shape == (100, 150) and found.dtype == np.float32
    np.testing.assert_array_equal(found[:, 74:77], np.tile([0, 400, 400], (100, 1)))
    noise = np.random.default_rng(0).poisson(5, (601, 907)).astype(np.uint8)
    exact = noise[:600, :906].reshape(100, 6, 151, 6).mean(axis=(1, 3))
    np.testing.assert_allclose(preview.binned(noise, 6), exact, rtol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "pixels"),
    [(32, 32, 1024), (2048, 1024, 256), (33, 900, 300), (900, 33, 300), (2, 4000, 64), (100, 100, 100)],
)
def test_any_shape_makes_a_picture_of_bounded_size(height: int, width: int, pixels: int) -> None:
    picture = render(height, width, pixels, PixelSize(0.2, 0.2, "nm"), "ü" * 300 + "\udcff中\n\x1b.tif")
    assert picture.mode == "L"
    assert picture.width <= 2 * max(pixels, 256) + 8 and picture.height <= max(pixels, 256) + 60


def test_a_scale_bar_appears_only_with_a_pixel_size() -> None:
    plain, scaled = (np.asarray(render(512, 512, 512, size)) for size in (None, PixelSize(0.2, 0.2, "nm")))
    changed = np.argwhere(plain != scaled)
    assert len(changed) and changed[:, 1].min() > 512 and changed[:, 0].min() > 400
    ends = [np.flatnonzero(np.concatenate(([True], row != 255, [True]))) for row in scaled[440:512]]
    assert 100 <= max(np.diff(row).max() for row in ends) - 1 <= 102, "20 nm at 0.2 nm per pixel"


@pytest.mark.parametrize(
    ("side", "unit", "at_most", "label", "pixels"),
    [
        (0.2, "nm", 128, "20 nm", 100),
        (1.0, "angstrom", 256, "20 nm", 200),
        (2.4e-11, "m", 100, "2 nm", 83.33),
        (3.4e-6, "m", 128, "200 um", 58.82),
        (0.0168, "um", 100, "1 um", 59.52),
        (0.003, "nm", 100, "0.2 nm", 66.67),
        (1.0, "furlong", 100, "100 furlong", 100),
    ],
)
def test_the_bar_has_a_round_length(side: float, unit: str, at_most: float, label: str, pixels: float) -> None:
    length, text = preview.round_length(PixelSize(side, side, unit), at_most)
    assert text == label and length == pytest.approx(pixels, rel=1e-3)


def test_nan_constant_and_signed_images_make_a_picture() -> None:
    flat = np.full((64, 64), 7, np.float32)
    broken = flat.copy()
    broken[3:9] = np.nan
    for raw in (broken, flat.astype(np.int16) * -1, flat.astype(np.float64)):
        assert preview.render(raw, flat, pixels=64, size=None, title="a", caption="").width > 2 * 64


def test_the_file_has_the_pictures_greys_and_names_its_writer(tmp_path: Path) -> None:
    picture = Picture.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 48))
    preview.save(picture, tmp_path / "a.png", "emdenoised")
    with Picture.open(tmp_path / "a.png") as found:
        np.testing.assert_array_equal(np.asarray(found.convert("L")), np.asarray(picture))
    assert picture.mode == "L", "the picture itself is not changed"
    assert preview.written_by(tmp_path / "a.png") == "emdenoised"
