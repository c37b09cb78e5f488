"""The deepest page of a TIFF is the micrograph only if others are copies of it, or are known to be something else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from small_files import PLAIN

from daemon import formats
from daemon.errors import MicrographError
from daemon.formats.reading import CodecNeededError
from daemon.formats.tiff_copies import is_copy

LIMIT = 1 << 24
Pages = list[tuple[np.ndarray[Any, Any], dict[str, Any]]]


def scene(height: int = 192, width: int = 256, mean: float = 40) -> np.ndarray[Any, Any]:
    y, x = np.mgrid[:height, :width]
    truth = mean * (1 + 0.5 * np.sin(x / 9) * np.cos(y / 13) + 0.3 * (x > width // 2))
    return np.random.default_rng(1).poisson(truth).astype(np.uint16)


COUNTS = scene()
FFT = np.abs(np.fft.fftshift(np.fft.fft2(COUNTS))).astype(np.float32)
SHOWN = np.clip((COUNTS.astype(float) - 20) * 3, 0, 255).astype(np.uint8)
SMALL = COUNTS.reshape(48, 4, 64, 4).mean(axis=(1, 3))
THUMBNAIL = (SMALL / SMALL.max() * 255).astype(np.uint8)


def written(path: Path, *pages: Any, **options: Any) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for page in pages:
            data, own = page if isinstance(page, tuple) else (page, {})
            writer.write(data, contiguous=False, **{**PLAIN, **options, **own})
    return path


NAMED = {"description": json.dumps({"name": "FFT magnitude", "pad": "-" * 100})}


@pytest.mark.parametrize(
    "others",
    [(FFT,), (np.log(FFT + 1),), (FFT[:, ::2],), (FFT[::2, ::2],), (np.pad(FFT, 64),), (THUMBNAIL, FFT), (SHOWN, FFT)],
    ids=["same-size", "logarithm", "half", "quarter", "larger", "thumbnail", "shown"],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_deeper_fourier_transform_is_not_taken_for_the_micrograph(
    tmp_path: Path, others: tuple[Any, ...], first: bool
) -> None:
    pages = (COUNTS, *others) if first else (*others, COUNTS)
    with pytest.raises(MicrographError, match=r"images of several kinds .* save that one as a separate file"):
        formats.read(written(tmp_path / "a.tif", *pages), LIMIT)


@pytest.mark.parametrize("own", [NAMED, {"subfiletype": 1}, {"description": "Diffractogram"}], ids=str)
def test_what_names_itself_made_from_the_micrograph_is_left_out(tmp_path: Path, own: dict[str, Any]) -> None:
    for pages in (((FFT, own), COUNTS), (COUNTS, (FFT, own))):
        found = formats.read(written(tmp_path / "a.tif", *pages), LIMIT)
        np.testing.assert_array_equal(found.pixels, COUNTS)
        assert "1 other page of the file" in found.warnings[0]


@pytest.mark.parametrize(
    ("deep", "other"),
    [
        (COUNTS, SHOWN),
        (COUNTS, THUMBNAIL),
        (COUNTS.astype(np.float32), SHOWN),
        (COUNTS.astype(np.float32), THUMBNAIL),
        (COUNTS.astype(np.float32), COUNTS[::4, ::4].astype(np.uint8)),
        (COUNTS * np.float32(0.25), COUNTS),  # calibrated
        (COUNTS, np.full(COUNTS.shape, 7, np.uint8)),  # blank
        (np.where(COUNTS > 30, COUNTS, np.nan).astype(np.float32), SHOWN),
        (COUNTS.astype(np.float32), np.uint8(255) - THUMBNAIL[:9, :7]),  # an icon
    ],
)
def test_of_copies_the_deepest_is_read(tmp_path: Path, deep: Any, other: Any) -> None:
    for pages in ((deep, other), (other, deep)):
        found = formats.read(written(tmp_path / "a.tif", *pages), LIMIT)
        np.testing.assert_array_equal(found.pixels, deep)
        assert "1 other page of the file" in found.warnings[0]


def test_copies_are_compared_as_they_are_shown(tmp_path: Path) -> None:
    turned = (np.uint8(255) - SHOWN, {"photometric": "miniswhite"})
    np.testing.assert_array_equal(formats.read(written(tmp_path / "a.tif", COUNTS, turned), LIMIT).pixels, COUNTS)
    greys = np.repeat(np.linspace(65535, 0, 256).astype(np.uint16)[None], 3, axis=0)
    palette = (np.uint8(255) - SHOWN, {"photometric": "palette", "colormap": greys})
    np.testing.assert_array_equal(formats.read(written(tmp_path / "b.tif", COUNTS, palette), LIMIT).pixels, COUNTS)
    with pytest.raises(MicrographError, match="images of several kinds"):
        formats.read(written(tmp_path / "c.tif", COUNTS, np.uint8(255) - SHOWN), LIMIT)


def test_a_compressed_page_is_compared_where_codecs_may_run(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", COUNTS, (SHOWN, {"compression": "zlib"}))
    with pytest.raises(CodecNeededError):
        formats.read(path, LIMIT, decode=False)
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, COUNTS)


def test_sections_beside_a_page_of_another_kind(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", SHOWN, COUNTS, COUNTS + 1)
    np.testing.assert_array_equal(formats.read(path, LIMIT, 1).pixels, COUNTS + 1)
    with pytest.raises(MicrographError, match="images of several kinds"):
        formats.read(written(tmp_path / "b.tif", FFT, COUNTS, COUNTS + 1), LIMIT, 0)


@pytest.mark.parametrize("mean", [2, 40, 4000])
def test_copies_and_transforms_are_told_apart_at_any_dose(mean: float) -> None:
    image = scene(300, 400, mean)
    low, high = np.percentile(image, (1, 99))
    shown = np.clip((image - low) / (high - low + 1) * 255, 0, 255).astype(np.uint8)
    small = image.reshape(60, 5, 80, 5).mean(axis=(1, 3))
    transform = np.abs(np.fft.fft2(image))
    assert is_copy(shown, image) and is_copy(small, image) and is_copy(image, small)
    for made in (transform, np.fft.fftshift(transform), transform[:60, :80], np.log1p(transform), image.T[:300]):
        assert not is_copy(made, image) and not is_copy(image, made)
