"""Reading TIFF: what is read is right, what is refused is refused for its reason."""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from small_files import PLAIN, image, write_mrc

from daemon import formats
from daemon.errors import MicrographError
from daemon.micrograph import PixelSize

LIMIT = 1 << 24
DATA = Path(os.environ.get("EMDENOISED_DATA", Path(__file__).parents[4] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "formats").is_dir(), reason=f"real micrographs are not at {DATA}; set EMDENOISED_DATA"
)


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


@pytest.mark.parametrize("options", [{}, {"tile": (16, 32)}], ids=str)
def test_a_jpeg_that_is_cut_off_is_not_filled_with_grey(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image(dtype=np.uint8), compression="jpeg", **options)
    with tifffile.TiffFile(path) as file:
        start, length = (each[-1] for each in (file.pages.first.dataoffsets, file.pages.first.databytecounts))
    data = bytearray(path.read_bytes())
    data[start + length // 2 : start + length] = bytes(length - length // 2)  # preallocated, and not yet copied
    path.write_bytes(data)
    with pytest.raises(MicrographError, match="is cut off within its JPEG data"):
        formats.read(path, LIMIT)


def test_a_jpeg_whose_length_leaves_out_its_end_is_read(tmp_path: Path) -> None:
    path, data = tmp_path / "a.tif", image(dtype=np.uint8)
    tifffile.imwrite(path, data, compression="jpeg", compressionargs={"level": 100}, rowsperstrip=len(data))
    with tifffile.TiffFile(path) as file:
        length, tag = file.pages.first.databytecounts[0], file.pages.first.tags[279]
        place, packed = tag.valueoffset, {3: "<H", 4: "<I"}[tag.dtype]
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(struct.pack(packed, length - 2))
    np.testing.assert_allclose(formats.read(path, LIMIT).pixels.astype(int), data, atol=2)


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


@pytest.mark.parametrize(("most", "refused"), [(15, False), (16, True)])
def test_a_description_that_outlived_its_unpacking_refuses_no_sum(tmp_path: Path, most: int, refused: bool) -> None:
    frames = np.full((3, 32, 40), most, np.uint8)
    path = tmp_path / "movie.tif"
    with tifffile.TiffWriter(path) as writer:
        for frame in frames:
            writer.write(frame, description="SerialEMCCD: Dose frac. image, 4 bits packed  r/f 0", **PLAIN)
    if refused:
        with pytest.raises(MicrographError, match="packed 4-bit values by its description"):
            formats.read(path, LIMIT)
    else:
        np.testing.assert_array_equal(formats.read(path, LIMIT).pixels, frames.sum(axis=0))


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


@needs_data
@pytest.mark.parametrize("folder", ["train", "val", "test_public"])
def test_every_micrograph_of_the_data_set_is_read(folder: str) -> None:
    paths = sorted((DATA / folder).glob("*.tif"))
    assert paths, f"no micrographs in {DATA / folder}"
    for path in paths:
        assert formats.probe(path).state == "complete", path
        micrograph = formats.read(path, LIMIT)
        assert micrograph.pixels.ndim == 2 and micrograph.warnings == () and micrograph.pixel_size is None, path
