"""Cases from the field: which page of a TIFF is the micrograph, and properties of storage that veto no pixels."""

import struct
import subprocess
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import tifffile
from mrc_bytes import write_mrc
from small_files import COUNTS, PLAIN, plain_tiff
from tiff_bytes import raw_tiff

from daemon import formats
from daemon.errors import MicrographError

LIMIT = 1 << 24


def several(path: Path, *pages: np.ndarray[Any, Any]) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for page in pages:
            writer.write(page, contiguous=False, **PLAIN)
    return path


def test_of_a_copy_for_display_and_the_raw_image_the_deepest_is_read(tmp_path: Path) -> None:
    display = COUNTS.astype(np.uint8)
    for pages in ((display, COUNTS), (COUNTS, display)):
        found = formats.read(several(tmp_path / "a.tif", *pages), LIMIT)
        np.testing.assert_array_equal(found.pixels, COUNTS)
        assert "1 other page of the file" in found.warnings[0]


@pytest.mark.parametrize(
    "pages",
    [
        (COUNTS.astype(np.uint8), COUNTS[::2, ::2]),  # larger and shallower
        (COUNTS, COUNTS.astype(np.int16)),
        (COUNTS.astype(np.uint32), COUNTS.astype(np.float32)),
        (COUNTS, np.ascontiguousarray(COUNTS.T)),
    ],
    ids=["larger-and-shallower", "signed-and-not", "whole-and-float", "other-shape"],
)
def test_where_nothing_says_which_page_is_the_micrograph_it_is_refused(
    tmp_path: Path, pages: tuple[np.ndarray[Any, Any], ...]
) -> None:
    with pytest.raises(MicrographError, match=r"images of several kinds .* save that one as a separate file"):
        formats.read(several(tmp_path / "a.tif", *pages), LIMIT)


@pytest.mark.parametrize("name", ["FFT of grid 1", "power spectrum", "MASK", "grid1_preview", "Fourier transform"])
def test_a_deeper_page_that_is_made_from_the_micrograph_is_not_taken_for_it(tmp_path: Path, name: str) -> None:
    derived = np.full(COUNTS.shape, 0.5, np.float32)
    for turned in (False, True):
        pages = [(COUNTS, "grid 1, masked stage"), (derived, name)]
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            for page, title in reversed(pages) if turned else pages:
                writer.write(page, contiguous=False, extratags=[(285, 2, 0, title, True)], **PLAIN)
        found = formats.read(tmp_path / "a.tif", LIMIT)
        np.testing.assert_array_equal(found.pixels, COUNTS)
        assert "1 other page of the file" in found.warnings[0]


def fei(detector: str, volts: float = 5000) -> bytes:
    return f"[Beam]\r\nHV={volts}\r\n[Detectors]\r\nName={detector}\r\nNumber=1\r\n".encode()


@pytest.mark.parametrize(
    ("heads", "are"),
    [
        ((fei("ETD"), fei("TLD"), fei("ETD")), "channels"),
        ((fei("ETD"), fei("ETD", 2000), fei("ETD")), "exposures of their own"),
        ((fei("ETD"), fei("ETD"), fei("ETD")), None),
    ],
)
def test_pages_of_several_detectors_or_voltages_are_no_frames_whatever_the_name(
    tmp_path: Path, heads: tuple[bytes, ...], are: str | None
) -> None:
    path = tmp_path / "a_frames.tif"
    with tifffile.TiffWriter(path) as writer:
        for head in heads:
            tags = [(34682, 2, len(head) + 1, head + b"\0", True)]
            writer.write(COUNTS, contiguous=False, extratags=tags, photometric="minisblack", metadata=None)
    found = formats.read(path, LIMIT)
    if are is None:
        formats.require_one_exposure(found)
        np.testing.assert_array_equal(found.pixels, 3.0 * COUNTS)
    else:
        with pytest.raises(MicrographError, match=f"its sections are {are} .the pages' own headers"):
            formats.require_one_exposure(found)


def test_a_deeper_image_in_a_sub_directory_is_not_passed_over(tmp_path: Path) -> None:
    for inner, refused in ((COUNTS, True), (COUNTS.astype(np.uint8)[::2, ::2], False)):
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            writer.write(COUNTS.astype(np.uint8), subifds=1, **PLAIN)
            writer.write(inner, **PLAIN)
        if refused:
            with pytest.raises(MicrographError, match="images of several kinds"):
                formats.read(tmp_path / "a.tif", LIMIT)
        else:  # a pyramid
            assert formats.read(tmp_path / "a.tif", LIMIT).pixels.shape == COUNTS.shape


@pytest.mark.parametrize(
    "options",
    [
        {"lengths": [0]},
        {"lengths": [COUNTS.size]},
        {"lengths": [1]},
        {"rows": 1},
        {"rows": 16, "lengths": [0, 0, 0]},
        {"rows": 16, "lengths": [64, 64, 64]},
        {"rows": 20, "lengths": [2560, 2560, 10]},
    ],
    ids=["zero", "pixels", "one", "rows-in-strip", "zeros", "too-few", "last-too-short"],
)
def test_a_wrong_length_of_strips_vetoes_no_pixels(tmp_path: Path, options: dict[str, Any]) -> None:
    path = raw_tiff(tmp_path / "a.tif", COUNTS, **options)
    found = formats.read(path, LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    assert any("wrong number of" in text for text in found.warnings)
    assert formats.probe(path).state == "complete"


def test_strips_that_would_overlap_are_not_guessed(tmp_path: Path) -> None:
    path = raw_tiff(tmp_path / "a.tif", COUNTS, rows=16, lengths=[100, 100, 100])
    data = bytearray(path.read_bytes())
    first = int.from_bytes(data[8 + 2 + 12 * 5 + 8 :][:4], "little")
    start = struct.unpack_from("<I", data, first)[0]
    struct.pack_into("<3I", data, first, start, start + 100, start + 200)
    path.write_bytes(bytes(data))
    with pytest.raises(MicrographError, match="fewer bytes than their rows need"):
        formats.read(path, LIMIT)


def test_a_description_of_no_length_vetoes_nothing(tmp_path: Path) -> None:
    path = raw_tiff(tmp_path / "a.tif", COUNTS)
    data = bytearray(path.read_bytes())
    struct.pack_into("<HHII", data, 8 + 2 + 12 * 6, 270, 2, 0, 0)  # in the place of SamplesPerPixel, whose default is 1
    path.write_bytes(bytes(data))
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, COUNTS)


def test_a_description_older_than_the_file_vetoes_nothing_and_a_cut_stack_is_still_one(tmp_path: Path) -> None:
    path = plain_tiff(tmp_path / "a.tif", COUNTS, description="ImageJ=1.53t\nimages=3\nframes=3\n")
    found = formats.read(path, LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    assert "declares frames that the file does not contain" in found.warnings[0] and formats.count(path) == 1
    with path.open("ab") as stream:
        stream.write(bytes(COUNTS.nbytes // 2))
    with pytest.raises(MicrographError, match="declares 3 frames, the file is too short for them"):
        formats.read(path, LIMIT)


def test_a_sparse_copy_is_as_good_as_the_file(tmp_path: Path) -> None:
    dark = COUNTS.repeat(8, 0).repeat(8, 1).astype(np.int16)
    dark[-160:] = 0
    whole, copy = tmp_path / "dense.mrc", tmp_path / "sparse.mrc"
    mrcfile.write(whole, dark)
    subprocess.run(["cp", "--sparse=always", whole, copy], check=True)
    assert formats.probe(copy) == formats.probe(whole)
    assert not formats.probe(copy).proven
    np.testing.assert_array_equal(formats.read(copy, LIMIT).pixels, dark)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"\xfd7zXZ\0", "compressed with xz"),
        (b"\x28\xb5\x2f\xfd", "compressed with Zstandard"),
        (b"\x04\x22\x4d\x18", "compressed with LZ4"),
        (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    ],
)
def test_a_file_compressed_as_a_whole_is_refused_for_its_reason(tmp_path: Path, head: bytes, reason: str) -> None:
    path = tmp_path / "a.mrc"
    path.write_bytes(head + b"\xa5" * 4000)
    with pytest.raises(MicrographError, match=rf"a\.mrc: is {reason}, which is not read"):
        formats.read(path, LIMIT)


@pytest.mark.parametrize("mode", [1001, 2002, 6006])
def test_a_compressed_mrc_is_refused_for_its_reason(tmp_path: Path, mode: int) -> None:
    path = write_mrc(tmp_path / "a.mrc", COUNTS[:2].astype(np.int16), mode=mode)
    with pytest.raises(MicrographError, match=r"compressed MRC \(MRCZ\)"):
        formats.read(path, LIMIT)
    assert formats.probe(path).state == "complete"
