"""A real Chromium without a window, and pages for it to look at."""

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from chromium import Browser
from finished import Finished
from page_over_http import listening
from selenium import webdriver

from daemon.live_page.routes import Page
from daemon.live_page.server import Health
from daemon.settings.config import Config

SIZE = (1280, 720)


@pytest.fixture(scope="session")
def driver() -> Iterator[webdriver.Chrome]:
    chromium, program = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or program is None:
        pytest.skip("the live page is tested in Chromium: chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=program, env={**os.environ, "no_proxy": "*"})
    with webdriver.Chrome(options=options, service=service) as started:
        metrics = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
        started.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield started


@pytest.fixture
def browser(driver: webdriver.Chrome) -> Iterator[Browser]:
    one = Browser(driver)
    one.complaints()
    one.asked()
    yield one
    driver.get("about:blank")


@pytest.fixture
def finished(config: Callable[..., Config]) -> Iterator[Finished]:
    one = Finished(config(), time.time)
    yield one
    one.ledger.close()


@pytest.fixture
def health() -> dict[str, Health]:
    """How the service says it is, `now`."""
    return {"now": Health("ok", "events", "fake: fast")}


@pytest.fixture
def served(finished: Finished, health: dict[str, Health]) -> Iterator[tuple[Page, int]]:
    """The page of these folders and its port, without a daemon."""
    with closing(Page(finished.config, lambda: health["now"])) as page, listening(page) as port:
        yield page, port


@pytest.fixture
def screen(driver: webdriver.Chrome) -> Iterator[Callable[..., None]]:
    """`screen(width, height, theme)`: another screen, until the end of the test."""

    def change(width: int, height: int, theme: str = "dark") -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        wish = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)

    yield change
    change(*SIZE)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def pictures() -> Path | None:
    """Where screenshots are left for people to look at, if anywhere: EMDENOISED_SCREENSHOTS."""
    named = os.environ.get("EMDENOISED_SCREENSHOTS")
    return Path(named) if named else None
