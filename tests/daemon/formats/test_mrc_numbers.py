"""Which numbers an MRC file holds, where standard, flags, statistics and pixels disagree; and its pixel size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mrc_bytes import write_mrc
from mrcfile.dtypes import get_ext_header_dtype

from daemon import formats
from daemon.errors import MicrographError
from daemon.micrograph import Micrograph

LIMIT = 1 << 24
BYTES = np.clip(np.random.default_rng(0).poisson(100, (96, 80)), 0, 255).astype(np.uint8)
BYTES[:40] //= 2
SIGNED = (np.random.default_rng(1).poisson(40, (96, 80)) - 40).astype(np.int8)
NOTHING = (0.0, -1.0, -2.0)
"""Minimum, maximum, mean as programs write that have not counted them."""


def read(path: Path, data: np.ndarray[Any, Any], **header: Any) -> Micrograph:
    return formats.read(write_mrc(path, data, **header), LIMIT)


@pytest.mark.parametrize(
    ("header", "contradicted"),
    [
        ({}, True),  # the standard says signed, minimum 25 and maximum 140 say unsigned
        ({"flags": 0}, False),  # IMOD says unsigned
        ({"flags": 1}, True),  # IMOD says signed, against minimum, maximum, mean and pixels
        ({"stated": NOTHING}, True),  # only the pixels say so
        ({"stated": NOTHING, "flags": 0}, False),
    ],
    ids=["no-stamp", "imod-unsigned", "imod-signed", "no-statistics", "imod-unsigned-no-statistics"],
)
def test_unsigned_bytes_are_read_unsigned_and_a_contradiction_is_reported_with_both_readings(
    tmp_path: Path, header: dict[str, Any], contradicted: bool
) -> None:
    found = read(tmp_path / "a.mrc", BYTES, **header)
    np.testing.assert_array_equal(found.pixels, BYTES)
    assert found.pixels.dtype == np.uint8 and found.metadata["dtype"] == "uint8"
    remarks = [text for text in found.warnings if text.startswith("read as unsigned")]
    assert bool(remarks) == contradicted
    if contradicted:
        signed = BYTES.view(np.int8)
        assert f"({BYTES.min()} to {BYTES.max()}" in remarks[0] and f"{signed.min()} to {signed.max()}" in remarks[0]


@pytest.mark.parametrize(
    ("header", "contradicted"),
    [({}, False), ({"flags": 1}, False), ({"flags": 0}, True), ({"stated": NOTHING}, False)],
    ids=["no-stamp", "imod-signed", "imod-unsigned", "no-statistics"],
)
def test_signed_bytes_are_read_signed(tmp_path: Path, header: dict[str, Any], contradicted: bool) -> None:
    found = read(tmp_path / "a.mrc", SIGNED, **header)
    np.testing.assert_array_equal(found.pixels, SIGNED)
    assert any(text.startswith("read as signed") for text in found.warnings) == contradicted


def test_without_evidence_the_standard_holds_and_the_other_reading_is_reported(tmp_path: Path) -> None:
    high = BYTES // 4 + np.uint8(150)
    found = read(tmp_path / "a.mrc", high, stated=NOTHING)
    np.testing.assert_array_equal(found.pixels, high.view(np.int8))
    assert f"unsigned they would be {high.min()} to {high.max()}" in found.warnings[0]


def test_sixteen_bits_are_weighed_likewise(tmp_path: Path) -> None:
    high = (np.random.default_rng(2).poisson(30_000, (64, 64)) * 1.09).astype(np.uint16)
    low = (np.random.default_rng(2).poisson(40, (64, 64)) - 40).astype(np.int16)
    found = read(tmp_path / "a.mrc", high, mode=1)
    np.testing.assert_array_equal(found.pixels, high)
    assert "unsigned" in found.warnings[0]
    found = read(tmp_path / "b.mrc", low, mode=6)
    np.testing.assert_array_equal(found.pixels, low)
    assert "read as signed" in found.warnings[0]
    assert read(tmp_path / "c.mrc", low, mode=1).warnings == ()
    assert read(tmp_path / "d.mrc", high, mode=6).warnings == ()


@pytest.mark.parametrize("section", [None, 0, 1])
def test_every_section_of_a_stack_is_read_alike(tmp_path: Path, section: int | None) -> None:
    stack = np.stack([BYTES // 2, BYTES])  # the first alone could be either
    path = write_mrc(tmp_path / "a_movie.mrc", stack)
    found = formats.read(path, LIMIT, section)
    expected = stack.astype(int).sum(axis=0) if section is None else stack[section]
    np.testing.assert_array_equal(found.pixels, expected)


@pytest.mark.parametrize(
    "header",
    [{"flags": 16}, {"flags": 17}, {"mode": 101}, {"label": b"SerialEMCCD: Dose frac. image, 4 bits packed  r/f 0"}],
    ids=["flag", "flag-and-sign", "mode", "label"],
)
def test_packed_values_are_refused_however_they_are_marked(tmp_path: Path, header: dict[str, Any]) -> None:
    with pytest.raises(MicrographError, match="packed 4-bit values"):
        read(tmp_path / "a.mrc", BYTES, stated=(0, 15, 3), **header)


def test_a_packed_file_is_complete_with_half_a_byte_for_each_pixel(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", BYTES, mode=101)
    path.write_bytes(path.read_bytes()[: 1024 + BYTES.size // 2])
    assert formats.probe(path).state == "complete"


def test_a_label_that_outlived_its_unpacking_refuses_nothing(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(3, (48, 48)).clip(0, 15).astype(np.uint8)
    found = read(tmp_path / "a.mrc", counts, label=b"SerialEMCCD: Dose frac. image, 4 bits packed  r/f 0")
    np.testing.assert_array_equal(found.pixels, counts)


# --- pixel size -----------------------------------------------------------------------------------------------------

IMAGE = np.random.default_rng(3).poisson(30, (48, 64)).astype(np.int16)


def test_a_pixel_of_exactly_one_angstrom_is_a_placeholder(tmp_path: Path) -> None:
    for cell in ((64.0, 48.0, 1.0), (1.0, 1.0, 1.0)):
        found = read(tmp_path / "a.mrc", IMAGE, cell=cell)
        assert found.pixel_size is None and "pixel_size_from" not in found.metadata
        assert "exactly 1 Å" in found.warnings[0]
    found = read(tmp_path / "a.mrc", IMAGE, cell=(65.0, 48.75, 1.0))
    assert found.pixel_size is not None and found.pixel_size.x == pytest.approx(1.015625) and found.warnings == ()


def test_a_placeholder_that_something_supports_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    path.with_name("a.mrc.mdoc").write_text("PixelSpacing = 1.0\n\n[ZValue = 0]\nTiltAngle = 0\n")
    found = read(path, IMAGE, cell=(64.0, 48.0, 1.0))
    assert found.pixel_size is not None and found.pixel_size.x == 1.0 and found.warnings == ()
    assert found.metadata["pixel_size_from"] == "SerialEM .mdoc"
    record = np.zeros(1, get_ext_header_dtype(b"FEI1", "<"))
    record["Pixel size X"], record["Pixel size Y"] = 2e-9, 1e-9
    found = read(tmp_path / "b.mrc", IMAGE, cell=(64.0, 48.0, 1.0), extended=record.tobytes(), named=b"FEI1")
    assert found.pixel_size is not None and (found.pixel_size.x, found.pixel_size.y) == pytest.approx((2e-9, 1e-9))
    assert found.metadata["pixel_size_from"] == "MRC extended header" and found.warnings == ()


def test_each_side_is_that_of_its_axis_and_the_axes_are_handed_on(tmp_path: Path) -> None:
    cell = (64 * 3.0, 48 * 2.0, 9.0)  # as x, y, z: with columns along y they have 64 * 3 / 64 of what is x
    plain = read(tmp_path / "a.mrc", IMAGE, cell=cell)
    assert plain.pixel_size is not None and (plain.pixel_size.x, plain.pixel_size.y) == (3.0, 2.0)
    swapped = read(tmp_path / "b.mrc", IMAGE, cell=cell, axes=(2, 1, 3))
    assert swapped.pixel_size is not None and (swapped.pixel_size.x, swapped.pixel_size.y) == (2.0, 3.0)
    formats.write(tmp_path / "c.mrc", "mrc", IMAGE.astype(np.float32), swapped, {})
    again = formats.read(tmp_path / "c.mrc", LIMIT)
    assert again.metadata["axes"] == [2, 1, 3] and again.pixel_size == swapped.pixel_size
    np.testing.assert_array_equal(again.pixels, IMAGE)


@pytest.mark.parametrize("dtype", ["i2", "u2", "f4"])
def test_numbers_in_the_other_byte_order_than_the_headers_are_told_by_its_extremes(tmp_path: Path, dtype: str) -> None:
    data = np.random.default_rng(0).poisson(60, (48, 64)).astype(dtype)
    path = write_mrc(tmp_path / "a.mrc", data)
    raw = path.read_bytes()[:1024] + data.astype(f">{dtype}").tobytes()
    path.write_bytes(raw)
    found = formats.read(path, LIMIT)
    np.testing.assert_array_equal(found.pixels, data)
    assert "read in the other byte order than its header's" in found.warnings[0]
    for extremes in ((0, 0, 0), (0, 7, 3)):  # neither states, or fits, anything
        write_mrc(path, data, stated=extremes)
        found = formats.read(path, LIMIT)
        np.testing.assert_array_equal(found.pixels, data)
        assert not any("byte order" in text for text in found.warnings)


def test_rows_without_numbers_say_nothing_of_the_byte_order(tmp_path: Path) -> None:
    data = np.full((1200, 512), np.nan, np.float32)
    data[600:] = np.random.default_rng(0).poisson(60, (600, 512))
    path = write_mrc(tmp_path / "a.mrc", data, stated=(30, 100, 60))
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, data)


def test_imods_stamp_counts_in_either_byte_order(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", np.full((48, 32), 51, np.uint8), flags=16)
    raw = bytearray(path.read_bytes())
    raw[152:156], raw[156:160] = raw[152:156][::-1], raw[156:160][::-1]
    path.write_bytes(bytes(raw))
    with pytest.raises(MicrographError, match="4-bit"):
        formats.read(path, LIMIT)
