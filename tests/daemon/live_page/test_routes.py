"""The live page's answers: what it tells, what it refuses, and that it only reads."""

import json
import re
import signal
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from finished import Finished, counts
from page_over_http import ask, data
from site_of_daemon import LIMIT, Site, folder_state, until

from daemon.ledger.jobs import Ledger
from daemon.live_page import gallery as gallery_module
from daemon.live_page.routes import Page
from daemon.live_page.server import PROTECTION, Request
from daemon.settings import config as settings

HOSTILE = '<img src=x onerror="alert(1)">.tif'


# What it tells


def test_the_state_has_the_services_health_and_the_newest_micrograph(finished: Finished, page: Page) -> None:
    empty = data(page, "/data/state")
    assert empty["newest"] is None and empty["waiting"] == 0
    first = finished.add("a.tif", counts(1))
    finished.wait("b.tif")
    state = data(page, "/data/state")
    assert state["health"] == {"state": "ok", "detail": "events", "backend": "fake: fast"}
    assert state["counts"]["done"] == 1 and state["waiting"] == 1 and state["oldest_waiting"] > 0
    assert state["newest"]["id"] == first.id and state["newest"]["verdict"] == "good"
    assert state["changed"] != empty["changed"] and state["per_hour"] == 6  # one in ten minutes
    assert data(page, "/data/state")["changed"] == state["changed"]


def test_one_micrograph_with_all_that_is_known_of_it(finished: Finished, page: Page) -> None:
    job = finished.add("grid 2/a.tif", counts(1, (80, 100)), verdict="check", reasons=("too dark",))
    found = data(page, f"/data/micrograph/{job.id}")
    assert found["path"] == "grid 2/a.tif" and found["verdict"] == "check"
    assert found["timings"] == {"read": 0.01, "network": 2.0}
    shown = found["shown"]
    assert (shown["height"], shown["width"], shown["levels"], shown["raw_gone"]) == (80, 100, 0, "")
    assert shown["spectrum"] == {"side": 80, "factor": 1}
    record = found["record"]
    assert record["profile"]["why"] == "low: folder low" and record["verdict"]["reasons"] == ["too dark"]
    assert record["pixel_size"] == {"y": 0.04, "x": 0.04, "unit": "nm"} and record["dtype"] == "uint16"
    (finished.config.folders.drop / "grid 2/a.tif").unlink()
    assert "no longer exists" in data(page, f"/data/micrograph/{job.id}")["shown"]["raw_gone"]
    (finished.config.folders.output / "grid 2/a.tif").unlink()
    missing = data(page, f"/data/micrograph/{job.id}")
    assert missing["shown"] is None and "moved or deleted" in missing["missing"]


def test_a_quarantined_micrograph_gives_the_reason(finished: Finished, page: Page) -> None:
    job = finished.quarantine("cat.tif", "it is a picture of a cat")
    found = data(page, f"/data/micrograph/{job.id}")
    assert found["state"] == "quarantined" and found["error"] == "it is a picture of a cat" and found["shown"] is None


def test_the_list_goes_through_everything_once_by_outcome(finished: Finished, page: Page) -> None:
    expected: dict[str, list[int]] = {name: [] for name in ("good", "check", "reject", "quarantined")}
    for number in range(23):
        word = list(expected)[number % 4]
        name = f"{number:02d}.tif"
        job = (
            finished.quarantine(name, "broken")
            if word == "quarantined"
            else finished.add(name, counts(number, (16, 16)), verdict=word)
        )
        expected[word].insert(0, job.id)
    waiting = [one.id for number in range(3) if (one := finished.wait(f"w{number}.tif"))]
    expected["waiting"] = waiting[::-1]
    expected["all"] = sorted(
        {number for word in ("good", "check", "reject", "quarantined") for number in expected[word]}, reverse=True
    )
    for show, numbers in expected.items():
        found, before = [], ""
        while True:
            answer = data(page, "/data/list", show=show, limit="4", **({"before": before} if before else {}))
            found += [one["id"] for one in answer["micrographs"]]
            if not answer["more"]:
                break
            before = answer["micrographs"][-1]["place"]
        assert found == numbers, show


def test_names_that_are_no_text_or_html_are_passed_on_unchanged(finished: Finished, page: Page, port: int) -> None:
    raw = counts(1, (16, 16))
    html = finished.add("<b>/" + HOSTILE.replace("/", ""), raw)
    (finished.config.folders.drop / "<b>").joinpath("x").touch()
    odd = finished.wait(b"latin-\xe9.tif".decode("utf-8", "surrogateescape"))
    assert odd is not None
    reply = ask(port, f"/data/micrograph/{html.id}")
    assert reply.data["path"] == f"<b>/{HOSTILE}"
    assert reply.headers["content-type"] == "application/json"
    assert data(page, f"/data/micrograph/{odd.id}")["path"] == "latin-\\xe9.tif"
    turned = finished.wait("a\u202efit.exe\n.tif")
    assert turned is not None and data(page, f"/data/micrograph/{turned.id}")["path"] == "a\\u202efit.exe\\x0a.tif"
    assert ask(port, f"/picture/{html.id}/raw/0/0/0").status == 200


# What it refuses


def test_paths_outside_the_store_and_numbers_that_are_none(finished: Finished, port: int) -> None:
    job = finished.add("a.tif", counts(1, (16, 16)))
    secret = finished.config.folders.state / "secret.txt"
    secret.write_text("secret")
    for path in (
        "/image/../../etc/passwd",
        "/../../../../etc/passwd",
        "/..%2f..%2f..%2fetc%2fpasswd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/site/../page.py",
        "/./page.css",
        "/page.css/",
        "/page.css%00",
        "/page.py",
        "/__init__.py",
        "/state/secret.txt",
        "/picture/secret.txt",
        f"/file/{job.id}",
        f"/file/{job.id}/raw",
        f"/file/{job.id}/../secret.txt",
        f"/file/{job.id + 1}/image",
        "/data/tableXcsv",
        f"/picture/{job.id}",
        f"/picture/{job.id}/raw/0/0/0/",
        f"/picture/{job.id}/raw/0/0/../0",
        f"/picture/{job.id}/raw/-1/0/0",
        f"/picture/{job.id}/raw/0x1/0/0",
        f"/picture/{job.id}/raw/٣/0/0",
        f"/picture/{job.id}/raw/99999999999999999999/0/0",
        f"/picture/{job.id}/raw/999999/999999/999999",
        f"/picture/{job.id}/secret/0/0/0",
        f"/picture/{job.id}/spectrum/residual",
        f"/picture/{job.id + 1}/thumbnail",
        "/picture/999999999999999/thumbnail",
        "/picture/-1/thumbnail",
        "/picture/1e3/thumbnail",
        "/data/micrograph/0",
        "/data/micrograph/9999999999999999999999999",
        "/data/micrograph/" + "9" * 5000,
        "/data/micrograph/1;DROP TABLE jobs",
    ):
        reply = ask(port, re.sub(r"[^\x21-\x7e]", "%D9%A3", path))
        assert reply.status == 404, path
        assert b"secret" not in reply.body and b"root:" not in reply.body
    for query in (
        "/data/list?show=everything",
        "/data/list?show=good&limit=0",
        "/data/list?limit=-3",
        "/data/list?limit=1e9",
        "/data/list?before=now",
        "/data/list?before=nan_1",
        "/data/list?before=1.0_x",
        "/data/list?before=' OR 1=1 --",
        "/data/list?" + "&".join(f"a{n}=1" for n in range(100)),
        f"/data/profile/{job.id}",
        f"/data/profile/{job.id}?y0=0&x0=0&y1=inf&x1=0",
        f"/data/profile/{job.id}?y0=0&x0=0&y1=1&x1=nan",
        f"/data/profile/{job.id}?y0=0&x0=0&y1=1&x1=1&width=0",
    ):
        assert ask(port, query.replace(" ", "%20")).status == 400, query
    assert len(ask(port, "/data/list?limit=999999999").data["micrographs"]) == 1
    huge = ask(port, f"/data/profile/{job.id}?y0=-1e15&x0=0&y1=1e15&x1=5&width=99999999").data
    assert len(huge["raw"]) == 2000


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_it_only_reads(finished: Finished, port: int, method: str) -> None:
    job = finished.add("a.tif", counts(1, (16, 16)))
    for path in ("/", "/data/state", f"/picture/{job.id}/thumbnail"):
        assert ask(port, path, method).status == 501


@pytest.mark.parametrize(
    ("line", "status"),
    [("PUT / HTTP/1.1", 501), ("GET / <b> HTTP/1.1", 400), ("GET / HTTP/1.1" + 150 * "\r\nX: 1", 431)],
)
def test_what_cannot_be_understood_is_refused_as_plain_text(page: Page, port: int, line: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as client:
        client.sendall(f"{line}\r\n\r\n".encode())
        head = [row.decode().strip() for row in client.makefile("rb")]
    assert head[0].startswith(f"HTTP/1.0 {status} ") and "Content-Type: text/plain" in head
    assert {f"{name}: {value}" for name, value in PROTECTION.items()} <= set(head)


def test_nothing_of_the_micrographs_is_changed_by_looking(finished: Finished, port: int) -> None:
    job = finished.add("a.tif", counts(1, (600, 700)))
    finished.quarantine("b.tif", "broken")
    folders = (finished.config.folders.drop, finished.config.folders.output)
    before = [folder_state(folder) for folder in folders]
    rows = finished.ledger.recent(10)
    for path in ("/", "/page.js", "/data/state", "/data/list", "/data/session", f"/data/micrograph/{job.id}",
                 f"/data/profile/{job.id}?y0=0&x0=0&y1=9&x1=9", f"/picture/{job.id}/thumbnail",
                 *(f"/picture/{job.id}/{plane}/1/0/0" for plane in ("raw", "denoised", "residual")),
                 f"/picture/{job.id}/residual/0/1/1",
                 *(f"/picture/{job.id}/spectrum/{plane}" for plane in ("raw", "denoised"))):  # fmt: skip
        assert ask(port, path).status == 200, path
        head = ask(port, path, "HEAD")
        assert head.status == 200 and head.body == b""
    assert [folder_state(folder) for folder in folders] == before
    assert finished.ledger.recent(10) == rows


def test_strangers_and_other_sites_are_kept_out(finished: Finished, port: int) -> None:
    job = finished.add("a.tif", counts(1, (16, 16)))
    for path in ("/", "/data/state", f"/picture/{job.id}/thumbnail"):
        assert ask(port, path, Host="evil.example").status == 403
        headers = ask(port, path).headers
        for name, value in PROTECTION.items():
            assert headers[name.lower()] == value
    policy = PROTECTION["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    assert PROTECTION["Cross-Origin-Resource-Policy"] == "same-origin"
    assert ask(port, "/data/state").headers["cache-control"] == "no-store"


def test_what_has_not_changed_is_not_sent_or_drawn_again(
    finished: Finished, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = finished.add("a.tif", counts(1, (16, 16)))
    for path in (f"/picture/{job.id}/raw/0/0/0", "/page.css"):
        first = ask(port, path)
        assert first.status == 200 and first.headers["etag"]
        monkeypatch.setattr(gallery_module.Gallery, "tile", None)
        again = ask(port, path, If_None_Match=first.headers["etag"])
        assert again.status == 304 and again.body == b"" and again.headers["etag"] == first.headers["etag"]


def test_too_many_pictures_at_once_are_put_off(
    finished: Finished, page: Page, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = finished.add("a.tif", counts(1, (16, 16)))
    monkeypatch.setattr(page.gallery, "_patience", 0.01)
    for _ in range(gallery_module.AT_ONCE):
        page.gallery._places.acquire()
    for path in (f"/picture/{job.id}/raw/0/0/0", "/data/session", f"/data/profile/{job.id}?y0=0&x0=0&y1=1&x1=1"):
        reply = ask(port, path)
        assert reply.status == 503 and reply.headers["retry-after"] == "1" and "ask again" in reply.data["error"]
    assert ask(port, "/data/state").status == ask(port, "/data/list").status == 200
    for _ in range(gallery_module.AT_ONCE):
        page.gallery._places.release()
    assert ask(port, f"/picture/{job.id}/raw/0/0/0").status == 200


def test_a_record_that_makes_no_sense_is_an_answer_too(finished: Finished, port: int) -> None:
    job = finished.add("a.tif", counts(1, (16, 16)))
    record = finished.config.folders.output / "a.tif.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "raw": "nonsense"}))
    reply = ask(port, f"/data/micrograph/{job.id}")
    assert reply.status == 200 and "it is damaged" in reply.data["shown"]["raw_gone"]
    assert reply.data["record"]["dose"] == 20.0 and reply.data["record"]["pixel_size"] is None
    assert ask(port, f"/picture/{job.id}/denoised/0/0/0").status == 200
    reply = ask(port, f"/picture/{job.id}/raw/0/0/0")
    assert reply.status == 404 and "it is damaged" in reply.data["error"]
    assert ask(port, "/data/list").status == 200


def test_micrographs_are_released_when_no_page_is_open(
    finished: Finished, page: Page, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = finished.add("a.tif", counts(1, (16, 16)))
    assert ask(port, f"/picture/{job.id}/raw/0/0/0").status == 200
    assert page.gallery.held == 2 * 16 * 16
    monkeypatch.setattr(gallery_module, "HELD_SECONDS", 0.0)
    until(lambda: page.gallery.held == 0)


# Its settings, and the real process


def test_the_page_is_on_unless_it_is_turned_off(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("folders: {drop: d, output: o, state: s}\n")
    shipped = settings.load(file)
    assert shipped.monitor.page and str(shipped.monitor.listen) == "127.0.0.1:8642" and shipped.keep.page_mib == 256
    file.write_text("folders: {drop: d, output: o, state: s}\nmonitor: {page: false}\n")
    assert not settings.load(file).monitor.page


def test_a_reload_turns_the_page_off_and_on_while_metrics_go_on(site: Site) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    listen = {"listen": f"127.0.0.1:{port}"}
    site.configure(monitor=listen, output={"preview": False})
    site.write("a.tif", 1)
    process = site.launch("run", staged="quick")
    site.ready(process)
    assert f"the live page is http://127.0.0.1:{port}/" in site.said(process)
    until(lambda: ask(port, "/data/state").data["newest"] is not None)
    number = ask(port, "/data/state").data["newest"]["id"]
    assert ask(port, f"/picture/{number}/residual/0/0/0").status == 200
    site.configure(monitor={**listen, "page": False}, output={"preview": False})
    process.send_signal(signal.SIGHUP)
    until(lambda: ask(port, "/data/state").status == 404)
    assert ask(port, "/").body.startswith(b"emdenoised: /healthz") and ask(port, "/healthz").status == 200
    site.configure(monitor=listen, output={"preview": False})
    process.send_signal(signal.SIGHUP)
    until(lambda: ask(port, "/data/state").status == 200)
    assert ask(port, f"/picture/{number}/residual/0/0/0").status == 200
    process.terminate()
    assert process.wait(LIMIT) == 0
    assert "Traceback" not in site.said(process)


def test_a_ledger_that_cannot_be_read_now_is_an_answer_not_an_end(finished: Finished, page: Page) -> None:
    page._ledger.close()
    answer = page.answer(Request("/data/state"))
    assert answer is not None and answer.status == 503 and answer.retry_after == 1


def test_every_question_of_the_page_is_a_look_into_an_index(finished: Finished) -> None:
    """Otherwise a million rows would be gone through, twice a second."""
    finished.wait("a.tif")
    with closing(Ledger(finished.config.folders.state, "read")) as ledger:
        plans: list[str] = []
        real = ledger._db

        class Watching:
            def execute(self, query: str, values: Any = ()) -> Any:
                plans.extend(str(row[3]) for row in real.execute(f"EXPLAIN QUERY PLAN {query}", values))
                return real.execute(query, values)

            def close(self) -> None:
                real.close()

        ledger._db = Watching()  # type: ignore[assignment]
        for before in (None, (1.0, 1)):
            ledger.recent(40, before=before)
            for state in ("done", "quarantined", "running", "pending", "retry"):
                ledger.recent(40, state, before=before)  # type: ignore[arg-type]
            for verdict in ("good", "check", "reject"):
                ledger.recent(40, verdict=verdict, before=before)
        ledger.oldest_waiting()
        ledger.counts()
    assert plans
    assert not [plan for plan in plans if re.match(r"SCAN jobs(?! USING INDEX)", plan)]
    # Within one moment the order is by number, which sorts no more than the rows of that moment.
    assert not [plan for plan in plans if plan == "USE TEMP B-TREE FOR ORDER BY"]
