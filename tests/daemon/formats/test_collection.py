"""Real files of the collection in shared/data, each as its table says or refused for its reason.

Most may not be passed on, so they are not in the repository; tests/data holds one for each reader that may.
"""

import csv
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from daemon.errors import MicrographError
from daemon.formats.decoder import Reader
from daemon.formats.units import METRES

COLLECTION = Path(os.environ.get("EMDENOISED_DATA", Path(__file__).parents[4] / "shared" / "data")) / "formats"
ROWS = []
if (COLLECTION / "formats.csv").is_file():
    with (COLLECTION / "formats.csv").open(newline="", encoding="utf-8") as stream:
        ROWS = list(csv.DictReader(stream))

REFUSED = {
    "gatan_dp.dm3": "is a diffraction pattern .*1/nm",
    "gatan_eels1d.dm3": "holds a spectrum, not a micrograph",
    "velox_dpc.emd": "holds 8 images .*save each one",
    "test_rgba16.tif": "RGB colour",
    "rs_optical_Zeiss_AxioVision_RGB.tif": "RGB colour",
    "ome_tiff_multichannel_z.ome.tif": "several channels",
    "emd_3001.map": "three-dimensional map",
    "emd_3001.map.gz": "compressed with gzip",
    "emd_3001.map.bz2": "compressed with bzip2",
    # A scan of diffraction patterns, whose axes the table takes for metres: 42 million of them to a pixel.
    "tia_new_128x128x5-diffraction_preview_1.ser": "is a diffraction pattern .*1/m",
    "tia_old_64x64_TEM_images_acquire.emi": "description of a TIA recording .*in the .ser files",
    "tia_haadf_1k.emi": "description of a TIA recording .*in the .ser files",
    "rs_test1.blo": "a block file of diffraction patterns",
    "rs_test_tvips_2233_000.tvips": "a TVIPS recording",
    "rs_test_tvips_2345_000.tvips": "a TVIPS recording",
    **{row["file"]: "a ZIP archive" for row in ROWS if row["file"].endswith(".zip")},
}
if find_spec("sparse") is None:  # RosettaSciIO wants it for the spectra and gives the image up with them
    REFUSED["velox_si.emd"] = "that holds spectra; save its image as a separate file"

MICROGRAPH = {"olympus_sis.tif": 1, "rs_olympus_SIS.tif": 1}
"""Which of a file's images is the micrograph, where it is not the first."""
UNITS = {"imagej_cryoet_13pf_MT.tif": "nm"}
"""What ImageJ's description states and RosettaSciIO, which the table was made with, does not read."""
PLACEHOLDER = ("leginon_lowmag_int16.mrc", "cryo_dw_float32.mrc")
"""Whose header gives exactly 1 Å, one of them at low magnification: what programs write for "unknown"."""
TOLERANCE = {"zeiss_sem_512.tif": 5e-4, "zeiss_sem_1k.tif": 5e-4}
"""Zeiss states the pixel size with four digits, and RosettaSciIO takes another one."""


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader(1 << 26, 60) as reader:
        yield reader


@pytest.mark.skipif(not ROWS, reason=f"the collection is not at {COLLECTION}; set EMDENOISED_DATA")
def test_the_table_has_all_files_of_the_collection() -> None:
    assert {row["file"] for row in ROWS} == {path.name for path in COLLECTION.iterdir()} - {"formats.csv"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
def test_a_file_is_read_or_refused_as_the_table_states(row: dict[str, str], reader: Reader) -> None:
    path = COLLECTION / row["file"]
    if path.name in REFUSED:
        with pytest.raises(MicrographError, match=REFUSED[path.name]) as caught:
            reader.read(path)
        assert str(path) in str(caught.value)
        return
    found = reader.read(path)
    shape, dtype, scale, unit, extremes = (
        row[key].split(";")[MICROGRAPH.get(path.name, 0)]
        for key in ("shape", "dtype", "pixel_scale", "pixel_units", "minmax")
    )
    *frames, height, width = map(int, shape.split("x"))
    assert found.pixels.shape == (height, width)
    assert found.metadata["frames"] == (frames[0] if frames else 1)
    assert found.metadata["dtype"] == dtype
    planes = [reader.read(path, number).pixels for number in range(frames[0])] if frames else [found.pixels]
    if extremes:
        stated = [float(value) for value in extremes.split("..")]
        values = [float(min(plane.min() for plane in planes)), float(max(plane.max() for plane in planes))]
        assert values == pytest.approx(stated, rel=1e-4, abs=1e-6)
    unit = UNITS.get(path.name, unit.split("/")[0]).replace("µ", "u")
    y, x = map(float, scale.split("/"))
    if unit not in METRES or y < 0 or path.name in PLACEHOLDER:  # the table has -1 for "not stated"
        assert found.pixel_size is None
        assert (path.name in PLACEHOLDER) == any("exactly 1 Å" in text for text in found.warnings)
        return
    assert found.pixel_size is not None
    side = METRES[found.pixel_size.unit]
    metres = (found.pixel_size.y * side, found.pixel_size.x * side)
    assert metres == pytest.approx((y * METRES[unit], x * METRES[unit]), rel=TOLERANCE.get(path.name, 1e-5), abs=0)
