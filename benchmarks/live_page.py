"""The live page beside a busy daemon: delay of results, cost of the page, and the picture for the docs.

    PYTHONPATH=.:tests/fakes python benchmarks/live_page.py -o benchmarks/results/live_page.json
        --picture docs/live-page.png                                            # about three minutes on two cores

The daemon with its real network works through micrographs of the simulated camera, in turns without a browser and
with a Chromium that follows the newest: on a shared machine only their ratio is meaningful. The browser
draws by software on the same cores, which costs more than the daemon's share in it; that is measured as well.
"""

import argparse
import io
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml
from chromium import Browser
from PIL import Image as Picture
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from daemon.demo.camera import encode
from daemon.demo.specimen import expose, scene

SIDE = 1024
BRIGHT = 80
"""Mean grey value of the page's picture from which on it shows a bright-field micrograph."""
GREYS, GREYISH = 48, 24
"""Greys of the picture for the docs, and the difference of red, green and blue from which on it keeps colour."""
# In the page: when each micrograph was first drawn, by the wall clock.
WATCH = """
    window.seen = [[document.body.dataset.shown, 0]];
    new MutationObserver(() => {
      const last = window.seen.at(-1)[0];
      const shown = document.body.dataset.shown;
      if (shown && shown !== last) window.seen.push([shown, (performance.timeOrigin + performance.now()) / 1000]);
    }).observe(document.body, {attributes: true, attributeFilter: ["data-shown"]});
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("-o", "--out", type=Path, required=True, help="where the figures go (JSON)")
    parser.add_argument("--picture", type=Path, help="where the screenshot goes (PNG)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=6, help="micrographs in each turn")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, daemon(Path(folder)) as (process, port), chromium() as browser:
        root, made, alone, looked_at, late = Path(folder), 0, [], [], []
        for _ in range(given.rounds):
            browser.driver.get("about:blank")
            alone.append(turn(root, process, made, given.count))
            made += given.count
            browser.open(port)
            browser.run(WATCH)
            looked_at.append(turn(root, process, made, given.count))
            late += lateness(root, browser)
            made += given.count
        if given.picture:
            given.picture.write_bytes(portrait(browser))
        given.out.write_text(json.dumps(figures(alone, looked_at, late, given.count), indent=1) + "\n")


def figures(alone: list[Any], looked_at: list[Any], late: list[float], count: int) -> dict[str, Any]:
    seen = {"median": round(median(late), 2), "longest": round(max(late), 2), "n": len(late)}
    return {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "micrographs": f"{count} of {SIDE} x {SIDE} in each turn",
        "seconds_nobody_looking": [round(one["seconds"], 2) for one in alone],
        "seconds_followed_in_chromium": [round(one["seconds"], 2) for one in looked_at],
        "daemon_processor_seconds_nobody_looking": [round(one["processor"], 2) for one in alone],
        "daemon_processor_seconds_followed": [round(one["processor"], 2) for one in looked_at],
        "seconds_from_result_to_picture": seen,
    }


@contextmanager
def daemon(root: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    (root / "drop").mkdir()
    settings = {
        "folders": {"drop": "drop", "output": "output", "state": "state"},
        "backend": {"kind": "cpu"},
        "arrival": {"settle_seconds": 0.2},
        "monitor": {"listen": f"127.0.0.1:{port}"},
    }
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "emdenoised", "run", "--config", str(root / "config.yaml")]
    with (root / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: b"ready: " in (root / "log.txt").read_bytes())
        yield process, port
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def chromium() -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as driver:
        metrics = {"width": 1280, "height": 720, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield Browser(driver)


def turn(root: Path, process: subprocess.Popen[bytes], first: int, count: int) -> dict[str, float]:
    """`count` micrographs at once: seconds until the last is done, and the daemon's processor time."""
    for number in range(first, first + count):
        rng = np.random.default_rng([2026, number])
        dose, contrast, folder = ((20, 1.0, "low"), (200, 0.3, "ordinary"))[number % 2]
        counts, _ = expose(scene(rng, SIDE), dose, contrast, rng)
        for row, column in rng.integers(0, SIDE, (int(rng.integers(0, 5)), 2)):
            counts[row, column] = 30_000
        path = root / "drop" / folder / f"exposure_{number:03d}.tif"
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".tmp").write_bytes(encode(counts, ".tif"))
    begin, spent = time.monotonic(), processor_seconds(process.pid)
    for path in sorted((root / "drop").rglob("*.tmp")):
        path.rename(path.with_suffix(".tif"))
    until(lambda: len(list((root / "output").rglob("*.tif"))) == first + count)
    return {"seconds": time.monotonic() - begin, "processor": processor_seconds(process.pid) - spent}


def lateness(root: Path, browser: Browser) -> list[float]:
    """Seconds from each result's name in the output folder to its picture on the page.

    Of two that are done between two requests of the page only the newer is shown.
    """
    newest = max((root / "output").rglob("*.tif"), key=lambda path: path.stat().st_ctime)
    browser.wait(lambda: browser.text("aside h2") == newest.name)
    browser.settled()
    fetched = "return fetch('data/micrograph/' + arguments[0]).then((answer) => answer.json()).then((one) => one.path)"
    return [
        float(at) - (root / "output" / str(browser.run(fetched, number))).stat().st_ctime
        for number, at in browser.run("return window.seen.slice(1)")
    ]


def portrait(browser: Browser) -> bytes:
    """A screenshot in at most 256 colours, few of them grey, so that the file is small."""
    browser.wait(lambda: len(browser.all("#strip img")) >= 10)
    browser.settled()
    while browser.text(".table dd") != "20 counts per pixel" or browser.canvas().mean() < BRIGHT:
        name = browser.text("aside h2")
        browser.press(Keys.ARROW_RIGHT)
        browser.wait(lambda name=name: browser.text("aside h2") != name)
        browser.settled()
    picture = Picture.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
    found = sorted(picture.getcolors(1 << 24) or [], reverse=True)
    coloured = [colour for _, colour in found if max(colour) - min(colour) > GREYISH][: 256 - GREYS]
    greys = [(round(level * 255 / (GREYS - 1)),) * 3 for level in range(GREYS)]
    palette = Picture.new("P", (1, 1))
    palette.putpalette([value for colour in greys + coloured for value in colour])
    stream = io.BytesIO()
    picture.quantize(palette=palette, dither=Picture.Dither.NONE).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def processor_seconds(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def until(condition: Any) -> None:
    end = time.monotonic() + 600
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the condition never held")
        time.sleep(0.02)


if __name__ == "__main__":
    main()
