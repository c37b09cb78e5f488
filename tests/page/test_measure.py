"""Distances, angles and spacings, and what is saved and copied, in a real Chromium."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from chromium import Browser
from finished import Finished, counts

from daemon.live_page.routes import Page

pytestmark = pytest.mark.slow

SHAPE = (900, 1200)
Served = tuple[Page, int]


def test_a_line_states_its_length_and_angle(
    browser: Browser, finished: Finished, served: Served, pictures: Path | None
) -> None:
    finished.add("a.tif", counts(5, SHAPE))
    browser.open(served[1])
    browser.press("1")
    browser.settled()
    browser.press("l")
    browser.drag("#image", (0.2, 0.8), (120, -90))
    browser.wait(lambda: "150 px, 6 nm, 36.9°; mean" in browser.text("#profile-text"))  # pixels of 0.04 nm
    if pictures:
        browser.driver.save_screenshot(str(pictures / "measure.png"))
    assert browser.complaints() == []


def test_a_spot_of_the_spectrum_states_its_spacing_and_direction(
    browser: Browser, finished: Finished, served: Served, pictures: Path | None
) -> None:
    y, x = np.mgrid[:512, :512]
    lattice = 100 * (1 + 0.5 * np.cos(2 * np.pi * (0.15 * x - 0.2 * y)))  # 4 px, at 53.13°
    finished.add("a.tif", np.random.default_rng(1).poisson(lattice).astype(np.uint16))
    browser.open(served[1])
    browser.press("f")
    browser.wait(lambda: browser.canvas("#spectrum").max() > 200)
    size = browser.one("#spectrum").size
    side = int(min(size["height"] - 24, (size["width"] - 36) / 2))
    left = round((size["width"] - 2 * side - 12) / 2)
    at = (left + side / 2 + 0.15 * side, size["height"] / 2 - 0.2 * side)
    browser.run(
        "const [x, y] = arguments[0], one = document.querySelector('#spectrum'), box = one.getBoundingClientRect();"
        "for (const kind of ['pointermove', 'click']) one.dispatchEvent(new PointerEvent(kind,"
        " {clientX: box.left + x, clientY: box.top + y, bubbles: true}))", at,
    )  # fmt: skip
    spacing, angle = re.fullmatch(r"([\d.]+) nm  ([\d.]+)°", browser.text("#frequency")).groups()  # type: ignore[union-attr]
    assert float(spacing) == pytest.approx(0.16, rel=0.01) and float(angle) == pytest.approx(53.1, abs=0.5)
    canvas = browser.canvas("#spectrum").astype(int)
    marked = (canvas[..., 0] > 240) & (canvas[..., 2] < 160)  # two rings on each side
    assert all(half.sum() > 60 for half in np.array_split(marked, 2, axis=1))
    if pictures:
        browser.driver.save_screenshot(str(pictures / "spot.png"))
    assert browser.complaints() == []


def test_files_are_saved_and_texts_copied(browser: Browser, finished: Finished, served: Served) -> None:
    finished.add("grid/a.tif", counts(1), verdict="check", reasons=("too dark", "too small"))
    browser.open(served[1])
    fetched = "return fetch(document.querySelector(arguments[0]).href).then((found) => found.arrayBuffer()).then("
    body = browser.run(fetched + "(body) => btoa(String.fromCharCode(...new Uint8Array(body))))", ".files a")
    output = finished.config.folders.output / "grid/a.tif"
    assert base64.b64decode(body) == output.read_bytes()
    assert [one.text for one in browser.all(".files a")] == ["Image", "PNG", "Record"]
    browser.run("window.copied = []; navigator.clipboard.writeText = async (text) => void window.copied.push(text)")
    for button in browser.all(".files button"):
        button.click()
    browser.wait(lambda: len(browser.run("return window.copied")) == 2)
    assert browser.run("return window.copied") == [str(output), "too dark\ntoo small"]
    assert browser.complaints() == []
