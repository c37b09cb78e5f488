"""Vendors' files as the microscope wrote them, through the process that decodes; and what is no micrograph."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hyperspy_file import write_hyperspy

from daemon import formats
from daemon.errors import MicrographError, ReaderMissingError
from daemon.formats import rosettasciio
from daemon.formats.decoder import Reader
from daemon.micrograph import Acquisition, PixelSize

DATA = Path(__file__).parents[2] / "data"
LIMIT = 1 << 24
REAL: list[tuple[str, tuple[int, int], str, int, tuple[float, str] | None, dict[str, object]]] = [
    # file, shape, dtype, frames, pixel size x and unit, what is known of the acquisition
    ("gatan_stem.dm3", (68, 68), "uint32", 1, (0.24853802, "nm"), {"voltage_kv": 200, "magnification": 225000}),
    ("test-12.dm4", (2, 2), "float64", 1, None, {"detector": None}),
    ("jeol_haadf.dm4", (112, 112), "float32", 1, (0.0012490136, "um"), {"voltage_kv": 80, "magnification": 250000}),
    (
        "tia_old_64x64_TEM_images_acquire_1.ser", (64, 64), "float32", 1, (6.2818336, "nm"),
        {"voltage_kv": 200, "magnification": 19500, "exposure_seconds": 0.0625, "detector": "WA-Orius",
         "microscope": "Tecnai 200 kV D2267 SuperTwin", "recorded": "Sun Feb 21 17:50:18 2016"},
    ),
    ("tia_old_64x64x5_TEM_preview_1.ser", (64, 64), "float32", 5, (6.2818336, "nm"), {"voltage_kv": None}),
    (
        "velox_tem_stack.emd", (3, 3), "int16", 2, (8.1728832, "pm"),
        {"detector": "BM-Ceta", "microscope": "Titan", "voltage_kv": 300, "magnification": 1271519.156,
         "exposure_seconds": 0.8, "electrons_per_unit": 0.835766},
    ),
    ("test_loading_image_saved_with_DM.tif", (68, 68), "int32", 1, (0.16867469, "um"), {}),
    ("test_loading_image_saved_with_imageJ.tif", (68, 68), "float32", 1, (0.16867471, "um"), {}),
    ("olympus_sis.tif", (101, 112), "uint16", 1, (2.3928e-11, "m"), {"magnification": 600000, "detector": None}),
    ("zeiss_sem_512.tif", (384, 512), "uint8", 1, (11.65, "nm"), {"voltage_kv": 5, "magnification": 50000}),
    ("Custom_movie.mrc", (16, 16), "uint16", 30, None, {"voltage_kv": None}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shape", "dtype", "frames", "size", "known"), REAL, ids=[row[0] for row in REAL])
def test_a_real_file_is_read_as_the_microscope_meant_it(
    name: str, shape: tuple[int, int], dtype: str, frames: int, size: tuple[float, str] | None, known: dict[str, object]
) -> None:
    with Reader(LIMIT, 60) as reader:
        micrograph = reader.read(DATA / name)
    assert micrograph.pixels.shape == shape and micrograph.metadata["dtype"] == dtype
    assert micrograph.metadata["frames"] == frames
    if size is None:
        assert micrograph.pixel_size is None
    else:
        assert micrograph.pixel_size is not None
        assert micrograph.pixel_size.x == pytest.approx(size[0], rel=1e-4) and micrograph.pixel_size.unit == size[1]
    for key, value in known.items():
        assert getattr(micrograph.acquisition, key) == (value if value is None else pytest.approx(value))
    assert set(micrograph.acquisition.as_json()) == set(Acquisition.__dataclass_fields__)
    assert formats.probe(DATA / name).state != "incomplete"


@pytest.mark.parametrize(("bits", "dtype"), [(8, "u1"), (16, "u2")])
def test_thermo_fishers_tiff(tmp_path: Path, bits: int, dtype: str) -> None:
    with zipfile.ZipFile(DATA / "tiff_FEI_Helios.zip") as packed:
        path = Path(packed.extract(f"FEI-Helios-Ebeam-{bits}bits.tif", tmp_path))
    micrograph = formats.read(path, LIMIT)
    taken = micrograph.acquisition
    assert micrograph.pixels.shape == (471, 512) and micrograph.pixels.dtype == dtype
    assert micrograph.pixel_size == PixelSize(3.3724e-06, 3.3724e-06, "m")
    assert (taken.voltage_kv, taken.exposure_seconds, taken.detector) == (5, pytest.approx(1e-5), "ETD")
    assert taken.microscope == 'Helios NanoLab" 660' and taken.recorded == "06/13/2016 05:06:40 PM"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gatan_dp.dm3", r"is a diffraction pattern \(its pixels are measured in 1/nm\)"),
        ("gatan_eels1d.dm3", "holds a spectrum, not a micrograph"),
        ("tia_old_64x64_TEM_images_acquire.emi", r"the description of a TIA recording .* in the .ser files beside it"),
    ],
)
def test_what_is_no_micrograph_is_left_alone_with_the_reason(name: str, reason: str) -> None:
    with Reader(LIMIT, 60) as reader, pytest.raises(MicrographError, match=reason) as caught:
        reader.read(DATA / name)
    assert name in str(caught.value)


def test_a_file_in_every_state_of_being_copied_is_held_until_it_is_whole(tmp_path: Path) -> None:
    for name in ("gatan_stem.dm3", "jeol_haadf.dm4", "tia_old_64x64_TEM_images_acquire_1.ser", "velox_tem_stack.emd"):
        whole = (DATA / name).read_bytes()
        path = tmp_path / name
        for length in (0, 3, 21, 100, len(whole) // 2, len(whole) - 25):
            path.write_bytes(whole[:length])
            assert formats.probe(path).state == "incomplete", (name, length)
        path.write_bytes(whole)
        assert formats.probe(path).state != "incomplete"


def test_a_damaged_file_costs_that_file_only(tmp_path: Path) -> None:
    path = tmp_path / "damaged.dm4"
    data = bytearray((DATA / "test-12.dm4").read_bytes())
    data[100:4000] = bytes(range(1, 251)) * 15 + bytes(150)
    path.write_bytes(data)
    with Reader(LIMIT, 20) as reader:
        with pytest.raises(MicrographError, match="RosettaSciIO cannot read it"):
            reader.read(path)
        assert reader.read(DATA / "test-12.dm4").pixels.shape == (2, 2)


def test_the_daemons_own_process_never_has_rosettasciio_in_memory() -> None:
    program = (
        "import sys; from pathlib import Path; from daemon.formats.decoder import Reader\n"
        "with Reader(1 << 24, 60) as reader: reader.read(Path(sys.argv[1]))\n"
        "assert not [name for name in sys.modules if name.startswith(('rsciio', 'h5py', 'dask'))]"
    )
    subprocess.run([sys.executable, "-c", program, str(DATA / "gatan_stem.dm3")], check=True)


VENDORS = (
    "gatan_stem.dm3", "jeol_haadf.dm4", "tia_old_64x64_TEM_images_acquire_1.ser", "velox_tem_stack.emd",
)  # fmt: skip
COMMAND = rf"{re.escape(sys.executable)} -m pip install 'rosettasciio\[hdf5\]>=0\.7'"


@pytest.mark.parametrize("name", VENDORS)
@pytest.mark.parametrize("decode", [True, False])
def test_without_the_reader_a_file_waits_for_it_and_the_command_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, decode: bool
) -> None:
    """Asked in the daemon's own process (which starts no child then) and in the child, where a part may be missing."""
    if decode:
        for reader in ("digitalmicrograph", "tia", "emd"):
            monkeypatch.setitem(sys.modules, f"rsciio.{reader}", None)
    else:
        monkeypatch.setattr(rosettasciio, "find_spec", lambda name: None)
    with pytest.raises(ReaderMissingError, match=rf"{name}: is .* and waits for its reader.*{COMMAND}"):
        formats.read(DATA / name, LIMIT, decode=decode)


def test_what_the_child_lacks_is_waited_for_too() -> None:
    program = "import sys; sys.modules['rsciio.emd'] = None; from daemon.formats.decoder import main; main()"
    with Reader(LIMIT, 60, program) as reader:
        with pytest.raises(ReaderMissingError, match=COMMAND):
            reader.read(DATA / "velox_tem_stack.emd")
        with pytest.raises(MicrographError, match="holds a spectrum"):
            reader.read(DATA / "gatan_eels1d.dm3")


def test_the_start_names_what_will_wait_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rosettasciio.missing([".dm3", ".tif"]) is None
    monkeypatch.setattr(rosettasciio, "find_spec", lambda name: None)
    assert rosettasciio.missing([".tif", ".mrc"]) is None
    line = rosettasciio.missing([".tif", ".dm4", ".emd"])
    assert line is not None and line.startswith(".dm4, .emd files will wait") and re.search(COMMAND, line)
    assert "\n" not in line


def test_a_stack_too_large_for_the_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MicrographError, match="max_pixels"):
        formats.read(DATA / "jeol_haadf.dm4", 100)


def test_one_section_of_a_vendors_stack() -> None:
    both = [formats.read(DATA / "velox_tem_stack.emd", LIMIT, number) for number in range(2)]
    total = formats.read(DATA / "velox_tem_stack.emd", LIMIT)
    np.testing.assert_array_equal(both[0].pixels.astype(int) + both[1].pixels, total.pixels)
    assert [one.metadata["section"] for one in both] == [1, 2]


def test_a_hyperspy_file(tmp_path: Path) -> None:
    data = np.random.default_rng(0).poisson(20, (40, 50)).astype(np.uint16)
    path = tmp_path / "a.hspy"
    write_hyperspy(path, data)
    micrograph = formats.read(path, LIMIT)
    np.testing.assert_array_equal(micrograph.pixels, data)
    assert micrograph.pixel_size == PixelSize(0.5, 0.5, "nm")
    assert set(micrograph.acquisition.as_json().values()) == {"unknown"}


def electron_events(frame: np.ndarray) -> bytes:
    """A frame of 0 and 1 as an EER camera stores it: 7 bits of how many pixels to skip, 4 of where in the pixel."""
    bits: list[int] = []

    def put(value: int, width: int) -> None:
        bits.extend(value >> at & 1 for at in range(width))

    at = 0
    for place in [*np.flatnonzero(frame), frame.size]:
        gap = int(place) - at
        while gap >= 127:
            put(127, 7)
            gap -= 127
        put(gap, 7)
        put(0b0101, 4)
        at = int(place) + 1
    bits.extend([0] * (-len(bits) % 32))
    return np.packbits(np.array(bits, np.uint8), bitorder="little").tobytes()


def test_electron_events_are_summed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.random((5, 48, 64)) < 0.05
    path = tmp_path / "events.eer"
    items = {
        "exposureTime": "1.4",
        "commercialName": "Falcon 4i",
        "totalDose": "12.5",
        "timestamp": "2026-01-02T03:04:05",
        "sensorPixelSize.width": "7e-11",
        "sensorPixelSize.height": "7.1e-11",
    }
    listed = "".join(f'<item name="{name}" unit="any">{value}</item>' for name, value in items.items())
    tags = [(65001, 7, None, f"<metadata>{listed}</metadata>".encode(), True)]
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for frame in frames:
            writer.write(
                iter([electron_events(frame)]), shape=frame.shape, dtype=np.uint8, compression="zlib",
                rowsperstrip=48, photometric="minisblack", contiguous=False, metadata=None, extratags=tags,
            )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+") as file:
        for page in file.pages:
            page.tags[258].overwrite(1)
            page.tags[259].overwrite(65001)
    with Reader(LIMIT, 60) as reader:
        micrograph = reader.read(path)
    np.testing.assert_array_equal(micrograph.pixels, frames.sum(axis=0))
    assert micrograph.metadata["frames"] == 5
    assert micrograph.pixel_size == PixelSize(7.1e-11, 7e-11, "m")
    taken = micrograph.acquisition
    assert (taken.exposure_seconds, taken.detector, taken.electrons_per_pixel) == (1.4, "Falcon 4i", 12.5)
    assert taken.recorded == "2026-01-02T03:04:05" and taken.voltage_kv is None
    one = formats.read(path, LIMIT, 2)
    np.testing.assert_array_equal(one.pixels, frames[2])
    assert (one.acquisition.exposure_seconds, one.acquisition.electrons_per_pixel) == (None, None)  # they are of all


def test_a_unit_that_cannot_be_true_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "liar.tif"
    image = np.random.default_rng(0).poisson(9, (64, 64)).astype(np.uint16)
    tifffile.imwrite(path, image, imagej=True, resolution=(1 / 4.0, 1 / 4.0), metadata={"unit": "m"})
    micrograph = formats.read(path, LIMIT)
    assert micrograph.pixel_size is None
    assert "states pixels of 4 m, which no electron microscope has" in micrograph.warnings[0]


def test_an_image_without_any_metadata_invents_none(tmp_path: Path) -> None:
    path = tmp_path / "bare.tif"
    tifffile.imwrite(path, np.random.default_rng(0).poisson(9, (64, 64)).astype(np.uint16), metadata=None)
    micrograph = formats.read(path, LIMIT)
    assert micrograph.pixel_size is None and set(micrograph.acquisition.as_json().values()) == {"unknown"}


def test_room_that_hdf5_left_unwritten_proves_nothing(tmp_path: Path) -> None:
    """A copy that keeps holes ends in one, like a copy that stopped; it is read once it has been left alone."""
    path = tmp_path / "stack.emd"
    path.write_bytes((DATA / "velox_tem_stack.emd").read_bytes())
    size = path.stat().st_size
    end = len(path.read_bytes().rstrip(b"\0"))
    os.truncate(path, end)
    os.truncate(path, size)
    found = formats.probe(path)
    assert found.state == "suspicious" and not found.proven
    with Reader(1 << 20, 60) as reader:
        assert reader.read(path).pixels.shape == (3, 3)
