"""Calibrations of values and places that are recorded and handed on: right for a sum, and for turned values."""

import struct
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import tifffile
from hyperspy_file import write_hyperspy
from mrc_bytes import write_mrc
from small_files import COUNTS, PLAIN

from daemon import formats
from daemon.formats import tiff_values, vendor_tags

LIMIT = 1 << 20
FRAMES = np.stack([COUNTS + number for number in range(5)]).astype(np.uint16)
DM = [(65022, "s", 0, "e-", True), (65024, "d", 1, 100.0, True), (65025, "d", 1, 0.25, True)]
GDAL = (
    '<GDALMetadata>\n  <Item name="OFFSET" sample="0" role="offset">-1000</Item>\n  <Item name="SCALE" sample="0" '
    'role="scale">0.1</Item>\n  <Item name="UNITTYPE" sample="0" role="unittype">e</Item>\n</GDALMetadata>'
)


def pages(path: Path, planes: np.ndarray[Any, Any], tags: list[Any], **options: Any) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for plane in planes:
            writer.write(plane, contiguous=False, extratags=tags, **{**PLAIN, **options})
    return path


def handed_on(path: Path, micrograph: Any) -> dict[int, Any]:
    formats.write(path, "tiff", micrograph.pixels.astype(np.float32), micrograph, {})
    with tifffile.TiffFile(path) as file:
        return {tag.code: tag.value for tag in file.pages.first.tags}


@pytest.mark.parametrize(("section", "number"), [(None, 5), (1, 1)])
def test_digital_micrographs_origin_counts_once_for_each_frame(
    tmp_path: Path, section: int | None, number: int
) -> None:
    path = pages(tmp_path / "a.tif", FRAMES, [*DM, (65005, "s", 0, "s", True)])
    found = formats.read(path, LIMIT, section)
    assert found.metadata["brightness"] == {"origin": 100.0 * number, "scale": 0.25, "units": "e-"}
    tags = handed_on(tmp_path / "out.tif", found)
    calibrated = (found.pixels.astype(float) - tags[65024]) * tags[65025]
    frames = FRAMES if section is None else FRAMES[section : section + 1]
    np.testing.assert_allclose(calibrated, ((frames - 100.0) * 0.25).sum(0))


def test_calibrations_of_inverted_values_hold_for_the_values_as_read(tmp_path: Path) -> None:
    path = pages(tmp_path / "a.tif", 65535 - FRAMES[:1], [*DM, (42112, "s", 0, GDAL, True)], photometric="miniswhite")
    found = formats.read(path, LIMIT)
    stated, gdal = found.metadata["brightness"], found.metadata["gdal"]
    stored = 65535.0 - FRAMES[0]
    np.testing.assert_allclose((found.pixels - stated["origin"]) * stated["scale"], (stored - 100) * 0.25)
    np.testing.assert_allclose(gdal["offset"] + gdal["scale"] * found.pixels, -1000 + 0.1 * stored)


@pytest.mark.parametrize(("section", "number"), [(None, 5), (1, 1)])
def test_gdals_scale_and_offset_are_handed_on(tmp_path: Path, section: int | None, number: int) -> None:
    description = "SerialEMCCD: Dose fractions"
    path = pages(tmp_path / "a.tif", FRAMES, [(42112, "s", 0, GDAL, True)], description=description)
    found = formats.read(path, LIMIT, section)
    assert found.metadata["gdal"] == {"offset": -1000.0 * number, "scale": 0.1, "units": "e"}
    text = handed_on(tmp_path / "out.tif", found)[42112]
    assert f'role="offset">{-1000.0 * number}<' in text and 'role="scale">0.1<' in text and 'role="unittype">e<' in text
    assert formats.read(tmp_path / "out.tif", LIMIT).metadata["gdal"] == found.metadata["gdal"]


@pytest.mark.parametrize("text", ["", "<Item", GDAL.replace("0.1", "x"), GDAL.replace("0.1", "0"), 7])
def test_a_calibration_that_is_none_is_not_handed_on(text: Any) -> None:
    assert tiff_values.handed_on({42112: text}, tiff_values.StoredMeaning(), 1) == {}


def test_a_vendors_origin_counts_once_for_each_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.hspy"
    write_hyperspy(path, FRAMES)
    monkeypatch.setattr(vendor_tags, "brightness", lambda signal: (100.0, 0.25, "e-"))
    assert formats.read(path, LIMIT).metadata["brightness"]["origin"] == 500.0
    assert formats.read(path, LIMIT, 1).metadata["brightness"]["origin"] == 100.0


def test_the_origin_of_an_mrc_file_is_handed_on(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", COUNTS.astype(np.int16), cell=(128, 96, 2))
    assert "origin" not in formats.read(path, LIMIT).metadata
    raw = bytearray(path.read_bytes())
    struct.pack_into("<3i", raw, 16, -32, -24, 1)
    struct.pack_into("<3f", raw, 196, 64.5, 48.0, -2.0)
    path.write_bytes(bytes(raw))
    found = formats.read(path, LIMIT)
    formats.write(tmp_path / "out.mrc", "mrc", found.pixels.astype(np.float32), found, {})
    with mrcfile.open(tmp_path / "out.mrc") as file:
        assert [int(file.header[name]) for name in ("nxstart", "nystart", "nzstart")] == [-32, -24, 1]
        assert file.header.origin.item() == (64.5, 48.0, -2.0)


@pytest.mark.parametrize(
    "options", [{"photometric": "miniswhite"}, {"description": "ImageJ=1.54f\ncf=0\nc0=-9\nc1=2\n"}]
)
def test_a_calibration_that_was_applied_is_not_handed_on(tmp_path: Path, options: dict[str, Any]) -> None:
    found = formats.read(pages(tmp_path / "a.tif", FRAMES[:1], [], **options), LIMIT)
    assert "values" in found.metadata and "brightness" not in found.metadata
    assert not {65022, 65024, 65025} & set(handed_on(tmp_path / "out.tif", found))
