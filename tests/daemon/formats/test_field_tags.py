"""Tags of other vendors that change what the pixels are: MetaMorph's planes, OME's type, a microscope's gamma."""

import struct
from pathlib import Path

import numpy as np
import pytest
from small_files import COUNTS, plain_tiff
from tiff_bytes import write_tiff

from daemon import formats
from daemon.errors import MicrographError

LIMIT = 1 << 20
FRAMES = np.stack([COUNTS + 100 * number for number in range(3)]).astype(np.uint16)
DAY = 2_459_000
RATIONAL, TEXT = 5, 2


def metamorph(path: Path, milliseconds: int = 100, compression: int = 1, planes: int = 3) -> Path:
    """An STK file: one directory, and of each plane six numbers (distance, day and time of creation, of change)."""
    height, width = COUNTS.shape
    of_each = [(0, 1, DAY, number * milliseconds, DAY, number * milliseconds) for number in range(planes)]
    numbers = struct.pack(f"<{6 * planes}I", *(value for each in of_each for value in each))
    tags = {256: width, 257: height, 258: 16, 259: compression, 262: 1, 273: 0, 277: 1, 278: height, 279: COUNTS.nbytes}
    end = 8 + 2 + 12 * (len(tags) + 1) + 4
    tags[273] = end + len(numbers)
    entries = b"".join(struct.pack("<HHII", code, 4, 1, value) for code, value in tags.items())
    entries += struct.pack("<HHII", 33629, RATIONAL, planes, end)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags) + 1)
    path.write_bytes(head + entries + bytes(4) + numbers + FRAMES[:planes].tobytes())
    return path


def test_all_planes_of_a_metamorph_stack_are_read(tmp_path: Path) -> None:
    path = metamorph(tmp_path / "a.tif")
    assert formats.count(path) == 3 and formats.probe(path).state == "complete"
    for number in range(3):
        np.testing.assert_array_equal(formats.read(path, LIMIT, number).pixels, FRAMES[number])
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, FRAMES.sum(axis=0))
    assert "stack" not in formats.read(path, LIMIT, 0).metadata
    np.testing.assert_array_equal(formats.read(metamorph(path, planes=1), LIMIT).pixels, FRAMES[0])


def test_metamorphs_planes_far_apart_are_no_frames(tmp_path: Path) -> None:
    found = formats.read(metamorph(tmp_path / "a_frames.tif", 60_000), LIMIT, 0)
    assert (found.metadata["stack"]["are"], found.metadata["stack"]["by"]) == (
        "exposures", "MetaMorph tags, a time series",
    )  # fmt: skip


def test_a_metamorph_stack_that_is_cut_or_compressed_is_refused(tmp_path: Path) -> None:
    path = metamorph(tmp_path / "a.tif")
    path.write_bytes(path.read_bytes()[:-100])
    assert formats.probe(path).state == "incomplete" and formats.probe(path).proven
    with pytest.raises(MicrographError, match="only the first is placed; save it uncompressed"):
        formats.read(metamorph(tmp_path / "b.tif", compression=5), LIMIT)


def ome(kind: str) -> bytes:
    return f'<OME><Image><Pixels Type="{kind}" SizeX="64" SizeY="48"/></Image></OME>'.encode() + b"\0"


def test_omes_signed_numbers_are_read_as_such_where_no_tag_states_their_kind(tmp_path: Path) -> None:
    signed = (COUNTS.astype(int) - 3000).astype(np.int16)
    stored = signed.view(np.uint16)
    missing = {270: (TEXT, ome("int16")), 339: (3, 0)}
    found = formats.read(write_tiff(tmp_path / "a.tif", stored, missing), LIMIT)
    np.testing.assert_array_equal(found.pixels, signed)
    assert any("OME int16: read as signed" in text for text in found.warnings)
    found = formats.read(write_tiff(tmp_path / "b.tif", stored, {**missing, 270: (TEXT, ome("uint16"))}), LIMIT)
    np.testing.assert_array_equal(found.pixels, stored)
    found = formats.read(write_tiff(tmp_path / "c.tif", stored, {270: (TEXT, ome("int16"))}), LIMIT)
    np.testing.assert_array_equal(found.pixels, stored)
    assert "OME declares int16: read without a sign" in found.warnings[0]
    assert f"signed they would be {signed.min()} to {signed.max()}" in found.warnings[0]


@pytest.mark.parametrize(("gamma", "told"), [("1", False), ("1.0", False), ("0", False), ("0.45", True)])
def test_a_gamma_that_the_microscope_applied_is_told(tmp_path: Path, gamma: str, told: bool) -> None:
    head = f"[User]\r\nDate=1/1/2026\r\n[Image]\r\nDigitalContrast=1\r\nDigitalGamma={gamma}\r\n"
    found = formats.read(plain_tiff(tmp_path / "a.tif", COUNTS, extratags=[(34682, "s", 0, head, True)]), LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    assert any("a gamma of 0.45 was applied by the microscope" in text for text in found.warnings) == told
