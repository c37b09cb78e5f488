"""The demo's live page: for people at a terminal, and nobody else waits for it."""

import os
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon.demo import browser

PAGE = "http://127.0.0.1:8642/"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pages that a browser was asked to open."""
    pages: list[str] = []
    monkeypatch.setattr(webbrowser, "open", pages.append)
    return pages


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Standard input and output are a terminal of this process; the side of its keyboard."""
    keyboard, screen = os.openpty()
    stream = SimpleNamespace(isatty=lambda: True, fileno=lambda: screen)
    monkeypatch.setattr(browser, "sys", SimpleNamespace(stdin=stream, stdout=stream))
    monkeypatch.setattr(os, "tcgetpgrp", lambda descriptor: os.getpgrp())
    monkeypatch.delenv("CI", raising=False)
    yield keyboard
    os.close(keyboard)
    os.close(screen)


def test_the_address_is_the_one_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    log.write_text(f"2026 INFO ready\n2026 INFO the live page is {PAGE}\n")
    assert browser.address(log) == PAGE
    log.write_text("2026 INFO ready\n")
    assert browser.address(log) is None


def never(seconds: float) -> None:
    raise AssertionError("waits although nobody watches")


def test_without_a_terminal_it_ends_at_once(opened: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    browser.show(PAGE)
    browser.keep(PAGE, never)
    assert not opened and not capsys.readouterr().out


def test_in_continuous_integration_and_in_the_background_too(
    opened: list[str], terminal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert browser._watched()
    monkeypatch.setattr(os, "tcgetpgrp", lambda descriptor: os.getpgrp() + 1)
    browser.show(PAGE)
    browser.keep(PAGE, never)
    monkeypatch.setattr(os, "tcgetpgrp", lambda descriptor: os.getpgrp())
    monkeypatch.setenv("CI", "true")
    browser.show(PAGE)
    browser.keep(PAGE, never)
    assert not opened


@pytest.mark.parametrize(
    ("display", "found", "pages"),
    [
        ("", webbrowser.BackgroundBrowser("xdg-open"), []),
        (":0", webbrowser.BackgroundBrowser("xdg-open"), [PAGE]),
        (":0", webbrowser.GenericBrowser("lynx"), []),
    ],
)
def test_a_browser_opens_where_there_is_a_display(
    opened: list[str], terminal: int, monkeypatch: pytest.MonkeyPatch, display: str,
    found: webbrowser.BaseBrowser, pages: list[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr(webbrowser, "get", lambda: found)
    browser.show(PAGE)
    assert opened == pages
    waited: list[float] = []
    browser.keep(PAGE, waited.append)
    assert opened == pages and waited == [browser.STAY_SECONDS]


def test_a_key_ends_it(terminal: int) -> None:
    done = threading.Event()

    def press() -> None:
        while not done.wait(0.05):
            os.write(terminal, b"q")

    finger = threading.Thread(target=press)
    finger.start()
    try:
        browser._wait_for_key(60)
    finally:
        done.set()
        finger.join()
    assert os.isatty(terminal)
    browser._wait_for_key(0)
