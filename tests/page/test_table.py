"""The table of micrographs as people use it, in a real Chromium."""

import json
from pathlib import Path

import pytest
from chromium import Browser
from finished import Finished, counts
from selenium.webdriver.common.keys import Keys

from daemon.live_page.routes import Page

pytestmark = pytest.mark.slow

Served = tuple[Page, int]
HOSTILE = "<img src=x onerror=hacked=1>.tif"


def column(browser: Browser, name: str) -> list[str]:
    script = "return [...document.querySelectorAll(`#listing td.${arguments[0]}`)].map((cell) => cell.textContent)"
    return [str(text) for text in browser.run(script, name)]


def test_sort_search_filter_and_pick(
    browser: Browser, finished: Finished, served: Served, pictures: Path | None
) -> None:
    for number, word in enumerate(("good", "check", "reject")):
        finished.add(f"{word}.tif", counts(number), verdict=word, facts={"dose": 30 - number, "codes": ["mean"]})
    finished.quarantine(HOSTILE, "<script>hacked=1</script>")
    browser.open(served[1])
    browser.press("b")
    browser.wait(lambda: column(browser, "name") == [HOSTILE, "reject.tif", "check.tif", "good.tif"])
    assert browser.text("#table-note") == "4 micrographs" and column(browser, "code")[0] == "<script>hacked=1</script>"
    browser.one("th[data-column=dose] button").click()
    browser.wait(lambda: column(browser, "dose") == ["30", "29", "28", "–"])
    browser.one("th[data-column=dose] button").click()
    browser.wait(lambda: column(browser, "dose") == ["28", "29", "30", "–"])
    assert browser.attribute("th[data-column=dose]", "aria-sort") == "ascending"
    browser.one("#table-search").send_keys("Che")
    browser.wait(lambda: column(browser, "name") == ["check.tif"])
    assert "search=Che" in browser.attribute("#table-csv", "href")
    browser.one("#listing tbody tr").click()
    browser.wait(lambda: browser.text("aside h2") == "check.tif")
    assert browser.attribute("#follow", "aria-pressed") == "false"
    browser.one("#table-search").send_keys(3 * Keys.BACKSPACE)
    browser.run("document.querySelector('#table-show').value = 'reject'")
    browser.run("document.querySelector('#table-show').dispatchEvent(new Event('change'))")
    browser.wait(lambda: column(browser, "name") == ["reject.tif"])
    if pictures:
        browser.driver.save_screenshot(str(pictures / "table.png"))
    browser.run("document.querySelector('#listing tbody tr').focus()")
    browser.press(Keys.ENTER)
    browser.wait(lambda: browser.shown("#image") and browser.text("aside h2") == "reject.tif")
    assert browser.run("return typeof hacked") == "undefined" and browser.complaints() == []


def test_twenty_thousand_rows_scroll_from_end_to_end(browser: Browser, finished: Finished, served: Served) -> None:
    number = 20_000
    job = finished.add("a.tif", counts(1, (64, 64)))
    facts = json.dumps(dict(job.facts))
    with finished.ledger._transaction():
        finished.ledger._db.executemany(
            "INSERT INTO jobs (path, revision, size, mtime_ns, state, live, created, updated, verdict, output, facts)"
            f" VALUES (?1, 1, 1, '1', 'done', 1, ?2, ?2, 'good', ?3, '{facts}')",
            ((f"grid/{at:06d}.tif".encode(), job.updated - at, str(job.output).encode()) for at in range(1, number)),
        )
    browser.open(served[1])
    browser.press("b")
    browser.wait(lambda: column(browser, "name")[:2] == ["a.tif", "grid/000001.tif"])
    browser.wait(lambda: browser.text("#table-note") == "20,000 micrographs")
    elements = browser.run("return document.getElementsByTagName('*').length")
    for share, at in ((0.5, number // 2), (1, number - 1)):
        browser.run(
            "const one = document.querySelector('.rows');"
            "one.scrollTop = arguments[0] * (one.scrollHeight - one.clientHeight)", share,
        )  # fmt: skip
        browser.wait(lambda at=at: f"grid/{at:06d}.tif" in column(browser, "name"))
    assert column(browser, "name")[-1] == f"grid/{number - 1:06d}.tif"
    assert browser.run("return document.getElementsByTagName('*').length") < elements + 60
    browser.run("document.querySelector('#listing tbody tr:first-child').focus()")
    first = int(browser.attribute("#listing tbody tr", "data-at"))
    browser.press(Keys.ARROW_UP)  # beyond what is visible: it scrolls
    browser.run("document.querySelector('#listing tbody tr:first-child').focus()")
    browser.press(Keys.ARROW_UP)
    browser.wait(lambda: int(browser.attribute("#listing tbody tr", "data-at")) < first)
    assert browser.complaints() == []
