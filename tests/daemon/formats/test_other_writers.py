"""What files of SCIFIO, TIA, py4DSTEM, IMOD, TVIPS and scanners of imaging plates state, and in which form."""

import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from berkeley_file import write_berkeley
from mrc_bytes import write_mrc
from ser_file import write_ser
from small_files import COUNTS, PLAIN, plain_tiff
from tiff_bytes import write_tiff

from daemon import formats
from daemon.errors import MicrographError
from daemon.micrograph import PixelSize

LIMIT = 1 << 20
FRAMES = np.stack([COUNTS + 100 * number for number in range(3)]).astype(np.uint16)
SHORT, LONG = 3, 4


def nature(path: Path) -> str | None:
    found = formats.read(path, LIMIT, 0).metadata.get("stack")
    return found and found["are"]


# --- what sections are ----------------------------------------------------------------------------------------------


def scifio(path: Path, axis: str, step: float = 1.0, unit: str = "null", pages: int = 3) -> Path:
    text = (
        f"SCIFIO=0.46.0\naxes=X,Y,{axis}\nlengths=64,48,{pages}\nscales=0.5,0.25,{step}\nunits=\\u00B5m,nm,{unit}\n"
        f"bitsPerPixel=16\nimages={pages}\nhyperstack=true\nmode=composite\nunit=\\u00B5m\n"
    )
    with tifffile.TiffWriter(path) as writer:
        for number, frame in enumerate(FRAMES[:pages]):
            writer.write(frame, contiguous=False, description=None if number else text, **PLAIN)
    return path


@pytest.mark.parametrize(
    ("axis", "step", "unit", "are"),
    [
        ("Time", 0.1, "sec", "frames"),
        ("Time", 2.0, "min", "exposures"),
        ("Z", 10.0, "nm", "slices"),
        ("Lifetime", 1.0, "null", "exposures"),
        ("Unknown", 1.0, "null", None),
    ],
)
def test_scifios_axes_are_heeded(tmp_path: Path, axis: str, step: float, unit: str, are: str | None) -> None:
    path = scifio(tmp_path / "a_frames.tif", axis, step, unit)
    assert nature(path) == are
    assert formats.read(path, LIMIT, 0).pixel_size == PixelSize(0.00025, 0.5, "um")


def test_scifios_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MicrographError, match="holds several channels"):
        formats.read(scifio(tmp_path / "a.tif", "Channel"), LIMIT, 0)
    assert formats.read(scifio(tmp_path / "a.tif", "Channel", pages=1), LIMIT).pixels.shape == COUNTS.shape


def test_lists_of_scifio_that_do_not_match_state_nothing(tmp_path: Path) -> None:
    path = plain_tiff(tmp_path / "a.tif", COUNTS, description="SCIFIO=0.46.0\naxes=X,Y\nlengths=64\nscales=1,1\n")
    assert formats.read(path, LIMIT).pixel_size is None


@pytest.mark.parametrize(
    ("stated", "are"),
    [
        ({}, None),
        ({"places": [(0, 0), (2e-6, 0), (4e-6, 0)]}, "places"),
        ({"places": [(0, 0), (2e-8, 0), (0, 1e-8)]}, None),
        ({"places": [(1.5005e-4 - 2e-11, 0), (1.5005e-4 + 2e-11, 0), (1.5005e-4, 0)]}, None),
        ({"places": [(float("nan"), 0)] * 3}, None),
        ({"seconds": 60}, "exposures"),
        ({"described": b"Stage tilt"}, "tilts"),
        ({"described": b"Defocus", "unit": b"meters"}, "exposures"),
        ({"described": b"Time", "unit": b"s"}, "frames"),
    ],
    ids=str,
)
def test_tias_series_is_known_by_its_description_places_and_times(tmp_path: Path, stated: Any, are: str | None) -> None:
    path = write_ser(tmp_path / "a_frames_1.ser", FRAMES, **stated)
    np.testing.assert_array_equal(formats.read(path, LIMIT, 2).pixels[::-1], FRAMES[2])
    assert nature(path) == are


def test_sums_of_imods_alignframes_are_no_frames(tmp_path: Path) -> None:
    dose = b"SerialEMCCD: Dose frac. image, scaled by 1.00  r/f 0".ljust(80)
    path = write_mrc(tmp_path / "a_frames.mrc", FRAMES, label=dose + b"alignframes: summed frames scaled by 30")
    data = bytearray(path.read_bytes())
    assert nature(path) == "frames"
    struct.pack_into("<i", data, 220, 2)
    path.write_bytes(data)
    assert nature(path) == "exposures"


# --- which way up ---------------------------------------------------------------------------------------------------


def test_py4dstem_numbers_rows_by_rx(tmp_path: Path) -> None:
    old = write_berkeley(tmp_path / "old.emd", COUNTS, ("Rx", "[n_m]", 2.0), ("Ry", "[n_m]", 3.0))
    with h5py.File(old, "a") as file:  # a line profile, with an axis numbered as in the new version
        file["data/profile/data"], file["data/profile/dim0"] = np.arange(9.0), np.arange(9.0)
    with h5py.File(tmp_path / "new.emd", "w") as file:
        file.attrs.update(emd_group_type="file", version_major=1, version_minor=0)
        group = file.create_group("a_root/a")
        group.parent.attrs["emd_group_type"], group.attrs["emd_group_type"] = "root", "array"
        group["data"] = COUNTS
        for number, (name, step) in enumerate((("Rx", 2.0), ("Ry", 3.0))):
            dim = group.create_dataset(f"dim{number}", data=[0.0, step])
            dim.attrs["name"], dim.attrs["units"] = name, "nm"
    for path in (old, tmp_path / "new.emd"):
        found = formats.read(path, LIMIT)
        np.testing.assert_array_equal(found.pixels, COUNTS)
        assert found.pixel_size == PixelSize(2.0, 3.0, "nm")


# --- which numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
def test_numbers_without_a_sign_whose_tag_states_one(tmp_path: Path, order: str) -> None:
    values = COUNTS * 20 + 31500
    found = formats.read(write_tiff(tmp_path / "a.tif", values, {339: (SHORT, 2)}, order), LIMIT)
    np.testing.assert_array_equal(found.pixels, values)
    assert "read without a sign" in found.warnings[0] and "signed they would be -32" in found.warnings[0]


def test_signed_numbers_of_the_whole_range_stay_signed(tmp_path: Path) -> None:
    steep = np.linspace(-32768, 32767, COUNTS.size).astype(np.int16).reshape(COUNTS.shape)
    noise = np.random.default_rng(0).integers(-32768, 32768, COUNTS.shape).astype(np.int16)
    for values in (steep, noise):
        found = formats.read(plain_tiff(tmp_path / "a.tif", values), LIMIT)
        np.testing.assert_array_equal(found.pixels, values)
        assert not any("sign" in text for text in found.warnings)


def test_jumps_that_prove_nothing_are_reported_with_both_readings(tmp_path: Path) -> None:
    rough = np.random.default_rng(0).normal(32768, 5000, COUNTS.shape).clip(0, 65535).astype(np.uint16)
    found = formats.read(write_tiff(tmp_path / "a.tif", rough, {339: (SHORT, 2)}), LIMIT)
    np.testing.assert_array_equal(found.pixels, rough.view(np.int16))
    assert "read as signed numbers" in found.warnings[0] and "without a sign, which would be" in found.warnings[0]


@pytest.mark.parametrize(("code", "name"), [(291, "GrayResponseCurve"), (301, "TransferFunction")])
def test_a_curve_for_display_is_reported(tmp_path: Path, code: int, name: str) -> None:
    straight, curved = list(range(256)), [round(255 * (level / 255) ** 2) for level in range(256)]
    for curve, reported in ((straight, False), (straight[::-1], False), (curved, True)):
        found = formats.read(write_tiff(tmp_path / "a.tif", COUNTS, {code: (SHORT, curve)}), LIMIT)
        np.testing.assert_array_equal(found.pixels, COUNTS)
        text = f"its curve of greys ({name}) was not applied"
        assert any(text in warning for warning in found.warnings) is reported


def test_a_fill_value_in_bright_signed_pixels_proves_no_missing_sign(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).normal(31000, 300, (64, 64)).clip(0, 32767).astype(np.int16)
    pixels[10:30, 10:30] = -32768
    found = formats.read(write_tiff(tmp_path / "a.tif", pixels, {339: (SHORT, 2)}), LIMIT)
    np.testing.assert_array_equal(found.pixels, pixels)
    assert found.pixels.dtype == np.int16


def test_compressed_tiles_whose_lengths_are_in_the_tag_of_strips_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, COUNTS, tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path) as file:
        place = file.pages.first.tags[325].offset
    data = bytearray(path.read_bytes())
    data[place : place + 2] = struct.pack("<H", 279)
    path.write_bytes(data)
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, COUNTS)


@pytest.mark.parametrize(("kind", "refused"), [(2, True), (128, False)])
def test_square_roots_of_intensities_are_refused(tmp_path: Path, kind: int, refused: bool) -> None:
    path = write_tiff(tmp_path / "a.tif", COUNTS, {33445: (LONG, kind)})
    if refused:
        with pytest.raises(MicrographError, match=r"square roots of intensities .* export it with linear values"):
            formats.read(path, LIMIT)
    else:
        np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, COUNTS)


@pytest.mark.parametrize(("mode", "pattern"), [(1, False), (3, True)])
def test_tvips_states_the_microscopes_mode(tmp_path: Path, mode: int, pattern: bool) -> None:
    def header(fields: list[tuple[str, str]], **values: float) -> bytes:
        one = np.zeros((), [(name, form) for name, form in fields])
        for name, value in values.items():
            one[name] = value
        return one.tobytes()

    text = header(tifffile.TIFF.TVIPS_HEADER_V1, Version=2)
    text += header(tifffile.TIFF.TVIPS_HEADER_V2, Magic=0xAAAAAAAA, PixelSizeX=0.5, PixelSizeY=0.5, TemMode=mode)
    path = plain_tiff(tmp_path / "a.tif", COUNTS, extratags=[(37706, 7, len(text), text, True)])
    if pattern:
        with pytest.raises(MicrographError, match="is a diffraction pattern"):
            formats.read(path, LIMIT)
    else:
        assert formats.read(path, LIMIT).pixel_size == PixelSize(0.5, 0.5, "nm")


@pytest.mark.parametrize("ending", [".emd", ".hspy"])
def test_an_hdf5_file_of_another_program_is_refused_with_the_remedy(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    with h5py.File(path, "w") as file:
        file["x"] = COUNTS
    with pytest.raises(MicrographError, match=r"is an HDF5 file, but not .* give it the ending of its program's files"):
        formats.read(path, LIMIT)
