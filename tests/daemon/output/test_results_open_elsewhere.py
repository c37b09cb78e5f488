"""Results in the programs people open them with: tifffile (as Fiji reads), mrcfile, HyperSpy's and napari's readers."""

from pathlib import Path
from typing import Any

import mrcfile
import napari_tiff
import numpy as np
import pytest
import rsciio.mrc
import rsciio.tiff
import tifffile

from daemon import formats
from daemon.formats import units
from daemon.formats.contrast import window
from daemon.micrograph import Image, Micrograph, PixelSize

IMAGE = np.random.default_rng(0).normal(50, 3, (48, 64)).astype(np.float32)


def written(
    path: Path,
    kind: formats.FileKind,
    *,
    ome: bool = False,
    size: PixelSize | None = None,
    image: Image = IMAGE,
    **metadata: Any,
) -> Path:
    like = Micrograph(image, path, "tiff", size, {"ome": ome, **metadata})
    formats.write(path, kind, image, like, {"denoised from": "a.tif"})
    return path


SIZE = PixelSize(0.25, 0.5, "nm")
TIFFS = pytest.mark.parametrize("ome", [False, True], ids=["imagej", "ome"])


@TIFFS
def test_tifffile_and_fiji(tmp_path: Path, ome: bool) -> None:
    with tifffile.TiffFile(written(tmp_path / "a.tif", "tiff", ome=ome, size=SIZE)) as file:
        page = file.pages.first
        np.testing.assert_array_equal(page.asarray(), IMAGE)
        assert file.is_ome is ome and file.is_imagej is not ome
        if ome:
            assert 'PhysicalSizeX="0.5"' in (file.ome_metadata or "") and 'PhysicalSizeXUnit="nm"' in file.ome_metadata
        else:  # Fiji takes the unit from its description and the size from the resolution
            assert file.imagej_metadata["unit"] == "nm"
            (x, per_x), (y, per_y) = page.tags["XResolution"].value, page.tags["YResolution"].value
            assert (per_x / x, per_y / y) == pytest.approx((0.5, 0.25), rel=1e-6)


SIZES = [
    (PixelSize(0.25, 0.5, "nm"), "nm"),
    (PixelSize(0.25, 0.5, "um"), "µm"),
    (PixelSize(2.5, 5, "angstrom"), "Å"),
    (PixelSize(2.5e-11, 5e-11, "m"), "nm"),
    (PixelSize(25, 50, "pm"), "nm"),
]
METRES = {**units.METRES, "µm": 1e-6, "Å": 1e-10}


@TIFFS
@pytest.mark.parametrize(("size", "unit"), SIZES, ids=lambda one: one if isinstance(one, str) else one.unit)
def test_hyperspy_reads_the_tiff(tmp_path: Path, ome: bool, size: PixelSize, unit: str) -> None:
    (signal,) = rsciio.tiff.file_reader(str(written(tmp_path / "a.tif", "tiff", ome=ome, size=size)))
    np.testing.assert_array_equal(signal["data"], IMAGE)
    assert {axis["units"] for axis in signal["axes"]} == {"nm" if ome and unit == "Å" else unit}
    assert in_metres(*((axis["scale"], axis["units"]) for axis in signal["axes"])) == stated(size)


def in_metres(*sides: tuple[float, str]) -> list[float]:
    return [side * METRES[unit] for side, unit in sides]


def stated(size: PixelSize) -> Any:
    return pytest.approx(in_metres((size.y, size.unit), (size.x, size.unit)), rel=1e-6, abs=0)


def tags_of(path: Path) -> dict[int, Any]:
    with tifffile.TiffFile(path) as file:
        return {tag.code: tag.value for tag in file.pages.first.tags}


@pytest.mark.parametrize("size", [size for size, _ in SIZES], ids=lambda size: size.unit)
def test_imagej_and_imod_read_the_pixel_size_of_ome_from_the_resolution_in_centimetres(
    tmp_path: Path, size: PixelSize
) -> None:
    tags = tags_of(written(tmp_path / "a.tif", "tiff", ome=True, size=size))
    assert tags[296] == 3
    (x, per_x), (y, per_y) = tags[282], tags[283]
    assert [per_y / y / 100, per_x / x / 100] == stated(size)


def test_a_pixel_too_small_for_tiffs_fractions_is_in_ome_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", "tiff", ome=True, size=PixelSize(1e-4, 1e-4, "nm"))
    assert tags_of(path)[296] != 3
    assert formats.read(path, 1 << 20).pixel_size == PixelSize(1e-4, 1e-4, "nm")


def test_imagej_shows_the_previews_contrast(tmp_path: Path) -> None:
    image = IMAGE.copy()
    image[0, 0] = 1e6
    path = written(tmp_path / "a.tif", "tiff", image=image)
    with tifffile.TiffFile(path) as file:
        shown = file.imagej_metadata["min"], file.imagej_metadata["max"]
    assert shown == pytest.approx(window(image))
    assert shown[1] < 100


def test_a_data_bar_and_a_void_are_no_part_of_the_contrast(tmp_path: Path) -> None:
    image = IMAGE.copy()
    image[40:], image[:, :3] = 1e6, np.nan
    path = written(tmp_path / "a.tif", "tiff", image=image, data_bar={"rows": [40, 47]})
    with tifffile.TiffFile(path) as file:
        assert file.imagej_metadata["max"] == pytest.approx(window(IMAGE[:40, 3:])[1])
    assert tags_of(path)[341] == 1e6


@TIFFS
def test_imod_shows_all_values_from_least_to_greatest(tmp_path: Path, ome: bool) -> None:
    tags = tags_of(written(tmp_path / "a.tif", "tiff", ome=ome))
    assert (tags[340], tags[341]) == (IMAGE.min(), IMAGE.max())
    with mrcfile.open(written(tmp_path / "a.mrc", "mrc")) as file:
        header = file.header
        assert (header.dmin, header.dmax) == (IMAGE.min(), IMAGE.max())
        assert (header.dmean, header.rms) == pytest.approx((IMAGE.mean(), IMAGE.std()), rel=1e-6)


@TIFFS
def test_an_image_without_numbers_is_still_written(tmp_path: Path, ome: bool) -> None:
    path = written(tmp_path / "a.tif", "tiff", ome=ome, image=np.full_like(IMAGE, np.nan))
    assert 340 not in tags_of(path) and np.isnan(tifffile.imread(path)).all()


def test_hyperspy_reads_the_mrc(tmp_path: Path) -> None:
    (signal,) = rsciio.mrc.file_reader(str(written(tmp_path / "a.mrc", "mrc", size=SIZE)))
    np.testing.assert_array_equal(signal["data"], IMAGE)
    assert [axis["scale"] for axis in signal["axes"]] == pytest.approx([0.25, 0.5], rel=1e-6)


def test_mrcfile_finds_nothing_to_complain_of(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mrc", "mrc", size=SIZE)
    assert mrcfile.validate(path)
    with mrcfile.open(path) as file:
        np.testing.assert_array_equal(file.data, IMAGE)
        assert (float(file.voxel_size.y), float(file.voxel_size.x)) == pytest.approx((2.5, 5.0))  # angstrom


@TIFFS
@pytest.mark.parametrize("size", [size for size, _ in SIZES], ids=lambda size: size.unit)
def test_napari_shows_it_with_its_scale(tmp_path: Path, ome: bool, size: PixelSize) -> None:
    path = str(written(tmp_path / "a.tif", "tiff", ome=ome, size=size))
    reader = napari_tiff.napari_get_reader(path)
    assert reader is not None
    data, options, kind = reader(path)[0]
    np.testing.assert_array_equal(np.asarray(data).squeeze(), IMAGE)
    assert kind == "image"
    shown = zip(options["scale"], options["units"], strict=True)
    assert in_metres(*((float(side), unit) for side, unit in shown)) == stated(size)


@TIFFS
def test_an_unknown_pixel_size_is_unknown_to_them_too(tmp_path: Path, ome: bool) -> None:
    path = written(tmp_path / "a.tif", "tiff", ome=ome)
    assert formats.read(path, 1 << 20).pixel_size is None
    (signal,) = rsciio.tiff.file_reader(str(path))
    assert {(axis["scale"], axis["units"]) for axis in signal["axes"]} == {(1.0, None)}
    reader = napari_tiff.napari_get_reader(str(path))
    assert reader is not None and set(reader(str(path))[0][1]["units"]) == {"pixel"}
    with mrcfile.open(written(tmp_path / "a.mrc", "mrc")) as file:
        assert (float(file.voxel_size.y), float(file.voxel_size.x)) == (0, 0)


def test_vendors_pixel_sizes_survive_the_way_through(tmp_path: Path) -> None:
    source = formats.read(Path(__file__).parents[2] / "data" / "jeol_haadf.dm4", 1 << 20)
    out = tmp_path / "jeol_haadf.dm4.tif"
    formats.write(out, "tiff", source.pixels.astype(np.float32), source, {})
    (signal,) = rsciio.tiff.file_reader(str(out))
    assert signal["axes"][0]["scale"] == pytest.approx(0.0012490136, rel=1e-6)
    assert signal["axes"][0]["units"] == "µm"
