"""Tags of a TIFF that its pixels contradict or do not need: they change no pixel and veto none."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from small_files import COUNTS, PLAIN, plain_tiff
from tiff_bytes import write_tiff

from daemon import formats
from daemon.errors import MicrographError

LIMIT = 1 << 20
SHORT, LONG = 3, 4


@pytest.mark.parametrize(
    ("tags", "remark"),
    [
        ({317: (SHORT, 2)}, "a predictor, which uncompressed pixels do not have"),
        ({317: (SHORT, 3)}, "a predictor, which uncompressed pixels do not have"),
        ({317: (SHORT, 0)}, "a predictor, which uncompressed pixels do not have"),
        ({317: (SHORT, 2), 279: (LONG, 0)}, "a wrong number of bytes in a strip or tile"),
        ({279: (LONG, 10**6)}, "a wrong number of bytes in a strip or tile"),
        ({339: (SHORT, 0)}, "no valid kind of its numbers"),
        ({330: (LONG, [])}, ""),
        ({266: (SHORT, [])}, ""),
        ({254: (LONG, [])}, ""),
        ({284: (SHORT, [])}, ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tag_that_says_nothing_of_the_pixels_changes_none(
    tmp_path: Path, tags: dict[int, tuple[int, Any]], remark: str, order: str
) -> None:
    path = write_tiff(tmp_path / "a.tif", COUNTS, tags, order)
    found = formats.read(path, LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    assert formats.probe(path).state == "complete"
    assert remark in " ".join(found.warnings)


def test_a_predictor_of_floats_changes_none_either(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", COUNTS.astype("f4"), {317: (SHORT, 3)})
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, COUNTS)


def test_compressed_numbers_of_an_invalid_kind_are_refused(tmp_path: Path) -> None:
    packed = np.frombuffer(zlib.compress(COUNTS.tobytes()), np.uint8)[None]
    shape = {256: (LONG, 64), 257: (LONG, 48), 258: (LONG, 16), 278: (LONG, 48)}
    path = write_tiff(tmp_path / "a.tif", packed, {**shape, 259: (SHORT, 8), 279: (LONG, packed.size)})
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, COUNTS)
    write_tiff(path, packed, {**shape, 259: (SHORT, 8), 279: (LONG, packed.size), 339: (SHORT, 0)})
    with pytest.raises(MicrographError, match="pixels of an unusual kind"):
        formats.read(path, LIMIT)


def test_bits_in_the_other_order_are_turned_wherever_pixels_are_read(tmp_path: Path) -> None:
    turned = np.packbits(np.unpackbits(COUNTS.view(np.uint8), bitorder="little")).view(np.uint16).reshape(COUNTS.shape)
    for tags in ({}, {279: (LONG, 0)}):
        path = write_tiff(tmp_path / "a.tif", turned, {266: (SHORT, 2), **tags})
        np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, COUNTS)
    path = write_tiff(path, turned, {266: (SHORT, 2), 270: (2, b"ImageJ=1.54f\nimages=3\nframes=3\n\0")})
    path.write_bytes(path.read_bytes() + 2 * turned.tobytes())
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, 3 * COUNTS.astype(np.uint32))


@pytest.mark.parametrize("order", ["<", ">"])
def test_whole_numbers_of_24_bits_are_refused(tmp_path: Path, order: str) -> None:
    path = write_tiff(tmp_path / "a.tif", np.zeros((48, 192), np.uint8), {256: (LONG, 64), 258: (SHORT, 24)}, order)
    with pytest.raises(MicrographError, match=r"whole numbers of 24 bits.*export it as 16 or 32 bit"):
        formats.read(path, LIMIT)


def test_the_padding_of_tiles_is_no_dark_border(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, COUNTS, tile=(32, 32), **PLAIN)
    assert formats.probe(path).state == "complete"
    tifffile.imwrite(path, np.where(np.arange(48)[:, None] < 40, COUNTS, 0).astype("u2"), tile=(32, 32), **PLAIN)
    assert formats.probe(path).state == "suspicious"
    cut = np.where(np.arange(48)[:, None] < 47, COUNTS, 0).astype("u2")
    tifffile.imwrite(path, cut, rowsperstrip=32, **PLAIN)  # a strip has no padding: one row is enough
    assert formats.probe(path).state == "suspicious"


@pytest.mark.parametrize("stated", ["", "abc", "5e-9 m"])
def test_a_pixel_size_that_is_no_number_is_unknown(tmp_path: Path, stated: str) -> None:
    text = f"[Scan]\r\nPixelWidth=5e-9\r\nPixelHeight={stated}\r\n"
    found = formats.read(write_tiff(tmp_path / "a.tif", COUNTS, {34682: (2, text.encode() + b"\0")}), LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    assert found.pixel_size is None


@pytest.mark.parametrize("grey", [np.random.default_rng(1).permutation(256), np.abs(np.arange(256) - 100)])
def test_a_palette_of_greys_in_no_order_holds_no_intensities(tmp_path: Path, grey: np.ndarray[Any, Any]) -> None:
    path = tmp_path / "a.tif"
    colours = np.stack([grey] * 3).astype("u2") * 257
    tifffile.imwrite(path, COUNTS.astype("u1"), photometric="palette", colormap=colours, metadata=None)
    with pytest.raises(MicrographError, match=r"a palette of greys in no order.*export it as greyscale"):
        formats.read(path, LIMIT)


def without(path: Path, code: int) -> Path:
    """The file, with a tag of its first directory renamed to a private one."""
    data = bytearray(path.read_bytes())
    (directory,) = struct.unpack_from("<I", data, 4)
    for place in range(directory + 2, directory + 2 + 12 * struct.unpack_from("<H", data, directory)[0], 12):
        if struct.unpack_from("<H", data, place)[0] == code:
            struct.pack_into("<H", data, place, 65432)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("options", "code"), [({"rowsperstrip": 16}, 279), ({"tile": (16, 32)}, 325)], ids=str)
def test_strips_and_tiles_without_a_number_of_bytes_are_all_read(tmp_path: Path, options: Any, code: int) -> None:
    path = without(plain_tiff(tmp_path / "a.tif", COUNTS, **options), code)
    found = formats.read(path, LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    assert any("no or a wrong number of bytes in a strip or tile" in text for text in found.warnings)
    assert formats.probe(path).state == "complete"


def test_compressed_strips_without_a_number_of_bytes_are_refused_for_it(tmp_path: Path) -> None:
    path = without(plain_tiff(tmp_path / "a.tif", COUNTS, rowsperstrip=16, compression="zlib"), 279)
    with pytest.raises(MicrographError, match="does not state how many bytes its compressed strips"):
        formats.read(path, LIMIT)
