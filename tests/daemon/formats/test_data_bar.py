"""A data bar is found by what the vendor states or by its look, stays as it is, and is left out of what is measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from daemon import formats
from daemon.commands import main
from daemon.counts import no_specimen
from daemon.formats import data_bar
from daemon.micrograph import PixelSize
from daemon.output.preview import render

HEIGHT, WIDTH, PICTURE = 200, 240, 164
Bytes = NDArray[np.uint8]


def barred(background: int = 0, ink: int = 255, mean: float = 60.0) -> Bytes:
    """Counts, and below them a bar with letters and a scale."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.clip(rng.poisson(mean * (1 + 0.4 * np.sin(y / 19) * np.sin(x / 23))), 0, 255).astype(np.uint8)
    image[PICTURE:] = background
    image[PICTURE + 10, 20:90] = ink
    image[PICTURE + 6 : PICTURE + 15, [20, 90]] = ink
    for left in range(110, 220, 12):
        image[PICTURE + 8 : PICTURE + 24, left : left + 2] = ink
        image[PICTURE + 8, left : left + 7] = ink
    return image


def write(path: Path, image: Bytes, **options: Any) -> Path:
    tifffile.imwrite(path, image, photometric="minisblack", metadata=None, **options)
    return path


def ini(sections: dict[str, dict[str, object]]) -> bytes:
    lines: list[str] = []
    for name, values in sections.items():
        lines += [f"[{name}]", *(f"{key}={value}" for key, value in values.items())]
    return "\r\n".join((*lines, "")).encode()


FEI = ini({"User": {"Date": "1/1/2026"}, "Image": {"ResolutionX": WIDTH, "ResolutionY": PICTURE},
           "PrivateFei": {"DatabarHeight": HEIGHT - PICTURE}})  # fmt: skip
FEI_BAR_ONLY = ini({"User": {"Date": "1/1/2026"}, "PrivateFei": {"DatabarHeight": HEIGHT - PICTURE}})
PHENOM = f"<FeiImage><databarHeight>{HEIGHT - PICTURE}</databarHeight></FeiImage>".encode()
TESCAN = ini({"MAIN": {"Device": "MIRA3", "ImageStripSize": HEIGHT - PICTURE}})


@pytest.mark.parametrize(
    ("code", "text", "by"),
    [
        (34682, FEI, "FEI tags"),
        (34682, FEI_BAR_ONLY, "FEI tags"),
        (34683, PHENOM, "Thermo Fisher XML"),
        (50431, TESCAN, "Tescan tags"),
    ],
    ids=["fei", "fei-bar", "phenom", "tescan"],
)
def test_a_bar_that_tags_state_needs_no_look(tmp_path: Path, code: int, text: bytes, by: str) -> None:
    noise = np.random.default_rng(0).poisson(60, (HEIGHT, WIDTH)).astype(np.uint8)  # a bar without any letters
    found = formats.read(write(tmp_path / "a.tif", noise, extratags=[(code, 2, len(text) + 1, text, True)]), 1 << 20)
    assert found.metadata["data_bar"] == {"rows": [PICTURE, HEIGHT - 1], "by": by}


@pytest.mark.parametrize("edge", ["frame", "noise"])
@pytest.mark.parametrize("upside_down", [False, True])
def test_rows_of_another_kind_between_bar_and_edge_hide_no_bar(tmp_path: Path, edge: str, upside_down: bool) -> None:
    image = barred()
    image[-3:] = 255 if edge == "frame" else np.random.default_rng(0).integers(0, 255, (3, WIDTH))
    rows = [0, HEIGHT - PICTURE - 1] if upside_down else [PICTURE, HEIGHT - 1]
    found = formats.read(write(tmp_path / "a.tif", image[::-1] if upside_down else image), 1 << 20)
    assert found.metadata["data_bar"] == {"rows": rows, "by": ""}


def test_a_picture_saved_without_its_bar_has_none(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).poisson(60, (PICTURE, WIDTH)).astype(np.uint8)
    path = write(tmp_path / "a.tif", noise, extratags=[(34682, 2, len(FEI) + 1, FEI, True)])
    assert "data_bar" not in formats.read(path, 1 << 20).metadata


@pytest.mark.parametrize(
    ("name", "text", "by"),
    [
        ("a.txt", f"$CM_FORMAT JEOL/SEM\r\n$CM_FULL_SIZE {WIDTH} {PICTURE}\r\n".encode(), "JEOL text file"),
        ("a.txt", f"[SemImageFile]\r\nDataSize={WIDTH}x{PICTURE}\r\n".encode("utf-16"), "Hitachi text file"),
        ("a-tif.hdr", TESCAN, "Tescan header"),
        ("a.TXT", f"\ufeff$CM_FULL_SIZE {WIDTH} {PICTURE}\r\n".encode(), "JEOL text file"),
        ("a.txt", f"DataSize = {WIDTH} x {PICTURE}\r\n".encode("utf-16"), "Hitachi text file"),
        ("a-tif.HDR", TESCAN.replace(b"=", b" = "), "Tescan header"),
    ],
)
def test_a_bar_that_a_file_beside_states(tmp_path: Path, name: str, text: bytes, by: str) -> None:
    noise = np.random.default_rng(0).poisson(60, (HEIGHT, WIDTH)).astype(np.uint8)
    (tmp_path / name).write_bytes(text)
    found = formats.read(write(tmp_path / "a.tif", noise), 1 << 20)
    assert found.metadata["data_bar"] == {"rows": [PICTURE, HEIGHT - 1], "by": by}


def test_the_text_of_another_size_is_not_believed(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).poisson(60, (HEIGHT, WIDTH)).astype(np.uint8)
    (tmp_path / "a.txt").write_text(f"$CM_FULL_SIZE {2 * WIDTH} {PICTURE}\n")
    assert "data_bar" not in formats.read(write(tmp_path / "a.tif", noise), 1 << 20).metadata


@pytest.mark.parametrize("background", [0, 255])
@pytest.mark.parametrize("upside_down", [False, True])
def test_a_bar_that_nothing_states_is_suspected_by_its_look(tmp_path: Path, background: int, upside_down: bool) -> None:
    image = barred(background, 255 - background)
    path = write(tmp_path / "a.tif", image[::-1] if upside_down else image)
    rows = [0, HEIGHT - PICTURE - 1] if upside_down else [PICTURE, HEIGHT - 1]
    assert formats.read(path, 1 << 20).metadata["data_bar"] == {"rows": rows, "by": ""}


@pytest.mark.parametrize("turn", [1, 3], ids=["right", "left"])
@pytest.mark.parametrize("edge", ["", "frame"])
def test_a_bar_at_the_side_is_suspected_by_its_look(tmp_path: Path, turn: int, edge: str) -> None:
    image = barred()
    if edge:
        image[-3:] = 255
    path = write(tmp_path / "a.tif", np.ascontiguousarray(np.rot90(image, turn)))
    columns = [PICTURE, HEIGHT - 1] if turn == 1 else [0, HEIGHT - PICTURE - 1]
    assert formats.read(path, 1 << 20).metadata["data_bar"] == {"columns": columns, "by": ""}


def panel() -> Bytes:
    """Counts, and right of them a bar whose letters are upright."""
    image = np.random.default_rng(1).poisson(60, (PICTURE, WIDTH)).astype(np.uint8)
    image[:, 180:] = 0
    for row in range(8, 150, 14):
        for left in range(184, 230, 8):
            image[row : row + 9, left : left + 2] = 255
            image[row : row + 2, left : left + 6] = 255
    return image


def test_a_bar_at_the_side_stays_as_it_is_changes_no_figure_and_makes_the_verdict_check(tmp_path: Path) -> None:
    image = panel()
    image[40:44, 30] = 250  # hits in the picture keep their places
    write(tmp_path / "a.tif", image)
    write(tmp_path / "b.tif", np.ascontiguousarray(image[:, ::-1]))
    write(tmp_path / "c.tif", np.ascontiguousarray(image[:, :180]))
    files = [str(tmp_path / f"{name}.tif") for name in "abc"]
    assert main.main(["denoise", *files, "-o", str(tmp_path / "out")]) == 0
    right, left, without = (json.loads((tmp_path / "out" / f"{name}.tif.json").read_text()) for name in "abc")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "a.tif")[:, 180:], image[:, 180:])
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "b.tif")[:, :60], image[:, :179:-1])
    assert right["raw"]["metadata"]["data_bar"] == {"columns": [180, 239], "by": ""}
    assert left["raw"]["metadata"]["data_bar"] == {"columns": [0, 59], "by": ""}
    gain = without["dose_evidence"]["measured"]["gain"]
    for one in (right, left):
        assert one["verdict"]["word"] == "check" and "bar-suspected" in one["verdict"]["codes"]
        assert any("columns" in reason and "look like a data bar" in reason for reason in one["verdict"]["reasons"])
        assert one["spikes"]["count"] == without["spikes"]["count"]
        assert one["dose_evidence"]["measured"]["gain"] == pytest.approx(gain, rel=0.02)
        assert one["scaling"]["zero"] == pytest.approx(without["scaling"]["zero"], rel=1e-6)
    found = tifffile.imread(tmp_path / "out" / "a.tif")[:, :180].mean()
    assert found == pytest.approx(image[:, :180].mean(), rel=5e-3)


def test_a_hot_column_beside_a_bar_at_the_left_has_its_place(tmp_path: Path) -> None:
    image = np.ascontiguousarray(panel()[:, ::-1])
    image[:, 150] += 100
    found = no_specimen.find(formats.read(write(tmp_path / "a.tif", image), 1 << 20))
    assert found.side == range(60)
    assert found.lines_as_json(image.shape) == {"columns": [150], "rows": []}


def few_counts() -> Bytes:
    return np.random.default_rng(0).poisson(0.1, (HEIGHT, WIDTH)).astype(np.uint8)


def border() -> Bytes:
    image = np.random.default_rng(0).poisson(60, (HEIGHT, WIDTH)).astype(np.uint8)
    image[PICTURE:] = 0
    return image


def vacuum() -> Bytes:
    image = np.random.default_rng(0).poisson(60, (HEIGHT, WIDTH)).astype(np.uint8)
    image[PICTURE:] = np.random.default_rng(2).poisson(0.05, (HEIGHT - PICTURE, WIDTH))
    return image


def clipped() -> Bytes:
    return np.clip(barred().astype(int)[:PICTURE] * 8, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "image", [few_counts(), border(), vacuum(), clipped()], ids=["few", "border", "vacuum", "bright"]
)
def test_what_is_no_bar_is_none(tmp_path: Path, image: Bytes) -> None:
    for turned in (image, np.ascontiguousarray(image.T)):
        assert "data_bar" not in formats.read(write(tmp_path / "a.tif", turned), 1 << 20).metadata


@pytest.mark.parametrize("stated", [False, True])
def test_a_bar_stays_as_it_is_and_changes_no_figure(tmp_path: Path, stated: bool) -> None:
    image, tags = barred(), [(50431, 2, len(TESCAN) + 1, TESCAN, True)] if stated else []
    write(tmp_path / "a.tif", image, extratags=tags)
    write(tmp_path / "b.tif", image[:PICTURE])
    assert main.main(["denoise", str(tmp_path / "a.tif"), str(tmp_path / "b.tif"), "-o", str(tmp_path / "out")]) == 0
    with_bar, without = (json.loads((tmp_path / "out" / f"{name}.tif.json").read_text()) for name in "ab")
    result = tifffile.imread(tmp_path / "out" / "a.tif")
    np.testing.assert_array_equal(result[PICTURE:], image[PICTURE:])
    assert with_bar["spikes"]["count"] == without["spikes"]["count"] == 0
    assert with_bar["dose_evidence"]["measured"]["gain"] == pytest.approx(without["dose_evidence"]["measured"]["gain"])
    assert with_bar["scaling"]["zero"] == pytest.approx(without["scaling"]["zero"], rel=1e-6)
    verdict = with_bar["verdict"]
    assert ("bar-suspected" in verdict["codes"]) == (not stated)
    assert any(remark["code"] == "bar" for remark in verdict["remarks"]) == stated
    assert (verdict["word"] == "check") or stated


def test_the_scale_bar_avoids_the_data_bar() -> None:
    image = barred(mean=20).astype(np.float32)
    size = PixelSize(1.0, 1.0, "nm")
    drawn, plain = (
        np.asarray(render(image, image, pixels=512, size=size, title="", caption="", bar=bar))
        for bar in (range(PICTURE, HEIGHT), range(0))
    )
    half = (drawn.shape[1] - 4) // 2
    for picture, avoided in ((drawn, True), (plain, False)):
        raw, denoised = (part[PICTURE:HEIGHT] for part in (picture[:, :half], picture[:, half + 4 :]))
        assert np.array_equal(raw, denoised) == avoided


def test_a_number_that_is_none_states_no_bar() -> None:
    for text in ("-3", "0", "many", str(HEIGHT)):
        assert data_bar.of_tags({50431: f"ImageStripSize={text}\r\n"}, HEIGHT) == {}
