"""Writing TIFF and MRC: pixels and scale survive, and other programs find them."""

import hashlib
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import tifffile
from small_files import image

from daemon import formats
from daemon.files import sha256_around
from daemon.formats import tiff
from daemon.micrograph import Micrograph, PixelSize

LIMIT = 1 << 24


def source(size: PixelSize | None, kind: str = "tiff", **metadata: Any) -> Micrograph:
    return Micrograph(image(), Path("raw"), kind, size, metadata)


SIZES = [
    PixelSize(0.5, 0.25, "nm"),
    PixelSize(1.06, 1.06, "angstrom"),
    PixelSize(3.3724e-6, 3.3724e-6, "m"),
    PixelSize(2.3928e-11, 2.3928e-11, "m"),
    PixelSize(0.1687, 0.1687, "um"),
]
METRES = {"m": 1, "um": 1e-6, "nm": 1e-9, "angstrom": 1e-10}


@pytest.mark.parametrize("ome", [False, True])
@pytest.mark.parametrize("kind", ["tiff", "mrc"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_and_pixel_size_survive_the_round_trip(
    tmp_path: Path, kind: formats.FileKind, size: PixelSize, ome: bool
) -> None:
    pixels = (image() / 3).astype(np.float32)
    path = tmp_path / "out.tmp"
    begin = formats.write(path, kind, pixels, source(size, ome=ome), {"note": "µ-metal shield"})
    again = formats.read(path, LIMIT)
    np.testing.assert_array_equal(again.pixels, pixels)
    assert np.array_equal(np.fromfile(path, "<f4", pixels.size, offset=begin).reshape(pixels.shape), pixels)
    assert sha256_around(path, begin, pixels.data) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert again.kind == kind and again.pixels.dtype == np.float32
    assert again.pixel_size is not None
    for axis in "yx":
        metres = getattr(again.pixel_size, axis) * METRES[again.pixel_size.unit]
        assert metres == pytest.approx(getattr(size, axis) * METRES[size.unit], rel=1e-6)
    assert formats.probe(path).state == "complete"


@pytest.mark.parametrize("ome", [False, True])
def test_it_is_known_where_the_pixels_of_a_bigtiff_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ome: bool
) -> None:
    monkeypatch.setattr(tiff, "_CLASSIC_LIMIT", 0)
    path, pixels = tmp_path / "out.tmp", (image() / 3).astype(np.float32)
    begin = formats.write(path, "tiff", pixels[::-1], source(SIZES[0], ome=ome), {"note": "turned"})
    assert path.read_bytes()[:4] == b"II\x2b\0"
    content = np.ascontiguousarray(pixels[::-1]).data
    assert sha256_around(path, begin, content) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["tiff", "mrc"])
def test_an_unknown_pixel_size_stays_unknown(tmp_path: Path, kind: formats.FileKind) -> None:
    formats.write(tmp_path / "a", kind, image(dtype=np.float32), source(None), {})
    assert formats.read(tmp_path / "a", LIMIT).pixel_size is None


def test_fiji_and_tifffile_find_the_scale(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    formats.write(path, "tiff", image(dtype=np.float32), source(PixelSize(0.5, 0.5, "nm")), {"raw": "abc"})
    with tifffile.TiffFile(path) as file:
        assert file.imagej_metadata is not None
        assert file.imagej_metadata["unit"] == "nm" and '"raw": "abc"' in file.imagej_metadata["Info"]
        assert file.pages.first.tags["XResolution"].value == (2, 1)
        assert file.asarray().shape == (48, 40)


def test_ome_sources_become_ome_files(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    formats.write(path, "tiff", image(dtype=np.float32), source(PixelSize(2, 2, "um"), ome=True), {"raw": "abc"})
    with tifffile.TiffFile(path) as file:
        assert file.is_ome and file.ome_metadata is not None
        assert 'PhysicalSizeX="2' in file.ome_metadata


def test_mrcfile_accepts_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, pixels = tmp_path / "a.mrc", image(dtype=np.float32)
    formats.write(path, "mrc", pixels, source(PixelSize(0.1, 0.1, "nm"), "mrc"), {"raw SHA-256": "0" * 64})
    assert mrcfile.validate(path), capsys.readouterr().out
    with mrcfile.open(path) as mrc:
        np.testing.assert_array_equal(mrc.data, pixels)
        assert float(mrc.voxel_size.x) == pytest.approx(1.0) and mrc.header.mode == 2
        assert float(mrc.header.dmean) == pytest.approx(float(pixels.mean()))
        assert float(mrc.header.rms) == pytest.approx(float(pixels.std()), rel=1e-5)
        assert mrc.header.nsymbt == 0


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    kinds: tuple[formats.FileKind, ...] = ("tiff", "mrc")
    for kind in kinds:
        for name in ("a", "b"):
            formats.write(tmp_path / name, kind, image(dtype=np.float32), source(SIZES[0]), {"raw": "abc"})
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
