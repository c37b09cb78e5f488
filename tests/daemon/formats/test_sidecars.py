"""How a micrograph was taken: SerialEM's .mdoc, and extended headers of MRC files."""

import os
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile
from mrcfile.dtypes import get_ext_header_dtype

from daemon import formats
from daemon.formats import sidecars
from daemon.formats.decoder import Reader
from daemon.micrograph import Acquisition, PixelSize

LIMIT = 1 << 24


def stack(path: Path, sections: int = 3) -> Path:
    with mrcfile.new(path) as file:
        file.set_data(np.random.default_rng(0).poisson(9, (sections, 32, 48)).astype(np.int16))
    return path


def test_each_sections_acquisition_is_read_from_serialems_mdoc(tmp_path: Path) -> None:
    path = stack(tmp_path / "tilt.mrc")
    (tmp_path / "tilt.mrc.mdoc").write_text(
        "PixelSpacing = 2.0\nVoltage = 300\n\n[T = SerialEM]\n\n"
        + "".join(
            f"[ZValue = {n}]\nExposureDose = {n + 1}.5\nMagnification = 42000\nCountsPerElectron = 4\n"
            for n in range(3)
        )
    )
    micrograph = formats.read(path, LIMIT, 1)
    taken = micrograph.acquisition
    assert (taken.voltage_kv, taken.magnification, taken.electrons_per_unit) == (300, 42000, 0.25)
    assert taken.electrons_per_pixel == pytest.approx(2.5 * 4)
    assert micrograph.pixel_size is not None and micrograph.pixel_size.x == 2.0


@pytest.mark.parametrize("beside", ["frames.tif.mdoc", "frames.mdoc"])
def test_serialems_compressed_frames_and_their_mdoc(tmp_path: Path, beside: str) -> None:
    frames = np.random.default_rng(0).poisson(1, (4, 32, 48)).astype(np.uint8)
    path = tmp_path / "frames.tif"
    with tifffile.TiffWriter(path) as writer:
        for frame in frames:
            writer.write(frame, compression="lzw", description="SerialEM: K3 frames", contiguous=False, metadata=None)
    (tmp_path / beside).write_bytes(
        b"Voltage = 300\r\n[FrameSet = 0]\r\nPixelSpacing = 0.5\r\nExposureTime = 2.4\r\nExposureDose = 40\r\n"
    )
    with Reader(LIMIT, 60) as reader:
        micrograph = reader.read(path)
    np.testing.assert_array_equal(micrograph.pixels, frames.sum(axis=0))
    assert micrograph.pixel_size == PixelSize(0.5, 0.5, "angstrom")
    assert micrograph.metadata["pixel_size_from"] == "SerialEM .mdoc"
    assert micrograph.acquisition == Acquisition(
        voltage_kv=300, exposure_seconds=2.4, electrons_per_pixel=pytest.approx(40 * 0.25)
    )


def test_the_dose_of_a_sum_is_that_of_its_frame_set_and_not_of_one_section(tmp_path: Path) -> None:
    path = stack(tmp_path / "movie.mrc")
    beside = tmp_path / "movie.mdoc"
    for kind, expected in (("FrameSet", pytest.approx(30 * 4)), ("ZValue", None)):
        beside.write_text(f"[{kind} = 0]\nPixelSpacing = 2\nExposureDose = 30\nVoltage = 300\n")
        taken = formats.read(path, LIMIT).acquisition
        assert (taken.voltage_kv, taken.electrons_per_pixel) == (300, expected)


def test_an_mdoc_that_is_a_link_or_unreadable_is_ignored(tmp_path: Path) -> None:
    path = stack(tmp_path / "tilt.mrc")
    secret = tmp_path / "secret"
    secret.write_text("Voltage = 300\n")
    (tmp_path / "tilt.mrc.mdoc").symlink_to(secret)
    assert formats.read(path, LIMIT, 0).acquisition.voltage_kv is None
    (tmp_path / "tilt.mrc.mdoc").unlink()
    (tmp_path / "tilt.mrc.mdoc").write_bytes(b"\xff\0Voltage = -3\nVoltage = nan\n[ZValue = 0]\nExposureDose = inf\n")
    assert formats.read(path, LIMIT, 0).acquisition == Acquisition()
    assert sidecars.parse_mdoc("[ZValue = 1]\nA = 2\n", 0) == {}
    (tmp_path / "tilt.mrc.mdoc").write_text(f"[ZValue = {'9' * 5000}]\nVoltage = 300\n")
    assert formats.read(path, LIMIT, 0).pixels.shape == (32, 48)
    (tmp_path / "tilt.mrc.mdoc").unlink()
    os.mkfifo(tmp_path / "tilt.mrc.mdoc")  # whoever opens one to read waits for a writer
    assert formats.read(path, LIMIT, 0).acquisition == Acquisition()


@pytest.mark.parametrize("kind", [b"FEI1", b"FEI2"])
def test_thermo_fishers_extended_header(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "epu.mrc"
    form = get_ext_header_dtype(kind, "<")
    record = np.zeros(1, form)
    record["HT"], record["Magnification"], record["Integration time"], record["Dose"] = 200e3, 92e3, 1.5, 40e20
    record["Camera name"], record["Microscope type"] = b"BM-Falcon", b"GLACIOS"
    with mrcfile.new(path) as file:
        file.set_data(np.random.default_rng(0).poisson(9, (32, 48)).astype(np.int16))
        file.voxel_size = 1.5
        file.set_extended_header(record)
        file.header.exttyp = kind
    taken = formats.read(path, LIMIT).acquisition
    assert (taken.voltage_kv, taken.magnification, taken.exposure_seconds) == pytest.approx((200, 92000, 1.5))
    assert (taken.detector, taken.microscope) == ("BM-Falcon", "GLACIOS")
    assert taken.electrons_per_pixel == pytest.approx(40 * 1.5**2)


def serialem(path: Path, flags: int, numbers: list[list[int]]) -> np.ndarray:
    """A stack with SerialEM's extended header: for each section the short numbers that `flags` announce."""
    data = np.random.default_rng(0).poisson(9, (len(numbers), 32, 48)).astype(np.int16)
    with mrcfile.new(path) as file:
        file.set_data(data)
        file.set_volume()
        file.set_image_stack()
        file.voxel_size = 2.0
        file.set_extended_header(np.array(numbers, "<i2").view("V1").reshape(-1))
        file.header.exttyp = b"SERI"
        raw = bytearray(file.header.extra2.tobytes())
        raw[16:20] = np.array([2 * len(numbers[0]), flags], "<i2").tobytes()
        file.header.extra2 = np.frombuffer(bytes(raw), "V1").view(file.header.extra2.dtype)
    return data


def test_serialems_extended_header(tmp_path: Path) -> None:
    path = tmp_path / "tilt.mrc"
    # Tilt angle, magnification / 100, and the dose in e/Å² as two numbers a, b: (256 a + b mod 256) 2^(b / 256).
    data = serialem(path, 1 | 8 | 32, [[-6000, 420, 5, 0], [-5700, 420, 192, -8 * 256]])
    first, second = (formats.read(path, LIMIT, number) for number in (0, 1))
    np.testing.assert_array_equal(second.pixels, data[1])
    assert first.acquisition == Acquisition(magnification=42000, electrons_per_pixel=pytest.approx(5 * 256 * 4))
    assert second.acquisition == Acquisition(magnification=42000, electrons_per_pixel=pytest.approx(192 * 4))
    assert formats.read(path, LIMIT).acquisition == Acquisition(magnification=42000)  # nobody says what the sum had


def test_an_extended_header_that_is_too_short_or_unknown_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "tilt.mrc"
    serialem(path, 1 | 8 | 32, [[-6000, 420]])  # the dose it announces is not there
    assert formats.read(path, LIMIT).acquisition == Acquisition(magnification=42000)
    data = stack(tmp_path / "imod.mrc")
    with mrcfile.open(data, mode="r+") as file:
        file.set_extended_header(np.zeros(1024, "V1"))
        file.header.exttyp = b"AGAR"
    assert formats.read(data, LIMIT).acquisition == Acquisition()
