"""More members of the kinds in `test_field_cases`: other writers' spellings, orders, units and fill values."""

import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from hyperspy_file import write_hyperspy
from mrc_bytes import write_mrc
from small_files import COUNTS, PLAIN

from daemon import formats
from daemon.backends.manifest import load, locate
from daemon.counts import spikes
from daemon.counts.prepare import plane
from daemon.counts.profiles import dose_evidence, scaled
from daemon.errors import MicrographError
from daemon.formats.units import pixel_size, reciprocal
from daemon.settings.profile import Profile

LIMIT = 1 << 20
FRAMES = np.stack([COUNTS + 100 * number for number in range(5)]).astype(np.int16)


def nature(path: Path) -> str | None:
    stated = formats.read(path, LIMIT).metadata.get("stack")
    return None if stated is None else str(stated["are"])


# --- what sections are ----------------------------------------------------------------------------------------------

TILTS = "".join(f"[{{kind}} = {number}]\nTiltAngle = {3 * number - 6}\n\n" for number in range(5))


@pytest.mark.parametrize(
    ("text", "are"),
    [
        (TILTS.format(kind="ZValue").encode("utf-16"), "tilts"),
        (b"\xef\xbb\xbf" + TILTS.format(kind="ZValue").encode(), "tilts"),
        (TILTS.format(kind="FrameSet").encode(), "tilts"),
        (b"[FrameSet = 0]\nNumSubFrames = 5\n", "frames"),
        (b"[FrameSet = 0]\n[FrameSet = 1]\n", "exposures"),
        (b"Montage = 1\nImageSize = 64 48\n", "pieces"),
    ],
    ids=["utf-16", "byte-order-mark", "frame-sets", "one-frame-set", "two-frame-sets", "montage"],
)
@pytest.mark.parametrize("ending", [".mdoc", ".MDOC"])
def test_an_mdoc_states_what_sections_are_in_every_spelling(tmp_path: Path, text: bytes, are: str, ending: str) -> None:
    path = write_mrc(tmp_path / "a_movie.mrc", FRAMES)
    path.with_name(path.name + ending).write_bytes(text)
    assert nature(path) == are


def test_values_of_another_image_in_an_mdoc_are_not_taken(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", FRAMES[0])
    text = "[T = SerialEM]\nPixelSpacing = 2.5\n[Image = a_000.tif]\nPixelSpacing = 99\nVoltage = 1\n"
    path.with_name("a.mrc.mdoc").write_text(text)
    found = formats.read(path, LIMIT)
    assert found.pixel_size is not None and found.pixel_size.x == 2.5 and found.acquisition.voltage_kv is None


@pytest.mark.parametrize("named", [b"MRCO", b"AGAR", b""])
def test_tilts_of_the_older_extended_header_by_each_of_its_names(tmp_path: Path, named: bytes) -> None:
    extended = b"".join(struct.pack("<32f", 3 * number, *[0] * 31) for number in range(5))
    assert nature(write_mrc(tmp_path / "a.mrc", FRAMES, named=named, shorts=(0, 32), extended=extended)) == "tilts"


@pytest.mark.parametrize(
    ("name", "units", "are"),
    [
        ("energy", "eV", "exposures"),
        ("", "K", "exposures"),
        ("defocus", "nm", "exposures"),
        ("rotation", "rad", "tilts"),
        ("time", "s", "frames"),
        ("", "", None),
    ],
)
def test_an_axis_across_sections_is_known_by_name_or_unit(
    tmp_path: Path, name: str, units: str, are: str | None
) -> None:
    path = hyperspy(tmp_path, FRAMES, ("navigate", name, units), ("", "y", "nm"), ("", "x", "nm"))
    assert nature(path) == are


def test_tifffiles_axes_are_heeded(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, FRAMES, photometric="minisblack", metadata={"axes": "AYX"})
    assert nature(path) == "tilts"
    for axes, reason in (("SYX", "several channels"), ("YXZ", "its pages are no images")):
        tifffile.imwrite(path, FRAMES, photometric="minisblack", metadata={"axes": axes})
        with pytest.raises(MicrographError, match=reason):
            formats.read(path, LIMIT)


# --- axes -----------------------------------------------------------------------------------------------------------


def hyperspy(folder: Path, data: np.ndarray[Any, Any], *axes: tuple[str, str, str]) -> Path:
    """`axes`: navigate or not, name, unit."""
    path = folder / "a.hspy"
    path.unlink(missing_ok=True)
    write_hyperspy(path, data)
    with h5py.File(path, "r+") as file:
        (one,) = file["Experiments"].values()
        for number, (navigate, name, units) in enumerate(axes):
            one[f"axis-{number}"].attrs.update(navigate=bool(navigate), name=name, units=units)
    return path


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (1, 0, 2), (0, 2, 1), (2, 1, 0)])
def test_the_axis_across_sections_may_stand_anywhere(tmp_path: Path, order: tuple[int, ...]) -> None:
    axes = ("navigate", "time", "s"), ("", "y", "nm"), ("", "x", "nm")
    data = np.ascontiguousarray(FRAMES.transpose(order))
    found = formats.read(hyperspy(tmp_path, data, *(axes[number] for number in order)), LIMIT, 2)
    np.testing.assert_array_equal(found.pixels, FRAMES[2])
    assert found.metadata["sections"] == 5


def test_one_named_axis_is_enough_to_tell_rows_from_columns(tmp_path: Path) -> None:
    for names, upright in ((("", "x"), True), (("y", ""), True), (("x", ""), False), (("", "y"), False)):
        path = hyperspy(tmp_path, COUNTS, *(("", name, "nm") for name in names))
        np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, COUNTS if upright else COUNTS.T)


@pytest.mark.parametrize(
    "unit", ["$A^{-1}$", "Å^{-1}", "nm**-1", "cycles/nm", "/nm", "inverse nm", "nm⁻¹", "nm^-2", "µrad", "mrad", "1/nm"]
)
def test_reciprocal_units_in_every_spelling(unit: str) -> None:
    assert reciprocal(unit)


@pytest.mark.parametrize("unit", ["parsec", "s", "eV", "<undefined>", "reference frame", "km", "°", "counts", "pixel"])
def test_a_unit_that_is_no_known_length_leaves_the_pixel_size_unknown(unit: str) -> None:
    assert pixel_size(0.5, 0.5, unit) is None and not reciprocal(unit)


def test_axes_called_k_or_q_are_those_of_a_diffraction_pattern_unless_they_have_a_length(tmp_path: Path) -> None:
    with pytest.raises(MicrographError, match="diffraction pattern"):
        formats.read(hyperspy(tmp_path, COUNTS, ("", "ky", ""), ("", "kx", "")), LIMIT)
    assert formats.read(hyperspy(tmp_path, COUNTS, ("", "Q_y", "nm"), ("", "Q_x", "nm")), LIMIT).pixel_size is not None


@pytest.mark.parametrize(
    ("stated", "prefix"),
    [
        ("PhysicalSizeX='0.25' PhysicalSizeXUnit='nm'", ""),
        ('PhysicalSizeX = "0.25" PhysicalSizeXUnit = "nm"', ""),
        ('PhysicalSizeX="0.25" PhysicalSizeXUnit="nm"', "ome:"),
    ],
    ids=["quotes", "spaces", "prefix"],
)
def test_ome_is_read_however_its_xml_is_written(tmp_path: Path, stated: str, prefix: str) -> None:
    text = f"<{prefix}OME><{prefix}Image><{prefix}Pixels SizeC='1' SizeT = '5' {stated}/></{prefix}Image></{prefix}OME>"
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path) as writer:
        for number, frame in enumerate(FRAMES):
            writer.write(frame, contiguous=False, description=None if number else text.encode(), **PLAIN)
    found = formats.read(path, LIMIT)
    assert found.pixel_size is not None and found.pixel_size.x == 0.25 and found.pixel_size.unit == "nm"
    assert found.metadata["stack"]["are"] == "frames" and found.metadata["ome"]


@pytest.mark.parametrize(
    ("side", "known"), [(64.0, False), (64.0 * (1 + 3e-7), False), (1.0, False), (64.01, True), (100.0, True)]
)
def test_the_placeholder_of_one_angstrom_may_be_rounded(tmp_path: Path, side: float, known: bool) -> None:
    path = write_mrc(tmp_path / "a.mrc", COUNTS.astype(np.int16), cell=(side, side * (1 if side == 1 else 0.75), 1))
    assert (formats.read(path, LIMIT).pixel_size is not None) == known


# --- fill values ----------------------------------------------------------------------------------------------------


def filled(path: Path, value: str, dtype: Any, frames: int = 1, **options: Any) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for number in range(frames):
            image = np.random.default_rng(number).poisson(60, (96, 96)).astype(dtype)
            image[:40, :40] = np.array(float(value)).astype(dtype)
            tags = [(42113, "s", 0, value, True)]
            writer.write(image, contiguous=False, extratags=tags, **{**PLAIN, **options})
    return path


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ("-3.4028234663852886e+38", "f4"),
        ("-3.40282346638529e+38", "f4"),
        ("0.1", "f4"),
        ("65535", "u2"),
        ("-9999", "i2"),
    ],
)
def test_a_fill_value_of_any_size_changes_no_measure_and_is_handed_on_exactly(
    tmp_path: Path, value: str, dtype: str
) -> None:
    found = formats.read(filled(tmp_path / "a.tif", value, dtype), LIMIT)
    assert found.warnings == ()
    choice = scaled(Profile(name="p", gain=1.0), "test", found, dose_evidence(found))
    one = plane(found.pixels, choice, load(locate("fast")).dose_range)
    prepared = one.prepare(spikes.survey(found.pixels, one.gain, one.offset, one.false_alarm))
    assert prepared.dose == pytest.approx(60, rel=0.01) and len(prepared.spikes) == 1600
    formats.write(tmp_path / "out.tif", "tiff", found.pixels.astype(np.float32), found, {})
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        held = np.float32(float(file.pages.first.tags[42113].value))
        assert (file.pages.first.asarray() == held).sum() == 1600


def test_a_sum_of_fill_values_is_refused_and_each_section_has_its_own(tmp_path: Path) -> None:
    path = filled(tmp_path / "a.tif", "65535", "u2", frames=3)
    with pytest.raises(MicrographError, match=r"a\.tif: its frames have pixels of the fill value 65535"):
        formats.read(path, LIMIT)
    assert formats.read(path, LIMIT, 1).metadata["fill"] == 65535
    zeros = filled(tmp_path / "b.tif", "0", "u2", frames=3)
    assert formats.read(zeros, LIMIT).pixels[:40, :40].max() == 0  # zeros add nothing


@pytest.mark.parametrize("value", [1e30, -1e30, 3.4028234663852886e38, -3.4028234663852886e38])
@pytest.mark.parametrize("side", [40, 1])
def test_values_that_dwarf_all_others_were_not_recorded(tmp_path: Path, value: float, side: int) -> None:
    image = np.random.default_rng(0).poisson(60, (96, 96)).astype(np.float32)
    image[90, 90] = np.nan
    image[:side, :side] = value
    tifffile.imwrite(tmp_path / "a.tif", image, **PLAIN)
    found = formats.read(tmp_path / "a.tif", LIMIT)
    assert found.metadata["fill"] == float(np.float32(value)) and "more than a million times" in found.warnings[0]
    choice = scaled(Profile(name="p", gain=1.0), "test", found, dose_evidence(found))
    one = plane(found.pixels, choice, load(locate("fast")).dose_range)
    prepared = one.prepare(spikes.survey(found.pixels, one.gain, one.offset, one.false_alarm))
    assert prepared.dose == pytest.approx(60, rel=0.01)


@pytest.mark.parametrize("factor", [1e30, 1e-30, 1.0])
def test_large_values_that_dwarf_none_are_counts(tmp_path: Path, factor: float) -> None:
    image = (np.random.default_rng(0).poisson(60, (96, 96)) * factor).astype(np.float32)
    image[0, 0] *= 1e4
    image[1, 1] = np.inf
    tifffile.imwrite(tmp_path / "a.tif", image, **PLAIN)
    assert "fill" not in formats.read(tmp_path / "a.tif", LIMIT).metadata
    tifffile.imwrite(tmp_path / "a.tif", np.full((48, 48), factor, np.float32), **PLAIN)
    assert "fill" not in formats.read(tmp_path / "a.tif", LIMIT).metadata
