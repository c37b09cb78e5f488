"""Reading MRC: its modes, odd headers and byte orders."""

import struct
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile
from small_files import image, write_mrc

from daemon import formats
from daemon.errors import MicrographError

LIMIT = 1 << 24


@pytest.mark.parametrize(("mode", "dtype"), [(0, "i1"), (1, "i2"), (2, "f4"), (6, "u2"), (12, "f2")])
def test_mrc_modes(tmp_path: Path, mode: int, dtype: str) -> None:
    data = image(dtype=dtype)
    path = write_mrc(tmp_path / "a.mrc", data, voxel=1.5)
    micrograph = formats.read(path, LIMIT)
    np.testing.assert_array_equal(micrograph.pixels, data)
    assert micrograph.pixels.dtype == np.dtype(dtype) and micrograph.kind == "mrc"
    assert micrograph.pixel_size is not None and micrograph.pixel_size.unit == "angstrom"
    assert (micrograph.pixel_size.y, micrograph.pixel_size.x) == pytest.approx((1.5, 1.5))
    assert formats.probe(path).state == "complete"
    assert struct.unpack_from("<i", path.read_bytes(), 12)[0] == mode


def test_mrc_stack_is_summed_and_a_map_is_refused(tmp_path: Path) -> None:
    frames = np.stack([image(dtype=np.int16) for _ in range(3)])
    micrograph = formats.read(write_mrc(tmp_path / "movie.mrcs", frames, ispg=0), LIMIT)
    np.testing.assert_array_equal(micrograph.pixels, frames.sum(axis=0))
    assert micrograph.pixel_size is None
    with pytest.raises(MicrographError, match="three-dimensional map"):
        formats.read(write_mrc(tmp_path / "map.mrc", frames.astype(np.float32), ispg=4), LIMIT)


def test_odd_mrc_headers_are_tolerated(tmp_path: Path) -> None:
    data = image(dtype=np.int16)
    raw = bytearray(write_mrc(tmp_path / "a.mrc", data, voxel=2).read_bytes())
    raw[212:216] = bytes((0x44, 0x00, 0x00, 0x00))  # a machine stamp nobody defined
    raw[104:108] = b"FEI2"
    raw[92:96] = struct.pack("<i", 768)  # an extended header that is not understood
    path = tmp_path / "odd.mrc"
    path.write_bytes(bytes(raw[:1024]) + b"\x07" * 768 + bytes(raw[1024:]))
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, data)


def test_big_endian_mrc(tmp_path: Path) -> None:
    data = image(dtype=np.int16)
    header = np.frombuffer(write_mrc(tmp_path / "a.mrc", data).read_bytes()[:1024], mrcfile.dtypes.HEADER_DTYPE)
    path = tmp_path / "b.mrc"
    swapped = header.astype(mrcfile.dtypes.HEADER_DTYPE.newbyteorder(">"))
    path.write_bytes(swapped.tobytes() + data.astype(">i2").tobytes())
    micrograph = formats.read(path, LIMIT)
    np.testing.assert_array_equal(micrograph.pixels, data)
    assert micrograph.pixels.dtype.isnative


def test_unsigned_counts_labelled_signed_are_read_unsigned_and_said(tmp_path: Path) -> None:
    data = image() + 40_000
    path = write_mrc(tmp_path / "a.mrc", data.view(np.int16))
    raw = bytearray(path.read_bytes())
    raw[80:84] = struct.pack("<f", float(data.max()))
    path.write_bytes(bytes(raw))
    micrograph = formats.read(path, LIMIT)
    np.testing.assert_array_equal(micrograph.pixels, data)
    assert "unsigned" in micrograph.warnings[0]


def test_imod_unsigned_bytes(tmp_path: Path) -> None:
    data = image(dtype=np.uint8) + np.uint8(120)
    path = write_mrc(tmp_path / "a.mrc", data.view(np.int8))
    raw = bytearray(path.read_bytes())
    raw[152:160] = struct.pack("<ii", 1146047817, 0)
    path.write_bytes(bytes(raw))
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, data)


@pytest.mark.parametrize(
    ("mode", "reason"), [(3, "complex"), (4, "complex"), (5, "not in"), (7, "32-bit"), (16, "RGB"), (101, "4-bit")]
)
def test_mrc_modes_that_are_no_micrograph(tmp_path: Path, mode: int, reason: str) -> None:
    path = write_mrc(tmp_path / "a.mrc", image(dtype=np.float32))
    raw = bytearray(path.read_bytes())
    raw[12:16] = struct.pack("<i", mode)
    path.write_bytes(bytes(raw))
    with pytest.raises(MicrographError, match=reason):
        formats.read(path, LIMIT)


def test_content_decides_the_kind_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    tifffile.imwrite(path.with_suffix(".tif"), image())
    path.with_suffix(".tif").rename(path)
    micrograph = formats.read(path, LIMIT)
    assert micrograph.kind == "tiff" and "its name ends in .mrc" in micrograph.warnings[0]
