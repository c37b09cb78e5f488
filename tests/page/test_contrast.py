"""Contrast as people set it, in a real Chromium."""

from pathlib import Path

import numpy as np
import pytest
from chromium import Browser
from finished import Finished, counts, smoothed
from numpy.typing import NDArray
from selenium.webdriver.common.keys import Keys

from daemon.formats.contrast import window
from daemon.live_page.routes import Page
from daemon.output import preview

pytestmark = pytest.mark.slow

SHAPE = (900, 1200)
Served = tuple[Page, int]


def handle(browser: Browser, name: str) -> float:
    return float(browser.attribute(f"#contrast-plot [data-handle={name}]", "aria-valuenow"))


def sides(browser: Browser) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The greys of raw and denoised on the canvas, without the divider."""
    browser.settled()
    canvas = browser.canvas()[..., 0]
    middle = canvas.shape[1] // 2
    return canvas[:, : middle - 2], canvas[:, middle + 2 :]


def test_handles_gamma_and_lock_change_what_is_drawn_exactly(
    browser: Browser, finished: Finished, served: Served, pictures: Path | None
) -> None:
    raw = counts(5, SHAPE)
    denoised = smoothed(raw)
    finished.add("a.tif", raw)
    browser.open(served[1])
    browser.press("1")
    before = sides(browser)
    browser.press("h")
    browser.wait(lambda: len(browser.all("#contrast-plot .handle")) == 2)
    low, high = window(preview.binned(denoised, 4))
    assert handle(browser, "raw-0") == pytest.approx(low) and handle(browser, "raw-1") == pytest.approx(high)
    assert browser.attribute("#contrast-auto", "aria-pressed") == "true"

    browser.drag("#contrast-plot [data-handle=raw-1] .grip", (0.5, 0.5), (-120, 0))
    browser.wait(lambda: handle(browser, "raw-1") < 0.9 * high)
    white = handle(browser, "raw-1")
    assert browser.attribute("#contrast-auto", "aria-pressed") == "false"
    browser.settled()
    canvas = browser.canvas()[..., 0]
    top, left = (-int(np.floor((side - whole) / 2 + 0.5)) for whole, side in zip(SHAPE, canvas.shape, strict=True))
    here = np.s_[top : top + canvas.shape[0], left : left + canvas.shape[1]]
    for plane, side in ((raw, np.s_[:, : canvas.shape[1] // 2 - 2]), (denoised, np.s_[:, canvas.shape[1] // 2 + 2 :])):
        wanted = preview.grey(np.asarray(plane, np.float32)[here], low, white)[side].astype(int)
        assert np.abs(canvas[side] - wanted).max() <= 1 and (wanted == 255).mean() > 0.1

    browser.one("#contrast-lock").click()
    browser.wait(lambda: len(browser.all("#contrast-plot .handle")) == 4)
    own = window(preview.binned(raw, 1))
    assert (handle(browser, "raw-0"), handle(browser, "raw-1")) == own  # raw alone, automatically
    assert handle(browser, "denoised-1") == pytest.approx(white)
    if pictures:
        browser.driver.save_screenshot(str(pictures / "contrast.png"))
    browser.run("document.querySelector('[data-handle=denoised-0]').focus()")
    browser.press(Keys.ARROW_RIGHT)
    browser.wait(lambda: handle(browser, "denoised-0") > low)
    black = handle(browser, "denoised-0")

    browser.open(served[1])  # kept by the tab
    browser.press("h")
    browser.wait(lambda: len(browser.all("#contrast-plot .handle")) == 4)
    assert handle(browser, "denoised-0") == black and handle(browser, "denoised-1") == white
    browser.run("document.querySelector('#contrast-gamma').focus()")
    browser.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    browser.wait(lambda: browser.text("#contrast-gamma-text") == "0.95")
    assert browser.shown("#divider") and browser.text("aside h2") == "a.tif"  # the slider kept its arrows

    browser.one("#contrast-lock").click()
    browser.press("a", "1")
    browser.wait(lambda: browser.attribute("#contrast-auto", "aria-pressed") == "true")
    browser.press(Keys.ESCAPE)
    browser.wait(lambda: not browser.shown("#contrast"))
    for one, other in zip(sides(browser), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert browser.complaints() == []


def test_a_contrast_set_by_hand_holds_for_the_next_micrograph(
    browser: Browser, finished: Finished, served: Served
) -> None:
    finished.add("faint.tif", counts(1, SHAPE, dose=10))
    finished.add("bright.tif", counts(1, SHAPE, dose=40))
    browser.open(served[1])
    browser.press("h")
    browser.wait(lambda: browser.all("#contrast-plot .handle"))
    browser.run("document.querySelector('[data-handle=raw-1]').focus()")
    browser.press(Keys.ARROW_LEFT)
    white = handle(browser, "raw-1")
    browser.press(Keys.ESCAPE, Keys.ARROW_RIGHT)
    browser.wait(lambda: browser.text("aside h2") == "faint.tif")
    browser.settled()
    assert max(side[200:400].max() for side in sides(browser)) < 255  # it is as dark as it is
    browser.press("h")
    browser.wait(lambda: browser.all("#contrast-plot .handle"))
    assert handle(browser, "raw-1") == white
    browser.run('sessionStorage.setItem(\'emdenoised contrast\', \'{"manual":{"raw":[9,"x"]},"gamma":1e9}\')')
    browser.open(served[1])  # whatever is kept there
    assert browser.attribute("#contrast-auto", "aria-pressed") == "true"
    assert browser.complaints() == []
