"""Evidence against a default: what sections are, signs, packed counts, pixel sizes stated twice, uneven axes."""

import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from berkeley_file import write_berkeley
from hyperspy_file import write_hyperspy
from mrc_bytes import write_mrc
from mrcfile.dtypes import get_ext_header_dtype
from small_files import COUNTS, PLAIN, plain_tiff
from tiff_bytes import raw_tiff, write_tiff

from daemon import formats
from daemon.errors import MicrographError
from daemon.formats import stack
from daemon.formats.units import convert

LIMIT = 1 << 20
FRAMES = np.stack([COUNTS + number for number in range(3)]).astype(np.uint16)
SIGNED = COUNTS.astype(np.int16) - 60


def nature(path: Path) -> str | None:
    """What the sections of a file are, by the file."""
    found = formats.read(path, LIMIT, 0).metadata.get("stack")
    return found and found["are"]


# --- what sections are ----------------------------------------------------------------------------------------------


def ome(path: Path, **stated: Any) -> None:
    tifffile.imwrite(path, FRAMES, ome=True, photometric="minisblack", metadata={"axes": "TYX", **stated})


def imagej(path: Path, text: str, **options: Any) -> None:
    description = f"ImageJ=1.54f\nimages=3\nframes=3\n{text}"
    with tifffile.TiffWriter(path) as writer:
        for number, plane in enumerate(FRAMES):
            writer.write(plane, contiguous=False, description=description if not number else None, **PLAIN, **options)


def named_pages(path: Path, *names: str) -> None:
    with tifffile.TiffWriter(path) as writer:
        for plane, name in zip(FRAMES, names, strict=True):
            writer.write(plane, contiguous=False, extratags=[(285, "s", 0, name, True)], **PLAIN)


def hyperspy(path: Path, name: str, unit: str, scale: float) -> None:
    write_hyperspy(path, FRAMES)
    with h5py.File(path, "r+") as file:
        file["Experiments/a/axis-0"].attrs.update(name=name, units=unit, scale=scale)


TIMES = {"DeltaT": [0.0, 30.0, 60.0], "ExposureTime": [0.5] * 3}


@pytest.mark.parametrize(
    ("name", "write", "are"),
    [
        ("a.ome.tif", lambda path: ome(path, TimeIncrement=60.0), "exposures"),
        ("a.ome.tif", lambda path: ome(path, TimeIncrement=5.0, TimeIncrementUnit="min"), "exposures"),
        ("a.ome.tif", lambda path: ome(path, Plane=TIMES), "exposures"),
        ("a.ome.tif", lambda path: ome(path, TimeIncrement=60.0, Plane={"DeltaT": [0.0, 0.1, 0.2]}), "frames"),
        ("a.ome.tif", lambda path: ome(path, TimeIncrement=50.0, TimeIncrementUnit="ms"), "frames"),
        ("a.tif", lambda path: imagej(path, "finterval=2.0\ntunit=min\n"), "exposures"),
        ("a.tif", lambda path: imagej(path, "fps=0.02\n"), "exposures"),
        ("a.tif", lambda path: imagej(path, "finterval=0.1\nfps=10.0\n"), "frames"),
        ("a.hspy", lambda path: hyperspy(path, "time", "s", 60.0), "exposures"),
        ("a.hspy", lambda path: hyperspy(path, "time", "s", 0.05), "frames"),
        ("a.hspy", lambda path: hyperspy(path, "magnetic field", "T", 0.1), "exposures"),
        ("a.hspy", lambda path: hyperspy(path, "detector", "", 1.0), "channels"),
        ("a.hspy", lambda path: hyperspy(path, "stack_element", "", 1.0), None),
        ("a.tif", lambda path: named_pages(path, "SE", "InLens", "difference SE - InLens"), "exposures"),
        ("a.tif", lambda path: named_pages(path, "frame 1", "frame 2", "frame 3"), None),
        ("a.rec", lambda path: write_mrc(path, FRAMES, group=1), "slices"),
        ("a.ali", lambda path: write_mrc(path, FRAMES), "tilts"),
    ],
    ids=lambda value: "" if callable(value) else str(value),  # a function's words have its address
)
def test_only_what_can_be_one_exposure_is_called_frames(tmp_path: Path, name: str, write: Any, are: str | None) -> None:
    write(tmp_path / name)
    assert nature(tmp_path / name) == are


def test_imagejs_labels_state_what_the_sections_are(tmp_path: Path) -> None:
    metadata = {"axes": "TYX", "Labels": ["HAADF", "ABF", "difference"]}
    tifffile.imwrite(tmp_path / "a.tif", FRAMES, imagej=True, metadata=metadata)
    assert nature(tmp_path / "a.tif") == "exposures"


@pytest.mark.parametrize(
    ("stated", "are"),
    [
        ({"Beta tilt": [0, 3, 6]}, "tilts"),
        ({"Defocus": [-1e-6, -2e-6, -3e-6]}, "exposures"),
        ({"Magnification": [1e3, 2e3, 3e3]}, "exposures"),
        ({"Is dose fraction": True, "Defocus": [-1e-6, -1.02e-6, -1.01e-6]}, "frames"),
        ({}, None),
    ],
    ids=str,
)
def test_thermo_fishers_records_that_differ_are_exposures(tmp_path: Path, stated: Any, are: str | None) -> None:
    records = np.zeros(3, get_ext_header_dtype(b"FEI1", "<"))
    records["Metadata size"] = records.dtype.itemsize
    for name, values in stated.items():
        records[name] = values
    assert nature(write_mrc(tmp_path / "a.mrc", FRAMES, extended=records.tobytes(), named=b"FEI1")) == are


def test_tilts_of_feis_older_extended_header(tmp_path: Path) -> None:
    records = b"".join(struct.pack("<32f", 3.0 * number, *[0.0] * 31) for number in range(1024))
    assert nature(write_mrc(tmp_path / "a.mrc", FRAMES, extended=records)) == "tilts"


def test_a_pause_of_several_exposures_between_points_of_time_is_no_movie() -> None:
    assert stack.of_times("", [1.0], 0.9).are == "frames"
    assert stack.of_times("", [4.0], 1.0).are == "exposures"
    assert stack.of_times("", [1.0, 1.0, 4.0], 1.0).are == "frames", "one jump of the clock"
    assert stack.of_times("", [1.0, 1.0, 11.0], 1.0).are == "exposures"
    assert stack.of_times("", []).are == "frames"


@pytest.mark.parametrize(
    "names",
    [
        ("frame 001.tif", "frame 002.tif"),
        ("12Nov2026 11:59:59 AM", "1 Dec 2026 12:00:00 PM"),
        ("t = 9.5e-05 s", "t = 0.0001 s"),
    ],
)
def test_numbers_and_dates_in_names_only_count(names: tuple[str, ...]) -> None:
    assert stack.of_names(names, "") is None


def test_further_lines_of_imagejs_labels_are_no_names(tmp_path: Path) -> None:
    metadata = {"axes": "TYX", "Labels": ["frame 1\nbeam on", "frame 2\nbeam off", "frame 3"]}
    tifffile.imwrite(tmp_path / "a.tif", FRAMES, imagej=True, metadata=metadata)
    assert nature(tmp_path / "a.tif") == "frames"


def test_omes_times_are_those_of_the_micrograph(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        for data, axes, times in ((FRAMES, "TYX", [0.0, 0.1, 0.2]), (COUNTS[::2, ::2], "YX", [90.0])):
            writer.write(data, photometric="minisblack", metadata={"axes": axes, "Plane": {"DeltaT": times}})
    assert nature(tmp_path / "a.ome.tif") == "frames"


@pytest.mark.parametrize(("times", "are"), [([0.0, 60.0, 200.0], "exposures"), ([0.0, 0.1, 0.3], "frames")])
def test_uneven_times_have_a_mean(tmp_path: Path, times: list[float], are: str) -> None:
    axes = ("time", "[s]", times), ("y", "[n_m]", 0.5), ("x", "[n_m]", 0.5)
    assert nature(write_berkeley(tmp_path / "a.emd", FRAMES, *axes)) == are


@pytest.mark.parametrize(("name", "unit"), [("z", "s"), ("", "min"), ("time", "s")])
def test_the_step_of_an_axis_counts_whatever_its_name(name: str, unit: str) -> None:
    found = stack.of_axis(name, unit, "", 60.0)
    assert found is not None and found.are == "exposures"
    few = stack.of_axis(name, "\u03bcs", "", 60.0)
    assert few is not None and few.are == "frames", "the Greek letter"


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["i2", "i4"])
def test_numbers_below_0_without_their_tag_are_read_as_signed(tmp_path: Path, kind: str, order: str) -> None:
    path = write_tiff(tmp_path / "a.tif", SIGNED.astype(kind), {339: (3, 1)}, order)
    found = formats.read(path, LIMIT)
    np.testing.assert_array_equal(found.pixels, SIGNED)
    assert "read as signed (" in found.warnings[0] and "without a sign they would be 0 to" in found.warnings[0]


def test_large_numbers_a_fill_value_and_a_mask_keep_their_missing_sign(tmp_path: Path) -> None:
    for values in (COUNTS + 32700, np.where(COUNTS > 60, 65535, COUNTS)):
        found = formats.read(plain_tiff(tmp_path / "a.tif", values.astype(np.uint16)), LIMIT)
        np.testing.assert_array_equal(found.pixels, values)


def test_saturated_pixels_without_their_dark_reference_keep_their_sign(tmp_path: Path) -> None:
    values = np.random.default_rng(0).poisson(60, (256, 256)).astype(np.uint16)
    values.ravel()[1000:41000:2000] = 65535 - 37 * np.arange(20)
    found = formats.read(plain_tiff(tmp_path / "a.tif", values), LIMIT)
    np.testing.assert_array_equal(found.pixels, values)


def test_64_bit_floating_point_numbers_without_their_tag(tmp_path: Path) -> None:
    path = raw_tiff(tmp_path / "a.tif", COUNTS.astype("<f8"), bits=64)
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, COUNTS)


def test_unsigned_numbers_around_32768_in_a_signed_mrc_outweigh_its_mode(tmp_path: Path) -> None:
    found = formats.read(write_mrc(tmp_path / "a.mrc", COUNTS + np.uint16(32700), mode=1, stated=(0, 0, 0)), LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS + 32700)
    assert "signed they would be -32768 to 32767" in found.warnings[0]


@pytest.mark.parametrize("text", ["4 bits packed", "4-bit packed", "4 bit packed"])
def test_packed_counts_by_other_words(tmp_path: Path, text: str) -> None:
    path = plain_tiff(tmp_path / "a.tif", COUNTS.astype(np.uint8), description=f"Dose frac. image, {text}  r/f 0")
    with pytest.raises(MicrographError, match="holds packed 4-bit values by its description"):
        formats.read(path, LIMIT)


def test_packed_counts_by_the_maximum_of_the_header(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", COUNTS.astype(np.uint8), stated=(0, 15, 3))
    with pytest.raises(MicrographError, match="packed 4-bit values by its label or header"):
        formats.read(path, LIMIT)
    older = COUNTS // 20
    older[3, 3] = 17
    found = formats.read(write_mrc(tmp_path / "c.mrc", older.astype(np.uint8), stated=(0, 12, older.mean())), LIMIT)
    assert found.pixels.max() == 17, "a header older than its pixels"
    low = np.minimum(COUNTS // 20, 15).astype(np.uint8)
    assert formats.read(write_mrc(tmp_path / "b.mrc", low, stated=(0, 15, 3)), LIMIT).pixels.max() == low.max()


@pytest.mark.parametrize(("power", "curved"), [(1.0, False), (0.5, True)])
def test_a_palette_that_is_a_curve_is_reported(tmp_path: Path, power: float, curved: bool) -> None:
    ramp = ((np.arange(256) / 255) ** power * 65535).astype(np.uint16)
    path, data = tmp_path / "a.tif", COUNTS.astype(np.uint8)
    tifffile.imwrite(path, data, photometric="palette", colormap=np.tile(ramp, (3, 1)), metadata=None)
    found = formats.read(path, LIMIT)
    np.testing.assert_array_equal(found.pixels, data)
    assert any("is a curve for display" in text for text in found.warnings) == curved


@pytest.mark.parametrize("axes", ["CYX", "TCZYX", "SYX", "CXY"])
def test_a_single_plane_is_no_several_channels(tmp_path: Path, axes: str) -> None:
    data = COUNTS[(None,) * (len(axes) - 2)]
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", metadata={"axes": axes})
    np.testing.assert_array_equal(formats.read(tmp_path / "a.tif", LIMIT).pixels, COUNTS)


def test_compression_0_is_none(tmp_path: Path) -> None:
    found = formats.read(write_tiff(tmp_path / "a.tif", COUNTS, {259: (3, 0)}), LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    assert "compression 0" in found.warnings[0]


# --- pixel sizes ----------------------------------------------------------------------------------------------------


def thermo_fisher(path: Path, stated: float, cell: float) -> Path:
    record = np.zeros(1, get_ext_header_dtype(b"FEI1", "<"))
    record["Metadata size"] = record.dtype.itemsize
    record["Pixel size X"] = record["Pixel size Y"] = stated
    sides = (64 * cell, 48 * cell, cell)
    return write_mrc(path, COUNTS, cell=sides, extended=record.tobytes(), named=b"FEI1")


def in_nm(path: Path) -> tuple[float, float] | None:
    size = formats.read(path, LIMIT).pixel_size
    known = size and convert(size, "nm")
    return known and (round(known.y, 6), round(known.x, 6))


def test_a_pixel_size_stated_twice_is_reported_if_both_differ(tmp_path: Path) -> None:
    dm = [(65003, "s", 0, "nm", True), (65009, "d", 1, 0.5, True), (65010, "d", 1, 0.5, True)]
    for resolution, differ in (((2, 2), False), ((1, 1), True)):
        path = plain_tiff(tmp_path / "a.tif", COUNTS, description="ImageJ=1.54f\nunit=nm\n", resolution=resolution,
                          extratags=dm)  # fmt: skip
        found = formats.read(path, LIMIT)
        assert any("0.5 nm by Gatan tags, but 1 nm by ImageJ" in text for text in found.warnings) == differ
        assert in_nm(path) == (0.5, 0.5)
    found = formats.read(thermo_fisher(tmp_path / "a.mrc", 4e-10, 2.0), LIMIT)
    assert "2 angstrom by the MRC header, but 4 angstrom by its extended header" in found.warnings[0]
    path = write_mrc(tmp_path / "b.mrc", COUNTS, cell=(128, 96, 2))
    (tmp_path / "b.mrc.mdoc").write_text("PixelSpacing = 4\n")
    assert "2 angstrom by the image file, but 4 angstrom by the .mdoc" in formats.read(path, LIMIT).warnings[0]


def test_a_description_of_an_older_program_has_its_unit(tmp_path: Path) -> None:
    text = "ImageJ=1.36b\nunit=\xb5m\n".encode("latin-1")
    assert in_nm(plain_tiff(tmp_path / "a.tif", COUNTS, description=text, resolution=(2, 2))) == (500.0, 500.0)


def test_1_angstrom_in_both_headers_is_a_placeholder(tmp_path: Path) -> None:
    assert in_nm(thermo_fisher(tmp_path / "a.mrc", 1e-10, 1.0)) is None
    assert in_nm(thermo_fisher(tmp_path / "b.mrc", 4e-10, 1.0)) == (0.4, 0.4)


UNEVEN = list(np.cumsum(np.linspace(0.1, 1, 48)))


@pytest.mark.parametrize(
    ("steps", "size"),
    [
        (0.6, (0.6, 0.5)),
        (-0.6, (0.6, 0.5)),
        ((np.arange(48) * np.float32(0.6) + np.float32(1000)).astype("f4"), (0.6, 0.5)),
        (UNEVEN, None),
        ([*np.arange(47) * 0.5, 999.0], None),
    ],
    ids=["even", "backwards", "rounded", "uneven", "jump"],
)
def test_an_axis_of_uneven_steps_has_no_pixel_size(
    tmp_path: Path, steps: Any, size: tuple[float, float] | None
) -> None:
    path = write_berkeley(tmp_path / "a.emd", COUNTS, ("y", "[n_m]", steps), ("x", "[n_m]", 0.5))
    found = formats.read(path, LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    assert (found.pixel_size is None) == (size is None)
    if size is not None and found.pixel_size is not None:
        np.testing.assert_allclose((found.pixel_size.y, found.pixel_size.x), size, rtol=1e-3)


@pytest.mark.parametrize(("height", "size"), [(0.5, (0.5, 0.5)), (1.0, None)])
def test_an_axis_without_a_unit_has_that_of_the_other_only_with_its_number(
    tmp_path: Path, height: float, size: tuple[float, float] | None
) -> None:
    write_hyperspy(tmp_path / "a.hspy", COUNTS)
    with h5py.File(tmp_path / "a.hspy", "r+") as file:
        file["Experiments/a/axis-0"].attrs.update(units="", scale=height)
    assert in_nm(tmp_path / "a.hspy") == size
    dm = [(65003, "s", 0, "nm", True), (65004, "s", 0, "", True), (65009, "d", 1, 0.5, True)]
    path = plain_tiff(tmp_path / "a.tif", COUNTS, extratags=[*dm, (65010, "d", 1, height, True)])
    assert in_nm(path) == size
