"""The table and the files that the page hands out: what they hold, what they refuse, what a spreadsheet makes of it."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from finished import Finished, counts
from page_over_http import ask

from daemon.ledger.database import LedgerUnavailableError
from daemon.ledger.table import Table


def found(port: int, path: str) -> Any:
    reply = ask(port, path)
    assert reply.status == 200, reply.body
    return reply.data


def test_a_row_holds_the_figures_and_the_reason(finished: Finished, port: int) -> None:
    job = finished.add(
        "grid/a.tif",
        counts(1),
        verdict="check",
        facts={"dose": 12.5, "pixel_size": {"x": 0.4, "y": 0.4, "unit": "angstrom"}, "codes": ["mean"]},
    )
    finished.quarantine("grid/b.tif", "it ends in the middle")
    first, second = found(port, "/data/table?sort=name&order=asc")["rows"]
    assert (first["id"], first["path"], first["dose"], first["verdict"]) == (job.id, "grid/a.tif", 12.5, "check")
    assert first["pixel"] == pytest.approx(0.04) and first["codes"] == ["mean"] and first["seconds"] == 2.01
    assert second["verdict"] == "quarantined" and second["error"] == "it ends in the middle"
    assert found(port, "/data/table?count=1&from=1&scope=session")["total"] == 2
    assert [row["path"] for row in found(port, "/data/table?search=B.T")["rows"]] == ["grid/b.tif"]


def test_a_reason_has_neither_paths_nor_characters_that_hide_others(finished: Finished, port: int) -> None:
    path, drop = "grid/we\u202eird.mrc", finished.config.folders.drop
    finished.quarantine(path, f"{drop / path}: is no image, nor is {drop}/b\u202e.tif")
    said = r"is no image, nor is b\u202e.tif"
    (row,) = found(port, "/data/table")["rows"]
    assert row["error"] == said
    assert found(port, "/data/list")["micrographs"][0]["error"] == said
    (_, line) = csv.reader(io.StringIO(ask(port, "/data/table.csv").body.decode()))
    assert line[7] == said


@pytest.mark.parametrize("given", ["sort=path;drop", "order=up", "show=x", "scope=x", "from=-1", "count=0", "count=x"])
def test_a_table_that_makes_no_sense_is_refused(finished: Finished, port: int, given: str) -> None:
    reply = ask(port, f"/data/table?{given}")
    assert reply.status == 400 and reply.data["error"]


def test_the_csv_has_every_row_and_no_formulas(finished: Finished, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    finished.add("=cmd|' /C calc'!A0.tif", counts(1), facts={"codes": ["mean", "dose"]})
    finished.quarantine('b,"\n.tif', "+it\nends")
    reply = ask(port, "/data/table.csv?order=asc")
    assert reply.status == 200 and reply.headers["content-type"].startswith("text/csv")
    assert reply.headers["content-disposition"] == "attachment; filename*=UTF-8''micrographs.csv"
    head, first, second = csv.reader(io.StringIO(reply.body.decode()))
    assert head[1] == "path" and first[1] == "'=cmd|' /C calc'!A0.tif" and first[6] == "mean dose"
    assert second[1] == 'b,"\\x0a.tif' and second[7] == "'+it\\x0aends" and second[5] == "quarantined"
    assert ask(port, "/data/table.csv", "HEAD").body == b""

    def fails(*_: object) -> None:
        raise LedgerUnavailableError("the disk is full")

    monkeypatch.setattr(Table, "_rows", fails)
    assert ask(port, "/data/table.csv").body.decode().splitlines()[-1] == "incomplete,the disk is full"


def test_the_files_of_a_result_come_as_they_are(finished: Finished, port: int, tmp_path: Path) -> None:
    job = finished.add("grid/ä b.tif", counts(1))
    output = finished.config.folders.output / "grid/ä b.tif"
    for part, path in (("image", output), ("record", output.with_name("ä b.tif.json"))):
        reply = ask(port, f"/file/{job.id}/{part}")
        assert reply.status == 200 and reply.body == path.read_bytes()
        assert reply.headers["content-length"] == str(len(reply.body))
        assert reply.headers["content-type"] == "application/octet-stream"
        assert reply.headers["content-disposition"].startswith("attachment; filename*=UTF-8''%C3%A4%20b.tif")
    assert ask(port, f"/file/{job.id}/image", "HEAD").body == b""
    preview = output.with_name("ä b.tif.png")
    assert ask(port, f"/file/{job.id}/preview").status == 404
    secret = tmp_path / "secret"
    secret.write_text("secret")
    preview.symlink_to(secret)
    reply = ask(port, f"/file/{job.id}/preview")
    assert reply.status == 404 and b"not a plain file" in reply.body
    files = found(port, f"/data/micrograph/{job.id}")["files"]
    assert files == {"raw": str(finished.config.folders.drop / "grid/ä b.tif"), "result": str(output)}
