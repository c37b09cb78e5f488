"""Results in the programs people open them with: tifffile (as Fiji reads), mrcfile, HyperSpy's and napari's readers."""

import re
from pathlib import Path

import mrcfile
import napari_tiff
import numpy as np
import pytest
import rsciio.mrc
import rsciio.tiff
import tifffile

from daemon import formats
from daemon.micrograph import Micrograph, PixelSize

IMAGE = np.random.default_rng(0).normal(50, 3, (48, 64)).astype(np.float32)


def written(path: Path, kind: formats.Kind, *, ome: bool = False, size: PixelSize | None = None) -> Path:
    like = Micrograph(IMAGE, path, "tiff", size, {"ome": ome})
    formats.write(path, kind, IMAGE, like, {"denoised from": "a.tif"})
    return path


SIZE = PixelSize(0.25, 0.5, "nm")


@pytest.mark.parametrize("ome", [False, True], ids=["imagej", "ome"])
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


@pytest.mark.parametrize("ome", [False, True], ids=["imagej", "ome"])
def test_hyperspy_reads_the_tiff(tmp_path: Path, ome: bool) -> None:
    (signal,) = rsciio.tiff.file_reader(str(written(tmp_path / "a.tif", "tiff", ome=ome, size=SIZE)))
    np.testing.assert_array_equal(signal["data"], IMAGE)
    if not ome:  # HyperSpy does not look into OME's description
        assert [axis["scale"] for axis in signal["axes"]] == pytest.approx([0.25, 0.5], rel=1e-6)
        assert [axis["units"] for axis in signal["axes"]] == ["nm", "nm"]


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


@pytest.mark.parametrize("ome", [False, True], ids=["imagej", "ome"])
def test_napari_shows_it_with_its_scale(tmp_path: Path, ome: bool) -> None:
    path = str(written(tmp_path / "a.tif", "tiff", ome=ome, size=SIZE))
    reader = napari_tiff.napari_get_reader(path)
    assert reader is not None
    data, options, kind = reader(path)[0]
    np.testing.assert_array_equal(np.asarray(data).squeeze(), IMAGE)
    assert kind == "image"
    scale = [float(value) for value in options["scale"]][-2:]
    # ome: napari-tiff gives micrometres
    assert scale == pytest.approx(
        [0.25e-3, 0.5e-3] if re.search("ome", str(ome), re.IGNORECASE) or ome else [0.25, 0.5], rel=1e-4
    )


@pytest.mark.parametrize("kind", ["tiff", "mrc"])
def test_an_unknown_pixel_size_stays_unknown(tmp_path: Path, kind: formats.Kind) -> None:
    path = written(tmp_path / ("a.tif" if kind == "tiff" else "a.mrc"), kind)
    assert formats.read(path, 1 << 20).pixel_size is None


def test_vendors_pixel_sizes_survive_the_way_through(tmp_path: Path) -> None:
    source = formats.read(Path(__file__).parents[1] / "data" / "jeol_haadf.dm4", 1 << 20)
    out = tmp_path / "jeol_haadf.dm4.tif"
    formats.write(out, "tiff", source.pixels.astype(np.float32), source, {})
    (signal,) = rsciio.tiff.file_reader(str(out))
    assert signal["axes"][0]["scale"] == pytest.approx(0.0012490136, rel=1e-6)
    assert signal["axes"][0]["units"] == "µm"
