"""The page on narrow and wide screens, in the dark and in the light, and without an image."""

from collections.abc import Callable
from pathlib import Path

import pytest
from chromium import Browser
from finished import Finished, counts

from daemon.live_page.actions import Actions
from daemon.live_page.routes import Page

pytestmark = pytest.mark.slow

SHAPE = (900, 1200)
Served = tuple[Page, int]
Screen = Callable[..., None]


def contrast(browser: Browser, selector: str) -> float:
    """Of an element's text against its background (WCAG)."""
    script = """
        const one = document.querySelector(arguments[0]);
        let under = one;
        while (getComputedStyle(under).backgroundColor === "rgba(0, 0, 0, 0)") under = under.parentElement;
        const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((value) => value / 255)
          .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
          .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
        const [text, ground] = [getComputedStyle(one).color, getComputedStyle(under).backgroundColor].map(light);
        return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
    """
    return float(browser.run(script, selector))


def test_at_390_pixels_the_image_comes_first_and_nothing_is_cut(
    browser: Browser, finished: Finished, served: Served, screen: Screen, pictures: Path | None
) -> None:
    screen(390, 844)
    finished.add("grid/a_rather_long_name_of_a_micrograph_0001.tif", counts(1, SHAPE))
    browser.open(served[1])
    tops = browser.run(
        "return ['.viewer', '.tools', 'aside', 'footer', 'header'].map((name) => document.querySelector(name)"
        ".getBoundingClientRect().top)"
    )
    assert tops[0] == 0 and tops == sorted(tops)
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    assert browser.one("#image").size["width"] > 370  # beside a scroll bar
    if pictures:
        browser.driver.save_screenshot(str(pictures / "narrow.png"))
    browser.one("#strip .shot").click()  # the driver scrolls down to it
    browser.wait(lambda: browser.run("return window.scrollY") == 0)
    assert browser.complaints() == []


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_texts_are_readable_in_both_themes_and_the_verdict_from_far(
    browser: Browser, finished: Finished, served: Served, screen: Screen, pictures: Path | None, theme: str
) -> None:
    screen(1440, 900, theme)
    for word in ("check", "reject", "good"):
        finished.add(f"{word}.tif", counts(1, (64, 64)), verdict=word, reasons=("too dark",))
        browser.open(served[1])
        browser.wait(lambda word=word: browser.attribute("p.verdict", "data-outcome") == word)
        assert contrast(browser, "p.verdict span") > 4.5
    for selector in ("h1", ".figures dt", "aside .where", "aside dd", ".shot .name span", "#follow", "#older"):
        assert contrast(browser, selector) > (2 if selector == "#older" else 4.5), selector
    letters = browser.run("return parseFloat(getComputedStyle(document.querySelector('p.verdict')).fontSize)")
    assert letters >= 32  # pixels: 6 mm of capital letters, which two metres allow
    lightness = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (lightness == "rgb(236, 239, 242)") == (theme == "light")
    if pictures:
        browser.driver.save_screenshot(str(pictures / f"{theme}.png"))


def test_a_refused_file_shows_its_reason_where_the_image_would_be(
    browser: Browser, finished: Finished, served: Served, pictures: Path | None
) -> None:
    finished.add("a.tif", counts(1, SHAPE))
    finished.quarantine("grid/broken.tif", "grid/broken.tif: <b>it</b> ends in the middle; copy it again")
    browser.open(served[1])
    assert not browser.shown("#refusal")
    browser.one(".shot[data-outcome=quarantined]").click()
    browser.wait(lambda: browser.shown("#refusal"))
    assert browser.text("#refusal .reason") == "<b>it</b> ends in the middle; copy it again"
    assert "Quarantined" in browser.text("#refusal .badge") and "grid/broken.tif" in browser.text("#refusal .remedy")
    assert browser.text(".shot[data-outcome=quarantined] .why") == "<b>it</b> ends in the middle; copy it again"
    if pictures:
        browser.driver.save_screenshot(str(pictures / "refused.png"))
    browser.press("n")
    browser.settled()
    assert not browser.shown("#refusal")
    assert browser.complaints() == []


def test_a_refused_file_is_retried_where_the_settings_allow_it(
    browser: Browser, finished: Finished, served: Served
) -> None:
    page, port = served
    job = finished.quarantine("broken.tif", "it ends in the middle")
    finished.add("a.tif", counts(1, SHAPE))
    browser.open(port)
    browser.one(".shot[data-outcome=quarantined]").click()
    browser.wait(lambda: browser.shown("#refusal"))
    assert not browser.all("#refusal .retry")
    page._actions = Actions(finished.config.folders.state, allowed=True)
    browser.press("n")
    browser.wait(lambda: not browser.shown("#refusal"))
    browser.wait(lambda: browser.run("return fetch('data/state').then((found) => found.json())")["token"])
    browser.open(port)
    browser.one(".shot[data-outcome=quarantined]").click()
    browser.wait(lambda: browser.all("#refusal .retry"))
    browser.one("#refusal .retry").click()
    browser.wait(lambda: finished.ledger.get(job.id).state == "pending")
    browser.wait(lambda: browser.text("p.verdict span") == "Waiting")
    assert browser.complaints() == []
