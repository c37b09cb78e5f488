"""Reading, probing and writing micrograph files: what is read is right, what is refused is refused for its reason."""

import errno
import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon import formats
from daemon.errors import EmdenoisedError, MicrographError, TransientError
from daemon.formats.reading import explained
from daemon.micrograph import Micrograph, PixelSize
from daemon.service import raw_file

LIMIT = 1 << 24
DATA = Path(os.environ.get("EMDENOISED_DATA", Path(__file__).parents[4] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "formats").is_dir(), reason=f"real micrographs are not at {DATA}; set EMDENOISED_DATA"
)


def image(height: int = 48, width: int = 40, dtype: Any = np.uint16) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(7)
    values = rng.poisson(60, (height, width)) + 1
    return values.astype(dtype)


def write_mrc(path: Path, data: np.ndarray[Any, Any], voxel: float | None = None, ispg: int | None = None) -> Path:
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(data)
        if voxel is not None:
            mrc.voxel_size = voxel
        if ispg is not None:
            mrc.header.ispg = ispg
    return path


# --- TIFF -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8", ">u2", ">f4"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib", "predictor": True},
        {"compression": "lzw"},
        {"tile": (16, 32)},
        {"rowsperstrip": 7},
        {"bigtiff": True},
        {"tile": (32, 32), "compression": "zlib"},
    ],
    ids=str,
)
def test_every_number_type_and_arrangement_is_read(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    if options.get("predictor") and dtype == "f2":
        options = {"compression": "zlib"}
    path, data = tmp_path / "a.tif", image(dtype=dtype)
    tifffile.imwrite(path, data, byteorder=">" if dtype[0] == ">" else "<", **options)
    micrograph = formats.read(path, LIMIT)
    np.testing.assert_array_equal(micrograph.pixels, data)
    assert micrograph.pixels.dtype == np.dtype(dtype).newbyteorder("=") and micrograph.pixels.dtype.isnative
    assert micrograph.kind == "tiff" and micrograph.pixel_size is None and micrograph.warnings == ()
    assert formats.probe(path) == formats.Completeness("complete")


@pytest.mark.parametrize("compression", ["lzw", "deflate", "zlib", "packbits", "lzma", "zstd"])
@pytest.mark.parametrize(("dtype", "predictor"), [("u1", False), ("i2", True), ("u2", True), ("f4", False), ("f4", 3)])
def test_every_compression_that_cameras_use(tmp_path: Path, compression: str, dtype: str, predictor: int) -> None:
    path, data = tmp_path / "a.tif", image(dtype=dtype)
    tifffile.imwrite(path, data, compression=compression, predictor=False if compression == "packbits" else predictor)
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, data)


def test_jpeg_is_read_as_well_as_it_kept_the_image(tmp_path: Path) -> None:
    path, data = tmp_path / "a.tif", image(dtype=np.uint8)
    tifffile.imwrite(path, data, compression="jpeg", compressionargs={"level": 100})
    micrograph = formats.read(path, LIMIT)
    assert micrograph.pixels.dtype == np.uint8
    np.testing.assert_allclose(micrograph.pixels.astype(int), data, atol=2)


@pytest.mark.parametrize("compression", ["jpeg2000", "lerc", "jpegxl"])
def test_a_compression_whose_output_is_not_bounded_is_refused_with_the_remedy(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image(dtype=np.uint8), compression=compression)
    with pytest.raises(MicrographError, match="export it without compression, or with LZW or deflate"):
        formats.read(path, LIMIT)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("nm", "nm"),
        ("micron", "um"),
        ("\\u00B5m", "um"),
        ("um", "um"),
        ("\\u00C5", "angstrom"),
        ("A", "angstrom"),
        ("mm", "mm"),
    ],
)
def test_imagej_pixel_size(tmp_path: Path, unit: str, expected: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image(), imagej=True, resolution=(4, 5), metadata={"unit": unit})
    assert formats.read(path, LIMIT).pixel_size == PixelSize(y=0.2, x=0.25, unit=expected)


@pytest.mark.parametrize("unit", ["pixel", "", "inch"])
def test_imagej_without_a_scale_has_no_pixel_size(tmp_path: Path, unit: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image(), imagej=True, resolution=(1, 1), metadata={"unit": unit})
    assert formats.read(path, LIMIT).pixel_size is None


@pytest.mark.parametrize("unit", ["1/nm", "1 / nm", "nm^-1", "nm-1", "1/A", "mrad", "nm\\u207b\\u00b9"])
def test_diffraction_patterns_are_left_alone(tmp_path: Path, unit: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image(), imagej=True, resolution=(4, 4), metadata={"unit": unit})
    with pytest.raises(MicrographError, match="diffraction pattern"):
        formats.read(path, LIMIT)


def test_ome_pixel_size(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path,
        image(),
        ome=True,
        metadata={
            "axes": "YX",
            "PhysicalSizeX": 0.5,
            "PhysicalSizeXUnit": "nm",
            "PhysicalSizeY": 0.25,
            "PhysicalSizeYUnit": "nm",
        },
    )
    micrograph = formats.read(path, LIMIT)
    assert micrograph.pixel_size == PixelSize(y=0.25, x=0.5, unit="nm")
    assert micrograph.metadata["ome"] is True


@pytest.mark.parametrize("dpi", [72, 96, 300, 600, 2540])
def test_a_print_resolution_is_no_pixel_size(tmp_path: Path, dpi: int) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image(), resolution=(dpi, dpi), resolutionunit="INCH", metadata=None)
    assert formats.read(path, LIMIT).pixel_size is None


def test_a_resolution_no_printer_has_is_a_pixel_size(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image(), resolution=(10_000_000, 5_000_000), resolutionunit="CENTIMETER", metadata=None)
    size = formats.read(path, LIMIT).pixel_size
    assert size is not None and size.unit == "nm"
    assert (size.y, size.x) == pytest.approx((2.0, 1.0))


def test_gatan_tags(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tags = [(65003, "s", 0, "nm", True), (65009, "d", 1, 0.5, True), (65010, "d", 1, 0.25, True)]
    tifffile.imwrite(path, image(), extratags=tags, metadata=None)
    assert formats.read(path, LIMIT).pixel_size == PixelSize(y=0.25, x=0.5, unit="nm")


@pytest.mark.parametrize(("dtype", "wide"), [("u1", "u4"), ("i2", "i4"), ("u2", "u4"), ("f4", "f4"), ("f8", "f8")])
def test_a_movie_is_summed_without_overflow(tmp_path: Path, dtype: str, wide: str) -> None:
    top = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else 1e6
    frames = np.full((5, 33, 35), top, dtype)
    frames[2, 3, 4] = 1
    path = tmp_path / "movie.tif"
    tifffile.imwrite(path, frames, photometric="minisblack")
    micrograph = formats.read(path, LIMIT)
    np.testing.assert_array_equal(micrograph.pixels, frames.sum(axis=0, dtype=np.float64))
    assert micrograph.pixels.dtype == np.dtype(wide)
    assert micrograph.metadata["frames"] == 5 and "5 frames" in micrograph.warnings[0]


def test_an_imagej_stack_with_one_directory_is_summed(tmp_path: Path) -> None:
    frames = np.stack([image() + i for i in range(4)])
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, frames[0], description="ImageJ=1.54f\nimages=4\nslices=4\n", metadata=None, byteorder=">")
    with tifffile.TiffFile(path) as file:
        start = file.pages.first.dataoffsets[0]
    path.write_bytes(path.read_bytes()[:start] + frames.astype(">u2").tobytes())
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, frames.sum(axis=0))
    path.write_bytes(path.read_bytes()[:-100])
    assert formats.probe(path).proven
    with pytest.raises(MicrographError, match="too short"):
        formats.read(path, LIMIT)


@pytest.mark.parametrize("kind", ["pages", "volume", "contiguous", "ome", "mrc"])
def test_one_section_of_a_stack(tmp_path: Path, kind: str) -> None:
    frames = np.stack([image() + number for number in range(4)])
    path = tmp_path / "stack.tif"
    match kind:
        case "pages":
            with tifffile.TiffWriter(path) as writer:
                for frame in frames:
                    writer.write(frame, photometric="minisblack", contiguous=False)
        case "volume":
            tifffile.imwrite(path, frames, photometric="minisblack", volumetric=True, tile=(2, 16, 16))
        case "contiguous":
            tifffile.imwrite(path, frames, imagej=True, metadata={"axes": "ZYX"})
        case "ome":
            tifffile.imwrite(path, frames, ome=True, photometric="minisblack", metadata={"axes": "ZYX"})
        case "mrc":
            path = write_mrc(tmp_path / "stack.st", frames, ispg=0)
    for number, frame in enumerate(frames):
        one = formats.read(path, LIMIT, number)
        np.testing.assert_array_equal(one.pixels, frame)
        assert one.pixels.dtype == np.uint16 and one.metadata["frames"] == 1
        assert (one.metadata["section"], one.metadata["sections"]) == (number + 1, 4)
        assert not [warning for warning in one.warnings if "summed" in warning or "left out" in warning]
    with pytest.raises(MicrographError, match="has 4 sections and not the 5 it had"):
        formats.read(path, LIMIT, 4)


def test_a_section_is_read_while_the_next_is_being_written(tmp_path: Path) -> None:
    frames = np.stack([image() + number for number in range(3)])
    path = write_mrc(tmp_path / "tilt.st", frames, ispg=0)
    path.write_bytes(path.read_bytes()[:-100])
    one = formats.read(path, LIMIT, 1)
    np.testing.assert_array_equal(one.pixels, frames[1])
    assert one.metadata["sections"] == 2
    with pytest.raises(MicrographError, match="has 2 sections"):
        formats.read(path, LIMIT, 2)


def test_a_colour_thumbnail_beside_the_micrograph_is_left_out(tmp_path: Path) -> None:
    path, data = tmp_path / "a.tif", image()
    with tifffile.TiffWriter(path) as writer:
        writer.write(np.zeros((20, 20, 3), np.uint8), photometric="rgb", metadata=None)
        writer.write(data, metadata=None)
    micrograph = formats.read(path, LIMIT)
    np.testing.assert_array_equal(micrograph.pixels, data)
    assert "1 other page of the file" in micrograph.warnings[0]


def palette(path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 65535, (3, 256)).astype(np.uint16)
    tifffile.imwrite(path, image(dtype=np.uint8), photometric="palette", colormap=colours)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: tifffile.imwrite(path, np.zeros((32, 32, 3), np.uint8), photometric="rgb"), "RGB colour"),
        (lambda path: tifffile.imwrite(path, np.zeros((32, 32, 4), np.uint16), photometric="rgb"), "RGB colour"),
        (
            lambda path: tifffile.imwrite(
                path, np.zeros((32, 32, 2), np.uint8), planarconfig="contig", photometric="minisblack"
            ),
            "2 values per pixel",
        ),
        (
            lambda path: tifffile.imwrite(path, np.ones((3, 32, 32), np.uint16), imagej=True, metadata={"axes": "CYX"}),
            "several channels",
        ),
        (
            lambda path: tifffile.imwrite(
                path, np.ones((3, 32, 32), np.uint16), ome=True, photometric="minisblack", metadata={"axes": "CYX"}
            ),
            "several channels",
        ),
        (
            lambda path: tifffile.imwrite(
                path, np.ones((3, 32, 32), np.uint16), photometric="minisblack", metadata={"axes": "CYX"}
            ),
            "several channels",
        ),
        (lambda path: tifffile.imwrite(path, image(dtype=np.complex64)), "complex"),
        (lambda path: tifffile.imwrite(path, image() > 60), "black-and-white"),
        (palette, "palette"),
        (lambda path: tifffile.imwrite(path, np.arange(64, dtype=np.uint16).reshape(1, 64)), "line of 64"),
    ],
    ids=[
        "rgb",
        "rgba",
        "two-samples",
        "imagej-channels",
        "ome-channels",
        "channels",
        "complex",
        "bilevel",
        "palette",
        "line",
    ],
)
def test_what_is_no_micrograph_is_refused_for_its_reason(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "a.tif"
    make(path)
    with pytest.raises(MicrographError, match=reason) as caught:
        formats.read(path, LIMIT)
    assert str(path) in str(caught.value)


def test_a_grey_palette_is_only_a_way_to_display(tmp_path: Path) -> None:
    path, data = tmp_path / "a.tif", image(dtype=np.uint8)
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (3, 1))
    tifffile.imwrite(path, data, photometric="palette", colormap=ramp)
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, data)


def test_nan_is_kept_for_the_next_step(tmp_path: Path) -> None:
    path, data = tmp_path / "a.tif", image(dtype=np.float32)
    data[3, 4] = np.nan
    tifffile.imwrite(path, data)
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, data)


# --- MRC ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "dtype"), [(0, "i1"), (1, "i2"), (2, "f4"), (6, "u2"), (12, "f2")])
def test_mrc_modes(tmp_path: Path, mode: int, dtype: str) -> None:
    data = image(dtype=dtype)
    path = write_mrc(tmp_path / "a.mrc", data, voxel=1.5)
    micrograph = formats.read(path, LIMIT)
    np.testing.assert_array_equal(micrograph.pixels, data)
    assert micrograph.pixels.dtype == np.dtype(dtype) and micrograph.kind == "mrc"
    assert micrograph.pixel_size is not None and micrograph.pixel_size.unit == "angstrom"
    assert (micrograph.pixel_size.y, micrograph.pixel_size.x) == pytest.approx((1.5, 1.5))
    assert formats.probe(path).state == "complete"
    assert struct.unpack_from("<i", path.read_bytes(), 12)[0] == mode


def test_mrc_stack_is_summed_and_a_map_is_refused(tmp_path: Path) -> None:
    frames = np.stack([image(dtype=np.int16) for _ in range(3)])
    micrograph = formats.read(write_mrc(tmp_path / "movie.mrcs", frames, ispg=0), LIMIT)
    np.testing.assert_array_equal(micrograph.pixels, frames.sum(axis=0))
    assert micrograph.pixel_size is None
    with pytest.raises(MicrographError, match="three-dimensional map"):
        formats.read(write_mrc(tmp_path / "map.mrc", frames.astype(np.float32), ispg=4), LIMIT)


def test_odd_mrc_headers_are_tolerated(tmp_path: Path) -> None:
    data = image(dtype=np.int16)
    raw = bytearray(write_mrc(tmp_path / "a.mrc", data, voxel=2).read_bytes())
    raw[212:216] = bytes((0x44, 0x00, 0x00, 0x00))  # a machine stamp nobody defined
    raw[104:108] = b"FEI2"
    raw[92:96] = struct.pack("<i", 768)  # an extended header that is not understood
    path = tmp_path / "odd.mrc"
    path.write_bytes(bytes(raw[:1024]) + b"\x07" * 768 + bytes(raw[1024:]))
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, data)


def test_big_endian_mrc(tmp_path: Path) -> None:
    data = image(dtype=np.int16)
    header = np.frombuffer(write_mrc(tmp_path / "a.mrc", data).read_bytes()[:1024], mrcfile.dtypes.HEADER_DTYPE)
    path = tmp_path / "b.mrc"
    swapped = header.astype(mrcfile.dtypes.HEADER_DTYPE.newbyteorder(">"))
    path.write_bytes(swapped.tobytes() + data.astype(">i2").tobytes())
    micrograph = formats.read(path, LIMIT)
    np.testing.assert_array_equal(micrograph.pixels, data)
    assert micrograph.pixels.dtype.isnative


def test_unsigned_counts_labelled_signed_are_read_unsigned_and_said(tmp_path: Path) -> None:
    data = image() + 40_000
    path = write_mrc(tmp_path / "a.mrc", data.view(np.int16))
    raw = bytearray(path.read_bytes())
    raw[80:84] = struct.pack("<f", float(data.max()))
    path.write_bytes(bytes(raw))
    micrograph = formats.read(path, LIMIT)
    np.testing.assert_array_equal(micrograph.pixels, data)
    assert "unsigned" in micrograph.warnings[0]


def test_imod_unsigned_bytes(tmp_path: Path) -> None:
    data = image(dtype=np.uint8) + np.uint8(120)
    path = write_mrc(tmp_path / "a.mrc", data.view(np.int8))
    raw = bytearray(path.read_bytes())
    raw[152:160] = struct.pack("<ii", 1146047817, 0)
    path.write_bytes(bytes(raw))
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, data)


@pytest.mark.parametrize(("mode", "reason"), [(3, "complex"), (4, "complex"), (16, "RGB"), (101, "4-bit")])
def test_mrc_modes_that_are_no_micrograph(tmp_path: Path, mode: int, reason: str) -> None:
    path = write_mrc(tmp_path / "a.mrc", image(dtype=np.float32))
    raw = bytearray(path.read_bytes())
    raw[12:16] = struct.pack("<i", mode)
    path.write_bytes(bytes(raw))
    with pytest.raises(MicrographError, match=reason):
        formats.read(path, LIMIT)


def test_content_decides_the_kind_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    tifffile.imwrite(path.with_suffix(".tif"), image())
    path.with_suffix(".tif").rename(path)
    micrograph = formats.read(path, LIMIT)
    assert micrograph.kind == "tiff" and "its name ends in .mrc" in micrograph.warnings[0]


# --- damage ---------------------------------------------------------------------------------------------------------


def tiff_file(path: Path) -> Path:
    tifffile.imwrite(path, image(200, 160), rowsperstrip=16)
    return path


def compressed_file(path: Path) -> Path:
    tifffile.imwrite(path, image(200, 160), rowsperstrip=16, compression="zlib")
    return path


def tail_directory_file(path: Path) -> Path:
    """A TIFF as libtiff writes it: pixels first, the directory at the end."""
    data = image(200, 160)
    tags = [
        (256, 3, 160),
        (257, 3, 200),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, 200),
        (279, 4, data.nbytes),
    ]
    directory = (
        struct.pack("<H", len(tags))
        + b"".join(
            struct.pack("<HHI", code, kind, 1)
            + (struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value))
            for code, kind, value in tags
        )
        + struct.pack("<I", 0)
    )
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + data.nbytes) + data.astype("<u2").tobytes() + directory)
    return path


def mrc_file(path: Path) -> Path:
    return write_mrc(path, image(200, 160, np.int16))


MAKERS = pytest.mark.parametrize("make", [tiff_file, compressed_file, tail_directory_file, mrc_file])


@MAKERS
@pytest.mark.parametrize("keep", [4, 9, 100, 600, 1500, 0.3, 0.9, -1])
def test_a_truncated_file_is_incomplete_and_never_read(
    tmp_path: Path, make: Callable[[Path], Path], keep: float
) -> None:
    path = make(tmp_path / "a.dat")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
    state = formats.probe(path)
    assert state.state == "incomplete" and state.reason
    with pytest.raises(MicrographError, match=r"a\.dat"):
        formats.read(path, LIMIT)


@MAKERS
def test_a_whole_file_is_complete(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "a.dat")
    assert formats.probe(path) == formats.Completeness("complete")
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, image(200, 160))


def test_missing_data_are_proven_by_the_header(tmp_path: Path) -> None:
    for make in (tiff_file, compressed_file, mrc_file):
        path = make(tmp_path / "a.dat")
        path.write_bytes(path.read_bytes()[:-5000])
        assert formats.probe(path).proven, make.__name__


@MAKERS
def test_a_preallocated_copy_is_not_taken_for_complete(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "a.dat")
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2] + b"\0" * (len(raw) - len(raw) // 2))  # written zeros: nothing can be proven
    state = formats.probe(path)
    assert state.state in ("suspicious", "incomplete") and not state.proven
    assert (state.state == "suspicious") == (make is not tail_directory_file)
    if make in (tiff_file, mrc_file):
        assert "rows are zero" in formats.read(path, LIMIT).warnings[-1]


@pytest.mark.parametrize("make", [tiff_file, mrc_file])
def test_a_hole_in_the_file_proves_nothing(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """`rsync -S`, `cp --sparse`, compressing filesystems: zeros that were there are left out, and read as zeros."""
    path = make(tmp_path / "a.dat")
    raw = path.read_bytes()
    with path.open("wb") as stream:
        stream.write(raw[:20_000])
        stream.truncate(len(raw))
    dense = tmp_path / "dense.dat"
    dense.write_bytes(raw[:20_000] + bytes(len(raw) - 20_000))
    assert formats.probe(path) == formats.probe(dense)
    assert formats.probe(path).state == "suspicious" and not formats.probe(path).proven
    one, other = formats.read(path, LIMIT), formats.read(dense, LIMIT)
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert one.warnings == other.warnings and "rows are zero" in one.warnings[-1]


def test_dark_images_are_suspicious_but_nothing_is_proven(tmp_path: Path) -> None:
    dark, border = np.zeros((200, 160), np.uint16), image(200, 160)
    border[-20:] = 0
    sparse = tmp_path / "sparse.mrc"
    for data in (dark, border):
        tifffile.imwrite(tmp_path / "a.tif", data)
        write_mrc(tmp_path / "a.mrc", data)
        for path in (tmp_path / "a.tif", tmp_path / "a.mrc"):
            state = formats.probe(path)
            assert state.state == "suspicious" and not state.proven
            np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, data)
    write_mrc(tmp_path / "dark.mrc", dark)
    with sparse.open("wb") as stream:  # a dark image copied as a sparse file: all of it may truly be zero
        stream.write((tmp_path / "dark.mrc").read_bytes()[:1024])
        stream.truncate((tmp_path / "dark.mrc").stat().st_size)
    assert not formats.probe(sparse).proven


@pytest.mark.parametrize("name", ["a.tif", "a.mrc"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\0" * 5000, "zeros"),
        (b"hello, this is not an image" * 100, "no kind of micrograph that is known"),
        (b"\x89HDF\r\n\x1a\n" + b"x" * 2000, "HDF5"),
        (b"\x1f\x8b\x08" + b"x" * 2000, "gzip"),
        (b"\0\0\0\x03\0" + b"x" * 2000, "no kind of micrograph that is known"),
        (b"II*\0", "cut off"),
        (b"MM\0*\0\0\0\0", "not been written"),
        (b"II*\0\x08\0\0\0" + b"\xff" * 500, "entries"),
        (b"II+\0" + b"\xff" * 500, "ends at byte"),
    ],
    ids=["empty", "zeros", "text", "hdf5", "gzip", "dm3", "header-only", "no-directory", "garbage", "bigtiff-garbage"],
)
def test_what_is_no_micrograph_file_gets_a_clear_message(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(MicrographError, match=reason):
        formats.read(path, LIMIT)
    assert formats.probe(path).state in ("incomplete", "complete")


def test_a_huge_claim_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image(64, 64), compression="zlib")
    raw = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        for code in (256, 257, 278):
            tag = file.pages.first.tags[code]
            struct.pack_into("<H" if tag.dtype == 3 else "<I", raw, tag.valueoffset, 60_000)
    path.write_bytes(bytes(raw))
    with pytest.raises(MicrographError, match="60000 x 60000 pixels, more than max_pixels"):
        formats.read(path, LIMIT)
    mrc = tmp_path / "a.mrc"
    raw = bytearray(write_mrc(mrc, image(dtype=np.float32)).read_bytes())
    raw[0:12] = struct.pack("<3i", 1_000_000, 1_000_000, 1_000_000)
    mrc.write_bytes(bytes(raw))
    with pytest.raises(MicrographError, match="more than max_pixels"):
        formats.read(mrc, LIMIT)


def test_directories_in_a_loop_end(tmp_path: Path) -> None:
    path = tail_directory_file(tmp_path / "a.tif")
    raw = bytearray(path.read_bytes())
    raw[-4:] = raw[4:8]
    path.write_bytes(bytes(raw))
    with pytest.raises(MicrographError, match="loop"):
        formats.read(path, LIMIT)


@pytest.mark.parametrize("code", [256, 258, 259, 277])
def test_a_header_of_text_where_numbers_belong_is_incomplete_not_an_error(tmp_path: Path, code: int) -> None:
    path = tiff_file(tmp_path / "a.tif")
    raw = bytearray(path.read_bytes())
    for entry in (at for at in range(8, len(raw) - 12) if raw[at : at + 2] == code.to_bytes(2, "little")):
        raw[entry + 2 : entry + 4] = (2).to_bytes(2, "little")  # ASCII
        raw[entry + 8 : entry + 12] = b"text"
    path.write_bytes(bytes(raw))
    assert formats.probe(path).state == "incomplete"
    with pytest.raises(MicrographError, match=r"a\.tif"):
        formats.read(path, LIMIT)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_hostile_bytes_raise_nothing_but_our_errors(tmp_path: Path, data: st.DataObject) -> None:
    make = data.draw(st.sampled_from([tiff_file, compressed_file, tail_directory_file, mrc_file]))
    raw = bytearray(make(tmp_path / "a.dat").read_bytes())
    spots = st.one_of(st.integers(0, min(1400, len(raw) - 1)), st.integers(len(raw) - 200, len(raw) - 1))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(spots)] = data.draw(st.integers(0, 255))
    path = tmp_path / "hostile.tif"
    path.write_bytes(bytes(raw))
    assert formats.probe(path).state in ("complete", "incomplete", "suspicious")
    problem = ""
    try:
        micrograph = formats.read(path, LIMIT)
    except EmdenoisedError as error:
        problem = str(error)
    assert "hostile.tif" in problem or (micrograph.pixels.ndim == 2 and micrograph.pixels.dtype.kind in "iuf")


# --- files that cannot be opened, and the promise to leave raw data alone -------------------------------------------


@pytest.mark.parametrize("code", [errno.EACCES, errno.EBUSY, errno.ESTALE, errno.ENOENT, errno.EIO])
def test_a_file_that_cannot_be_opened_now_is_tried_again(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiff_file(tmp_path / "a.tif")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(os, "open", refuse)
    for look in (lambda: formats.read(path, LIMIT), lambda: formats.probe(path)):
        with pytest.raises(TransientError, match=r"a\.tif: cannot be read now"):
            look()


def test_folders_and_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "folder.tif").mkdir()
    for name in ("pipe.tif", "folder.tif"):
        with pytest.raises(MicrographError, match="not a regular file"):
            formats.read(tmp_path / name, LIMIT)
    with pytest.raises(TransientError):
        formats.read(tmp_path / "gone.tif", LIMIT)


@MAKERS
def test_reading_leaves_bytes_and_times_alone(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "a.dat")
    os.utime(path, ns=(1_600_000_000_000_000_000, 1_500_000_000_123_456_789))
    path.chmod(0o400)
    before = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns, path.stat().st_ino
    formats.probe(path)
    micrograph = formats.read(path, LIMIT)
    assert (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert not micrograph.pixels.flags.writeable


# --- writing --------------------------------------------------------------------------------------------------------


def source(size: PixelSize | None, kind: str = "tiff", **metadata: Any) -> Micrograph:
    return Micrograph(image(), Path("raw"), kind, size, metadata)


SIZES = [
    PixelSize(0.5, 0.25, "nm"),
    PixelSize(1.06, 1.06, "angstrom"),
    PixelSize(3.3724e-6, 3.3724e-6, "m"),
    PixelSize(2.3928e-11, 2.3928e-11, "m"),
    PixelSize(0.1687, 0.1687, "um"),
]
METRES = {"m": 1, "um": 1e-6, "nm": 1e-9, "angstrom": 1e-10}


@pytest.mark.parametrize("ome", [False, True])
@pytest.mark.parametrize("kind", ["tiff", "mrc"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_and_pixel_size_survive_the_round_trip(
    tmp_path: Path, kind: formats.Kind, size: PixelSize, ome: bool
) -> None:
    pixels = (image() / 3).astype(np.float32)
    path = tmp_path / "out.tmp"
    formats.write(path, kind, pixels, source(size, ome=ome), {"note": "µ-metal shield"})
    again = formats.read(path, LIMIT)
    np.testing.assert_array_equal(again.pixels, pixels)
    assert again.kind == kind and again.pixels.dtype == np.float32
    assert again.pixel_size is not None
    for axis in "yx":
        metres = getattr(again.pixel_size, axis) * METRES[again.pixel_size.unit]
        assert metres == pytest.approx(getattr(size, axis) * METRES[size.unit], rel=1e-6)
    assert formats.probe(path).state == "complete"


@pytest.mark.parametrize("kind", ["tiff", "mrc"])
def test_an_unknown_pixel_size_stays_unknown(tmp_path: Path, kind: formats.Kind) -> None:
    formats.write(tmp_path / "a", kind, image(dtype=np.float32), source(None), {})
    assert formats.read(tmp_path / "a", LIMIT).pixel_size is None


def test_fiji_and_tifffile_find_the_scale(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    formats.write(path, "tiff", image(dtype=np.float32), source(PixelSize(0.5, 0.5, "nm")), {"raw": "abc"})
    with tifffile.TiffFile(path) as file:
        assert file.imagej_metadata is not None
        assert file.imagej_metadata["unit"] == "nm" and '"raw": "abc"' in file.imagej_metadata["Info"]
        assert file.pages.first.tags["XResolution"].value == (2, 1)
        assert file.asarray().shape == (48, 40)


def test_ome_sources_become_ome_files(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    formats.write(path, "tiff", image(dtype=np.float32), source(PixelSize(2, 2, "um"), ome=True), {"raw": "abc"})
    with tifffile.TiffFile(path) as file:
        assert file.is_ome and file.ome_metadata is not None
        assert 'PhysicalSizeX="2' in file.ome_metadata


def test_mrcfile_accepts_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, pixels = tmp_path / "a.mrc", image(dtype=np.float32)
    formats.write(path, "mrc", pixels, source(PixelSize(0.1, 0.1, "nm"), "mrc"), {"raw SHA-256": "0" * 64})
    assert mrcfile.validate(path), capsys.readouterr().out
    with mrcfile.open(path) as mrc:
        np.testing.assert_array_equal(mrc.data, pixels)
        assert float(mrc.voxel_size.x) == pytest.approx(1.0) and mrc.header.mode == 2
        assert float(mrc.header.dmean) == pytest.approx(float(pixels.mean()))
        assert float(mrc.header.rms) == pytest.approx(float(pixels.std()), rel=1e-5)
        assert mrc.header.nsymbt == 0


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    kinds: tuple[formats.Kind, ...] = ("tiff", "mrc")
    for kind in kinds:
        for name in ("a", "b"):
            formats.write(tmp_path / name, kind, image(dtype=np.float32), source(SIZES[0]), {"raw": "abc"})
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# --- real files -----------------------------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("folder", ["train", "val", "test_public"])
def test_every_micrograph_of_the_data_set_is_read(folder: str) -> None:
    paths = sorted((DATA / folder).glob("*.tif"))
    assert paths, f"no micrographs in {DATA / folder}"
    for path in paths:
        assert formats.probe(path).state == "complete", path
        micrograph = formats.read(path, LIMIT)
        assert micrograph.pixels.ndim == 2 and micrograph.warnings == () and micrograph.pixel_size is None, path


def test_what_took_a_files_place_is_not_opened(tmp_path: Path) -> None:
    secret = write_mrc(tmp_path / "secret.mrc", np.ones((40, 40), np.float32))
    link, pipe, folder = tmp_path / "link.mrc", tmp_path / "pipe.mrc", tmp_path / "folder.mrc"
    link.symlink_to(secret)
    os.mkfifo(pipe)
    folder.mkdir()
    for path, said in ((link, "symbolic link"), (pipe, "not a regular file"), (folder, "not a regular file")):
        with pytest.raises(MicrographError, match=said):
            formats.read(path, LIMIT)
        with pytest.raises(MicrographError, match=said):
            raw_file.fingerprint(path, LIMIT)


def test_a_sparse_file_of_impossible_length_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "long.mrc", np.ones((40, 40), np.float32))
    os.truncate(path, 1 << 41)
    with pytest.raises(MicrographError, match="GiB long"):
        raw_file.fingerprint(path, LIMIT)


def test_a_sparse_directory_that_claims_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "claims.tif"
    entries = [(256, 3, 1, 64), (257, 3, 1, 64), (254, 4, 500_000_000, 4096)]
    body = b"".join(struct.pack("<HHQQ", code, kind, count, value) for code, kind, count, value in entries)
    path.write_bytes(struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, len(entries)) + body + bytes(8))
    os.truncate(path, 3 << 30)
    assert formats.probe(path).state == "incomplete"
    with pytest.raises(MicrographError, match="claims 500000000 values"):
        formats.read(path, LIMIT)


def test_more_strips_than_can_be_read_at_once_are_left_to_the_process_with_limits(tmp_path: Path) -> None:
    path = tmp_path / "strips.tif"
    pixels = np.arange(70_000 * 8, dtype=np.uint8).reshape(70_000, 8)
    tifffile.imwrite(path, pixels, rowsperstrip=1)
    with pytest.raises(formats.CodecNeededError):
        formats.read(path, LIMIT, decode=False)
    np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, pixels)


def test_a_chain_of_more_pages_than_any_movie_has_is_refused(tmp_path: Path) -> None:
    """All of them with the same pixels: a few megabytes that would be summed for many seconds."""
    path, pages = tmp_path / "chain.tif", (1 << 14) + 1
    tags = [(256, 16), (257, 16), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 16), (279, 256)]
    page = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", code, 4, 1, value) for code, value in tags)
    first, each = 8 + 256, len(page) + 4
    following = [first + each * number for number in range(1, pages)] + [0]
    chain = b"".join(page + struct.pack("<I", place) for place in following)
    path.write_bytes(b"II*\0" + struct.pack("<I", first) + bytes(range(256)) + chain)
    assert formats.probe(path).state == "incomplete"
    with pytest.raises(MicrographError, match="claims more than 16384 pages"):
        formats.read(path, LIMIT)


def test_errors_that_a_parser_made_up_are_about_the_file(tmp_path: Path) -> None:
    with pytest.raises(MicrographError, match="damaged"), explained(tmp_path / "a.dm3"):
        raise OSError("Invalid size of an array", 0)  # as RosettaSciIO does
