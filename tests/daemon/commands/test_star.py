"""`emdenoised star`: RELION's tables, links that say denoised, and what is left out, with the reason."""

from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest

from daemon.commands.main import main
from daemon.micrograph import Micrograph, PixelSize
from daemon.output import writing
from daemon.output.record import Record

IMAGE = np.random.default_rng(0).normal(50, 3, (48, 64)).astype(np.float32)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "denoised"
    folder.mkdir()
    return folder


def result(root: Path, name: str, *, kv: float | None = 300, pixel: PixelSize | None = None, **more: Any) -> Path:
    """A result as the service writes it: 2.1 Å unless `pixel` states another."""
    size = pixel or PixelSize(0.21, 0.21, "nm")
    raw = {
        "path": f"/raw/{name}",
        "relative": more.get("as_", name),
        "sha256": f"{abs(hash((name, str(more)))):064x}",
        "section": more.get("section"),
        "pixel_size": None if size.unit == "" else {"y": size.y, "x": size.x, "unit": size.unit},
        "acquisition": {"voltage_kv": kv or "unknown"},
    }
    record = Record.model_validate({"raw": raw, "verdict": {"word": more.get("verdict", "good")}})
    kind = "mrc" if name.endswith((".mrc", ".mrcs")) else "tiff"
    like = Micrograph(IMAGE, root, kind, size if size.unit else None)
    written = writing.write_outputs(
        root, PurePath(more.get("as_", name)), more.get("revision", 1), like, IMAGE, record, kind=kind, preview_pixels=0
    )
    return written.image


def tables(path: Path) -> dict[str, list[dict[str, str]]]:
    """Rows by table, as STAR defines them: a name a column, a line a row."""
    found: dict[str, list[dict[str, str]]] = {}
    columns: list[str] = []
    for line in path.read_text("ascii").splitlines():
        if line.startswith("data_"):
            rows = found[line.removeprefix("data_")] = []
            columns = []
        elif line.startswith("_"):
            columns.append(line.split(" #")[0].removeprefix("_"))
        elif line and not line.startswith(("#", "loop_")):
            rows.append(dict(zip(columns, line.split(), strict=True)))
    return found


def test_the_tables_of_relion_and_links_that_say_denoised(results: Path, tmp_path: Path) -> None:
    images = [result(results, "grid 2/a.mrc"), result(results, "b.tif"), result(results, "c.mrcs", kv=200)]
    star = tmp_path / "project" / "picking.star"
    star.parent.mkdir()
    assert main(["star", str(results), "-o", str(star)]) == 0
    found = tables(star)
    assert [list(row.values()) for row in found["micrographs"]] == [
        ["picking/b_denoised.tif", "1"],
        ["picking/c_denoised.mrc", "2"],
        ["picking/grid_2/a_denoised.mrc", "1"],
    ]
    assert [(row["rlnOpticsGroup"], float(row["rlnVoltage"])) for row in found["optics"]] == [("1", 300), ("2", 200)]
    assert float(found["optics"][0]["rlnMicrographPixelSize"]) == pytest.approx(2.1)
    links = {(star.parent / row["rlnMicrographName"]).resolve() for row in found["micrographs"]}
    assert links == {image.resolve() for image in images}
    assert "picking only" in star.read_text()


def test_what_relion_cannot_use_is_left_out_with_the_reason(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result(results, "good.mrc")
    result(results, "worse.mrc", verdict="reject")
    result(results, "no size.mrc", pixel=PixelSize(1, 1, ""))
    result(results, "oblong.mrc", pixel=PixelSize(0.2, 0.4, "nm"))
    result(results, "changed by hand.mrc", pixel=PixelSize(1, 0, "nm"))
    result(results, "no voltage.mrc", kv=None)
    result(results, "good.tif")
    star = tmp_path / "p.star"
    assert main(["star", str(results), "-o", str(star)]) == 0
    assert [row["rlnMicrographName"] for row in tables(star)["micrographs"]] == ["p/good_denoised.mrc"]
    said = capsys.readouterr().out
    for reason in ("1 with the verdict reject", "2 without a pixel size", "1 whose pixels are not square",
                   "1 whose voltage is unknown: state it with --kv", "1 called like another one"):  # fmt: skip
        assert f"left out: {reason}" in said
    assert main(["star", str(results), "-o", str(star), "--kv", "300"]) == 0
    assert len(tables(star)["micrographs"]) == 2


def test_of_revisions_the_latest_and_sections_by_themselves(results: Path, tmp_path: Path) -> None:
    result(results, "a.mrc")
    latest = result(results, "a.mrc", revision=2)
    sections = [result(results, "t.mrc", section=n, as_=f"t.s{n:04d}.mrc") for n in (1, 2)]
    sections.append(result(results, "t.s0001.mrc"))  # a file, called like a section
    star = tmp_path / "p.star"
    assert main(["star", str(results), "-o", str(star)]) == 0
    names = [row["rlnMicrographName"] for row in tables(star)["micrographs"]]
    sections = [sections[2], *sections[:2]]
    stems = ("a", "t.s0001.s0000", "t.s0001", "t.s0002")
    assert names == [f"p/{stem}_denoised.mrc" for stem in stems]
    assert [(tmp_path / name).resolve() for name in names] == [latest.resolve(), *(one.resolve() for one in sections)]


def test_a_second_run_replaces_links_and_no_other_file(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result(results, "a.mrc")
    star = tmp_path / "p.star"
    assert main(["star", str(results), "-o", str(star)]) == 0
    link = tmp_path / "p" / "a_denoised.mrc"
    latest = result(results, "a.mrc", revision=2)
    assert main(["star", str(results), "-o", str(star)]) == 0
    assert link.resolve() == latest.resolve()
    link.unlink()
    link.write_text("mine")
    assert main(["star", str(results), "-o", str(star)]) == 1
    assert link.read_text() == "mine" and "no link of this command" in capsys.readouterr().err


def test_a_list_with_blanks_and_umlauts_in_its_name(results: Path, tmp_path: Path) -> None:
    image = result(results, "grid 2/ä.mrc")
    star = tmp_path / "grün 1.star"
    assert main(["star", str(results), "-o", str(star)]) == 0
    (row,) = tables(star)["micrographs"]
    assert row["rlnMicrographName"] == "gr_n_1/grid_2/__denoised.mrc"
    assert (tmp_path / row["rlnMicrographName"]).resolve() == image.resolve()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nowhere", "-o", "p.star"], 2, "is no folder"),
        ([".", "-o", "p.txt"], 2, "must end in .star"),
        ([".", "-o", "p.star"], 1, "has no results to list"),
    ],
)
def test_wrong_arguments_and_nothing_to_list(
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    monkeypatch.chdir(results)
    assert main(["star", *arguments]) == status
    assert words in capsys.readouterr().err
    assert not list(results.iterdir())
