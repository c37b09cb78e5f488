"""Commands beside the running service, and files that vanish beneath it: the ledger loses nothing.

The real process: which locks and descriptors a process has, only the kernel knows.
"""

import json
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPException
from pathlib import Path

import pytest
from page_over_http import ask
from site_of_daemon import LIMIT, ROOT, Site, free_port, until

LEDGER = ("ledger.db", "ledger.db-wal", "ledger.db-shm")


@pytest.fixture
def port(site: Site) -> int:
    """Of the site's live page."""
    number = free_port()
    site.configure(monitor={"listen": f"127.0.0.1:{number}"}, output={"preview": False})
    return number


@contextmanager
def polled(port: int) -> Iterator[list[int]]:
    """Somebody looks at the live page meanwhile: the statuses of the answers."""
    over, seen = threading.Event(), list[int]()

    def look() -> None:
        while not over.is_set():
            try:
                seen.extend(ask(port, path).status for path in ("/data/state", "/data/list", "/data/session"))
            except (OSError, HTTPException):  # killed, perhaps in the middle of an answer, or not yet listening
                over.wait(0.05)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def is_locked_by(pid: int, path: Path) -> bool:
    """Whether the process holds a POSIX lock on the file."""
    inode = str(path.stat().st_ino)
    rows = [row.split() for row in Path("/proc/locks").read_text().splitlines()]
    return any(
        row[1] == "POSIX" and row[4] == str(pid) and row[5].split(":")[-1] == inode for row in rows if len(row) > 5
    )


def counts(site: Site) -> dict[str, int]:
    status, said = site.finish("status", "--json")
    assert status == 0, said
    found: dict[str, int] = json.loads(said)["counts"]
    return {state: number for state, number in found.items() if number}


@pytest.mark.slow
def test_commands_beside_the_service_cost_it_nothing(site: Site, port: int) -> None:
    (site.drop / "blank.tif").write_bytes(site.write("0.tif", 0, shape=(48, 48)).read_bytes()[:200])
    process = site.launch("run", staged="impatient")
    site.ready(process)
    with polled(port) as seen:
        until(lambda: len(site.images()) == 1 and "quarantined 'blank.tif'" in site.said(process))
        files = {name: (site.state / name).stat().st_ino for name in LEDGER}
        for number in range(1, 4):
            assert counts(site) == {"done": number, "quarantined": 1}
            status, said = site.finish("retry")
            assert status == 0 and "again: 'blank.tif'" in said
            assert site.lost_files(process) == [], "a command took itself for the last user"
            status, said = site.finish("report", "last", "-o", str(site.root / f"{number}.html"))
            assert status == 0, said
            until(lambda number=number: site.said(process).count("quarantined 'blank.tif'") == number + 1)
            site.write(f"{number}.tif", number)
            until(lambda number=number: f"denoised '{number}.tif'" in site.said(process))
        assert {name: (site.state / name).stat().st_ino for name in LEDGER} == files
        assert is_locked_by(process.pid, site.state / "ledger.db")
        assert ask(port, "/healthz").status == 200
        process.kill()
        process.wait()
        assert counts(site) == {"done": 4, "quarantined": 1}, "what the log told was not in the ledger"
        again = site.launch("run", staged="impatient")
        site.ready(again)
        site.write("4.tif", 4)
        until(lambda: "denoised '4.tif'" in site.said(again))
        assert counts(site) == {"done": 5, "quarantined": 1} and site.lost_files(again) == []
    assert set(seen) == {200}
    assert site.said(again).count("denoised") == 1 and "adopted" not in site.said(again)
    again.terminate()
    assert again.wait(LIMIT) == 0
    (site.drop / "blank.tif").unlink()
    site.check_outputs()


@pytest.mark.slow
def test_nothing_but_sqlite_opens_the_ledgers_files(site: Site, port: int) -> None:
    """Whoever opens one by hand drops the locks that SQLite has on it in the same process."""
    with closing(sqlite3.connect(site.root / "ledger_first.db")) as database:
        database.executescript((Path(__file__).parent / "ledger_first.sql").read_text())
    site.state.mkdir()
    (site.root / "ledger_first.db").rename(site.state / "ledger.db")  # so that the migration is part of it
    site.write("a.tif", 1)
    process = site.launch("run", staged="hands-off")
    site.ready(process)
    until(lambda: "denoised 'a.tif'" in site.said(process))
    page = str(site.root / "a.html")
    commands = (["status"], ["retry"], ["prune", "--dry-run"], ["prune"], ["report", "last", "-o", page], ["doctor"])
    for command in commands:
        said = site.finish(*command, staged="hands-off")[1]
        assert "opened by hand" not in said, said
    assert ask(port, "/data/session").status == 200
    process.terminate()
    assert process.wait(LIMIT) == 0
    assert "opened by hand" not in site.said(process)
    program = [str(ROOT / "tests/fakes/staged.py"), "hands-off", "status", "--config", str(site.state / "ledger.db")]
    done = subprocess.run([sys.executable, *program], capture_output=True, text=True, check=False)
    assert "opened by hand" in done.stderr, "the check itself"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gone", "take"),
    [
        ("ledger.db-wal", lambda state: [(state / name).unlink() for name in LEDGER[1:]]),
        ("ledger.db", lambda state: state.rename(state.with_name("elsewhere"))),
        ("lock", lambda state: (state / "lock").unlink()),
    ],
    ids=["log", "folder", "lock"],
)
def test_a_ledger_that_is_taken_away_ends_the_service_and_the_next_start_loses_nothing(
    site: Site, port: int, gone: str, take: Callable[[Path], object]
) -> None:
    address = site.root / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.setblocking(False)
        site.write("a.tif", 1)
        process = site.launch("run", environ={"NOTIFY_SOCKET": str(address)})
        site.ready(process)
        until(lambda: "denoised 'a.tif'" in site.said(process))
        take(site.state)
        assert process.wait(LIMIT) == 1
        told = []
        with pytest.raises(BlockingIOError):
            while True:
                told.append(manager.recv(4096).decode())
    reason = f"{site.state / gone} was moved, deleted or replaced while emdenoised used it"
    said = site.said(process)
    assert said.count(f"the ledger is lost: {reason}") == 1 and f"stopped: {reason}" in said
    assert [one for one in told if "STOPPING=1" in one and reason in one]
    site.write("b.tif", 2)
    status, said = site.finish("once")
    assert status == 0, said
    site.check_outputs()
    assert counts(site) == {"done": 2}
    assert site.said(process).count("denoised 'a.tif'") + said.count("denoised 'a.tif'") == 1, "done twice"
