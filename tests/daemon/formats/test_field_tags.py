"""Tags of other vendors that change what the pixels are: MetaMorph's planes, OME's type, a microscope's gamma."""

import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from hyperspy_file import write_hyperspy
from small_files import COUNTS, PLAIN, plain_tiff
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


@pytest.mark.parametrize(("gamma", "remarked"), [("1", False), ("1.0", False), ("0", False), ("0.45", True)])
def test_a_gamma_that_the_microscope_applied_is_remarked(tmp_path: Path, gamma: str, remarked: bool) -> None:
    head = f"[User]\r\nDate=1/1/2026\r\n[Image]\r\nDigitalContrast=1\r\nDigitalGamma={gamma}\r\n"
    found = formats.read(plain_tiff(tmp_path / "a.tif", COUNTS, extratags=[(34682, "s", 0, head, True)]), LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    assert any("a gamma of 0.45 was applied by the microscope" in text for text in found.warnings) == remarked


@pytest.mark.parametrize(
    ("title", "refused"),
    [
        ("FFT of a.tif", True), ("Power spectrum", True), ("log of the FFT (shifted)", True),
        ("Diffractogram: a", True),
        ("FFT filtered image", False), ("a, see its FFT", False), ("Fourier ptychography", False), ("", False),
    ],
)  # fmt: skip
def test_a_transform_that_says_so_in_its_title_is_left_alone(tmp_path: Path, title: str, refused: bool) -> None:
    transform = np.abs(np.fft.fft2(COUNTS)).astype(np.float32)
    named = [(285, "s", 0, title or "a", True)]
    files = [plain_tiff(tmp_path / "a.tif", transform, description=title or None)]
    files.append(plain_tiff(tmp_path / "b.tif", transform, extratags=named))
    write_hyperspy(tmp_path / "c.hspy", transform)
    with h5py.File(tmp_path / "c.hspy", "r+") as file:
        (experiment,) = file["Experiments"].values()
        experiment["metadata/General"].attrs["title"] = title
    for path in (*files, tmp_path / "c.hspy"):
        if refused:
            with pytest.raises(MicrographError, match="is a Fourier transform or power spectrum by its title"):
                formats.read(path, LIMIT)
        else:
            np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, transform)


def test_hyperspys_mark_of_a_transform_is_heeded(tmp_path: Path) -> None:
    write_hyperspy(tmp_path / "a.hspy", np.abs(np.fft.fft2(COUNTS)).astype(np.float32))
    with h5py.File(tmp_path / "a.hspy", "r+") as file:
        (experiment,) = file["Experiments"].values()
        experiment.require_group("metadata/Signal/FFT").attrs["shifted"] = True
    with pytest.raises(MicrographError, match="a Fourier transform or a wave"):
        formats.read(tmp_path / "a.hspy", LIMIT)


@pytest.mark.parametrize(("tilts", "are"), [((0, 10, 20), "tilts"), ((5, 5.01, 5), None)])
def test_tvips_states_the_tilt_of_each_page(tmp_path: Path, tilts: tuple[float, ...], are: str | None) -> None:
    with tifffile.TiffWriter(tmp_path / "a_frames.tif") as writer:
        for frame, tilt in zip(FRAMES, tilts, strict=True):
            first = np.zeros((), list(tifffile.TIFF.TVIPS_HEADER_V1))
            second = np.zeros((), list(tifffile.TIFF.TVIPS_HEADER_V2))
            first["Version"], second["Magic"], second["TemStagePosition"] = 2, 0xAAAAAAAA, (0, 0, 0, tilt, 0)
            text = first.tobytes() + second.tobytes()
            writer.write(frame, contiguous=False, extratags=[(37706, 7, len(text), text, True)], **PLAIN)
    stated = formats.read(tmp_path / "a_frames.tif", LIMIT, 0).metadata.get("stack")
    assert (stated and stated["are"]) == are
