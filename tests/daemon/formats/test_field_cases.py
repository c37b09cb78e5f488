"""Cases from the field: what a file says of its values, axes, pages and strips is heeded, handed on, or refused."""

import json
import struct
import subprocess
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
from hyperspy_file import write_hyperspy
from mrc_bytes import write_mrc

from daemon import formats
from daemon.arrival import rules
from daemon.commands import main
from daemon.errors import MicrographError
from daemon.formats import turned
from daemon.formats.partial import open_result
from daemon.micrograph import Micrograph, PixelSize
from daemon.output.record import Raw, Record
from daemon.output.writing import write_outputs
from daemon.settings.config import Arrival
from daemon.settings.names import told_apart
from daemon.settings.profile import Match

LIMIT = 1 << 24
COUNTS = np.random.default_rng(0).poisson(60, (48, 64)).astype(np.uint16)
PLAIN: dict[str, Any] = {"photometric": "minisblack", "metadata": None}


def tiff(path: Path, data: np.ndarray[Any, Any], **options: Any) -> Path:
    tifffile.imwrite(path, data, **{**PLAIN, **options})
    return path


def metres(path: Path) -> tuple[float, float]:
    """Sides y and x of a pixel, in nm."""
    size = formats.read(path, LIMIT).pixel_size
    assert size is not None
    nm = {"nm": 1.0, "um": 1e3, "pm": 1e-3, "angstrom": 0.1, "m": 1e9}[size.unit]
    return size.y * nm, size.x * nm


# --- values ---------------------------------------------------------------------------------------------------------


def imagej(*lines: str) -> str:
    return "\n".join(("ImageJ=1.53t", "unit=nm", *lines, ""))


@pytest.mark.parametrize(
    ("stored", "lines", "expected", "dtype"),
    [
        (COUNTS - 20 + 32768, ("cf=0", "c0=-32768.0", "c1=1.0"), COUNTS.astype(int) - 20, "int16"),
        (COUNTS, ("cf=0", "c0=-10.5", "c1=0.5"), COUNTS * 0.5 - 10.5, "float32"),
        ((4095 - COUNTS), ("cf=0", "c0=4095.0", "c1=-1.0"), COUNTS, "int32"),
        (COUNTS.astype(np.uint8), ("cf=0", "c0=100.0", "c1=2.0"), 100 + 2 * COUNTS, "uint16"),
        (COUNTS, ("cf=20",), COUNTS, "uint16"),
        (COUNTS, ("vunit=gray value",), COUNTS, "uint16"),
    ],
    ids=["signed", "fraction", "inverted", "bytes", "none", "unit-only"],
)
def test_imagej_calibration_is_applied_and_recorded(
    tmp_path: Path, stored: np.ndarray[Any, Any], lines: tuple[str, ...], expected: np.ndarray[Any, Any], dtype: str
) -> None:
    found = formats.read(tiff(tmp_path / "a.tif", stored, description=imagej(*lines)), LIMIT)
    np.testing.assert_array_equal(found.pixels, expected)
    assert found.pixels.dtype == dtype
    applied = not np.array_equal(stored, expected)
    assert ("values" in found.metadata) == applied == any("calibration was applied" in text for text in found.warnings)


def test_a_calibrated_movie_is_calibrated_before_it_is_summed(tmp_path: Path) -> None:
    path = tmp_path / "a_movie.tif"
    with tifffile.TiffWriter(path) as writer:
        for _ in range(3):
            writer.write(COUNTS + 100, contiguous=False, description=imagej("cf=0", "c0=-100", "c1=1"), **PLAIN)
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, 3 * COUNTS.astype(int))


@pytest.mark.parametrize("number", [1, 5, 21])
def test_a_curve_of_calibration_is_refused(tmp_path: Path, number: int) -> None:
    path = tiff(tmp_path / "a.tif", COUNTS, description=imagej(f"cf={number}", "c0=1", "c1=2", "c2=3"))
    with pytest.raises(MicrographError, match="calibrated by a curve"):
        formats.read(path, LIMIT)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (4095 - COUNTS, 65535 - (4095 - COUNTS.astype(int))),
        ((255 - COUNTS).astype(np.uint8), COUNTS),
        (-COUNTS.astype(np.float32), COUNTS),
        (-COUNTS.astype(np.int16), COUNTS),
    ],
    ids=["uint16", "uint8", "float", "int16"],
)
def test_white_is_zero_is_turned_and_told(
    tmp_path: Path, stored: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]
) -> None:
    path = tiff(tmp_path / "a.tif", stored, photometric="miniswhite")
    found = formats.read(path, LIMIT)
    np.testing.assert_array_equal(found.pixels, expected)
    assert "WhiteIsZero was applied" in found.warnings[0] and found.metadata["values"]["slope"] == -1.0
    formats.write(tmp_path / "out.tif", "tiff", found.pixels.astype(np.float32), found, {})
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.pages.first.photometric.name == "MINISBLACK"


def test_a_palette_from_white_to_black_is_turned_too(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint16)[::-1] * 257, (3, 1))
    stored = (255 - COUNTS).astype(np.uint8)
    found = formats.read(tiff(tmp_path / "a.tif", stored, photometric="palette", colormap=ramp), LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    assert "A palette from white to black was applied" in found.warnings[0]


def test_tags_that_only_turn_or_label_are_handed_on(tmp_path: Path) -> None:
    tags = [
        (274, "H", 1, 6, True),
        (65022, "s", 0, "e-", True),
        (65024, "d", 1, 12.5, True),
        (65025, "d", 1, 0.25, True),
    ]
    found = formats.read(tiff(tmp_path / "a.tif", COUNTS, extratags=tags), LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    for ome in (False, True):
        like = Micrograph(found.pixels, found.source, "tiff", None, {**found.metadata, "ome": ome})
        formats.write(tmp_path / "out.tif", "tiff", COUNTS.astype(np.float32), like, {})
        with tifffile.TiffFile(tmp_path / "out.tif") as file:
            written = file.pages.first.tags
            assert [written[code].value for code in (274, 65022, 65024, 65025)] == [6, "e-", 12.5, 0.25]


def test_floats_whose_tag_was_left_out_are_read_as_floats_and_both_readings_told(tmp_path: Path) -> None:
    path = raw_tiff(tmp_path / "a.tif", COUNTS.astype("<f4"), bits=32)
    found = formats.read(path, LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    assert "read as floating-point" in found.warnings[0] and "1.1" in found.warnings[0].rpartition("they would be")[2]
    whole = raw_tiff(tmp_path / "b.tif", COUNTS.astype("<u4"), bits=32)
    assert formats.read(whole, LIMIT).warnings == () and formats.read(whole, LIMIT).pixels.dtype == np.uint32


# --- axes -----------------------------------------------------------------------------------------------------------

OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels '
    'ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="64" SizeY="48" SizeZ="1" SizeC="1" SizeT="1" {}>'
    "<TiffData/></Pixels></Image></OME>"
)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ('PhysicalSizeX="0.25" PhysicalSizeXUnit="nm" PhysicalSizeY="250" PhysicalSizeYUnit="pm"', (0.25, 0.25)),
        ('PhysicalSizeX="5" PhysicalSizeXUnit="nm" PhysicalSizeY="0.005"', (5, 5)),  # the schema's default: microns
        ('PhysicalSizeX="5" PhysicalSizeXUnit="nm" PhysicalSizeY="5"', (5, 5)),
        ('PhysicalSizeX="0.5" PhysicalSizeY="0.25"', (250, 500)),
    ],
)
def test_ome_states_a_unit_for_each_axis(tmp_path: Path, stated: str, expected: tuple[float, float]) -> None:
    path = tiff(tmp_path / "a.ome.tif", COUNTS, description=OME.format(stated).encode())
    assert metres(path) == pytest.approx(expected)


def test_gatan_and_imagej_state_a_unit_for_each_axis(tmp_path: Path) -> None:
    units = [(65003, "s", 0, "nm", True), (65004, "s", 0, b"\xb5m", True)]
    sides = [(65009, "d", 1, 5.1, True), (65010, "d", 1, 0.0051, True)]
    assert metres(tiff(tmp_path / "g.tif", COUNTS, extratags=units + sides)) == pytest.approx((5.1, 5.1))
    path = tiff(tmp_path / "i.tif", COUNTS, description=imagej("yunit=um"), resolution=(1 / 5.1, 1 / 0.0051))
    assert metres(path) == pytest.approx((5.1, 5.1))
    path = tiff(tmp_path / "u.tif", COUNTS, description=imagej("yunit=parsec"), resolution=(1, 1))
    assert formats.read(path, LIMIT).pixel_size is None  # not a length that is known: never guessed
    path = tiff(tmp_path / "r.tif", COUNTS, description=imagej("yunit=1/nm"), resolution=(1, 1))
    with pytest.raises(MicrographError, match=r"diffraction pattern .*1/nm"):
        formats.read(path, LIMIT)


def test_hyperspy_states_unit_and_name_for_each_axis(tmp_path: Path) -> None:
    path = tmp_path / "a.hspy"
    write_hyperspy(path, COUNTS)
    with h5py.File(path, "r+") as file:
        (one,) = file["Experiments"].values()
        one["axis-0"].attrs.update(units="µm", scale=0.0051)
        one["axis-1"].attrs.update(units="nm", scale=7.0)
    assert metres(path) == pytest.approx((5.1, 7))
    lying = tmp_path / "b.hspy"
    lying.write_bytes(path.read_bytes())
    with h5py.File(lying, "r+") as file:
        (one,) = file["Experiments"].values()
        one["axis-0"].attrs["name"], one["axis-1"].attrs["name"] = "x", "y"
    np.testing.assert_array_equal(formats.read(lying, LIMIT).pixels, COUNTS.T)
    assert metres(lying) == pytest.approx((7, 5.1))


@pytest.mark.parametrize(
    ("names", "upright"), [(("y", "x"), True), (("Y", "X"), True), (("x", "y"), False), (("R_y", "R_x"), True)]
)
def test_a_berkeley_emd_is_the_way_up_that_its_axes_name(tmp_path: Path, names: tuple[str, str], upright: bool) -> None:
    path = tmp_path / "a.emd"
    with h5py.File(path, "w") as file:
        file.attrs.update(version_major=0, version_minor=2)
        group = file.create_group("data/image")
        group.attrs["emd_group_type"] = 1
        group["data"] = COUNTS.astype("f4")
        for number, (name, step) in enumerate(zip(names, (0.05, 0.2), strict=True), 1):
            dim = group.create_dataset(f"dim{number}", data=np.arange(COUNTS.shape[number - 1]) * step)
            dim.attrs["name"], dim.attrs["units"] = np.bytes_(name), np.bytes_("[n_m]")
        for part in ("user", "microscope", "sample", "comments"):
            file.create_group(part)
    found = formats.read(path, LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS if upright else COUNTS.T)
    assert metres(path) == pytest.approx((0.05, 0.2) if upright else (0.2, 0.05))


# --- pages and strips -----------------------------------------------------------------------------------------------


def several(path: Path, *pages: np.ndarray[Any, Any]) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for page in pages:
            writer.write(page, contiguous=False, **PLAIN)
    return path


def test_of_a_copy_for_display_and_the_raw_image_the_deepest_is_read(tmp_path: Path) -> None:
    display = COUNTS.astype(np.uint8)
    for pages in ((display, COUNTS), (COUNTS, display)):
        found = formats.read(several(tmp_path / "a.tif", *pages), LIMIT)
        np.testing.assert_array_equal(found.pixels, COUNTS)
        assert "1 other page of the file" in found.warnings[0]


@pytest.mark.parametrize(
    "pages",
    [
        (COUNTS.astype(np.uint8), COUNTS[::2, ::2]),  # larger and shallower
        (COUNTS, COUNTS.astype(np.int16)),
        (COUNTS.astype(np.uint32), COUNTS.astype(np.float32)),
        (COUNTS, np.ascontiguousarray(COUNTS.T)),
    ],
    ids=["larger-and-shallower", "signed-and-not", "whole-and-float", "other-shape"],
)
def test_where_nothing_says_which_page_is_the_micrograph_it_is_refused(
    tmp_path: Path, pages: tuple[np.ndarray[Any, Any], ...]
) -> None:
    with pytest.raises(MicrographError, match=r"images of several kinds .* save that one as a separate file"):
        formats.read(several(tmp_path / "a.tif", *pages), LIMIT)


def test_a_deeper_image_in_a_sub_directory_is_not_passed_over(tmp_path: Path) -> None:
    for inner, refused in ((COUNTS, True), (COUNTS.astype(np.uint8)[::2, ::2], False)):
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            writer.write(COUNTS.astype(np.uint8), subifds=1, **PLAIN)
            writer.write(inner, **PLAIN)
        if refused:
            with pytest.raises(MicrographError, match="images of several kinds"):
                formats.read(tmp_path / "a.tif", LIMIT)
        else:  # a pyramid
            assert formats.read(tmp_path / "a.tif", LIMIT).pixels.shape == COUNTS.shape


def raw_tiff(
    path: Path, data: np.ndarray[Any, Any], bits: int = 16, lengths: Any = None, rows: int | None = None
) -> Path:
    """One strip or, with `rows` and several `lengths`, more; without any tag that is not needed."""
    height, width = data.shape
    lengths = [data.nbytes] if lengths is None else lengths
    strips = len(lengths)
    values = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 0, 277: 1, 278: rows or height, 279: 0}
    start = 8 + 2 + 12 * len(values) + 4
    pixels = start + (0 if strips == 1 else 8 * strips)
    offsets = [pixels + number * (rows or height) * width * data.itemsize for number in range(strips)]
    values[273], values[279] = (offsets[0], lengths[0]) if strips == 1 else (start, start + 4 * strips)
    tables = b"" if strips == 1 else struct.pack(f"<{2 * strips}I", *offsets, *lengths)
    entries = b"".join(
        struct.pack("<HHII", code, 4, strips if code in (273, 279) else 1, value) for code, value in values.items()
    )
    head = struct.pack("<2sHIH", b"II", 42, 8, len(values)) + entries + struct.pack("<I", 0)
    path.write_bytes(head + tables + data.tobytes())
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"lengths": [0]},
        {"lengths": [COUNTS.size]},
        {"lengths": [1]},
        {"rows": 1},
        {"rows": 16, "lengths": [0, 0, 0]},
        {"rows": 16, "lengths": [64, 64, 64]},
        {"rows": 20, "lengths": [2560, 2560, 10]},
    ],
    ids=["zero", "pixels", "one", "rows-in-strip", "zeros", "too-few", "last-too-short"],
)
def test_a_wrong_length_of_strips_vetoes_no_pixels(tmp_path: Path, options: dict[str, Any]) -> None:
    path = raw_tiff(tmp_path / "a.tif", COUNTS, **options)
    found = formats.read(path, LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    assert any("wrong number of" in text for text in found.warnings)
    assert formats.probe(path).state == "complete"


def test_strips_that_would_overlap_are_not_guessed(tmp_path: Path) -> None:
    path = raw_tiff(tmp_path / "a.tif", COUNTS, rows=16, lengths=[100, 100, 100])
    data = bytearray(path.read_bytes())
    first = int.from_bytes(data[8 + 2 + 12 * 5 + 8 :][:4], "little")
    start = struct.unpack_from("<I", data, first)[0]
    struct.pack_into("<3I", data, first, start, start + 100, start + 200)
    path.write_bytes(bytes(data))
    with pytest.raises(MicrographError, match="fewer bytes than their rows need"):
        formats.read(path, LIMIT)


def test_a_description_of_no_length_vetoes_nothing(tmp_path: Path) -> None:
    path = raw_tiff(tmp_path / "a.tif", COUNTS)
    data = bytearray(path.read_bytes())
    struct.pack_into("<HHII", data, 8 + 2 + 12 * 6, 270, 2, 0, 0)  # in the place of SamplesPerPixel, whose default is 1
    path.write_bytes(bytes(data))
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, COUNTS)


def test_a_description_older_than_the_file_vetoes_nothing_and_a_cut_stack_is_still_one(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", COUNTS, description="ImageJ=1.53t\nimages=3\nframes=3\n")
    found = formats.read(path, LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    assert "declares frames that the file does not contain" in found.warnings[0] and formats.count(path) == 1
    with path.open("ab") as stream:
        stream.write(bytes(COUNTS.nbytes // 2))
    with pytest.raises(MicrographError, match="declares 3 frames, the file is too short for them"):
        formats.read(path, LIMIT)


def test_a_sparse_copy_is_as_good_as_the_file(tmp_path: Path) -> None:
    dark = COUNTS.repeat(8, 0).repeat(8, 1).astype(np.int16)
    dark[-160:] = 0
    whole, copy = tmp_path / "dense.mrc", tmp_path / "sparse.mrc"
    mrcfile.write(whole, dark)
    subprocess.run(["cp", "--sparse=always", whole, copy], check=True)
    assert formats.probe(copy) == formats.probe(whole)
    assert not formats.probe(copy).proven
    np.testing.assert_array_equal(formats.read(copy, LIMIT).pixels, dark)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"\xfd7zXZ\0", "compressed with xz"),
        (b"\x28\xb5\x2f\xfd", "compressed with Zstandard"),
        (b"\x04\x22\x4d\x18", "compressed with LZ4"),
        (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    ],
)
def test_a_file_compressed_as_a_whole_is_refused_for_its_reason(tmp_path: Path, head: bytes, reason: str) -> None:
    path = tmp_path / "a.mrc"
    path.write_bytes(head + b"\xa5" * 4000)
    with pytest.raises(MicrographError, match=rf"a\.mrc: is {reason}, which is not read"):
        formats.read(path, LIMIT)


@pytest.mark.parametrize("mode", [1001, 2002, 6006])
def test_a_compressed_mrc_is_refused_for_its_reason(tmp_path: Path, mode: int) -> None:
    path = write_mrc(tmp_path / "a.mrc", COUNTS[:2].astype(np.int16), mode=mode)
    with pytest.raises(MicrographError, match=r"compressed MRC \(MRCZ\)"):
        formats.read(path, LIMIT)
    assert formats.probe(path).state == "complete"


# --- which way up ---------------------------------------------------------------------------------------------------


def result(tmp_path: Path, micrograph: Micrograph, kind: formats.Kind) -> tuple[Path, list[int]]:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    written = write_outputs(
        out, PurePosixPath(micrograph.source.name), 1, micrograph, micrograph.pixels.astype(np.float32),
        Record(raw=Raw(sha256=str(len(list(out.iterdir()))))), kind=kind, preview_pixels=None,
    )  # fmt: skip
    return written.image, list(written.content.output.turned)


def test_a_tiff_becomes_an_mrc_as_imod_and_relion_convert(tmp_path: Path) -> None:
    micrograph = formats.read(tiff(tmp_path / "a.tif", COUNTS), LIMIT)
    image, turns = result(tmp_path, micrograph, "mrc")
    np.testing.assert_array_equal(mrcfile.read(image), COUNTS[::-1])  # shown from the bottom, it is the same way up
    assert turns == [turned.FLIP]
    shown = open_result(image, COUNTS.shape, turns)
    assert shown is not None
    np.testing.assert_array_equal(shown[0:48, 0:64], COUNTS)
    np.testing.assert_array_equal(shown[5:9, 3:8], COUNTS[5:9, 3:8])


def test_an_mrc_becomes_a_tiff_likewise_and_stays_as_it_is_in_its_own_format(tmp_path: Path) -> None:
    mrcfile.write(tmp_path / "a.mrc", COUNTS)
    micrograph = formats.read(tmp_path / "a.mrc", LIMIT)
    image, turns = result(tmp_path, micrograph, "tiff")
    np.testing.assert_array_equal(tifffile.imread(image), COUNTS[::-1])
    assert turns == [turned.FLIP]
    image, turns = result(tmp_path, micrograph, "mrc")
    np.testing.assert_array_equal(mrcfile.read(image), COUNTS)
    assert turns == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_that_mrc_cannot_state_is_applied_and_can_be_undone(tmp_path: Path, orientation: int) -> None:
    upright = {
        1: COUNTS, 2: COUNTS[:, ::-1], 3: COUNTS[::-1, ::-1], 4: COUNTS[::-1], 5: COUNTS.T,
        6: np.rot90(COUNTS, -1), 7: COUNTS.T[::-1, ::-1], 8: np.rot90(COUNTS),
    }[orientation]  # fmt: skip
    tags = [(274, "H", 1, orientation, True)]
    micrograph = formats.read(tiff(tmp_path / "a.tif", COUNTS, extratags=tags, resolution=(1e7, 2e7)), LIMIT)
    image, turns = result(tmp_path, micrograph, "mrc")
    again = formats.read(image, LIMIT)
    np.testing.assert_array_equal(again.pixels[::-1], upright)
    np.testing.assert_array_equal(turned.undone(again.pixels, turns), COUNTS)
    one, other = micrograph.pixel_size, again.pixel_size
    assert isinstance(one, PixelSize) and isinstance(other, PixelSize)
    ratio = one.x / one.y if orientation < 5 else one.y / one.x
    assert other.x / other.y == pytest.approx(ratio)


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("pattern", ["NFC", "NFD"])
def test_rules_do_not_care_how_a_letter_is_composed(form: str, pattern: str) -> None:
    folder, stated = unicodedata.normalize(form, "Müller"), unicodedata.normalize(pattern, "müll*")
    assert Match(folder=stated).path_fits(PurePosixPath(folder, "tag 2", "x.mrc"))
    assert Match(name=stated).path_fits(PurePosixPath("a", folder + ".mrc"))
    arrival = Arrival(ignore=(stated,), sections=(stated + "/*",), frames=(stated,), require_sidecar="serialem")
    assert rules.ignores(arrival, folder) and rules.of_frames(arrival, f"{folder}.tif")
    assert rules.by_section(arrival, f"{folder}/a.mrc")
    assert rules.sidecars(arrival, f"{folder}.mrc")[0] == unicodedata.normalize("NFC", "müller.mrc.mdoc")


def test_files_of_one_call_are_told_apart(tmp_path: Path) -> None:
    names = ("A/img.tif", "B/img.tif", "000123_img.tif", "x/B/img.tif", "other.tif")
    paths = [tmp_path / name for name in names]
    found = told_apart(paths)
    base = tmp_path.name
    assert [found[path].as_posix() for path in paths] == [
        "A/img.tif", f"{base}/B/img.tif", "000123_img.tif", "x/B/img.tif", "other.tif",
    ]  # fmt: skip
    assert list(told_apart([paths[0], paths[0]]).values()) == [PurePosixPath("img.tif")]


def test_links_keep_their_names_and_namesakes_their_folders(tmp_path: Path) -> None:
    given = []
    for folder, dose in (("A", 60), ("B", 30)):
        (tmp_path / folder).mkdir()
        counts = np.random.default_rng(dose).poisson(dose, (64, 64)).astype(np.uint16)
        given.append(tiff(tmp_path / folder / "img.tif", counts))
    for link, target in (("000123_img.tif", "A/img.tif"), ("000124_img.tif", "B/img.tif")):
        (tmp_path / link).symlink_to(target)
        given.append(tmp_path / link)
    out = tmp_path / "out"
    assert main.main(["denoise", *map(str, given), "-o", str(out)]) == 0
    means = {path.relative_to(out).as_posix(): float(tifffile.imread(path).mean()) for path in out.rglob("*.tif")}
    assert set(means) == {"A/img.tif", "B/img.tif", "000123_img.tif", "000124_img.tif"}
    for name, mean in means.items():
        assert mean == pytest.approx(60 if name in ("A/img.tif", "000123_img.tif") else 30, rel=0.05)
        record = json.loads((out / f"{name}.json").read_text())
        assert record["raw"]["relative"] == name
