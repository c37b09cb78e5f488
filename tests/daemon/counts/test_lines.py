"""Hot and dead columns and rows are found before anything is measured, and real lines are left alone."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from daemon.backends.manifest import load, locate
from daemon.commands import main
from daemon.counts import lines, spikes
from daemon.counts.plane import Prepared
from daemon.counts.prepare import plane
from daemon.counts.profiles import dose_evidence, scaled
from daemon.micrograph import Micrograph
from daemon.settings.profile import Profile

DOSE = 50.0
Counts = NDArray[np.uint16]


def scene(dose: float = DOSE, shape: tuple[int, int] = (300, 320)) -> Counts:
    y, x = np.mgrid[: shape[0], : shape[1]]
    bright = 1 + 0.4 * np.sin(y / 17) * np.sin(x / 23)
    return np.random.default_rng(3).poisson(dose * bright).astype(np.uint16)


def prepared(pixels: Counts, gain: str | float = "auto") -> Prepared:
    micrograph = Micrograph(pixels, Path("a.tif"), "tiff")
    choice = scaled(Profile(name="p", gain=gain), "test", micrograph, dose_evidence(micrograph))
    one = plane(pixels, choice, load(locate("fast")).dose_range)
    return one.prepare(spikes.survey(pixels, one.gain, one.offset, one.false_alarm))


def found(pixels: Counts) -> tuple[set[int], set[int]]:
    rows, columns = np.divmod(lines.find(pixels), pixels.shape[1])
    upright, level = np.bincount(columns), np.bincount(rows)
    return set(np.flatnonzero(upright > 16)), set(np.flatnonzero(level > 16))


@pytest.mark.parametrize("dose", [0.1, 5.0, 2000.0])
def test_hot_dead_and_double_lines_are_found_at_every_dose(dose: float) -> None:
    image = scene(dose)
    image[:, 200] = 65535
    image[:, 0] = 40 + 4 * dose
    image[:, 101:103] = 65535
    image[77] = 30 + 3 * dose
    image[150:, 260] = 30 + 3 * dose
    assert found(image) == ({0, 101, 102, 200, 260}, {77})


@pytest.mark.parametrize(
    ("columns", "rows", "values", "dose"),
    [
        ((100, 101, 102), slice(None), 65535, DOSE),
        ((100, 101), slice(None), (65535, 0), DOSE),
        ((100, 101), slice(0, 150), 65535, DOSE),
        ((100, 101), slice(None), 0, 2.0),
        ((100,), slice(None), 0, 0.3),
    ],
    ids=["three", "hot-and-dead", "half-a-pair", "dead-pair", "dead-in-the-dark"],
)
@pytest.mark.parametrize("level", [False, True])
def test_lines_of_one_value_are_found_however_dark_or_many(
    columns: tuple[int, ...], rows: slice, values: object, dose: float, level: bool
) -> None:
    image = scene(dose)
    image[rows, list(columns)] = values
    assert found(image.T if level else image) == ((set(), set(columns)) if level else (set(columns), set()))


def test_numbers_missing_in_or_beside_a_line_do_not_hide_it() -> None:
    image = scene().astype(np.float32)
    image[:, 100], image[:, 101] = np.nan, 65535
    image[:, 200], image[17, 200] = 65535, np.nan
    image[:, 240] = np.inf
    assert found(image) == ({101, 200, 240}, set())


@pytest.mark.parametrize("dose", [0.02, 0.3, 50.0])
def test_a_border_or_an_empty_part_of_the_picture_is_no_line(dose: float) -> None:
    image = scene(dose)
    image[:, :3] = 0
    image[:, 310:] = 0
    image[100:110] = 0
    assert found(image) == (set(), set())


def test_a_dead_row_is_found() -> None:
    image = scene()
    image[123] = 0
    assert found(image) == (set(), {123})


def line(width: float) -> Counts:
    x = np.arange(320)
    peak = 20 * np.exp(-((x - 160.3) ** 2) / (2 * width**2))
    return np.random.default_rng(4).poisson(DOSE * (1 + peak)[None, :].repeat(300, 0)).astype(np.uint16)


def edge() -> Counts:
    return np.random.default_rng(4).poisson(np.where(np.arange(320) < 160, 20, 400)[None, :].repeat(300, 0))


@pytest.mark.parametrize(
    "image", [scene(), line(spikes.NARROWEST), line(2.0), edge()], ids=["scene", "narrow", "wide", "edge"]
)
def test_specimens_lines_and_edges_are_left_alone(image: Counts) -> None:
    assert len(lines.find(image)) == 0


def test_a_lattice_along_the_columns_is_left_alone() -> None:
    fringes = 1 + 0.9 * np.sin(2 * np.pi * np.arange(320) / 3.2)
    image = np.random.default_rng(5).poisson(500 * fringes[None, :].repeat(300, 0))
    assert len(lines.find(image)) == 0


def test_a_hot_column_changes_neither_dose_nor_gain_nor_its_neighbours() -> None:
    image = scene()
    hot = image.copy()
    hot[:, 200] = 65535
    clean, found = prepared(image), prepared(hot)
    assert found.dose == pytest.approx(clean.dose, rel=0.01)
    assert found.scaling.unit == pytest.approx(clean.scaling.unit, rel=0.02)
    filled = found.spikes.columns == 200
    assert filled.sum() == 300 and len(found.spikes) == 300
    assert found.spikes.values[filled].mean() == pytest.approx(float(image[:, 200].mean()), rel=0.03)
    assert [remark.code for remark in found.remarks] == ["lines"] and found.doubts == ()
    assert ": column 200" in found.remarks[0].text


def test_an_x_ray_hit_beside_a_hot_column_is_still_found() -> None:
    image = scene()
    image[:, 200] = 65535
    image[140, 210] = 5000
    one = prepared(image, 1.0)
    assert (140, 210) in zip(one.spikes.rows.tolist(), one.spikes.columns.tolist(), strict=True)


def test_what_is_measured_has_the_noise_of_its_neighbours() -> None:
    image = scene()
    hot = image.copy()
    hot[:, 200], hot[30] = 65535, 0
    clean = lines.replaced(hot, lines.find(hot))
    assert clean.max() < 200 and clean.std() == pytest.approx(image.std(), rel=0.01)
    assert hot[0, 200] == 65535


def test_lines_are_recorded_and_reported_once_for_all_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = scene(shape=(140, 150))
    image[:, 70], image[40] = 65535, 0
    names = ("a.tif", "b.tif", "c.tif")
    for name in names:
        tifffile.imwrite(tmp_path / name, image)
    assert main.main(["denoise", *(str(tmp_path / name) for name in names), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert said.count("neighbours: column 70 and row 40") == 1 and said.count("as before: lines") == 2
    for name in names:
        record = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert record["lines"] == {"columns": [70], "rows": [40]} and record["spikes"]["count"] == 0
        assert [remark["code"] for remark in record["verdict"]["remarks"]] == ["lines"]
        assert any("hot or dead" in warning for warning in record["warnings"])


@pytest.mark.parametrize("kind", ["uint16", "int16", "float32", "float64"])
def test_pieces_evaluated_together_give_what_each_gives_alone_in_any_dtype(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = scene(shape=(1100, 400))
    generator = np.random.default_rng(7)
    image[generator.integers(0, 1100, 60), generator.integers(0, 400, 60)] = generator.integers(2_000, 30_000, 60)
    image[:, 399], image[200:500, 60], image[900:, 301:303], image[33, :] = 400, 300, 5000, 0
    whole = lines.find(image)
    assert found(image) == ({60, 301, 302, 399}, {33})
    np.testing.assert_array_equal(lines.find(image.astype(kind)), whole)
    monkeypatch.setattr(lines, "TOGETHER", 1)
    np.testing.assert_array_equal(lines.find(image), whole)
    monkeypatch.setattr(lines, "EXACT", 0)
    np.testing.assert_array_equal(lines.find(image), whole)


@pytest.mark.parametrize("shape", [(255, 256), (256, 255), (300, 384), (131, 140)])
def test_means_of_the_brightest_pixels_are_exact(shape: tuple[int, int]) -> None:
    pixels = np.full(shape, 65535, np.uint16)
    pixels[::3, ::5] = 65534
    down, across = lines._both_means(pixels)
    assert down is not None and across is not None
    for means, along in ((down, pixels), (across, pixels.T)):
        edges = lines._edges(len(along))
        expected = [along[top:bottom].mean(axis=0, dtype=np.float64) for top, bottom in pairwise(edges)]
        np.testing.assert_allclose(means, expected, rtol=0, atol=1e-10)
