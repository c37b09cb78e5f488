"""The large view in a real browser: newest micrograph, zoom, slider."""

from pathlib import Path

import numpy as np
import pytest
from chromium import Browser
from finished import Finished, counts
from site_pixels import SHAPE, Served, expected, part

pytestmark = pytest.mark.slow


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
