"""What files of SCIFIO, TIA, py4DSTEM and IMOD state, and in which form."""

import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from berkeley_file import write_berkeley
from mrc_bytes import write_mrc
from ser_file import write_ser
from small_files import COUNTS, PLAIN, plain_tiff

from daemon import formats
from daemon.errors import MicrographError
from daemon.micrograph import PixelSize

LIMIT = 1 << 20
FRAMES = np.stack([COUNTS + 100 * number for number in range(3)]).astype(np.uint16)
SHORT, LONG = 3, 4


def nature(path: Path) -> str | None:
    found = formats.read(path, LIMIT, 0).metadata.get("stack")
    return found and found["are"]


# --- what sections are ----------------------------------------------------------------------------------------------


def scifio(path: Path, axis: str, step: float = 1.0, unit: str = "null", pages: int = 3) -> Path:
    text = (
        f"SCIFIO=0.46.0\naxes=X,Y,{axis}\nlengths=64,48,{pages}\nscales=0.5,0.25,{step}\nunits=\\u00B5m,nm,{unit}\n"
        f"bitsPerPixel=16\nimages={pages}\nhyperstack=true\nmode=composite\nunit=\\u00B5m\n"
    )
    with tifffile.TiffWriter(path) as writer:
        for number, frame in enumerate(FRAMES[:pages]):
            writer.write(frame, contiguous=False, description=None if number else text, **PLAIN)
    return path


@pytest.mark.parametrize(
    ("axis", "step", "unit", "are"),
    [
        ("Time", 0.1, "sec", "frames"),
        ("Time", 2.0, "min", "exposures"),
        ("Z", 10.0, "nm", "slices"),
        ("Lifetime", 1.0, "null", "exposures"),
        ("Unknown", 1.0, "null", None),
    ],
)
def test_scifios_axes_are_heeded(tmp_path: Path, axis: str, step: float, unit: str, are: str | None) -> None:
    path = scifio(tmp_path / "a_frames.tif", axis, step, unit)
    assert nature(path) == are
    assert formats.read(path, LIMIT, 0).pixel_size == PixelSize(0.00025, 0.5, "um")


def test_scifios_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MicrographError, match="holds several channels"):
        formats.read(scifio(tmp_path / "a.tif", "Channel"), LIMIT, 0)
    assert formats.read(scifio(tmp_path / "a.tif", "Channel", pages=1), LIMIT).pixels.shape == COUNTS.shape


def test_lists_of_scifio_that_do_not_match_state_nothing(tmp_path: Path) -> None:
    path = plain_tiff(tmp_path / "a.tif", COUNTS, description="SCIFIO=0.46.0\naxes=X,Y\nlengths=64\nscales=1,1\n")
    assert formats.read(path, LIMIT).pixel_size is None


@pytest.mark.parametrize(
    ("stated", "are"),
    [
        ({}, None),
        ({"places": [(0, 0), (2e-6, 0), (4e-6, 0)]}, "places"),
        ({"places": [(0, 0), (2e-8, 0), (0, 1e-8)]}, None),
        ({"seconds": 60}, "exposures"),
        ({"described": b"Stage tilt"}, "tilts"),
        ({"described": b"Defocus", "unit": b"meters"}, "exposures"),
        ({"described": b"Time", "unit": b"s"}, "frames"),
    ],
    ids=str,
)
def test_tias_series_is_known_by_its_description_places_and_times(tmp_path: Path, stated: Any, are: str | None) -> None:
    path = write_ser(tmp_path / "a_frames_1.ser", FRAMES, **stated)
    np.testing.assert_array_equal(formats.read(path, LIMIT, 2).pixels[::-1], FRAMES[2])
    assert nature(path) == are


def test_sums_of_imods_alignframes_are_no_frames(tmp_path: Path) -> None:
    dose = b"SerialEMCCD: Dose frac. image, scaled by 1.00  r/f 0".ljust(80)
    path = write_mrc(tmp_path / "a_frames.mrc", FRAMES, label=dose + b"alignframes: summed frames scaled by 30")
    data = bytearray(path.read_bytes())
    assert nature(path) == "frames"
    struct.pack_into("<i", data, 220, 2)
    path.write_bytes(data)
    assert nature(path) == "exposures"


# --- which way up ---------------------------------------------------------------------------------------------------


def test_py4dstem_numbers_rows_by_rx(tmp_path: Path) -> None:
    old = write_berkeley(tmp_path / "old.emd", COUNTS, ("Rx", "[n_m]", 2.0), ("Ry", "[n_m]", 3.0))
    with h5py.File(tmp_path / "new.emd", "w") as file:
        file.attrs.update(emd_group_type="file", version_major=1, version_minor=0)
        group = file.create_group("a_root/a")
        group.parent.attrs["emd_group_type"], group.attrs["emd_group_type"] = "root", "array"
        group["data"] = COUNTS
        for number, (name, step) in enumerate((("Rx", 2.0), ("Ry", 3.0))):
            dim = group.create_dataset(f"dim{number}", data=[0.0, step])
            dim.attrs["name"], dim.attrs["units"] = name, "nm"
    for path in (old, tmp_path / "new.emd"):
        found = formats.read(path, LIMIT)
        np.testing.assert_array_equal(found.pixels, COUNTS)
        assert found.pixel_size == PixelSize(2.0, 3.0, "nm")
