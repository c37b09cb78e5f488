"""The live page as people use it, in a real Chromium."""

import json
import os
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
from chromium import Browser
from finished import Finished, counts, smoothed
from selenium.webdriver.common.keys import Keys
from site_of_daemon import Site

from daemon.formats.contrast import window
from daemon.live_page import gallery
from daemon.live_page.routes import Page
from daemon.live_page.server import Health
from daemon.output import preview

pytestmark = pytest.mark.slow

SHAPE = (1300, 1500)
HOSTILE = "<img src=x onerror=hacked=1>.tif"
Served = tuple[Page, int]


def expected(finished: Finished, seed: int) -> dict[str, np.ndarray]:
    """The grey levels of raw and denoised at full resolution."""
    raw = counts(seed, SHAPE)
    denoised = smoothed(raw)
    scale = window(preview.binned(denoised, 4))
    return {"raw": preview.grey(raw, *scale), "denoised": preview.grey(denoised, *scale)}


def origin(canvas: np.ndarray) -> tuple[int, int]:
    """Where the upper left corner of a centred image lies on the canvas, at 100 %."""
    height, width = canvas.shape[:2]
    return tuple(int(np.floor((side - whole) / 2 + 0.5)) for side, whole in ((height, SHAPE[0]), (width, SHAPE[1])))  # type: ignore[return-value]


def part(image: np.ndarray, canvas: np.ndarray, moved: tuple[int, int] = (0, 0)) -> np.ndarray:
    """What of an image should be seen on the canvas, at 100 %."""
    top, left = origin(canvas)
    y, x = -top - moved[0], -left - moved[1]
    return image[y : y + canvas.shape[0], x : x + canvas.shape[1]]


def test_the_newest_is_large_with_all_that_is_known_of_it(
    browser: Browser, finished: Finished, served: Served, pictures: Path | None
) -> None:
    finished.add("grid/old.tif", counts(1, SHAPE))
    finished.add("grid/new.tif", counts(2, SHAPE), verdict="check", reasons=("the mean changed by +3 %",))
    browser.open(served[1])
    assert browser.text("aside h2") == "new.tif" and browser.text(".verdict span") == "Check"
    facts = browser.text("aside")
    for told in ("the mean changed by +3 %", "20 counts per pixel", "low: folder low", "0.04 nm", "1500 × 1300, uint16",
                 "network 2 s", "read 10 ms"):  # fmt: skip
        assert told in facts
    assert browser.text("#bar span").endswith(" nm") and browser.shown("#divider")
    assert [browser.text(f"#{name}") for name in ("waiting", "done", "problems")] == ["0", "2", "0"]
    assert browser.text("#health span") == "running, fake: fast"
    browser.wait(lambda: len(browser.all("#strip img")) == 2)
    bar = browser.one("#bar i").size["width"]
    value = float(browser.text("#bar span").split()[0])
    scale = float(browser.text("#scale").split()[0]) / 100
    assert bar == pytest.approx(value / 0.04 * scale, rel=0.02)  # as long as it says
    if pictures:
        browser.driver.save_screenshot(str(pictures / "newest.png"))
    assert browser.complaints() == []
    assert all(address.startswith((browser.origin, "blob:" + browser.origin)) for address in browser.asked())


def test_full_resolution_is_exact_on_both_sides_of_the_slider(
    browser: Browser, finished: Finished, served: Served
) -> None:
    finished.add("a.tif", counts(5, SHAPE))
    wanted = expected(finished, 5)
    browser.open(served[1])
    browser.press("1")
    browser.settled()
    assert browser.text("#scale") == "100 %"
    canvas = browser.canvas()
    middle = canvas.shape[1] // 2
    np.testing.assert_array_equal(canvas[..., 0], canvas[..., 2])  # grey
    np.testing.assert_array_equal(canvas[:, :middle, 0], part(wanted["raw"], canvas)[:, :middle])
    np.testing.assert_array_equal(canvas[:, middle:, 0], part(wanted["denoised"], canvas)[:, middle:])

    browser.drag("#divider", (0.5, 0.5), (200, 0))
    browser.settled()
    canvas = browser.canvas()
    split = middle + 200
    np.testing.assert_array_equal(canvas[:, : split - 2, 0], part(wanted["raw"], canvas)[:, : split - 2])
    np.testing.assert_array_equal(canvas[:, split + 2 :, 0], part(wanted["denoised"], canvas)[:, split + 2 :])

    browser.drag("#image", (0.2, 0.8), (-90, -60))
    browser.settled()
    moved = browser.canvas()
    shown = part(wanted["raw"], moved, (-60, -90))
    np.testing.assert_array_equal(moved[:, : split - 2, 0], shown[:, : split - 2])
    assert browser.complaints() == []


def test_the_wheel_zooms_about_the_pointer_and_a_double_click_fits(
    browser: Browser, finished: Finished, served: Served
) -> None:
    finished.add("a.tif", counts(5, SHAPE))
    browser.open(served[1])
    fitted = browser.text("#scale")
    browser.press("1")
    browser.settled()
    before = browser.canvas()
    y, x = before.shape[0] // 2 + 70, before.shape[1] // 2 + 150
    around = set(before[y - 1 : y + 2, x - 1 : x + 2, 0].ravel())
    for _ in range(3):
        browser.wheel("#image", (150, 70), -300)
    browser.settled()
    assert float(browser.text("#scale").split()[0]) > 300
    after = browser.canvas()
    assert after[y, x, 0] in around
    block = after[y - 1 : y + 2, x - 1 : x + 2, 0]
    assert len(np.unique(block)) <= 4  # pixels are squares now, not blurred
    browser.run("document.querySelector('#image').dispatchEvent(new MouseEvent('dblclick', {bubbles: true}))")
    browser.wait(lambda: browser.text("#scale") == fitted)


def test_two_fingers_zoom_and_one_moves_the_slider(browser: Browser, finished: Finished, served: Served) -> None:
    finished.add("a.tif", counts(5, SHAPE))
    browser.open(served[1])
    box = browser.one("#image").rect
    y = box["y"] + box["height"] / 4

    def touch(kind: str, *xs: float) -> None:
        points = [{"x": x, "y": y, "id": number} for number, x in enumerate(xs)]
        browser.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    before = float(browser.text("#scale").split()[0])
    touch("touchStart", 100, 200)
    touch("touchMove", 50, 250)
    touch("touchMove", 20, 320)
    touch("touchEnd")
    browser.wait(lambda: float(browser.text("#scale").split()[0]) > 2 * before)
    divider = browser.one("#divider").rect
    middle = divider["x"] + divider["width"] / 2
    touch("touchStart", middle)
    touch("touchMove", middle - 200)
    touch("touchEnd")
    browser.wait(lambda: abs(int(browser.attribute("#divider", "aria-valuenow")) - 29) <= 2)


def test_everything_can_be_done_with_the_keyboard(
    browser: Browser, finished: Finished, served: Served, pictures: Path | None
) -> None:
    for number in range(3):
        finished.add(f"{number}.tif", counts(number, SHAPE))
    finished.quarantine("broken.tif", "it ends in the middle")
    browser.open(served[1])

    def shot(name: str) -> None:
        if pictures:
            browser.driver.save_screenshot(str(pictures / f"{name}.png"))

    def split() -> int:
        return int(browser.attribute("#divider", "aria-valuenow"))

    def pressed(selector: str) -> bool:
        return browser.attribute(selector, "aria-pressed") == "true"

    assert pressed("#follow")
    browser.press(Keys.ARROW_RIGHT)
    browser.wait(lambda: browser.text("aside h2") == "1.tif")
    assert not pressed("#follow")
    browser.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    browser.wait(lambda: "it ends in the middle" in browser.text("aside"))
    assert browser.text(".verdict span") == "Quarantined"
    browser.press("n")
    browser.wait(lambda: browser.text("aside h2") == "2.tif")
    browser.settled()

    browser.press(" ")
    browser.wait(lambda: split() == 100)
    browser.press(" ")
    browser.wait(lambda: split() == 0)
    browser.press("m", ".", ".")
    browser.wait(lambda: split() == 54)
    browser.press("1", "+")
    browser.wait(lambda: browser.text("#scale") == "125 %")
    before = browser.canvas()
    browser.run("document.querySelector('#image').focus()")
    browser.hold(Keys.SHIFT, Keys.ARROW_RIGHT)
    browser.settled()
    assert not np.array_equal(before, browser.canvas())
    browser.press("0")
    browser.settled()
    assert browser.text("#scale") != "125 %"

    browser.press("l")
    browser.wait(lambda: len(browser.all("#profile-plot .curve")) == 2)
    first = browser.attribute("#profile-plot .curve", "d")
    shot("line")
    browser.press("]", Keys.ARROW_UP, "{", "w")
    browser.wait(lambda: browser.attribute("#profile-plot .curve", "d") != first)
    assert "in the file's units" in browser.text("#profile-text")
    browser.press(Keys.ESCAPE)
    browser.wait(lambda: not browser.shown("#profile"))

    browser.press("r")
    browser.settled()
    assert browser.text("#left-label") == "raw − denoised" and not browser.shown("#divider")
    residual = browser.canvas()[..., 0]
    assert abs(np.median(residual[200:300, 400:500]) - 127) < 8
    shot("residual")

    browser.press("f")
    browser.wait(lambda: all(half.max() > 200 for half in np.array_split(browser.canvas("#spectrum"), 2, axis=1)))
    shot("fft")
    browser.press("t")
    browser.wait(lambda: len(browser.all("#session svg")) == 5)
    assert "4 micrographs in" in browser.text("#session h2") and "3 good, 1 quarantined" in browser.text("#session p")
    shot("session")
    browser.press("c")
    browser.wait(lambda: browser.shown("#divider"))

    browser.press("?")
    browser.wait(lambda: browser.shown("#help"))
    shot("help")
    browser.press("n", Keys.ESCAPE)
    browser.wait(lambda: not browser.shown("#help"))
    assert pressed("#follow")  # keys do nothing behind the help
    browser.run("document.querySelector('#divider').focus()")
    here = split()
    browser.press(Keys.ARROW_LEFT)
    browser.wait(lambda: split() == here - 2)
    assert browser.text("aside h2") == "2.tif"
    assert browser.complaints() == []


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
    browser.press("1")  # what was loaded can still be looked at
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
