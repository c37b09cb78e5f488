"""Cases from the field: what a file states of its values and axes is heeded, handed on, or refused."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from berkeley_file import write_berkeley
from hyperspy_file import write_hyperspy
from small_files import COUNTS, PLAIN, plain_tiff
from tiff_bytes import raw_tiff

from daemon import formats
from daemon.errors import MicrographError
from daemon.micrograph import Micrograph

LIMIT = 1 << 24


def metres(path: Path) -> tuple[float, float]:
    """Sides y and x of a pixel, in nm."""
    size = formats.read(path, LIMIT).pixel_size
    assert size is not None
    nm = {"nm": 1.0, "um": 1e3, "pm": 1e-3, "angstrom": 0.1, "m": 1e9}[size.unit]
    return size.y * nm, size.x * nm


# --- values ---------------------------------------------------------------------------------------------------------


def imagej(*lines: str) -> str:
    return "\n".join(("ImageJ=1.53t", "unit=nm", *lines, ""))


@pytest.mark.parametrize(
    ("stored", "lines", "expected", "dtype"),
    [
        (COUNTS - 20 + 32768, ("cf=0", "c0=-32768.0", "c1=1.0"), COUNTS.astype(int) - 20, "int16"),
        (COUNTS, ("cf=0", "c0=-10.5", "c1=0.5"), COUNTS * 0.5 - 10.5, "float32"),
        ((4095 - COUNTS), ("cf=0", "c0=4095.0", "c1=-1.0"), COUNTS, "int32"),
        (COUNTS.astype(np.uint8), ("cf=0", "c0=100.0", "c1=2.0"), 100 + 2 * COUNTS, "uint16"),
        (COUNTS, ("cf=20",), COUNTS, "uint16"),
        (COUNTS, ("vunit=gray value",), COUNTS, "uint16"),
    ],
    ids=["signed", "fraction", "inverted", "bytes", "none", "unit-only"],
)
def test_imagej_calibration_is_applied_and_recorded(
    tmp_path: Path, stored: np.ndarray[Any, Any], lines: tuple[str, ...], expected: np.ndarray[Any, Any], dtype: str
) -> None:
    found = formats.read(plain_tiff(tmp_path / "a.tif", stored, description=imagej(*lines)), LIMIT)
    np.testing.assert_array_equal(found.pixels, expected)
    assert found.pixels.dtype == dtype
    applied = not np.array_equal(stored, expected)
    assert ("values" in found.metadata) == applied == any("calibration was applied" in text for text in found.warnings)


def test_a_calibrated_movie_is_calibrated_before_it_is_summed(tmp_path: Path) -> None:
    path = tmp_path / "a_movie.tif"
    with tifffile.TiffWriter(path) as writer:
        for _ in range(3):
            writer.write(COUNTS + 100, contiguous=False, description=imagej("cf=0", "c0=-100", "c1=1"), **PLAIN)
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, 3 * COUNTS.astype(int))


@pytest.mark.parametrize("number", [1, 5, 21])
def test_a_curve_of_calibration_is_refused(tmp_path: Path, number: int) -> None:
    path = plain_tiff(tmp_path / "a.tif", COUNTS, description=imagej(f"cf={number}", "c0=1", "c1=2", "c2=3"))
    with pytest.raises(MicrographError, match="calibrated by a curve"):
        formats.read(path, LIMIT)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (4095 - COUNTS, 65535 - (4095 - COUNTS.astype(int))),
        ((255 - COUNTS).astype(np.uint8), COUNTS),
        (-COUNTS.astype(np.float32), COUNTS),
        (-COUNTS.astype(np.int16), COUNTS),
    ],
    ids=["uint16", "uint8", "float", "int16"],
)
def test_white_is_zero_is_turned_with_a_remark(
    tmp_path: Path, stored: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]
) -> None:
    path = plain_tiff(tmp_path / "a.tif", stored, photometric="miniswhite")
    found = formats.read(path, LIMIT)
    np.testing.assert_array_equal(found.pixels, expected)
    assert "WhiteIsZero was applied" in found.warnings[0] and found.metadata["values"]["slope"] == -1.0
    formats.write(tmp_path / "out.tif", "tiff", found.pixels.astype(np.float32), found, {})
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.pages.first.photometric.name == "MINISBLACK"


def test_a_palette_from_white_to_black_is_turned_too(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint16)[::-1] * 257, (3, 1))
    stored = (255 - COUNTS).astype(np.uint8)
    found = formats.read(plain_tiff(tmp_path / "a.tif", stored, photometric="palette", colormap=ramp), LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    assert "A palette from white to black was applied" in found.warnings[0]


def test_tags_that_only_turn_or_label_are_handed_on(tmp_path: Path) -> None:
    tags = [
        (274, "H", 1, 6, True),
        (65022, "s", 0, "e-", True),
        (65024, "d", 1, 12.5, True),
        (65025, "d", 1, 0.25, True),
    ]
    found = formats.read(plain_tiff(tmp_path / "a.tif", COUNTS, extratags=tags), LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    for ome in (False, True):
        like = Micrograph(found.pixels, found.source, "tiff", None, {**found.metadata, "ome": ome})
        formats.write(tmp_path / "out.tif", "tiff", COUNTS.astype(np.float32), like, {})
        with tifffile.TiffFile(tmp_path / "out.tif") as file:
            written = file.pages.first.tags
            assert [written[code].value for code in (274, 65022, 65024, 65025)] == [6, "e-", 12.5, 0.25]


def test_floats_whose_tag_was_left_out_are_read_as_floats_and_both_readings_reported(tmp_path: Path) -> None:
    path = raw_tiff(tmp_path / "a.tif", COUNTS.astype("<f4"), bits=32)
    found = formats.read(path, LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    assert "read as floating-point" in found.warnings[0] and "1.1" in found.warnings[0].rpartition("they would be")[2]
    whole = raw_tiff(tmp_path / "b.tif", COUNTS.astype("<u4"), bits=32)
    assert formats.read(whole, LIMIT).warnings == () and formats.read(whole, LIMIT).pixels.dtype == np.uint32


# --- axes -----------------------------------------------------------------------------------------------------------

OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels '
    'ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="64" SizeY="48" SizeZ="1" SizeC="1" SizeT="1" {}>'
    "<TiffData/></Pixels></Image></OME>"
)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ('PhysicalSizeX="0.25" PhysicalSizeXUnit="nm" PhysicalSizeY="250" PhysicalSizeYUnit="pm"', (0.25, 0.25)),
        ('PhysicalSizeX="5" PhysicalSizeXUnit="nm" PhysicalSizeY="0.005"', (5, 5)),  # the schema's default: microns
        ('PhysicalSizeX="5" PhysicalSizeXUnit="nm" PhysicalSizeY="5"', (5, 5)),
        ('PhysicalSizeX="0.5" PhysicalSizeY="0.25"', (250, 500)),
    ],
)
def test_ome_states_a_unit_for_each_axis(tmp_path: Path, stated: str, expected: tuple[float, float]) -> None:
    path = plain_tiff(tmp_path / "a.ome.tif", COUNTS, description=OME.format(stated).encode())
    assert metres(path) == pytest.approx(expected)


def test_gatan_and_imagej_state_a_unit_for_each_axis(tmp_path: Path) -> None:
    units = [(65003, "s", 0, "nm", True), (65004, "s", 0, b"\xb5m", True)]
    sides = [(65009, "d", 1, 5.1, True), (65010, "d", 1, 0.0051, True)]
    assert metres(plain_tiff(tmp_path / "g.tif", COUNTS, extratags=units + sides)) == pytest.approx((5.1, 5.1))
    path = plain_tiff(tmp_path / "i.tif", COUNTS, description=imagej("yunit=um"), resolution=(1 / 5.1, 1 / 0.0051))
    assert metres(path) == pytest.approx((5.1, 5.1))
    path = plain_tiff(tmp_path / "u.tif", COUNTS, description=imagej("yunit=parsec"), resolution=(1, 1))
    assert formats.read(path, LIMIT).pixel_size is None  # not a length that is known: never guessed
    path = plain_tiff(tmp_path / "r.tif", COUNTS, description=imagej("yunit=1/nm"), resolution=(1, 1))
    with pytest.raises(MicrographError, match=r"diffraction pattern .*1/nm"):
        formats.read(path, LIMIT)


def test_hyperspy_states_unit_and_name_for_each_axis(tmp_path: Path) -> None:
    path = tmp_path / "a.hspy"
    write_hyperspy(path, COUNTS)
    with h5py.File(path, "r+") as file:
        (one,) = file["Experiments"].values()
        one["axis-0"].attrs.update(units="µm", scale=0.0051)
        one["axis-1"].attrs.update(units="nm", scale=7.0)
    assert metres(path) == pytest.approx((5.1, 7))
    lying = tmp_path / "b.hspy"
    lying.write_bytes(path.read_bytes())
    with h5py.File(lying, "r+") as file:
        (one,) = file["Experiments"].values()
        one["axis-0"].attrs["name"], one["axis-1"].attrs["name"] = "x", "y"
    np.testing.assert_array_equal(formats.read(lying, LIMIT).pixels, COUNTS.T)
    assert metres(lying) == pytest.approx((7, 5.1))


@pytest.mark.parametrize(
    ("names", "upright"), [(("y", "x"), True), (("Y", "X"), True), (("x", "y"), False), (("R_y", "R_x"), True)]
)
def test_a_berkeley_emd_is_the_way_up_that_its_axes_name(tmp_path: Path, names: tuple[str, str], upright: bool) -> None:
    axes = ((name, "[n_m]", step) for name, step in zip(names, (0.05, 0.2), strict=True))
    path = write_berkeley(tmp_path / "a.emd", COUNTS.astype("f4"), *axes)
    found = formats.read(path, LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS if upright else COUNTS.T)
    assert metres(path) == pytest.approx((0.05, 0.2) if upright else (0.2, 0.05))
