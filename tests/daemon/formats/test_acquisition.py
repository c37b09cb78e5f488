"""What TIFF files of each vendor say of pixel size and of how they were taken; and what none of them says."""

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from daemon import formats
from daemon.errors import MicrographError
from daemon.formats import sidecars, tiff_tags
from daemon.micrograph import Acquisition, PixelSize

LIMIT = 1 << 24
DATA = Path(__file__).parents[2] / "data"
IMAGE = np.random.default_rng(0).poisson(9, (32, 48)).astype(np.uint16)


def written(path: Path, tags: dict[int, bytes | str], **options: Any) -> Path:
    extra = [(code, 2 if isinstance(value, str) else 7, None, value, True) for code, value in tags.items()]
    tifffile.imwrite(path, IMAGE, extratags=extra, metadata=None, **options)
    return path


def test_tescan(tmp_path: Path) -> None:
    text = (
        "[MAIN]\r\nDate=2026-01-02\r\nDevice=MIRA3 LMH\r\nMagnification=50000.0\r\nPixelSizeX=2.5e-9\r\n"
        "PixelSizeY=3.5e-9\r\nTime=10:11:12\r\n[SEM]\r\nDetector=In-Beam SE\r\nDwellTime=3.2e-06\r\nHV=5000.0 \r\n"
    )
    thumbnail = b"\xff\xd8\xff\xe0\nHV=1\xff\xd9"[:5]
    micrograph = formats.read(written(tmp_path / "a.tif", {50431: thumbnail + text.encode()}), LIMIT)
    assert micrograph.pixel_size == PixelSize(3.5e-9, 2.5e-9, "m")
    assert micrograph.acquisition == Acquisition(
        voltage_kv=5, magnification=50000, exposure_seconds=3.2e-6, microscope="MIRA3 LMH", detector="In-Beam SE",
        recorded="2026-01-02 10:11:12",
    )  # fmt: skip


def test_a_header_of_olympus_without_a_date() -> None:
    header = {33560: {"magnification": 600000.0, "cameraname": "Veleta"}}
    assert tiff_tags.acquisition(header) == Acquisition(magnification=600000, detector="Veleta")


FEI_XML = """<?xml version="1.0"?><Metadata xmlns:nil="http://schemas.fei.com/Metadata/v1/2013/07">
<Instrument><InstrumentClass>Talos</InstrumentClass></Instrument>
<Acquisition><AcquisitionDatetime>2026-01-02T10:11:12</AcquisitionDatetime></Acquisition>
<Optics><AccelerationVoltage>200000</AccelerationVoltage></Optics>
<Detectors><ScanningDetector><DetectorName>HAADF</DetectorName></ScanningDetector></Detectors>
<ScanSettings><DwellTime unit="s">2e-06</DwellTime></ScanSettings>
<BinaryResult><PixelSize><X unit="m" unitPrefixPower="1">1.5e-10</X>
<Y unit="m" unitPrefixPower="1">1.6e-10</Y></PixelSize></BinaryResult></Metadata>"""


def test_thermo_fishers_xml(tmp_path: Path) -> None:
    micrograph = formats.read(written(tmp_path / "a.tif", {34683: FEI_XML}), LIMIT)
    assert micrograph.pixel_size == PixelSize(1.6e-10, 1.5e-10, "m")
    assert micrograph.acquisition == Acquisition(
        voltage_kv=200, exposure_seconds=2e-6, microscope="Talos", detector="HAADF", recorded="2026-01-02T10:11:12"
    )


def test_thermo_fishers_older_list_of_labels(tmp_path: Path) -> None:
    data = "".join(
        f"<Data><Label>{label}</Label><Value>{value}</Value><Unit>{unit}</Unit></Data>"
        for label, value, unit in (("Microscope", "Microscope Titan", ""), ("High tension", "300", "kV"),
                                   ("Magnification", "20000", "x"))
    )  # fmt: skip
    micrograph = formats.read(written(tmp_path / "a.tif", {34683: f"<Fei><Root>{data}</Root></Fei>"}), LIMIT)
    assert micrograph.acquisition == Acquisition(voltage_kv=300, magnification=20000, microscope="Titan")
    assert micrograph.pixel_size is None


def jeol(mode: str) -> str:
    return (
        "<TemReporter><Instruments>JEM-F200</Instruments><Eos><EosMode>eosTEM</EosMode></Eos><ElectronGun>"
        "<AccelerationVoltage>200000</AccelerationVoltage></ElectronGun><ImageFormingSystem>"
        f"<ModeString>{mode}</ModeString><SelectorValue>100000</SelectorValue></ImageFormingSystem></TemReporter>"
    )


def test_jeol(tmp_path: Path) -> None:
    options = {"resolution": (1000, 500), "resolutionunit": "CENTIMETER"}  # on the camera: 10 x 20 um
    path = written(tmp_path / "a.tif", {271: "JEOL Ltd."}, description=jeol("MAG"), **options)
    micrograph = formats.read(path, LIMIT)
    assert micrograph.pixel_size is not None and micrograph.pixel_size.unit == "m"
    assert (micrograph.pixel_size.y, micrograph.pixel_size.x) == pytest.approx((2e-10, 1e-10), rel=1e-9, abs=0)
    assert micrograph.acquisition == Acquisition(voltage_kv=200, magnification=100000, microscope="JEM-F200")
    path = written(tmp_path / "b.tif", {271: "JEOL Ltd."}, description=jeol("DIFF"), **options)
    with pytest.raises(MicrographError, match="is a diffraction pattern"):
        formats.read(path, LIMIT)
    path = written(tmp_path / "c.tif", {271: "Another Ltd."}, description=jeol("MAG"), **options)
    assert formats.read(path, LIMIT).acquisition == Acquisition()


@pytest.mark.parametrize(
    "tags",
    [
        {50431: b"PixelSizeX=\nHV=nan\nMagnification=-3\nDevice=\x01\x02"},
        {34683: "<AccelerationVoltage>many</AccelerationVoltage><PixelSize><X>1</X></PixelSize>"},
        {34683: FEI_XML[:200].replace("Talos", "")},
        {65001: b'<metadata><item name="exposureTime">soon</item><item name="totalDose"'},
    ],
    ids=["tescan", "xml", "cut", "eer"],
)
def test_nonsense_is_unknown_and_not_guessed(tmp_path: Path, tags: dict[int, bytes | str]) -> None:
    micrograph = formats.read(written(tmp_path / "a.tif", tags), LIMIT)
    assert micrograph.pixel_size is None and micrograph.acquisition == Acquisition()
    np.testing.assert_array_equal(micrograph.pixels, IMAGE)


@pytest.mark.parametrize("text", ["<a", '<item name="a"', "<ObjectInfo>", "<Label>", "a=", "<PixelSize> ", "\n "])
def test_a_hostile_header_takes_no_time(tmp_path: Path, text: str) -> None:
    hostile = text * ((1 << 20) // len(text))
    paths = [
        written(tmp_path / f"{code}.tif", {code: hostile if code == 34683 else hostile.encode()})
        for code in (50431, 34683, 65001)
    ]
    begin = time.process_time()
    for path in paths:
        formats.read(path, LIMIT)
    assert sidecars.parse_emi(hostile.encode(), 1) in (None, sidecars.EmiRecord(Acquisition(), False))
    assert time.process_time() - begin < 5  # a search that starts anew at each of them would take many minutes


def ser(path: Path, per_pixel: float) -> Path:
    """A real SER file with another calibration."""
    data = bytearray((DATA / "tia_old_64x64_TEM_images_acquire_1.ser").read_bytes())
    at = int.from_bytes(data[22:26], "little")
    place = int.from_bytes(data[at : at + 4], "little")
    for axis in (0, 20):
        struct.pack_into("<d", data, place + axis + 8, per_pixel)
    path.write_bytes(data)
    return path


def test_a_ser_file_whose_pixels_cannot_be_metres_is_a_diffraction_pattern(tmp_path: Path) -> None:
    assert formats.read(ser(tmp_path / "a_1.ser", 2e-9), LIMIT).pixel_size == PixelSize(2.0, 2.0, "nm")
    with pytest.raises(MicrographError, match=r"is a diffraction pattern \(its pixels are measured in 1/m\)"):
        formats.read(ser(tmp_path / "a_1.ser", 4e7), LIMIT)


@pytest.mark.parametrize(
    ("mode", "camera", "pattern"),
    [
        ("TEM uP SA Zoom Image", True, False),
        ("TEM uP SA Zoom Diffraction", True, True),
        ("STEM nP SA Zoom Diffraction", False, False),
        ("STEM nP SA Zoom Diffraction", True, True),
    ],
)
def test_acquisition_is_read_from_the_emi_file_beside_it(
    tmp_path: Path, mode: str, camera: bool, pattern: bool
) -> None:
    path = ser(tmp_path / "a_1.ser", 2e-9)
    text = (DATA / "tia_old_64x64_TEM_images_acquire.emi").read_bytes().replace(b" TEM uP SA Zoom Image", mode.encode())
    (tmp_path / "a.emi").write_bytes(text if camera else text.replace(b"CameraNamePath", b"SomethingElse"))
    if pattern:
        with pytest.raises(MicrographError, match="is a diffraction pattern"):
            formats.read(path, LIMIT)
    else:
        assert formats.read(path, LIMIT).acquisition.voltage_kv == 200
    assert formats.read(path.rename(tmp_path / "a_2.ser"), LIMIT).acquisition == Acquisition()  # it tells of one image


def test_an_emi_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    path = ser(tmp_path / "a_1.ser", 2e-9)
    (tmp_path / "a.emi").symlink_to(DATA / "tia_old_64x64_TEM_images_acquire.emi")
    assert formats.read(path, LIMIT).acquisition == Acquisition()
