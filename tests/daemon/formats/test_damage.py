"""Files that are cut, not written yet or hostile: held or refused, before memory or time is taken."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_files import MAKERS, compressed_file, image, mrc_file, tail_directory_file, tiff_file, write_mrc

from daemon import formats
from daemon.errors import EmdenoisedError, MicrographError
from daemon.service import fingerprints

LIMIT = 1 << 24


@MAKERS
@pytest.mark.parametrize("keep", [4, 9, 100, 600, 1500, 0.3, 0.9, -1])
def test_a_truncated_file_is_incomplete_and_never_read(
    tmp_path: Path, make: Callable[[Path], Path], keep: float
) -> None:
    path = make(tmp_path / "a.dat")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
    state = formats.probe(path)
    assert state.state == "incomplete" and state.reason
    with pytest.raises(MicrographError, match=r"a\.dat"):
        formats.read(path, LIMIT)


@MAKERS
def test_a_whole_file_is_complete(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "a.dat")
    assert formats.probe(path) == formats.Completeness("complete")
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, image(200, 160))


def test_missing_data_are_proven_by_the_header(tmp_path: Path) -> None:
    for make in (tiff_file, compressed_file, mrc_file):
        path = make(tmp_path / "a.dat")
        path.write_bytes(path.read_bytes()[:-5000])
        assert formats.probe(path).proven, make.__name__


@MAKERS
def test_a_preallocated_copy_is_not_taken_for_complete(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "a.dat")
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2] + b"\0" * (len(raw) - len(raw) // 2))  # written zeros: nothing can be proven
    state = formats.probe(path)
    assert state.state in ("suspicious", "incomplete") and not state.proven
    assert (state.state == "suspicious") == (make is not tail_directory_file)
    if make in (tiff_file, mrc_file):
        assert "rows are zero" in formats.read(path, LIMIT).warnings[-1]


@pytest.mark.parametrize("make", [tiff_file, mrc_file])
def test_a_hole_in_the_file_proves_nothing(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """`rsync -S`, `cp --sparse`, compressing filesystems: zeros that were there are left out, and read as zeros."""
    path = make(tmp_path / "a.dat")
    raw = path.read_bytes()
    with path.open("wb") as stream:
        stream.write(raw[:20_000])
        stream.truncate(len(raw))
    dense = tmp_path / "dense.dat"
    dense.write_bytes(raw[:20_000] + bytes(len(raw) - 20_000))
    assert formats.probe(path) == formats.probe(dense)
    assert formats.probe(path).state == "suspicious" and not formats.probe(path).proven
    one, other = formats.read(path, LIMIT), formats.read(dense, LIMIT)
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert one.warnings == other.warnings and "rows are zero" in one.warnings[-1]


def test_dark_images_are_suspicious_but_nothing_is_proven(tmp_path: Path) -> None:
    dark, border = np.zeros((200, 160), np.uint16), image(200, 160)
    border[-20:] = 0
    sparse = tmp_path / "sparse.mrc"
    for data in (dark, border):
        tifffile.imwrite(tmp_path / "a.tif", data)
        write_mrc(tmp_path / "a.mrc", data)
        for path in (tmp_path / "a.tif", tmp_path / "a.mrc"):
            state = formats.probe(path)
            assert state.state == "suspicious" and not state.proven
            np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, data)
    write_mrc(tmp_path / "dark.mrc", dark)
    with sparse.open("wb") as stream:  # a dark image copied as a sparse file: all of it may truly be zero
        stream.write((tmp_path / "dark.mrc").read_bytes()[:1024])
        stream.truncate((tmp_path / "dark.mrc").stat().st_size)
    assert not formats.probe(sparse).proven


@pytest.mark.parametrize("name", ["a.tif", "a.mrc"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\0" * 5000, "zeros"),
        (b"hello, this is not an image" * 100, "no kind of micrograph that is known"),
        (b"\x89HDF\r\n\x1a\n" + b"x" * 2000, "HDF5"),
        (b"\x1f\x8b\x08" + b"x" * 2000, "gzip"),
        (b"\0\0\0\x03\0" + b"x" * 2000, "no kind of micrograph that is known"),
        (b"II*\0", "cut off"),
        (b"MM\0*\0\0\0\0", "not been written"),
        (b"II*\0\x08\0\0\0" + b"\xff" * 500, "entries"),
        (b"II+\0" + b"\xff" * 500, "ends at byte"),
    ],
    ids=["empty", "zeros", "text", "hdf5", "gzip", "dm3", "header-only", "no-directory", "garbage", "bigtiff-garbage"],
)
def test_what_is_no_micrograph_file_gets_a_clear_message(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(MicrographError, match=reason):
        formats.read(path, LIMIT)
    assert formats.probe(path).state in ("incomplete", "complete")


def test_a_huge_claim_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image(64, 64), compression="zlib")
    raw = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        for code in (256, 257, 278):
            tag = file.pages.first.tags[code]
            struct.pack_into("<H" if tag.dtype == 3 else "<I", raw, tag.valueoffset, 60_000)
    path.write_bytes(bytes(raw))
    with pytest.raises(MicrographError, match="60000 x 60000 pixels, more than max_pixels"):
        formats.read(path, LIMIT)
    mrc = tmp_path / "a.mrc"
    raw = bytearray(write_mrc(mrc, image(dtype=np.float32)).read_bytes())
    raw[0:12] = struct.pack("<3i", 1_000_000, 1_000_000, 1_000_000)
    mrc.write_bytes(bytes(raw))
    with pytest.raises(MicrographError, match="more than max_pixels"):
        formats.read(mrc, LIMIT)


def test_directories_in_a_loop_end(tmp_path: Path) -> None:
    path = tail_directory_file(tmp_path / "a.tif")
    raw = bytearray(path.read_bytes())
    raw[-4:] = raw[4:8]
    path.write_bytes(bytes(raw))
    with pytest.raises(MicrographError, match="loop"):
        formats.read(path, LIMIT)


@pytest.mark.parametrize("code", [256, 258, 259, 277])
def test_a_header_of_text_where_numbers_belong_is_incomplete_not_an_error(tmp_path: Path, code: int) -> None:
    path = tiff_file(tmp_path / "a.tif")
    raw = bytearray(path.read_bytes())
    for entry in (at for at in range(8, len(raw) - 12) if raw[at : at + 2] == code.to_bytes(2, "little")):
        raw[entry + 2 : entry + 4] = (2).to_bytes(2, "little")  # ASCII
        raw[entry + 8 : entry + 12] = b"text"
    path.write_bytes(bytes(raw))
    assert formats.probe(path).state == "incomplete"
    with pytest.raises(MicrographError, match=r"a\.tif"):
        formats.read(path, LIMIT)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_hostile_bytes_raise_nothing_but_our_errors(tmp_path: Path, data: st.DataObject) -> None:
    make = data.draw(st.sampled_from([tiff_file, compressed_file, tail_directory_file, mrc_file]))
    raw = bytearray(make(tmp_path / "a.dat").read_bytes())
    spots = st.one_of(st.integers(0, min(1400, len(raw) - 1)), st.integers(len(raw) - 200, len(raw) - 1))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(spots)] = data.draw(st.integers(0, 255))
    path = tmp_path / "hostile.tif"
    path.write_bytes(bytes(raw))
    assert formats.probe(path).state in ("complete", "incomplete", "suspicious")
    problem = ""
    try:
        micrograph = formats.read(path, LIMIT)
    except EmdenoisedError as error:
        problem = str(error)
    assert "hostile.tif" in problem or (micrograph.pixels.ndim == 2 and micrograph.pixels.dtype.kind in "iuf")


def test_a_sparse_file_of_impossible_length_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "long.mrc", np.ones((40, 40), np.float32))
    os.truncate(path, 1 << 41)
    with pytest.raises(MicrographError, match="GiB long"):
        fingerprints.fingerprint(path, LIMIT)


def test_a_sparse_directory_that_claims_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "claims.tif"
    entries = [(256, 3, 1, 64), (257, 3, 1, 64), (254, 4, 500_000_000, 4096)]
    body = b"".join(struct.pack("<HHQQ", code, kind, count, value) for code, kind, count, value in entries)
    path.write_bytes(struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, len(entries)) + body + bytes(8))
    os.truncate(path, 3 << 30)
    assert formats.probe(path).state == "incomplete"
    with pytest.raises(MicrographError, match="claims 500000000 values"):
        formats.read(path, LIMIT)


def test_more_strips_than_can_be_read_at_once_are_left_to_the_process_with_limits(tmp_path: Path) -> None:
    path = tmp_path / "strips.tif"
    pixels = np.arange(70_000 * 8, dtype=np.uint8).reshape(70_000, 8)
    tifffile.imwrite(path, pixels, rowsperstrip=1)
    with pytest.raises(formats.CodecNeededError):
        formats.read(path, LIMIT, decode=False)
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, pixels)


def test_a_chain_of_more_pages_than_any_movie_has_is_refused(tmp_path: Path) -> None:
    """All of them with the same pixels: a few megabytes that would be summed for many seconds."""
    path, pages = tmp_path / "chain.tif", (1 << 14) + 1
    tags = [(256, 16), (257, 16), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 16), (279, 256)]
    page = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", code, 4, 1, value) for code, value in tags)
    first, each = 8 + 256, len(page) + 4
    following = [first + each * number for number in range(1, pages)] + [0]
    chain = b"".join(page + struct.pack("<I", place) for place in following)
    path.write_bytes(b"II*\0" + struct.pack("<I", first) + bytes(range(256)) + chain)
    assert formats.probe(path).state == "incomplete"
    with pytest.raises(MicrographError, match="claims more than 16384 pages"):
        formats.read(path, LIMIT)
