"""Cases from the field: which way up a result is, and the names of results."""

import json
import unicodedata
from pathlib import Path, PurePosixPath

import mrcfile
import numpy as np
import pytest
import tifffile
from small_files import COUNTS, plain_tiff

from daemon import formats
from daemon.arrival import rules
from daemon.commands import main
from daemon.formats import turned
from daemon.formats.partial import open_result
from daemon.micrograph import Micrograph, PixelSize
from daemon.output.record import Raw, Record
from daemon.output.writing import write_outputs
from daemon.settings.config import Arrival
from daemon.settings.names import distinct_names
from daemon.settings.profile import Match

LIMIT = 1 << 24


# --- which way up ---------------------------------------------------------------------------------------------------


def result(tmp_path: Path, micrograph: Micrograph, kind: formats.FileKind) -> tuple[Path, list[int]]:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    written = write_outputs(
        out, PurePosixPath(micrograph.source.name), 1, micrograph, micrograph.pixels.astype(np.float32),
        Record(raw=Raw(sha256=str(len(list(out.iterdir()))))), kind=kind, preview_pixels=None,
    )  # fmt: skip
    return written.image, list(written.content.output.turned)


def test_a_tiff_becomes_an_mrc_as_imod_and_relion_convert(tmp_path: Path) -> None:
    micrograph = formats.read(plain_tiff(tmp_path / "a.tif", COUNTS), LIMIT)
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
    micrograph = formats.read(plain_tiff(tmp_path / "a.tif", COUNTS, extratags=tags, resolution=(1e7, 2e7)), LIMIT)
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
    found = distinct_names(paths)
    base = tmp_path.name
    assert [found[path].as_posix() for path in paths] == [
        "A/img.tif", f"{base}/B/img.tif", "000123_img.tif", "x/B/img.tif", "other.tif",
    ]  # fmt: skip
    assert list(distinct_names([paths[0], paths[0]]).values()) == [PurePosixPath("img.tif")]


def test_names_that_differ_in_case_or_composition_only_keep_their_place(tmp_path: Path) -> None:
    names = "A/img.tif", "A/IMG.TIF", "A/\u00fc.tif", "A/u\u0308.tif", "B/\u00fc.tif"
    found = distinct_names([tmp_path / name for name in names])
    assert [path.as_posix() for path in found.values()] == ["img.tif", "IMG.TIF", *names[2:]]


def test_links_keep_their_names_and_namesakes_their_folders(tmp_path: Path) -> None:
    given = []
    for folder, dose in (("A", 60), ("B", 30)):
        (tmp_path / folder).mkdir()
        counts = np.random.default_rng(dose).poisson(dose, (64, 64)).astype(np.uint16)
        given.append(plain_tiff(tmp_path / folder / "img.tif", counts))
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
