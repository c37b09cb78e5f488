"""The long tests: kills, floods and soaks, on the real process. `make test-field`.

EMDENOISED_KILLS, EMDENOISED_FLOOD, EMDENOISED_CALLS and EMDENOISED_SOAK say how many; what one longer run found is in
benchmarks/results/field.json, written by EMDENOISED_RECORD=FILE.
"""

import json
import os
import platform
import random
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from site_of_daemon import LIMIT, ROOT, Site, free_port

from daemon.ledger.jobs import Ledger
from daemon.live_page.routes import Page
from daemon.live_page.server import Health, Request
from daemon.settings.config import Config

pytestmark = pytest.mark.field

KILLS = int(os.environ.get("EMDENOISED_KILLS", "60"))
FLOOD = int(os.environ.get("EMDENOISED_FLOOD", "10000"))
CALLS = int(os.environ.get("EMDENOISED_CALLS", "200"))
SOAK = int(os.environ.get("EMDENOISED_SOAK", "300"))
IN_THE_FOLDER = 100
"""So many raw files lie there at once in the soak."""


def record(name: str, **figures: Any) -> None:
    """Keep what was found, if somebody asked for it."""
    if file := os.environ.get("EMDENOISED_RECORD"):
        path = Path(file)
        found = json.loads(path.read_text()) if path.is_file() else {}
        found[name] = {**figures, "date": time.strftime("%Y-%m-%d"), "machine": platform.platform(),
                       "cores": os.cpu_count()}  # fmt: skip
        path.write_text(json.dumps(found, indent=1) + "\n")


def states(site: Site) -> dict[str, int]:
    with Ledger(site.state, "read") as ledger:
        return {state: number for state, number in ledger.counts().items() if number}


def test_killed_at_random_while_a_camera_writes_nothing_is_lost_doubled_or_half_written(site: Site) -> None:
    site.configure(
        output={"preview": False},
        retry={"first_seconds": 0.1, "factor": 1.0, "longest_seconds": 0.1, "attempts": 1000},
    )
    rng, moments = np.random.default_rng(0), random.Random(0)
    over = threading.Event()
    written = 0

    def camera() -> None:
        """Writes in pieces, without a temporary name, as the worst of them do."""
        nonlocal written
        scratch = site.root / "scratch.tif"
        while not over.is_set():
            tifffile.imwrite(scratch, rng.poisson(20, (96, 96)).astype(np.uint16))
            content = scratch.read_bytes()
            with (site.drop / f"{written:05}.tif").open("wb") as target:
                target.write(content[: len(content) // 2])
                target.flush()
                over.wait(0.02)
                target.write(content[len(content) // 2 :])
            written += 1
            over.wait(0.15)

    thread = threading.Thread(target=camera)
    thread.start()
    try:
        for _ in range(KILLS):
            process = site.launch("run", staged="quick")
            # Some die while they start, most at work.
            end = time.monotonic() + moments.uniform(0.2, 1.6)
            while time.monotonic() < end and process.poll() is None:
                time.sleep(0.005)
            process.kill()
            process.wait(LIMIT)
            assert "Traceback" not in site.said(process), site.said(process)
    finally:
        over.set()
        thread.join()
    status, said = site.finish("once", staged="quick")
    assert status == 0, said
    site.check_outputs()
    assert states(site) == {"done": written}
    record("kills", kills=KILLS, micrographs=written, whole_results=len(site.images()), ledger=states(site))


class Beside:
    """Whoever is at work beside the service: a camera, somebody at the live page, and commands at random."""

    def __init__(self, site: Site, port: int) -> None:
        self.site, self.port = site, port
        self.over = threading.Event()
        self.made = self.again = 0

    def camera(self) -> None:
        """Every 20th file is quarantined, so that there is something to try again."""
        rng, scratch = np.random.default_rng(0), self.site.root / "scratch.tif"
        blank = np.full((64, 64), 7, np.uint16)
        (self.site.drop / "first").mkdir()
        while not self.over.wait(0.1):
            tifffile.imwrite(scratch, rng.poisson(20, (64, 64)).astype(np.uint16) if self.made % 20 else blank)
            scratch.rename(self.site.drop / self.name(self.made))
            self.made += 1

    @staticmethod
    def name(number: int) -> str:
        """Below the drop folder; the first few are a session of their own, which a report is quick to be made of."""
        return f"{'first/' if number < 10 else ''}{number:05}.tif"

    def watcher(self) -> None:
        while not self.over.wait(0.2):
            with (
                suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/data/state", timeout=5) as page,
            ):
                page.read()

    def caller(self, seed: int) -> None:
        """Every second of the calls."""
        choices, done = random.Random(seed), 0
        said, environ = self.site.root / f"commands-{seed}.txt", {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [sys.executable, str(ROOT / "tests/fakes/commands.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        ) as shell:
            assert shell.stdin is not None and shell.stdout is not None
            for number in range(seed, CALLS, 2):
                report = ["report", "first", "--pictures", "3", "-o", str(self.site.root / f"{number}.html")]
                command = choices.choice((["status", "--json"], ["retry"], report))
                shell.stdin.write(json.dumps([str(said), *command, "--config", str(self.site.config)]) + "\n")
                shell.stdin.flush()
                assert shell.stdout.readline() == "0\n", (command, said.read_text())
                assert self.site.lost_files(self.site.started[-1]) == [], f"after call {number}, {command[0]}"
                self.again += said.read_text().count("again: ")
                if command[0] == "status":
                    now = json.loads(said.read_text())["counts"]["done"]
                    assert now >= done, "the ledger forgot results"
                    done = now


def test_commands_beside_a_flood_and_kills_lose_nothing_and_do_nothing_twice(site: Site) -> None:
    beside, moments, kills = Beside(site, free_port()), random.Random(0), 0
    site.configure(
        output={"preview": False},
        monitor={"listen": f"127.0.0.1:{beside.port}"},
        retry={"first_seconds": 0.1, "factor": 1.0, "longest_seconds": 0.1, "attempts": 1000},
    )
    process = site.launch("run", staged="quick")
    site.ready(process)
    others = [threading.Thread(target=one) for one in (beside.camera, beside.watcher)]
    for thread in others:
        thread.start()
    try:
        wait_for(lambda: len(site.images()) > 3)
        with ThreadPoolExecutor(2) as pool:
            callers = [pool.submit(beside.caller, seed) for seed in range(2)]
            while not all(one.done() for one in callers):
                wait(callers, timeout=moments.uniform(6, 14))
                assert process.poll() is None, site.said(process)
                process.kill()
                process.wait(LIMIT)
                assert "Traceback" not in site.said(process), site.said(process)
                kills += 1
                process = site.launch("run", staged="quick")
        for one in callers:
            one.result()
    finally:
        beside.over.set()
        for thread in others:
            thread.join()
    process.kill()
    process.wait(LIMIT)
    assert beside.again > 0, "there was nothing to try again"
    for number in range(0, beside.made, 20):
        site.write(beside.name(number), number)
    status, said = site.finish("once", staged="quick")
    assert status == 0, said
    site.check_outputs()
    assert states(site) == {"done": beside.made}
    with Ledger(site.state, "read") as ledger:
        told = sorted(str(Path(job.output or "").relative_to(site.output)) for job in ledger.each("done"))
    assert told == sorted(site.images())
    record("commands", calls=CALLS, kills=kills, micrographs=beside.made, tried_again=beside.again, ledger=states(site))


def test_killed_before_and_after_every_call_that_changes_a_disk(site: Site, tmp_path: Path) -> None:
    number = finished = results = 0
    where: set[str] = set()
    while not finished:
        number += 1
        root = tmp_path / f"at-{number}"
        root.mkdir()
        one = Site(root, site._write)
        one.configure(output={"preview": False}, retry={"first_seconds": 0.1, "longest_seconds": 0.1, "factor": 1.0})
        for seed in range(2):
            one.write(f"{seed}.tif", seed)
        process = one.launch("once", staged="kill-at", environ={"STAGED_CALLS": str(number)})
        finished = int(process.wait(LIMIT) == 0)
        if not finished:
            said = one.said(process)
            assert f"killed at call {number}: " in said, said
            where.add(said.rpartition(": ")[2].strip())
            status, said = one.finish("once", staged="quick")
            assert status == 0, said
        one.check_outputs()
        assert states(one) == {"done": 2}
        results += len(one.images())
    assert {"before fsync", "after replace", "before link", "after finish"} <= where or "before rename" in where, where
    assert number > 30
    record("failpoints", kills=number - 1, micrographs=2 * number, whole_results=results, kinds=sorted(where))


def test_a_flood_of_files_moved_in_at_once_is_worked_off_in_constant_memory(site: Site) -> None:
    site.configure(output={"preview": False})
    beside = site.root / "beside"
    beside.mkdir()
    scratch = site.root / "scratch.tif"
    tifffile.imwrite(scratch, np.random.default_rng(0).poisson(20, (64, 64)).astype(np.uint16))
    content = scratch.read_bytes()
    for number in range(FLOOD):
        (beside / f"{number:06}.tif").write_bytes(content + number.to_bytes(4, "little"))
    process = site.launch("run", staged="quick")
    site.ready(process)
    begin = time.monotonic()
    beside.rename(site.drop / "session")

    def done() -> int:
        assert process.poll() is None, site.said(process)
        return (
            sum(entry.name.endswith(".tif") for entry in os.scandir(site.output / "session"))
            if (site.output / "session").is_dir()
            else 0
        )

    wait_for(lambda: done() >= FLOOD // 5)
    warm = rss(process.pid)
    wait_for(lambda: done() >= FLOOD)
    last, seconds = rss(process.pid), time.monotonic() - begin
    process.terminate()
    assert process.wait(LIMIT) == 0
    site.check_outputs()
    assert states(site) == {"done": FLOOD}
    assert last <= 1.05 * warm, f"{warm} kB after a fifth, {last} kB at the end"
    record("flood", files=FLOOD, seconds=round(seconds, 1), rss_kb_after_a_fifth=warm, rss_kb_at_the_end=last)


def test_a_soak_with_the_real_network_verdicts_and_previews_takes_no_more_memory(site: Site) -> None:
    """Micrographs of several sizes keep coming, one by one, and raw files are moved away after a while.

    What lies in the folder is known by name: about a kilobyte for each file, which is no growth over time.
    """
    rng = np.random.default_rng(0)
    shapes = [(128, 128), (256, 192), (200, 333), (96, 512)]
    images = [rng.poisson(20 * (1 + 0.4 * np.sin(np.arange(w) / 9)), (h, w)).astype(np.uint16) for h, w in shapes]
    process = site.launch("run")
    site.ready(process)
    made = 0

    def more(number: int) -> int:
        nonlocal made
        for _ in range(number):
            image = images[made % len(images)].copy()
            image[0, 0] = made % 30
            image[0, 1] = made // 30 % 30
            tifffile.imwrite(site.drop / f"{made:06}.tif", image)
            made += 1
            if made % 50 == 0:
                wait_for(done)
                if made > IN_THE_FOLDER:
                    for number in range(made - IN_THE_FOLDER - 50, made - IN_THE_FOLDER):
                        (site.drop / f"{number:06}.tif").unlink()
        return rss(process.pid)

    def done() -> bool:
        assert process.poll() is None, site.said(process)
        return sum(entry.name.endswith(".tif") for entry in os.scandir(site.output)) >= made

    warm = more(max(SOAK // 5, 150))
    last = more(SOAK)
    process.terminate()
    assert process.wait(LIMIT) == 0
    assert len(site.images()) == made
    assert states(site) == {"done": made}
    assert last <= 1.05 * warm, f"{warm} kB once warm, {last} kB at the end"
    record("soak", micrographs=made, rss_kb_once_warm=warm, rss_kb_at_the_end=last)


def rss(process: int) -> int:
    """Memory of a process, kilobytes."""
    return int(Path(f"/proc/{process}/status").read_text().partition("VmRSS:")[2].split()[0])


def wait_for(condition: Any) -> None:
    """Like `until`, for what takes as long as it takes; pytest's own limit ends it."""
    while not condition():
        time.sleep(0.5)


def test_start_and_claim_stay_quick_with_a_ledger_of_many_rows(site: Site) -> None:
    rows = min(100 * FLOOD, 1_000_000)
    site.state.mkdir()
    with Ledger(site.state) as ledger:
        ledger.register("first.tif", 1, 1, live=True)
        with ledger._transaction():
            ledger._db.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
                "INSERT INTO jobs (path, revision, size, mtime_ns, sha256, state, live, created, updated, output) "
                "SELECT CAST('old/' || i || '.tif' AS BLOB), 1, 1, '1', hex(i), 'done', 0, i, i, CAST('x' AS BLOB)"
                " FROM n",
                (rows,),
            )
    begin = time.monotonic()
    with Ledger(site.state) as ledger:
        opened = time.monotonic() - begin
        begin = time.monotonic()
        assert ledger.claim(True) is not None
        claimed = time.monotonic() - begin
    assert opened <= 3.0
    assert claimed <= 0.05
    record("ledger", rows=rows, open_seconds=round(opened, 3), claim_seconds=round(claimed, 5))


def test_the_live_page_answers_quickly_with_a_ledger_of_many_rows(site: Site) -> None:
    rows = min(100 * FLOOD, 1_000_000)
    folders = {"drop": site.drop, "output": site.output, "state": site.state}
    config = Config.model_validate({"folders": {name: str(path) for name, path in folders.items()}})
    facts = json.dumps({"dose": 20.0, "shape": [4096, 4096], "pixel_size": None, "spikes": 5, "reasons": []})
    begin = 1.7e9
    with Ledger(site.state) as ledger:
        columns = "path, revision, size, mtime_ns, state, live, created, updated, verdict, facts, output"
        with ledger._transaction():
            ledger._db.executemany(
                f"INSERT INTO jobs ({columns}) VALUES (?1, 1, 1, '1', 'done', 1, ?2, ?2, ?3, '{facts}', ?1)",
                (
                    (f"grid/{at:07d}.tif".encode(), begin + at, "reject" if at % 10_007 == 0 else "good")
                    for at in range(rows)
                ),
            )
        page = Page(config, lambda: Health("ok", ""), lambda: begin + rows)
        middle = f"{begin + rows // 2!r}_{rows // 2}"
        asked = {
            "state": Request("/data/state"),
            "newest": Request("/data/list", {"show": "all"}),
            "rejected": Request("/data/list", {"show": "reject"}),
            "middle": Request("/data/list", {"show": "all", "before": middle}),
            "table": Request("/data/table", {"count": "100"}),
            "table_middle": Request("/data/table", {"from": str(rows // 2), "count": "100"}),
            "table_session": Request("/data/table", {"scope": "session", "count": "100"}),
            "table_by_dose": Request("/data/table", {"sort": "dose", "count": "100"}),
            "table_search": Request("/data/table", {"search": "GRID/00", "count": "100"}),
            "session_first": Request("/data/session"),
            "session": Request("/data/session"),
        }
        took = {}
        for name, request in asked.items():
            times = []
            for _ in range(1 if name in ("session_first", "table_search") else 20):
                start = time.perf_counter()
                answer = page.answer(request)
                times.append(time.perf_counter() - start)
                assert answer is not None and answer.status == 200
            took[name] = round(1000 * sorted(times)[len(times) // 2], 1)
        page.close()
    print(f"milliseconds with {rows} rows:", took)
    record("live_page", rows=rows, milliseconds=took)
    assert max(took[name] for name in ("state", "newest", "rejected", "middle")) < 100
    assert max(took[name] for name in ("table", "table_middle", "table_session")) < 500
