"""Stacks: summed only where something says that their sections are frames of one exposure, else one by one."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hyperspy_file import write_hyperspy
from mrc_bytes import write_mrc
from mrcfile.dtypes import get_ext_header_dtype

from daemon import formats
from daemon.commands import main
from daemon.errors import MicrographError
from daemon.formats.decoder import Reader
from daemon.service import sections
from daemon.settings.config import Config

LIMIT = 1 << 24
FRAMES = np.random.default_rng(0).poisson(20, (3, 48, 64)).astype(np.int16)
Make = Callable[[Path], Path]


def serialem(path: Path, numbers: list[tuple[int, ...]], flags: int, named: bytes = b"SERI") -> Path:
    records = b"".join(struct.pack(f"<{len(one)}h", *one) for one in numbers).ljust(1024, b"\0")
    length = 2 * len(numbers[0])
    return write_mrc(path, FRAMES, extended=records, named=named, shorts=(length, flags), flags=0)


def thermo_fisher(path: Path, **fields: Any) -> Path:
    records = np.zeros(3, get_ext_header_dtype(b"FEI2", "<"))
    for name, values in fields.items():
        records[name.replace("_", " ")] = values
    return write_mrc(path, FRAMES, extended=records.tobytes(), named=b"FEI2")


def with_mdoc(path: Path, text: str) -> Path:
    write_mrc(path, FRAMES)
    path.with_name(path.name + ".mdoc").write_text(text)
    return path


def each(*lines: str) -> str:
    return "PixelSpacing = 2\n\n" + "".join(f"[ZValue = {z}]\n{line}\n\n" for z, line in enumerate(lines))


def imagej(path: Path, axes: str, shape: tuple[int, ...] = (3, 48, 64)) -> Path:
    tifffile.imwrite(path, FRAMES.astype(np.uint16).reshape(shape), imagej=True, metadata={"axes": axes})
    return path


def ome(path: Path, axes: str) -> Path:
    tifffile.imwrite(path, FRAMES, ome=True, photometric="minisblack", metadata={"axes": axes})
    return path


def pages(path: Path, description: str | None = None, **options: Any) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for frame in FRAMES:
            writer.write(frame, contiguous=False, metadata=None, description=description, **options)
    return path


def hyperspy(path: Path, name: str, units: str) -> Path:
    write_hyperspy(path, FRAMES)
    import h5py

    with h5py.File(path, "r+") as file:
        (experiment,) = file["Experiments"].values()
        experiment["axis-0"].attrs.update(name=name, units=units)
    return path


TILTED = [(round(angle * 100),) for angle in (-60, 0, 60)]
KINDS: dict[str, tuple[str, Make, str]] = {
    "serialem-tilts": ("a.mrc", lambda path: serialem(path, TILTED, 1), "tilts"),
    "serialem-pieces": ("a.mrc", lambda path: serialem(path, [(0, 0, 0), (9, 0, 0), (0, 9, 0)], 2), "pieces"),
    "serialem-tilts-and-more": ("a.mrc", lambda path: serialem(path, [(a, 4, 5, 80) for (a,) in TILTED], 13), "tilts"),
    "serialem-one-angle": ("a.mrc", lambda path: serialem(path, [(100,)] * 3, 1), "exposures"),
    "serialem-unnamed": ("a.mrc", lambda path: serialem(path, TILTED, 1, named=b""), "tilts"),
    "agard": (
        "a.mrc",
        lambda path: write_mrc(
            path, FRAMES, extended=np.repeat(np.float32([-1, 0, 1]), 32).tobytes(), shorts=(0, 32), named=b"AGAR"
        ),
        "tilts",
    ),
    "thermo-fisher-tilts": ("a.mrc", lambda path: thermo_fisher(path, Alpha_tilt=(-3, 0, 3)), "tilts"),
    "thermo-fisher-places": ("a.mrc", lambda path: thermo_fisher(path, **{"X-Stage": (1e-6, 2e-6, 3e-6)}), "places"),
    "thermo-fisher-fractions": ("a.mrc", lambda path: thermo_fisher(path, Is_dose_fraction=True), "frames"),
    "mdoc-tilts": ("a.mrc", lambda path: with_mdoc(path, each(*(f"TiltAngle = {a}" for a in (-3, 0, 3)))), "tilts"),
    "mdoc-pieces": (
        "a.mrc",
        lambda path: with_mdoc(path, each(*(f"PieceCoordinates = {x} 0 0" for x in (0, 40, 80)))),
        "pieces",
    ),
    "mdoc-places": (
        "a.mrc",
        lambda path: with_mdoc(path, each(*(f"StagePosition = {x} 7" for x in (1, 2, 3)))),
        "places",
    ),
    "mdoc-exposures": ("a.mrc", lambda path: with_mdoc(path, each(*["TiltAngle = 0"] * 3)), "exposures"),
    "mdoc-frames": ("a.mrc", lambda path: with_mdoc(path, "[FrameSet = 0]\nTiltAngle = 3\n"), "frames"),
    "mdoc-sub-frames": ("a.mrc", lambda path: with_mdoc(path, "[ZValue = 0]\nNumSubFrames = 3\n"), "frames"),
    "mrc-volume": ("a.mrc", lambda path: write_mrc(path, FRAMES, group=1), "slices"),
    "mrc-plain": ("a.mrc", lambda path: write_mrc(path, FRAMES), "unknown"),
    "mrc-movie-by-label": (
        "a.mrc",
        lambda path: write_mrc(path, FRAMES, label=b"SerialEMCCD: Dose frac. image, scaled by 1.00  r/f 0"),
        "frames",
    ),
    "imagej-slices": ("a.tif", lambda path: imagej(path, "ZYX"), "slices"),
    "imagej-frames": ("a.tif", lambda path: imagej(path, "TYX"), "frames"),
    "ome-z": ("a.ome.tif", lambda path: ome(path, "ZYX"), "slices"),
    "ome-t": ("a.ome.tif", lambda path: ome(path, "TYX"), "frames"),
    "tifffile-z": ("a.tif", lambda path: _shaped(path, "ZYX"), "slices"),
    "tifffile-t": ("a.tif", lambda path: _shaped(path, "TYX"), "frames"),
    "tiff-pages": ("a.tif", pages, "unknown"),
    "tiff-movie-by-description": ("a.tif", lambda path: pages(path, "SerialEMCCD: Dose fractions"), "frames"),
    "gatan-tiff-seconds": ("a.tif", lambda path: pages(path, extratags=[(65005, "s", 0, "s", True)]), "frames"),
    "gatan-tiff-nm": ("a.tif", lambda path: pages(path, extratags=[(65005, "s", 0, "nm", True)]), "slices"),
    "hyperspy-time": ("a.hspy", lambda path: hyperspy(path, "Time", "s"), "frames"),
    "hyperspy-tilt": ("a.hspy", lambda path: hyperspy(path, "alpha", "°"), "tilts"),
    "hyperspy-depth": ("a.hspy", lambda path: hyperspy(path, "z", "nm"), "slices"),
    "hyperspy-unknown": ("a.hspy", lambda path: hyperspy(path, "i", ""), "unknown"),
}


def _shaped(path: Path, axes: str) -> Path:
    tifffile.imwrite(path, FRAMES, photometric="minisblack", metadata={"axes": axes})
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_sections_is_read_from_the_file(tmp_path: Path, config: Callable[..., Config], kind: str) -> None:
    name, make, are = KINDS[kind]
    path = make(tmp_path / name)
    one = config()
    with Reader(LIMIT, 60) as reader:
        found = sections.whole(reader, one, path, name)
        if are == "frames":
            assert found is not None
            np.testing.assert_array_equal(found.pixels, FRAMES.sum(axis=0))
            stated = found.metadata["stack"]
            assert (stated["are"], stated["taken"]) == ("frames", "summed") and "frames" in stated["because"]
            return
        assert found is None, "a sum of what is no exposure"
        micrograph, section = sections.read(reader, path, 2)
        np.testing.assert_array_equal(micrograph.pixels, FRAMES[1])
        assert (section.number, section.of) == (2, 3)
        noted = sections.noted(micrograph, sections.taking(one, name, micrograph))
        assert (noted.metadata["stack"]["are"], noted.metadata["stack"]["taken"]) == (are, "each by itself")
        assert any("does not say what its sections are" in text for text in noted.warnings) == (are == "unknown")


@pytest.mark.parametrize(
    ("name", "kind", "summed"),
    [
        ("grid_movie.mrc", "mrc-plain", True),
        ("FoilHole_1_Fractions.mrc", "mrc-plain", True),
        ("frames_007.tif", "tiff-pages", True),
        ("movies/a.mrc", "mrc-plain", True),
        ("day 1/Movies/a.tif", "tiff-pages", True),
        ("movie.mrc", "mrc-volume", True),  # many programs write space group 1 whatever it is
        ("movie.mrc", "mdoc-tilts", False),
        ("movie.mrc", "serialem-pieces", False),
        ("frames.tif", "imagej-slices", False),
        ("a.st", "mdoc-frames", False),  # arrival.sections
    ],
)
def test_a_name_counts_where_the_file_is_silent(
    tmp_path: Path, config: Callable[..., Config], name: str, kind: str, summed: bool
) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    path, one = KINDS[kind][1](tmp_path / name), config()
    with Reader(LIMIT, 60) as reader:
        found = sections.whole(reader, one, path, name)
    assert (found is not None) == summed
    if found is not None:
        assert found.metadata["stack"]["because"] == "arrival.frames names it"


def test_a_profile_that_asks_for_the_sum_gets_it_unless_it_would_be_no_image(
    tmp_path: Path, config: Callable[..., Config]
) -> None:
    one = config(profiles={"auto": {"gain": "auto", "frames": "sum"}})
    with Reader(LIMIT, 60) as reader:
        found = sections.whole(reader, one, pages(tmp_path / "a.tif"), "a.tif")
        assert found is not None and found.metadata["stack"]["because"] == "profile auto has frames: sum"
        slices = sections.whole(reader, one, imagej(tmp_path / "z.tif", "ZYX"), "z.tif")
        assert slices is not None and "but ImageJ says slices" in slices.warnings[-1]
        for kind in ("mdoc-tilts", "mdoc-pieces"):
            path = KINDS[kind][1](tmp_path / f"{kind}.mrc")
            with pytest.raises(MicrographError, match=r"its sections are .* their sum would be no image"):
                sections.whole(reader, one, path, path.name)
            with pytest.raises(MicrographError, match="and not frames of one exposure"):
                formats.require_one_exposure(reader.read(path))


def test_training_takes_no_sum_of_slices_for_a_truth(tmp_path: Path) -> None:
    for axes, sound in (("ZYX", False), ("TYX", True)):
        summed = formats.read(imagej(tmp_path / f"{axes}.tif", axes), LIMIT)
        if sound:
            formats.require_one_exposure(summed)
            np.testing.assert_array_equal(summed.pixels, FRAMES.sum(axis=0))
        else:
            with pytest.raises(MicrographError, match=r"are slices of a volume \(ImageJ\) and not frames"):
                formats.require_one_exposure(summed)


def test_channels_are_refused_and_never_summed(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, FRAMES, ome=True, photometric="minisblack", metadata={"axes": "CYX"})
    with pytest.raises(MicrographError, match="several channels"):
        formats.read(path, LIMIT)


def test_the_command_line_takes_a_tilt_series_section_by_section(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tilts = np.random.default_rng(1).poisson(30, (2, 64, 64)).astype(np.int16)
    records = struct.pack("<2h", -6000, 6000).ljust(1024, b"\0")
    path = write_mrc(tmp_path / "TS_002.mrc", tilts, extended=records, named=b"SERI", shorts=(2, 1), flags=0)
    single = write_mrc(tmp_path / "one.mrc", tilts[0])
    named_alike = write_mrc(tmp_path / "TS_002.s0001.mrc", tilts[1])
    out = tmp_path / "out"
    for first, last in ((path, named_alike), (named_alike, path)):  # the second time they exist
        assert main.main(["denoise", str(first), str(single), str(last), "-o", str(out)]) == 0
    names = {"TS_002.s0001.mrc", "TS_002.s0002.mrc", "one.mrc", "TS_002.s0001.s0000.mrc"}
    assert {one.name for one in out.glob("*.mrc")} == names
    for number in (1, 2):
        record = json.loads((out / f"TS_002.s000{number}.mrc.json").read_text())
        stack = record["raw"]["metadata"]["stack"]
        assert (stack["are"], stack["by"], stack["taken"]) == ("tilts", "SerialEM extended header", "each by itself")
        assert stack["because"] == "its sections are tilts of a tilt series (SerialEM extended header)"
        result = formats.read(out / f"TS_002.s000{number}.mrc", LIMIT)
        assert float(result.pixels.mean()) == pytest.approx(float(tilts[number - 1].mean()), rel=0.02)
    assert "stack" not in json.loads((out / "one.mrc.json").read_text())["raw"]["metadata"]
    assert "section 2 of 2: " in capsys.readouterr().out
