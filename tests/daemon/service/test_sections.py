"""Movies and stacks: summed or frame by frame; and a broken frame, which is named and never left out of a sum."""

import struct
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
import yaml
from hyperspy_file import write_hyperspy

from daemon import formats
from daemon.arrival import rules
from daemon.errors import ConfigError, MicrographError
from daemon.formats.decoder import Reader
from daemon.settings import config

DATA = Path(__file__).parents[2] / "data"
LIMIT = 1 << 24
FRAMES = np.random.default_rng(0).poisson(9, (4, 32, 48)).astype(np.uint16)


def movie(path: Path, frames: np.ndarray[Any, Any] = FRAMES, **options: Any) -> Path:
    """TIFF or MRC by the name; a TIFF has a directory for each frame, as cameras write it."""
    if path.suffix == ".mrc":
        mrcfile.write(path, frames)
        return path
    with tifffile.TiffWriter(path) as writer:
        for frame in frames:
            writer.write(frame, contiguous=False, metadata=None, **options)
    return path


def frame_of(path: Path, number: int) -> tuple[int, int, int]:
    """Where a TIFF's frame has its data, its length in bytes and its directory."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[number - 1]
        return page.dataoffsets[0], page.databytecounts[0], page.offset


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(data)


# --- broken frames --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd"])
def test_a_frame_of_a_tiff_that_does_not_decode_is_named(tmp_path: Path, compression: str) -> None:
    path = movie(tmp_path / "a.tif", compression=compression)
    at, length, _ = frame_of(path, 3)
    overwrite(path, at, b"\xa5" * length)
    with Reader(LIMIT, 60) as reader:
        with pytest.raises(MicrographError, match=r"a\.tif: frame 3 of 4 is damaged \("):
            reader.read(path)
        np.testing.assert_array_equal(reader.read(path, 1).pixels, FRAMES[1])  # the others are as they were
        with pytest.raises(MicrographError, match="frame 3 of 4 is damaged"):
            reader.read(path, 2)


def test_a_frame_of_a_tiff_that_was_never_written_is_named(tmp_path: Path) -> None:
    path = movie(tmp_path / "a.tif")
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[1].tags["StripOffsets"].overwrite(0)
    with pytest.raises(MicrographError, match="page 2 of the TIFF: strips or tiles of the image have not been written"):
        formats.read(path, LIMIT)
    assert "page 2 of the TIFF" in formats.probe(path).reason


def test_a_frame_of_another_size_within_a_stack_is_named_and_a_thumbnail_before_it_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for frame in (FRAMES[0, :8, :8], FRAMES[0], FRAMES[1, :20], FRAMES[2]):
            writer.write(frame, contiguous=False, metadata=None)
    with pytest.raises(MicrographError, match=r"page 3 of the TIFF \(20 x 48, 16 bits\) is unlike the other frames"):
        formats.read(path, LIMIT)
    with tifffile.TiffWriter(path) as writer:
        for frame in (FRAMES[0, :8, :8], FRAMES[0], FRAMES[2]):
            writer.write(frame, contiguous=False, metadata=None)
    micrograph = formats.read(path, LIMIT)
    assert micrograph.metadata["frames"] == 2 and "1 other page" in micrograph.warnings[-1]


def test_a_frame_of_an_mrc_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = movie(tmp_path / "a.mrc")
    path.write_bytes(path.read_bytes()[: 1024 + FRAMES[0].nbytes * 2 + 100])
    with pytest.raises(MicrographError, match=r"bytes are missing at the end: frame 3 of 4 is incomplete"):
        formats.read(path, LIMIT)
    np.testing.assert_array_equal(formats.read(path, LIMIT, 1).pixels, FRAMES[1])


@pytest.mark.parametrize("name", ["a.mrc", "a.tif"])
def test_a_frame_without_a_number_is_named_and_an_empty_one_is_remarked_on(tmp_path: Path, name: str) -> None:
    frames = FRAMES.astype(np.float32)
    frames[1] = np.nan
    with pytest.raises(MicrographError, match="frame 2 of 4 holds no finite number"):
        formats.read(movie(tmp_path / name, frames), LIMIT)
    frames[1] = 0
    (tmp_path / name).unlink()
    micrograph = formats.read(movie(tmp_path / name, frames), LIMIT)
    np.testing.assert_array_equal(micrograph.pixels, frames.sum(axis=0))
    assert r"1 of the 4 frames summed hold zeros only (number 2)" in micrograph.warnings[-1]


def series(path: Path) -> list[int]:
    """A copy of a real SER file of five images; where each lies."""
    data = (DATA / "tia_old_64x64x5_TEM_preview_1.ser").read_bytes()
    path.write_bytes(data)
    return list(struct.unpack_from("<5I", data, int.from_bytes(data[22:26], "little")))


def test_an_image_of_a_ser_series_that_is_broken_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a_1.ser"
    places = series(path)
    whole = path.read_bytes()
    table = int.from_bytes(whole[22:26], "little")
    for at, data, reason in (
        (places[3] + 42, b"\0\0", "frame 4 of 5 is unlike the first"),
        (table + 8, b"\xff\xff\xff\x7f", "frame 3 of 5 is placed behind the end of the file"),
    ):
        path.write_bytes(whole)
        overwrite(path, at, data)
        with pytest.raises(MicrographError, match=rf"a_1\.ser: {reason}"):
            formats.read(path, LIMIT)
    path.write_bytes(whole[: places[4] + 1000])
    with pytest.raises(MicrographError, match="frame 5 of 5 is cut off"):
        formats.read(path, LIMIT)


def test_a_frame_of_an_hdf5_file_that_does_not_decode_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.hspy"
    write_hyperspy(path, FRAMES, compression="gzip", chunks=(1, 32, 48))
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, FRAMES.sum(axis=0))
    with h5py.File(path) as file:
        (name,) = file["Experiments"]
        chunk = file["Experiments"][name]["data"].id.get_chunk_info(2)
    overwrite(path, chunk.byte_offset, b"\xa5" * chunk.size)
    with Reader(LIMIT, 60) as reader, pytest.raises(MicrographError, match=r"frame 3 of 4 is damaged \("):
        reader.read(path)
    np.testing.assert_array_equal(formats.read(path, LIMIT, 3).pixels, FRAMES[3])


# --- summed, or frame by frame, by profile --------------------------------------------------------------------------


def settings(tmp_path: Path, **profiles: dict[str, Any]) -> config.Config:
    path = tmp_path / "config.yaml"
    folders = {name: str(tmp_path / name) for name in ("drop", "output", "state")}
    path.write_text(yaml.safe_dump({"folders": folders, "profiles": profiles, "default_profile": "auto"}))
    return config.load(path)


def test_a_profile_decides_whether_its_stacks_are_summed(tmp_path: Path) -> None:
    one = settings(
        tmp_path,
        tilts={"frames": "each", "match": {"folder": "tilts"}},
        sums={"frames": "sum", "match": {"name": "*_sum.st"}},
        ordinary={"match": {"folder": "ordinary"}},
        auto={"gain": "auto"},
    )
    told = {path: rules.sections_by_settings(one, path) for path in (
        "tilts/a.mrc", "tilts/day/a.tif", "a_sum.st", "ordinary/a.st", "ordinary/a.mrc", "a.st", "a.mrc")}  # fmt: skip
    assert told == {
        "tilts/a.mrc": True, "tilts/day/a.tif": True, "a_sum.st": False,
        "ordinary/a.st": True, "ordinary/a.mrc": False, "a.st": True, "a.mrc": False,
    }  # fmt: skip


def test_the_default_profile_may_say_so_too(tmp_path: Path) -> None:
    one = settings(tmp_path, low={"match": {"folder": "low"}}, auto={"gain": "auto", "frames": "each"})
    assert rules.sections_by_settings(one, "a.mrc") and not rules.sections_by_settings(one, "low/a.mrc")


def test_a_profile_chosen_by_its_dose_cannot_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="known only once the frames are read"):
        settings(tmp_path, auto={"frames": "each", "dose": [1, 2], "match": {"measured": True}})
