"""The live page in a real browser: its lists, damaged and missing files, many micrographs, and a restart."""

import json
import os
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
from chromium import Browser
from finished import Finished, counts
from selenium.webdriver.common.keys import Keys
from site_of_daemon import Site
from site_pixels import SHAPE, Served, expected, part

from daemon.live_page import gallery
from daemon.live_page.server import Health

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=hacked=1>.tif"


def test_the_strip_shows_one_outcome_and_no_text_is_taken_for_html(
    browser: Browser, finished: Finished, served: Served
) -> None:
    small = counts(1, (64, 64))
    finished.add("good.tif", small)
    finished.add("check.tif", small, verdict="check")
    finished.add(HOSTILE, small, verdict="reject", reasons=("<b onmouseover=hacked=1>bad</b>",))
    finished.quarantine("broken.tif", "<script>hacked=1</script>")
    finished.wait("later.tif")
    browser.open(served[1])

    def names() -> list[str]:
        found = browser.run("return [...document.querySelectorAll('#strip .shot')].map((one) => one.title)")
        return [str(name) for name in found]

    browser.wait(lambda: names() == ["broken.tif", HOSTILE, "check.tif", "good.tif"])
    for show in ("good", "check", "reject", "quarantined", "waiting"):
        name = {"reject": HOSTILE, "quarantined": "broken.tif", "waiting": "later.tif"}.get(show, f"{show}.tif")
        browser.one(f"[data-show={show}]").click()
        browser.wait(lambda name=name: names() == [name])
        browser.one("#strip .shot").click()
        browser.wait(lambda name=name: browser.text("aside h2") == name)
    browser.press("v")
    browser.wait(lambda: len(names()) == 4)
    assert browser.run("return typeof hacked") == "undefined" and not browser.all("img[src=x], aside b, aside script")
    assert browser.complaints() == []


def test_a_damaged_record_stops_neither_the_page_nor_the_next_result(
    browser: Browser, finished: Finished, served: Served
) -> None:
    finished.add("made up.tif", counts(1, (64, 64)), facts={"reasons": {"a": 1}})
    record = finished.config.folders.output / "made up.tif.json"
    made_up = {"warnings": "text", "verdict": 5, "seconds": 5, "profile": "x"}
    record.write_text(json.dumps({**json.loads(record.read_text()), **made_up}))
    browser.open(served[1])
    assert browser.text("aside h2") == "made up.tif" and "is damaged" in browser.text("aside")
    assert not browser.shown("#banner")
    finished.add("next.tif", counts(2, (64, 64)))
    browser.wait(lambda: browser.text("aside h2") == "next.tif" and "counts per pixel" in browser.text("aside"))
    assert browser.complaints() == []


def test_why_there_is_nothing_to_see_is_said_in_full(
    browser: Browser, finished: Finished, served: Served, health: dict[str, Health]
) -> None:
    finished.quarantine("broken.tif", "it ends in the middle")
    browser.driver.get(f"http://127.0.0.1:{served[1]}/")
    browser.wait(lambda: "1 quarantined: pick one below" in browser.text("#notice"))
    browser.press("f")
    place = browser.one("#notice").rect
    at = [place["x"] + place["width"] / 2, place["y"] + place["height"] / 2]
    browser.run("document.querySelector('#notice').style.pointerEvents = 'auto'")
    assert browser.run("return document.elementFromPoint(...arguments[0]).id", at) == "notice"  # nothing covers it
    detail = "the output disk is full; " + 20 * "and so on, " + "it is tried again"
    health["now"] = Health("degraded", detail)
    browser.wait(lambda: browser.shown("#banner") and browser.text("#banner") == f"degraded: {detail}")
    health["now"] = Health("ok", "events", "fake: fast")
    browser.wait(lambda: not browser.shown("#banner"))
    assert browser.complaints() == []


def test_a_stack_has_the_worst_word_and_says_which_the_shown_section_has(
    browser: Browser, finished: Finished, served: Served
) -> None:
    job = finished.add("tilt.tif", counts(1, (64, 64)), reasons=("of the last one",))
    with finished.ledger._transaction():
        finished.ledger._move(job, ("done",), sections=3, verdict="reject")
    browser.open(served[1])
    assert browser.text(".verdict span") == "Reject"
    assert "the worst of 3 sections; the one shown: good" in browser.text(".reasons")
    assert "of the last one" in browser.text(".reasons")


def test_a_raw_file_that_is_gone_and_a_daemon_that_is_busy(
    browser: Browser, finished: Finished, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, port = served
    finished.add("a.tif", counts(5, SHAPE))
    finished.add("broken.tif", counts(4, SHAPE))
    broken = finished.config.folders.drop / "broken.tif"
    state = broken.stat()
    broken.write_bytes(bytes(state.st_size))
    os.utime(broken, ns=(state.st_mtime_ns, state.st_mtime_ns))
    finished.add("b.tif", counts(6, SHAPE))
    (finished.config.folders.drop / "b.tif").unlink()
    browser.open(port)
    assert "the raw file no longer exists" in browser.text("#notice") and not browser.shown("#divider")
    browser.press("r")
    assert browser.text("#notice").startswith("no residual: ")
    browser.wait(lambda: not browser.shown("#bar"))
    browser.press("c")
    browser.press("1")
    browser.settled()
    canvas = browser.canvas()
    np.testing.assert_array_equal(canvas[..., 0], part(expected(finished, 6)["denoised"], canvas))

    browser.press(Keys.ARROW_RIGHT)  # looks as it did, but cannot be read
    browser.wait(lambda: browser.text("aside h2") == "broken.tif" and "broken.tif" in browser.text("#notice"))
    browser.settled()
    assert browser.text("#notice").startswith("denoised alone: ") and not browser.shown("#divider")
    canvas = browser.canvas()
    np.testing.assert_array_equal(canvas[..., 0], part(expected(finished, 4)["denoised"], canvas))
    assert [told for told in browser.complaints() if "404 (Not Found)" not in told] == []

    monkeypatch.setattr(page.gallery, "_patience", 0.01)
    for _ in range(gallery.AT_ONCE):
        page.gallery._places.acquire()
    browser.press(Keys.ARROW_RIGHT)
    browser.wait(lambda: browser.text("aside h2") == "a.tif" and browser.shown("#busy"))
    for _ in range(gallery.AT_ONCE):
        page.gallery._places.release()
    browser.wait(lambda: not browser.shown("#busy") and browser.shown("#divider"))
    browser.settled()
    assert not browser.shown("#notice")
    assert browser.complaints() == []


def test_ten_thousand_micrographs_do_not_make_it_slow(browser: Browser, finished: Finished, served: Served) -> None:
    number, page = 10_000, 40
    job = finished.add("a.tif", counts(1, (64, 64)))
    rows = (
        (
            f"grid/{at:05d}.tif".encode(),
            job.updated - at - 1,
            ("good", "check", "reject")[at % 3],
            str(job.output).encode(),
        )
        for at in range(1, number)
    )
    facts = json.dumps(dict(job.facts))
    with finished.ledger._transaction():
        finished.ledger._db.executemany(
            "INSERT INTO jobs (path, revision, size, mtime_ns, state, live, created, updated, verdict, output, facts)"
            f" VALUES (?1, 1, 1, '1', 'done', 1, ?2, ?2, ?3, ?4, '{facts}')",
            rows,
        )
    begin = time.monotonic()
    browser.open(served[1])
    assert time.monotonic() - begin < 5
    browser.wait(lambda: browser.text("#done") == str(number))

    def measured() -> tuple[int, float]:
        browser.driver.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
        found = browser.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        heap = next(float(one["value"]) for one in found if one["name"] == "JSHeapUsedSize")
        return int(browser.run("return document.getElementsByTagName('*').length")), heap

    browser.driver.execute_cdp_cmd("Performance.enable", {})
    # In the page itself, so that the time of the driver is not counted.
    script = """
        const done = arguments[arguments.length - 1], [pages, size] = arguments, times = [];
        const first = () => document.querySelector("#range").textContent;
        (async () => {
          for (let page = 1; page < pages; page += 1) {
            const begin = performance.now();
            document.querySelector("#older").click();
            while (!first().startsWith(`${page * size + 1}–`)) await new Promise((go) => setTimeout(go, 1));
            times.push(performance.now() - begin);
          }
          done(times);
        })();
    """
    before = measured()
    browser.driver.set_script_timeout(60)
    times = browser.driver.execute_async_script(script, number // page, page)
    after = measured()
    assert len(times) == number // page - 1 and not browser.one("#older").is_enabled()
    early, late = (statistics.median(some) for some in (times[:50], times[-50:]))
    print(f"a page of the strip: {early:.0f} ms among the first 50, {late:.0f} ms among the last; "
          f"elements {before[0]} → {after[0]}, heap {before[1] / 1e6:.1f} → {after[1] / 1e6:.1f} MB")  # fmt: skip
    assert late < 1.5 * early + 10 and late < 300
    assert after[0] < before[0] + 50 < 900
    assert after[1] < before[1] + 8e6
    browser.one("[data-show=reject]").click()
    outcomes = "return [...new Set([...document.querySelectorAll('#strip .shot')].map((one) => one.dataset.outcome))]"
    browser.wait(lambda: browser.run(outcomes) == ["reject"])
    browser.press("t")
    browser.wait(lambda: "10000 micrographs" in browser.text("#session h2"))
    assert browser.complaints() == []


def test_results_appear_within_a_second_and_a_restart_is_survived(browser: Browser, site: Site, free_port: int) -> None:
    site.configure(monitor={"listen": f"127.0.0.1:{free_port}"})
    site.write("first.tif", 1, shape=(2048, 2048))
    process = site.launch("run", staged="quick")
    site.ready(process)
    browser.wait(lambda: "first.tif" in site.images())
    browser.open(free_port)
    browser.wait(lambda: browser.text("aside h2") == "first.tif")

    def appears(name: str, seed: int) -> float:
        """Seconds from the result to its picture on the page."""
        before = browser.run("return document.body.dataset.shown")
        site.write(name, seed, shape=(2048, 2048))
        browser.wait(lambda: (site.output / name).exists())
        began = time.monotonic()
        browser.wait(lambda: browser.text("aside h2") == name)
        browser.wait(lambda: browser.run("return document.body.dataset.shown") != before)
        return time.monotonic() - began

    took = [appears(f"live-{number}.tif", number + 2) for number in range(4)]
    print("seconds from result to page:", *(f"{one:.2f}" for one in took))
    assert max(took) <= 1.0
    assert browser.complaints() == []

    process.terminate()
    assert process.wait(60) == 0
    browser.wait(lambda: "does not answer" in browser.text("#banner") and browser.shown("#banner"))
    browser.press("1")  # what was loaded can still be viewed
    process = site.launch("run", staged="quick")
    site.ready(process)
    browser.wait(lambda: not browser.shown("#banner"))
    assert appears("after.tif", 9) <= 1.0
    browser.settled()
    assert not [told for told in browser.complaints() if "Failed to load resource: net::ERR" not in told]
    process.terminate()
    assert process.wait(60) == 0
    assert "Traceback" not in site.said(process)


def test_an_outlier_of_the_session_is_one_click_away(
    browser: Browser, finished: Finished, served: Served, pictures: Path | None
) -> None:
    for number in range(12):
        far = number == 5
        facts = {"dose": 900.0 if far else 20.0 + number % 3, "removed_noise": 1.0}
        finished.add(f"{number}.tif", counts(number, (64, 64)), facts=facts)
    browser.open(served[1])
    browser.press("t")
    browser.wait(lambda: len(browser.all("#session .spot")) == 1)
    assert "900" in browser.attribute("#session .spot", "aria-label")
    if pictures:
        browser.driver.save_screenshot(str(pictures / "trends.png"))
    browser.one("#session .spot").click()
    browser.wait(lambda: browser.text("aside h2") == "5.tif" and browser.shown("#image"))
    assert browser.complaints() == []
