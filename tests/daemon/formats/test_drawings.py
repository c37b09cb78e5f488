"""What is no picture of a specimen: images of labels; and scale bars drawn into one."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from small_files import PLAIN, plain_tiff

from daemon import formats
from daemon.counts import no_specimen
from daemon.errors import MicrographError
from daemon.formats import drawings
from daemon.formats.references import is_reference
from daemon.micrograph import Pixels

LIMIT = 1 << 20
RNG = np.random.default_rng(1)
PICTURE = RNG.poisson(60, (128, 128)).astype(np.uint16)


def labels() -> Pixels:
    drawn = np.zeros((128, 128), np.int32)
    drawn[20:80, 30:90], drawn[90:120, 10:100] = 1, 2
    return drawn


@pytest.mark.parametrize("kind", ["u1", "u2", "i4", "f4"])
def test_an_image_of_labels_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = plain_tiff(tmp_path / "a.tif", labels().astype(kind))
    with pytest.raises(MicrographError, match="as an image of labels"):
        formats.read(path, LIMIT)


def test_labels_with_more_bits_are_not_taken_for_the_micrograph(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(PICTURE, contiguous=False, **PLAIN)
        writer.write(labels(), contiguous=False, **PLAIN)
    with pytest.raises(MicrographError, match="images of several kinds"):
        formats.read(tmp_path / "a.tif", LIMIT)
    with pytest.raises(MicrographError, match="as an image of labels"):
        formats.read(plain_tiff(tmp_path / "b.tif", labels()), LIMIT)


def test_smooth_images_and_few_counts_are_no_labels() -> None:
    smooth = np.rint(np.add.outer(np.linspace(0, 9, 128), np.linspace(0, 9, 128)))
    assert not drawings.is_labels(smooth.astype(np.uint8))
    assert not drawings.is_labels(RNG.poisson(0.02, (128, 128)).astype(np.uint8))
    assert not drawings.is_labels(PICTURE)
    assert not drawings.is_labels(np.repeat([[0, 0, 7]], 100, axis=1).reshape(1, -1)), "a line"
    assert not drawings.is_labels(PICTURE.repeat(8, 0).repeat(8, 1)), "enlarged without interpolation"


@pytest.mark.parametrize(("value", "rows"), [(60000, slice(110, 116)), (0, slice(8, 10))])
def test_a_scale_bar_drawn_into_the_picture_is_suspected(tmp_path: Path, value: int, rows: slice) -> None:
    drawn = PICTURE.copy()
    drawn[rows, 20:60] = value
    found = formats.read(plain_tiff(tmp_path / "a.tif", drawn), LIMIT)
    assert found.metadata["scale_bar"] == {"rows": [rows.start, rows.stop - 1], "columns": [20, 59]}
    doubts, _ = no_specimen.find(found).reasons(drawn.shape)
    assert [doubt.code for doubt in doubts] == ["bar-suspected"] and "columns 20 to 59" in doubts[0].text


def test_what_is_as_bright_all_around_is_no_scale_bar() -> None:
    bright = PICTURE.copy()
    bright[40:60, 20:90] = RNG.integers(995, 1005, (20, 70))
    bright[48:52, 30:60] = 1005
    assert drawings.scale_bar(bright) == {}


def test_saturation_dead_lines_and_few_counts_are_no_scale_bar() -> None:
    dead, hot = PICTURE.copy(), PICTURE.copy()
    dead[40:43], hot[:, 60:62] = 0, 65535
    for picture in (PICTURE, dead, hot, np.minimum(PICTURE, 70), RNG.poisson(0.05, (128, 128))):
        assert drawings.scale_bar(picture) == {}


@pytest.mark.parametrize("name", ["bias.tif", "K3_norm.mrc", "Ref_0001.mrc", "norm.mrc", "flat_01.tif"])
def test_an_ambiguous_name_is_a_references_if_its_pixels_are(name: str) -> None:
    assert is_reference(name, {}, RNG.normal(1, 0.02, (64, 64)).astype(np.float32))
    assert is_reference(name, {}, RNG.normal(100, 3, (64, 64)).astype(np.int16))
    specimen = RNG.poisson(60 + 20 * np.sin(np.arange(64) / 9)[:, None] * np.ones(64))
    assert not is_reference(name, {}, specimen)
    assert not is_reference(name, {}, (specimen / specimen.max()).astype(np.float32)), "saved as 0 to 1"
    half = RNG.poisson(5, (2048, 2048))
    half[1200:, 700:1100] += 20
    assert not is_reference(name, {}, half), "a specimen beyond the first corner"


@pytest.mark.parametrize("text", ["Gain reference", "SerialEM: gain reference", "Dark reference image"])
def test_a_tiffs_description_calls_it_a_reference(tmp_path: Path, text: str) -> None:
    with pytest.raises(MicrographError, match="gain or dark reference"):
        formats.read(plain_tiff(tmp_path / "a.tif", PICTURE, description=text), LIMIT)
