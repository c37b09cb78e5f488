"""Headers that each section has of its own outweigh a file name that says "frames": detector, signal, stage, time."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from hyperspy_file import write_hyperspy
from mrc_bytes import write_mrc
from mrcfile.dtypes import get_ext_header_dtype
from ser_file import write_ser
from small_files import COUNTS, PLAIN

from daemon import formats
from daemon.errors import MicrographError
from daemon.formats import section_headers

LIMIT = 1 << 20
FRAMES = np.stack([COUNTS + 100 * number for number in range(3)]).astype(np.uint16)
VELOX = Path(__file__).parents[2] / "data" / "velox_tem_stack.emd"
SECONDS = 1_575_540_224


def nature(path: Path) -> str | None:
    found = formats.read(path, LIMIT, 0).metadata.get("stack")
    return found and found["are"]


def pages(path: Path, tags: Sequence[dict[int, str]]) -> Path:
    """A page for each mapping of ASCII tags."""
    with tifffile.TiffWriter(path) as writer:
        for frame, own in zip(FRAMES, tags, strict=False):
            extra = [(code, "s", 0, text, True) for code, text in own.items()]
            writer.write(frame, contiguous=False, extratags=extra, **PLAIN)
    return path


def fei(
    detector: str = "TLD", signal: str = "SE", x: float = 0.001, tilt: float = 0.0, time: str = "2:38:17 PM"
) -> str:
    return (
        f"[User]\r\nDate=10/31/2013\r\nTime={time}\r\n[Beam]\r\nHV=5000\r\n[Stage]\r\nStageX={x}\r\nStageY=0.002\r\n"
        f"StageT={tilt}\r\n[Detectors]\r\nName={detector}\r\n[{detector}]\r\nSignal={signal}\r\n"
    )


@pytest.mark.parametrize(
    ("heads", "are"),
    [
        ((fei(), fei(), fei()), None),
        ((fei(), fei("ETD"), fei()), "channels"),
        ((fei(), fei(signal="BSE"), fei()), "channels"),
        ((fei(), fei(x=0.0010001), fei(x=0.0010002)), "places"),
        ((fei(), fei(x=0.00100005), fei()), None),  # drift
        ((fei(), fei(tilt=0.1), fei(tilt=0.2)), "tilts"),
        ((fei(), fei(time="2:38:22 PM"), fei(time="2:38:27 PM")), None),
        ((fei(), fei(time="2:39:17 PM"), fei(time="2:40:17 PM")), "exposures"),
    ],
    ids=["alike", "detector", "signal", "stage", "drift", "tilt", "seconds", "minutes"],
)
def test_feis_header_of_each_page(tmp_path: Path, heads: Sequence[str], are: str | None) -> None:
    path = pages(tmp_path / "a_frames.tif", [{34682: head} for head in heads])
    assert nature(path) == are
    if are is None:
        np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, FRAMES.sum(axis=0))
    else:
        with pytest.raises(MicrographError, match=r"its sections are .* .the pages' own headers"):
            formats.require_one_exposure(formats.read(path, LIMIT))


@pytest.mark.parametrize(
    ("tags", "are"),
    [
        ([{306: f"2026:11:30 12:00:{number:02}"} for number in (1, 2, 3)], None),
        ([{306: f"2026:11:30 12:{number:02}:00"} for number in (1, 2, 3)], "exposures"),
        ([{306: f"2026:11:30 12:{number:02}:00"} for number in (1, 2)] + [{}], None),
        ([{270: json.dumps({"detector": name, "pad": "-" * 100})} for name in ("HAADF", "BF", "DF2")], "channels"),
        ([{270: f"Signal Name: {name}\n{'-' * 100}"} for name in ("SE2", "InLens", "SE2")], "channels"),
        ([{270: f"<Detector>{name}</Detector>{'-' * 100}"} for name in ("SE2", "InLens", "SE2")], "channels"),
        ([{270: f"Detector: K3\nframe {number} {'-' * 100}"} for number in (1, 2, 3)], None),
        ([{270: f"signal = 0.{number}1 {'-' * 100}"} for number in (1, 2, 3)], None),
        ([{50431: f"HV=5000\nDetector=SE\nStageX={x}\nStageY=0.01\n"} for x in (0.01, 0.02, 0.03)], "places"),
        ([{50431: f"HV=5000\nDetector={name}\n"} for name in ("SE", "BSE", "SE")], "channels"),
    ],
    ids=["seconds", "minutes", "untimed", "json", "signal", "xml", "same", "number", "tescan-stage", "tescan-detector"],
)
def test_tags_of_each_page(tmp_path: Path, tags: list[dict[int, str]], are: str | None) -> None:
    assert nature(pages(tmp_path / "a_frames.tif", tags)) == are


def manager(**stated: Any) -> list[tuple[int, Any, int, Any, bool]]:
    return [(51123, "s", 0, json.dumps({"FrameIndex": 0, **stated}), True)]


def gdal(scale: float) -> str:
    return f'<GDALMetadata><Item name="SCALE" sample="0" role="scale">{scale}</Item></GDALMetadata>'


@pytest.mark.parametrize(
    ("options", "are"),
    [
        ([{"extratags": manager(Channel="HAADF", XPositionUm=1.0)}] * 3, None),
        ([{"extratags": manager(Channel=name)} for name in ("HAADF", "BF", "HAADF")], "channels"),
        ([{"extratags": manager(XPositionUm=x, YPositionUm=2.0)} for x in (1.0, 101.0, 201.0)], "places"),
        ([{"extratags": manager(Time=f"2026-11-30 12:{n:02}:00 +0100")} for n in range(3)], "exposures"),
        ([{"extratags": [(286, 5, 1, (x, 1), True)]} for x in (0, 1000, 2000)], "pieces"),
        ([{"extratags": [(286, 5, 1, (7, 1), True)]}] * 3, None),
        ([{"resolution": (x, x), "resolutionunit": "CENTIMETER"} for x in (1e7, 2e7, 1e7)], "exposures"),
        ([{"resolution": (1e7, 1e7), "resolutionunit": "CENTIMETER"}] * 3, None),
        ([{"extratags": manager(), "resolution": (1e7, 1e7)}, {}, {}], None),
        ([{"extratags": [(274, 3, 1, 1, True)]}, {}, {}], None),
        ([{}, {"extratags": [(274, 3, 1, 3, True)]}, {}], "exposures"),
        ([{"extratags": [(42112, "s", 0, gdal(scale), True)]} for scale in (1, 2, 3)], "exposures"),
    ],
    ids=["manager", "manager-channel", "manager-stage", "manager-time", "position", "same-position", "resolution",
         "same-resolution", "resolution-once", "orientation-once", "orientation", "gdal"],
)  # fmt: skip
def test_frames_share_place_pixel_size_orientation_and_calibration(
    tmp_path: Path, options: list[dict[str, Any]], are: str | None
) -> None:
    with tifffile.TiffWriter(tmp_path / "a_frames.tif") as writer:
        for frame, own in zip(FRAMES, options, strict=True):
            writer.write(frame, contiguous=False, **PLAIN, **own)
    assert nature(tmp_path / "a_frames.tif") == are


def test_one_page_of_many_with_another_detector_is_found_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a_frames.tif"
    with tifffile.TiffWriter(path) as writer:
        for number in range(100):
            head = fei("ETD" if number == 99 else "TLD")
            writer.write(COUNTS, contiguous=False, extratags=[(34682, "s", 0, head, True)], **PLAIN)
    assert nature(path) == "channels"


@pytest.mark.parametrize(("step", "exposure", "are"), [(8, 2, "exposures"), (8, 4, None), (8, None, None)])
def test_tias_images_far_apart_for_their_exposure_time_are_no_frames(
    tmp_path: Path, step: float, exposure: float | None, are: str | None
) -> None:
    path = write_ser(tmp_path / "a_frames_1.ser", FRAMES, seconds=step)
    if exposure is not None:
        record = f"<CameraNamePath>BM-Ceta</CameraNamePath><DwellTimePath>{exposure}</DwellTimePath>"
        (tmp_path / "a_frames.emi").write_text(f"<ObjectInfo>{record}</ObjectInfo>")
    assert nature(path) == are


def test_the_time_of_a_scanned_image_is_that_of_all_its_pixels(tmp_path: Path) -> None:
    path = write_ser(tmp_path / "a_frames_1.ser", FRAMES, seconds=8)
    for dwell, are in ((1e-4, "exposures"), (4.0 / COUNTS.size, None)):
        record = f"<ObjectInfo><DwellTimePath>{dwell}</DwellTimePath></ObjectInfo>"
        (tmp_path / "a_frames.emi").write_text(record)
        assert nature(path) == are


def velox(path: Path, **changed: Any) -> Path:
    """The Velox stack of two frames with other metadata of the second; keys with __ between their parts."""
    path.write_bytes(VELOX.read_bytes())
    with h5py.File(path, "r+") as file:
        (group,) = file["Data/Image"].values()
        text = json.loads(group["Metadata"][:, 1].tobytes().split(b"\0")[0])
        for key, value in changed.items():
            *places, last = key.split("__")
            part = text
            for place in places:
                part = part[place]
            part[last] = value
        raw = np.frombuffer(json.dumps(text).encode(), np.uint8)
        group["Metadata"][:, 1] = np.pad(raw, (0, len(group["Metadata"]) - len(raw)))
    return path


@pytest.mark.parametrize(
    ("changed", "are"),
    [
        ({}, "frames"),
        ({"BinaryResult__Detector": "HAADF"}, "channels"),
        ({"Acquisition__AcquisitionDatetime": {"DateTime": str(SECONDS + 60)}}, "exposures"),
        ({"Acquisition__AcquisitionDatetime": {"DateTime": str(SECONDS + 1)}}, "frames"),
        ({"Stage__Position": {"x": "2.2e-05", "y": "-1.2958331999999854e-05"}}, "places"),
        ({"Stage__AlphaTilt": "0.1"}, "tilts"),
        ({"Stage": [], "BinaryResult": None}, "frames"),
    ],
    ids=["alike", "detector", "minute", "second", "stage", "tilt", "hostile"],
)
def test_veloxs_metadata_of_each_frame(tmp_path: Path, changed: dict[str, Any], are: str) -> None:
    assert nature(velox(tmp_path / "a_frames.emd", **changed)) == are


@pytest.mark.parametrize(
    ("titles", "are"), [(("HAADF", "BF", "DF"), "exposures"), (("a 1", "a 2", "a 3"), None)], ids=["signals", "numbers"]
)
def test_hyperspys_metadata_of_stacked_signals(tmp_path: Path, titles: Sequence[str], are: str | None) -> None:
    path = tmp_path / "a_frames.hspy"
    write_hyperspy(path, FRAMES)
    with h5py.File(path, "r+") as file:
        (experiment,) = file["Experiments"].values()
        experiment["axis-0"].attrs.update(name="stack_element", units="")
        for number, title in enumerate(titles):
            place = f"original_metadata/stack_elements/element{number}/metadata/General"
            experiment.require_group(place).attrs["title"] = title
    assert nature(path) == are


@pytest.mark.parametrize(
    ("fields", "are"),
    [
        ({}, None),
        ({"STEM Detector name": [b"HAADF", b"BF", b"HAADF"], "Is dose fraction": True}, "channels"),
        ({"Timestamp": [45000.0, 45000.001, 45000.002]}, "exposures"),
        ({"Timestamp": [45000.0, 45000.00001, 45000.00002]}, None),
        ({"Timestamp": [0.0, 1.0, 2.0]}, None),
    ],
    ids=["alike", "detector", "minutes", "seconds", "no-time"],
)
def test_thermo_fishers_extended_header(tmp_path: Path, fields: dict[str, Any], are: str | None) -> None:
    records = np.zeros(3, get_ext_header_dtype(b"FEI2", "<"))
    for name, values in fields.items():
        records[name] = values
    path = write_mrc(tmp_path / "a_frames.mrc", FRAMES.astype(np.int16), extended=records.tobytes(), named=b"FEI2")
    assert nature(path) == are


@pytest.mark.parametrize(
    ("texts", "steps"),
    [
        (("2026-11-30T23:59:59+01:00", "2026-12-01T00:00:01+01:00"), 2),
        (("Date :30 Nov 2026 Time :23:59:58", "Date :01 Dec 2026 Time :00:00:03"), 5),
        (("11/30/2026 11:59:50 PM", "12/01/2026 12:00:10 AM"), 20),
        (("30.11.2026 12:00:00", "30.11.2026 12:01:00"), 60),
        ((str(SECONDS), str(SECONDS + 7)), 7),
        (("2026-11-30 12:00:00", "noon"), None),
        (("1", "2"), None),
    ],
)
def test_times_are_read_as_vendors_write_them(texts: tuple[str, str], steps: float | None) -> None:
    found = section_headers.moments(texts)
    assert (found[1] - found[0] if found else None) == steps
