"""OME-TIFF: each image of a file has sizes, channels and sections of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from small_files import COUNTS, PLAIN

from daemon import formats
from daemon.errors import MicrographError
from daemon.formats import ome

LIMIT = 1 << 20
OVERVIEW = COUNTS[::2, ::2]
LARGE, SMALL = 'SizeX="64" SizeY="48"', 'SizeX="32" SizeY="24"'
NM = 'PhysicalSizeX="{0}" PhysicalSizeXUnit="nm" PhysicalSizeY="{0}" PhysicalSizeYUnit="nm"'


def described(path: Path, images: list[str], *pages: np.ndarray[Any, Any], before: str = "") -> Path:
    text = "".join(f'<Image ID="Image:{n}"><Pixels {pixels}/></Image>' for n, pixels in enumerate(images))
    text = f'<?xml version="1.0"?>{before}<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{text}</OME>'
    with tifffile.TiffWriter(path) as writer:
        for number, page in enumerate(pages):
            description = None if number else text.encode()
            writer.write(page, contiguous=False, description=description, **PLAIN)
    return path


@pytest.mark.parametrize(
    ("images", "pages", "side"),
    [
        ([f"{SMALL} {NM.format(20)}", f"{LARGE} {NM.format(2)}"], (OVERVIEW, COUNTS), 2.0),
        ([f"{LARGE} {NM.format(2)}", f"{SMALL} {NM.format(20)}"], (COUNTS, OVERVIEW), 2.0),
        ([f"{SMALL} {NM.format(20)}", LARGE], (OVERVIEW, COUNTS), None),
        ([NM.format(2)], (COUNTS,), 2.0),
    ],
    ids=["overview-first", "overview-last", "overview-only", "no-shape"],
)
def test_the_pixel_size_is_that_of_the_micrograph(
    tmp_path: Path, images: list[str], pages: tuple[Any, ...], side: float | None
) -> None:
    found = formats.read(described(tmp_path / "a.ome.tif", images, *pages), LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    assert (found.pixel_size and (found.pixel_size.y, found.pixel_size.x)) == (side and (side, side))


@pytest.mark.parametrize("side", ["", "abc", "0,25", "NaN", "INF", "0", "-2"])
def test_a_pixel_size_that_is_no_number_above_0_is_unknown(tmp_path: Path, side: str) -> None:
    found = formats.read(described(tmp_path / "a.ome.tif", [f"{LARGE} {NM.format(side)}"], COUNTS), LIMIT)
    np.testing.assert_array_equal(found.pixels, COUNTS)
    assert found.pixel_size is None


def test_a_comment_states_nothing(tmp_path: Path) -> None:
    before = f"<!-- <Pixels {LARGE} {NM.format(99)}/> -->"
    path = described(tmp_path / "a.ome.tif", [f"{LARGE} {NM.format(2)}"], COUNTS, before=before)
    size = formats.read(path, LIMIT).pixel_size
    assert size is not None and size.x == 2


def test_sections_are_those_of_the_micrograph(tmp_path: Path) -> None:
    images = [f'{SMALL} SizeZ="1" SizeC="1" SizeT="1"', f'{LARGE} SizeZ="3" SizeC="1" SizeT="1"']
    path = described(tmp_path / "a.ome.tif", images, OVERVIEW, COUNTS, COUNTS, COUNTS)
    assert formats.read(path, LIMIT, 0).metadata["stack"]["are"] == "slices"
    path = described(path, [images[0], images[1].replace('SizeC="1"', 'SizeC="3"')], OVERVIEW, COUNTS, COUNTS, COUNTS)
    with pytest.raises(MicrographError, match="several channels"):
        formats.read(path, LIMIT, 0)


def test_a_description_without_an_end_costs_no_time() -> None:
    assert ome.images("<OME>" + "<!--" * 250_000 + "<Pixels " * 100_000, (48, 64)) == []
    assert ome.nature("<OME>" + "<XMLAnnotation ID='1'>" * 50_000 + "<ModuloAlongT " * 50_000, (48, 64)) is None


def of_time(path: Path, within: str = "", further: str = "") -> str | None:
    """The kind of three planes along T, with elements `within` Pixels and `further` ones at the end."""
    text = f'<OME><Image><Pixels {LARGE} SizeT="3">{within}</Pixels></Image>{further}</OME>'
    with tifffile.TiffWriter(path) as writer:
        for number in range(3):
            description = None if number else text.encode()
            writer.write(COUNTS, contiguous=False, description=description, **PLAIN)
    stated = formats.read(path, LIMIT, 0).metadata.get("stack")
    return stated and str(stated["are"])


@pytest.mark.parametrize(
    ("modulo", "are"),
    [
        ('Type="angle" Unit="degree" Start="-60" End="60" Step="60"', "tilts"),
        ('Type="tile"', "pieces"),
        ('Type="lambda" Unit="nm"', "exposures"),
        ('Type="angle" Unit="degree" Start="0" End="0" Step="1"', "frames"),
        ('Type="other" TypeDescription="Dose"', "frames"),
        ('Type="other" TypeDescription="Defocus"', "exposures"),
    ],
)
def test_an_axis_within_another_is_heeded(tmp_path: Path, modulo: str, are: str) -> None:
    further = f"<StructuredAnnotations><Value><Modulo><ModuloAlongT {modulo}/></Modulo></Value></StructuredAnnotations>"
    assert of_time(tmp_path / "a.ome.tif", further=further) == are
    assert of_time(tmp_path / "a.ome.tif", further=f"<!--{further}-->") == "frames"


ANGLES = '<Modulo><ModuloAlongT Type="angle" Unit="degree" Start="-60" End="60" Step="60"/></Modulo>'


@pytest.mark.parametrize(
    ("first", "second", "are"),
    [("", "Annotation:1", "frames"), ("Annotation:1", "", "tilts"), ("Annotation:2", "Annotation:1", "frames"),
     ("Annotation:1", "Annotation:1", "tilts"), ("", "", "tilts")],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "ome:"])
def test_a_further_axis_is_that_of_the_images_that_refer_to_it(
    tmp_path: Path, first: str, second: str, are: str, prefix: str
) -> None:
    text = "<OME>"
    for shape, annotation in ((LARGE, first), (SMALL, second)):
        reference = f'<AnnotationRef ID="{annotation}"/>' if annotation else ""
        text += f'<Image><Pixels {shape} SizeT="3"></Pixels>{reference}</Image>'
    text += f'<StructuredAnnotations><XMLAnnotation ID="Annotation:1"><Value>{ANGLES}</Value></XMLAnnotation>'
    text += '<XMLAnnotation ID="Annotation:2"><Value>a note</Value></XMLAnnotation></StructuredAnnotations></OME>'
    text = text.replace("</", "\0").replace("<", f"<{prefix}").replace("\0", f"</{prefix}")
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as writer:
        for number, page in enumerate((COUNTS,) * 3 + (OVERVIEW,) * 3):
            description = None if number else text.encode()
            writer.write(page, contiguous=False, description=description, **PLAIN)
    stated = formats.read(tmp_path / "a.ome.tif", LIMIT, 0).metadata["stack"]
    assert stated["are"] == are


@pytest.mark.parametrize(
    ("step", "unit", "are"),
    [
        ("0", "", "frames"), ("50", "", "places"), ("0.00001", "", "frames"), ("0.05", "mm", "places"),
        ("20", "nm", "frames"), ("nan", "", "frames"),
    ],
)  # fmt: skip
def test_planes_at_different_positions_of_the_stage_are_no_frames(
    tmp_path: Path, step: str, unit: str, are: str
) -> None:
    stated = f'PositionXUnit="{unit}"' if unit else ""
    within = "".join(f'<Plane TheT="{n}" PositionX="{n * float(step)}" PositionY="7" {stated}/>' for n in range(3))
    assert of_time(tmp_path / "a.ome.tif", within) == are
