"""Every action of the live page by keys alone."""

from pathlib import Path

import numpy as np
import pytest
from chromium import Browser
from finished import Finished, counts
from selenium.webdriver.common.keys import Keys
from site_pixels import SHAPE, Served

pytestmark = pytest.mark.slow


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
