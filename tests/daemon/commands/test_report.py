"""A session as a page for the lab book, and through other weights: real results of a real service."""

import html
import json
import os
import re
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile
from site_of_daemon import Site, folder_state

from daemon import logs
from daemon.backends import manifest
from daemon.commands import command_line, main, replay, report, shared
from daemon.commands import html as document
from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger
from daemon.output.record import Record

NASTY = "<img src=x onerror=alert(1)>.tif"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Three micrographs, one stack of two sections and one file that is none, all done with."""
    rng = np.random.default_rng(0)

    def write(path: Path, seed: int, dose: float = 50.0) -> Path:
        wave = np.sin(np.arange(160) / 9 + seed)
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, rng.poisson(dose * (1 + 0.4 * wave[:, None] * wave)).astype(np.uint16))
        return path

    site = Site(tmp_path_factory.mktemp("session"), write)
    site.configure(retry={"attempts": 1, "first_seconds": 0.1, "longest_seconds": 0.1})
    site.write("low/a.tif", 1)
    site.write(NASTY, 2)
    site.write("low/scaled.tif", 3)
    tifffile.imwrite(site.drop / "low" / "scaled.tif", tifffile.imread(site.drop / "low" / "scaled.tif") * 9)
    (site.drop / "paper.tif").write_bytes(b"%PDF-1.7 " + b"x" * 5000)
    with mrcfile.new(site.drop / "tilt.st", rng.poisson(30, (2, 160, 160)).astype(np.uint16)) as stack:
        stack.set_image_stack()
    status, said = site.finish("once")
    assert status == 1 and "quarantined 'paper.tif'" in said
    return site


def jobs(site: Site) -> list[Job]:
    with Ledger(site.state, "read") as ledger:
        return ledger.recent(100)


def command(site: Site, *words: str) -> int:
    return main.main([*words, "--config", str(site.config)])


def test_the_page_tells_everything_of_every_micrograph_and_needs_nothing_else(session: Site, tmp_path: Path) -> None:
    page = tmp_path / "book" / "session.html"
    assert command(session, "report", "last", "-o", str(page)) == 0
    text = page.read_text("utf-8")
    for job in jobs(session):
        assert html.escape(job.path.removesuffix(".st")) in text
    for record in session.output.rglob("*.json"):
        told = json.loads(record.read_text())
        assert told["raw"]["sha256"] in text and told["output"]["sha256"] in text
    assert re.search(r"noise has \S+ times the variance of counts", text) and "PDF document" in text
    assert len(re.findall(r'src="data:image/jpeg;base64,', text)) == 5
    assert "5 denoised, 1 quarantined" in text and "tilt.s0001.st" in text and "tilt.s0002.st" in text
    assert NASTY not in text and not re.search(r'(src|href)="(?!data:)', text) and "<script" not in text
    doubtful = text.index("low/scaled.tif</b>")
    assert all(doubtful < text.index(f"{name}</b>") for name in ("low/a.tif", html.escape(NASTY)))


def stored(content: dict[str, object]) -> Record:
    """As a record is read from a file."""
    return Record.model_validate(content, context="stored")


def told(*codes: str, remarks: tuple[str, ...] = ()) -> Record:
    """A record whose reasons are "about CODE", with 1 of this record's own in it."""
    reasons = [f"about {code}" for code in codes]
    found = [{"code": code, "text": f"about {code}"} for code in remarks]
    verdict = {"reasons": reasons, "codes": list(codes), "remarks": found}
    return stored({"verdict": verdict, "warnings": [*reasons, "of the file"]})


def test_what_most_of_a_session_share_is_reported_once() -> None:
    records = [told("profile", "mean"), told("profile"), told(remarks=("profile",)), told("saturated", "worse")]
    (common,) = report._common(records)
    assert (common.code, common.text, common.number) == ("profile", "about profile", 3)
    heads = [report._why(record, [common]) for record in records]
    assert heads[0] == document.Folded("about mean", ("of the file",))
    assert heads[1] == document.Folded("see the whole session: profile", ("of the file",))
    assert heads[2] == document.Folded("of the file")
    assert heads[3] == document.Folded("about saturated", ("about worse", "of the file"))


def test_what_is_wrong_with_results_is_reported_of_each() -> None:
    assert report._common([told("worse"), told("worse"), told("worse")]) == []


def test_a_record_without_codes_is_read_as_before() -> None:
    old = stored({"verdict": {"reasons": ["too dark"]}, "warnings": ["too dark", "of the file"]})
    assert report._common([old, old]) == []
    assert report._why(old, []) == document.Folded("too dark", ("of the file",))
    assert report._why(stored({"verdict": 3, "warnings": "text"}), []) == document.Folded("")


def test_pictures_come_first_and_details_are_folded(session: Site, tmp_path: Path) -> None:
    page = tmp_path / "session.html"
    assert command(session, "report", "last", "-o", str(page)) == 0
    text = page.read_text("utf-8")
    assert text.index("data:image") < text.index("<h2>Micrographs</h2>") < text.index("<summary>Hashes</summary>")
    assert "<script" not in text


def test_fewer_pictures_keep_the_doubtful_ones(session: Site, tmp_path: Path) -> None:
    page = tmp_path / "session.html"
    assert command(session, "report", "low", "--pictures", "1", "-o", str(page)) == 0
    text = page.read_text("utf-8")
    assert text.count("data:image") == 1 and "low/scaled.tif</b>" in text and "1 more are not shown" in text
    assert html.escape(NASTY) not in text


def test_moved_results_are_reported(session: Site, tmp_path: Path) -> None:
    config = shared.settings_of(command_line.parser().parse_args(["check", "--config", str(session.config)]))
    moved = [replace(job, output="/no/such.tif") for job in jobs(session) if job.state == "done"]
    report.write(config, moved, "x", tmp_path / "page.html", 9)
    text = (tmp_path / "page.html").read_text()
    assert len(moved) == 4  # one of them a stack of two sections
    assert text.count("the result is no longer where it was") == 5


def test_a_preview_that_somebody_made_up_is_left_out(session: Site, tmp_path: Path) -> None:
    picture = session.output / "low" / "a.tif.png"
    before = picture.read_bytes()
    try:
        for made in (b"", before[:200], _claiming(before, 60_000)):
            picture.write_bytes(made)
            assert command(session, "report", "low", "-o", str(tmp_path / "page.html")) == 0
            assert (tmp_path / "page.html").read_text("utf-8").count("data:image") == 1
        picture.unlink()
        os.mkfifo(picture)  # would hold whoever opens it
        assert command(session, "report", "low", "-o", str(tmp_path / "page.html")) == 0
    finally:
        picture.unlink()
        picture.write_bytes(before)


def _claiming(png: bytes, side: int) -> bytes:
    """A PNG that says it is so large."""
    head = b"IHDR" + struct.pack(">II", side, side) + png[24:29]
    return png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:]


def test_a_name_with_the_ending_of_a_page_is_the_file_and_a_folder_gets_one(
    session: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    for to, pattern in (("a.html", "a.html"), ("B.HTM", "B.HTM"), ("there", "there/session-*.html"),
                        ("new/", "new/session-*.html"), ("x/y.html", "x/y.html")):  # fmt: skip
        assert command(session, "report", "last", "-o", f"{tmp_path}/{to}") == 0
        (page,) = tmp_path.glob(pattern)
        assert page.is_file() and page.read_bytes().startswith(b"<!doctype html>")
        assert str(page) in capsys.readouterr().out
    before = sorted(tmp_path.rglob("*"))
    for to in ("session", "a.pdf", "new/session", "a.html.d/b"):
        assert command(session, "report", "last", "-o", f"{tmp_path}/{to}") == 2
        assert "must end in .html" in " ".join(capsys.readouterr().err.split())
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_session_is_an_error_that_defines_a_session(
    session: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(session, "report", "grid 9", "-o", str(tmp_path / "x.html")) == 2
    assert "a session is 'last'" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_the_same_weights_bring_the_same_results(
    session: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = folder_state(session.drop), folder_state(session.output)
    assert command(session, "replay", "last", "--weights", "fast", "-o", str(tmp_path)) == 0
    assert "5 compared, 0 with another verdict, 0 not compared" in capsys.readouterr().out
    told = json.loads((tmp_path / "replay.json").read_text())
    assert {one["micrograph"] for one in told["compared"]} == {
        "low/a.tif", "low/scaled.tif", NASTY, "tilt.s0001.st", "tilt.s0002.st",
    }  # fmt: skip
    assert all(one["difference"] < 1e-4 and one["old"] == one["new"] for one in told["compared"])
    assert NASTY not in (tmp_path / "replay.html").read_text("utf-8")
    assert (folder_state(session.drop), folder_state(session.output)) == before


def test_other_weights_are_compared_and_disagreements_come_first(
    session: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that double everything: a folder of the same weights, and a backend that spoils what they make."""
    shutil.copytree(manifest.locate("fast"), tmp_path / "mine")
    opened = replay.open_backend

    class Spoilt:
        def __init__(self, backend: replay.Backend) -> None:
            self._backend, self.close, self.name = backend, backend.close, "spoilt"

        def denoise(self, planes: object) -> object:
            for one in self._backend.denoise(planes):  # type: ignore[arg-type]
                noise = np.random.default_rng(0).normal(0, 2 * one.prepared.scaling.unit, one.image.shape)
                first = one.prepared.dose < 40  # of the stack alone
                yield replace(one, image=(one.image + noise * first).astype(np.float32))

    monkeypatch.setattr(replay, "open_backend", lambda *arguments: Spoilt(opened(*arguments)))
    (session.drop / "low" / "a.tif").rename(tmp_path / "away.tif")
    try:
        assert command(session, "replay", "last", "--weights", str(tmp_path / "mine"), "-o", str(tmp_path / "out")) == 0
    finally:
        (tmp_path / "away.tif").rename(session.drop / "low" / "a.tif")
    assert "4 compared, 2 with another verdict, 1 not compared" in capsys.readouterr().out
    text = (tmp_path / "out" / "replay.html").read_text("utf-8")
    rows = re.findall(r"<tr><td>([^<]+)</td><td class", text)
    assert set(rows[:2]) == {"tilt.s0001.st", "tilt.s0002.st"} and len(rows) == 4
    assert "cannot be read now" in text and "low/a.tif" in text
    assert '<span class="good">good</span> → <span class="reject">reject</span>' in text


def test_weights_that_are_not_there(session: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(session, "replay", "last", "--weights", "nothing", "-o", str(tmp_path)) == 2
    assert "nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "spoilt",
    [
        {"dose": "much", "warnings": 7, "raw": {"shape": 3}, "spikes": {"count": "x"}, "weights": {"sha256": []}},
        {"dose": float("inf"), "verdict": [], "raw": [], "profile": None, "spikes": None, "weights": "fast"},
    ],
)
def test_a_record_that_somebody_wrote_by_hand_costs_itself_only(
    session: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoilt: dict[str, object]
) -> None:
    record = session.output / "low" / "a.tif.json"
    before = record.read_bytes()
    record.write_text(json.dumps({**json.loads(before), **spoilt}))
    try:
        assert command(session, "report", "last", "-o", str(tmp_path / "page.html")) == 0
        assert command(session, "replay", "low", "--weights", "fast", "-o", str(tmp_path)) == 0
    finally:
        record.write_bytes(before)
    assert "low/a.tif" in (tmp_path / "page.html").read_text("utf-8")
    assert "1 compared" in capsys.readouterr().out
    told = json.loads((tmp_path / "replay.json").read_text())
    assert [one["micrograph"] for one in told["not compared"]] == ["low/a.tif"]
    assert "is damaged" in told["not compared"][0]["reason"]


def test_letters_that_turn_the_direction_of_writing_are_shown_as_what_they_are() -> None:
    assert document.text("a\u202efit.exe") == "a\\u202efit.exe"
    assert logs.one_line("a\u2066b\nc") == "a\\u2066b\\x0ac"
    assert document.text("two\nlines") == "two\nlines"
