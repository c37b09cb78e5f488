"""Statements on what an image is: diffraction, sections by lists beside them, references by name, byte order."""

import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from berkeley_file import write_berkeley
from hyperspy_file import write_hyperspy
from mrc_bytes import write_mrc

from daemon import formats
from daemon.errors import MicrographError
from daemon.formats import rosettasciio
from daemon.formats.references import is_reference

LIMIT = 1 << 20
COUNTS = np.random.default_rng(0).poisson(60, (48, 64)).astype(np.int16)
FRAMES = np.stack([COUNTS + 100 * number for number in range(5)]).astype(np.int16)


@pytest.mark.parametrize(
    ("ending", "line", "are"),
    [
        (".rawtlt", "{tilt}", "tilts"),
        (".tlt", "  {tilt}.00", "tilts"),
        (".RAWTLT", "{tilt}", "tilts"),
        (".pl", "{place} 0 0", "pieces"),
        (".tlt", "0.0", None),
        (".tlt", "{tilt}\n{tilt}", None),
        (".tlt", "tilt {tilt}", "tilts"),
        (".tlt", "none", None),
    ],
)
def test_imods_lists_beside_a_stack_state_what_its_sections_are(
    tmp_path: Path, ending: str, line: str, are: str | None
) -> None:
    path = write_mrc(tmp_path / "a_movie.mrc", FRAMES)
    text = "\n".join(line.format(tilt=3 * number - 6, place=200 * number) for number in range(5))
    path.with_suffix(ending).write_text(text + "\n")
    found = formats.read(path, LIMIT, 1).metadata.get("stack")
    assert (found and found["are"]) == are
    if are:
        with pytest.raises(MicrographError, match=rf"{are}.*and not frames"):
            formats.require_one_exposure(formats.read(path, LIMIT))


def test_a_list_beside_a_single_image_states_nothing(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", COUNTS)
    path.with_suffix(".tlt").write_text("3.0\n")
    assert "stack" not in formats.read(path, LIMIT).metadata


REFERENCES = [
    "flatfield.tif", "flat_field_2026.mrc", "flat-field.tif", "FlatField.mrc", "flat_fields.tif",
    "FlatFrame_3.tif", "dark_current.mrc", "darkcount.tif", "darkframe_12.tif", "master_dark.tif",
    "master_flat.tif", "mean_dark.tif", "Gatan_gain_K3.mrc", "CCD-gain.mrc", "ref_gain.mrc",
    "reference_dark.tif", "norm_gain.tif",
]  # fmt: skip
PICTURES = [
    "flat.mrc", "flat_01.tif", "flat_grain.tif", "flatlamella_03.mrc", "flat_crystal_gain2.mrc",
    "darkfield.tif", "dark_field_2.tif", "dark_fields.tif", "darkspots.mrc", "bias.tif", "bias_100V.tif",
    "master_grid.mrc", "mean_field.mrc", "current_map.tif", "gain_of_function.mrc", "EF_dark_2.tif",
    "wheat_flatfieldmouse.tif", "K3_norm.mrc",
]  # fmt: skip


@pytest.mark.parametrize("name", REFERENCES)
def test_a_name_of_camera_words_only_is_a_reference(name: str) -> None:
    assert is_reference(name, {})


@pytest.mark.parametrize("name", PICTURES)
def test_a_name_with_a_word_of_the_specimen_is_a_picture(name: str) -> None:
    assert not is_reference(name, {})


@pytest.mark.parametrize("order", ["<", ">"])
def test_axes_and_stamp_tell_the_byte_order_where_both_are_possible(tmp_path: Path, order: str) -> None:
    planes = np.random.default_rng(1).integers(1, 99, (256, 256, 512)).astype(np.int8)
    path = write_mrc(tmp_path / "a.mrc", planes, cell=(1024, 512, 512))
    head = bytearray(path.read_bytes()[:1024])
    if order == ">":
        numbers = np.frombuffer(bytes(head[:208]), "<i4").astype(">i4")
        head[:208], head[212:216] = numbers.tobytes(), b"\x11\x11\0\0"
        path.write_bytes(bytes(head) + planes.tobytes())
    found = formats.read(path, LIMIT, 7)
    np.testing.assert_array_equal(found.pixels, planes[7])
    assert found.pixel_size is not None and found.pixel_size.x == 2 and formats.count(path) == 256
    assert formats.probe(path).state == "complete"
    for at in (64, 68, 72):  # without axes, as some programs leave them
        struct.pack_into("<i", head, at, 0)
    path.write_bytes(bytes(head) + planes.tobytes())
    assert formats.count(path) == 256


# --- HDF5 and DigitalMicrograph -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signal_type", "unit", "refused"),
    [
        ("electron_diffraction", "", "is a diffraction pattern"),
        ("electron_diffraction", "nm", "is a diffraction pattern"),
        ("Diffraction2D", "", "is a diffraction pattern"),
        ("EELS", "", "holds a spectrum"),
        ("EDS_TEM", "keV", "holds a spectrum"),
        ("EDS_SEM", "nm", ""),
        ("", "", ""),
        ("hologram", "nm", ""),
    ],
)
def test_hyperspys_type_of_signal_is_heeded(tmp_path: Path, signal_type: str, unit: str, refused: str) -> None:
    path = tmp_path / "a.hspy"
    write_hyperspy(path, COUNTS)
    with h5py.File(path, "r+") as file:
        (one,) = file["Experiments"].values()
        one["metadata/Signal"].attrs["signal_type"] = signal_type
        for axis in ("axis-0", "axis-1"):
            one[axis].attrs["units"] = unit
    if refused:
        with pytest.raises(MicrographError, match=refused):
            formats.read(path, LIMIT)
    else:
        np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, COUNTS)


@pytest.mark.parametrize(
    ("mode", "unit", "refused"),
    [("DIFFRACTION", "", True), ("DIFFRACTION", "nm", False), ("SCANNING", "", False), ("IMAGING", "", False)],
)
def test_digital_micrographs_mode_of_operation_counts_where_there_is_no_length(
    tmp_path: Path, mode: str, unit: str, refused: bool
) -> None:
    path = tmp_path / "a.dm3"
    path.write_bytes(b"")
    axes = [{"name": name, "units": unit, "scale": 1.0, "navigate": False} for name in "yx"]
    info = {"Microscope Info": {"Operation Mode": mode}}
    signal = {"data": COUNTS, "axes": axes, "original_metadata": {"ImageList": {"TagGroup0": {"ImageTags": info}}}}

    def read() -> Any:
        return rosettasciio._micrograph(path, rosettasciio._DM3, signal, [], LIMIT, None, None)

    if refused:
        with pytest.raises(MicrographError, match="is a diffraction pattern"):
            read()
    else:
        np.testing.assert_array_equal(read().pixels, COUNTS)


@pytest.mark.parametrize(
    ("names", "units", "are"),
    [
        (("angle", "y", "x"), ("[deg]", "[n_m]", "[n_m]"), "tilts"),
        (("y", "x", "angle"), ("[n_m]", "[n_m]", "[deg]"), "tilts"),
        (("time", "y", "x"), ("[s]", "[n_m]", "[n_m]"), "frames"),
        (("x", "y", "time"), ("[n_m]", "[n_m]", "[s]"), "frames"),
    ],
)
def test_a_berkeley_emd_of_sections_is_taken_by_its_axes(
    tmp_path: Path, names: tuple[str, ...], units: tuple[str, ...], are: str
) -> None:
    order = [("y", "x").index(name) + 1 if name in ("y", "x") else 0 for name in names]
    steps = ({"y": 3.0, "x": 2.0}.get(name, 1.0) for name in names)
    path = write_berkeley(tmp_path / "a.emd", FRAMES.transpose(order), *zip(names, units, steps, strict=True))
    found = formats.read(path, LIMIT, 2)
    np.testing.assert_array_equal(found.pixels, FRAMES[2])
    assert found.metadata["stack"]["are"] == are and found.metadata["sections"] == 5
    assert found.pixel_size is not None and (found.pixel_size.y, found.pixel_size.x) == pytest.approx((3.0, 2.0))
