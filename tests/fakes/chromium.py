"""What people do with a page, done in a real Chromium."""

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from selenium import webdriver
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

LIMIT = 60


class Browser:
    """One tab, and what people do with it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, port: int) -> None:
        """The page, once its first micrograph is drawn."""
        self.origin = f"http://127.0.0.1:{port}/"
        self.driver.get(self.origin)
        self.settled()

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, LIMIT, 0.02).until(lambda _: condition())

    def settled(self) -> None:
        """Wait until everything visible is drawn."""
        self.wait(lambda: self.run("return document.body.dataset.settled") == "true")
        self.run("return new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
        self.wait(lambda: self.run("return document.body.dataset.settled") == "true")

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def attribute(self, selector: str, name: str) -> str:
        return str(self.run("return document.querySelector(arguments[0])?.getAttribute(arguments[1])", selector, name))

    def shown(self, selector: str) -> bool:
        return self.one(selector).is_displayed()

    def press(self, *keys: str) -> None:
        """Keys, one after the other, wherever the focus is."""
        chain = webdriver.ActionChains(self.driver, duration=0)
        for key in keys:
            chain.send_keys(key)
        chain.perform()

    def hold(self, modifier: str, key: str) -> None:
        """A key, with another held down."""
        webdriver.ActionChains(self.driver, duration=0).key_down(modifier).send_keys(key).key_up(modifier).perform()

    def drag(self, selector: str, begin: tuple[float, float], by: tuple[int, int]) -> None:
        """From a place (shares of the element's sides) by so many pixels."""
        element = self.one(selector)
        size = element.size
        x, y = (round((share - 0.5) * size[side]) for share, side in zip(begin, ("width", "height"), strict=True))
        chain = webdriver.ActionChains(self.driver, duration=20)
        chain.move_to_element_with_offset(element, x, y).click_and_hold()
        chain.move_by_offset(by[0] // 2, by[1] // 2).move_by_offset(by[0] - by[0] // 2, by[1] - by[1] // 2).release()
        chain.perform()

    def wheel(self, selector: str, at: tuple[int, int], by: int) -> None:
        """Turn the wheel at a place, counted from the element's middle."""
        origin = ScrollOrigin.from_element(self.one(selector), *at)
        webdriver.ActionChains(self.driver, duration=0).scroll_from_origin(origin, 0, by).perform()

    def canvas(self, selector: str = "#image") -> NDArray[np.uint8]:
        """What is drawn, (H, W, 3)."""
        url = self.run("return document.querySelector(arguments[0]).toDataURL('image/png')", selector)
        picture = Picture.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        return np.asarray(picture.convert("RGB"))

    def complaints(self) -> list[str]:
        """What the console has to say; that the daemon was busy is no complaint."""
        return [
            str(entry["message"])
            for entry in self.driver.get_log("browser")  # type: ignore[no-untyped-call]
            if entry["level"] in ("SEVERE", "WARNING") and "503 (Service Unavailable)" not in entry["message"]
        ]

    def asked(self) -> set[str]:
        """The addresses of all that was asked for since the last time."""
        found = set()
        for entry in self.driver.get_log("performance"):  # type: ignore[no-untyped-call]
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.add(str(message["params"]["request"]["url"]))
        return found
