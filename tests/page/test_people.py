"""What a lab asks of the page: a token, once; and marking problems as seen."""

from collections.abc import Callable
from pathlib import Path

import pytest
from chromium import Browser
from finished import Finished, counts

from daemon.live_page import access
from daemon.live_page.actions import Actions
from daemon.live_page.routes import Page
from daemon.live_page.server import Health, Monitor
from daemon.settings.monitor import Address

pytestmark = pytest.mark.slow

TOKEN = "0123456789abcdef-of-the-lab"
Served = tuple[Page, int]


def test_a_problem_is_acknowledged(
    browser: Browser, finished: Finished, served: Served, screen: Callable[..., None], pictures: Path | None
) -> None:
    page, port = served
    page._actions = Actions(finished.config.folders.state, allowed=True)
    finished.quarantine("broken.tif", "it ends in the middle")
    finished.add("a.tif", counts(1), verdict="reject", reasons=("worse than the raw image",))
    browser.open(port)
    browser.wait(lambda: browser.text("#problems") == "2")
    browser.one("#facts .acknowledge").click()
    browser.wait(lambda: browser.text("#problems") == "1")
    browser.wait(lambda: "acknowledged" in browser.text("#facts") and not browser.all("#facts .acknowledge"))
    browser.wait(lambda: browser.all(".shot[data-outcome=reject][data-acknowledged]"))
    browser.one(".shot[data-outcome=quarantined]").click()
    browser.wait(lambda: browser.shown("#refusal"))
    assert browser.all("#facts .acknowledge") and browser.all("#refusal .retry")
    if pictures:
        for width, height in ((390, 844), (1440, 900), (2560, 1440)):
            screen(width, height)
            browser.driver.save_screenshot(str(pictures / f"refused-{width}.png"))
    browser.press("b")
    browser.wait(lambda: "acknowledged; " in browser.text("#listing tbody"))
    assert browser.complaints() == []


def test_the_token_is_asked_for_once(
    browser: Browser, finished: Finished, served: Served, screen: Callable[..., None], pictures: Path | None
) -> None:
    finished.add("alice/a.tif", counts(1))
    monitor = Monitor(Address("127.0.0.1", 0), lambda: Health("ok", ""), bytes, access.Access(TOKEN))
    monitor.show(served[0])
    try:
        browser.driver.get(monitor.address)
        browser.wait(lambda: browser.all("#token"))
        if pictures:
            screen(390, 844)
            browser.driver.save_screenshot(str(pictures / "login-390.png"))
        for wrong in ("a-wrong-token-of-the-lab", "größer als Latin-1 \u20ac"):
            browser.run("document.querySelector('#token').value = arguments[0]", wrong)
            browser.one(".login button").click()
            browser.wait(lambda: browser.text("#said") == "This is not the token.")
        browser.run("document.querySelector('#token').value = arguments[0]", TOKEN)
        browser.one(".login button").click()
        browser.wait(lambda: browser.all("#strip .shot"))
        browser.settled()
        browser.driver.get(monitor.address)
        browser.wait(lambda: browser.all("#strip .shot"))
        assert browser.run("return document.cookie") == ""  # no script can read it
    finally:
        browser.driver.delete_all_cookies()
        monitor.close()
