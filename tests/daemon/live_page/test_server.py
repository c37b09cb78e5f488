"""Metrics and health on loopback, and settings read again while the service runs."""

import contextlib
import itertools
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import page_over_http
import pytest
from prometheus_client.parser import text_string_to_metric_families
from site_of_daemon import LIMIT, Site, until

from daemon import logs
from daemon.errors import ConfigError
from daemon.live_page import server as monitor_module
from daemon.live_page.server import AT_ONCE, SITE_AT_ONCE, Answer, Health, Monitor, Request
from daemon.service.metrics import VERDICTS, Metrics, gauge, graphics_card, limits
from daemon.settings import config as settings
from daemon.settings.config import BackendConfig
from daemon.settings.monitor import Address

HERE = Address("127.0.0.1", 0)


def ask(port: int, path: str, host: str = "localhost", method: str = "GET", **headers: str) -> tuple[int, str]:
    return page_over_http.ask(port, path, method, Host=host, **headers).said


def figures(text: str) -> dict[str, float]:
    return {
        f"{sample.name}{','.join(v for k, v in sorted(sample.labels.items()) if v)}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("emdenoised") and "bucket" not in sample.name and "created" not in sample.name
    }


@pytest.fixture
def health() -> dict[str, Health]:
    return {"now": Health("ok", "events", "cpu")}


@pytest.fixture
def monitor(health: dict[str, Health]) -> Iterator[Monitor]:
    one = Monitor(HERE, lambda: health["now"], Metrics().text)
    yield one
    one.close()


def test_health_is_200_while_all_is_well_and_503_with_the_reason(monitor: Monitor, health: dict[str, Health]) -> None:
    assert monitor.port is not None
    status, text = ask(monitor.port, "/healthz")
    assert status == 200 and json.loads(text) == {"state": "ok", "detail": "events", "backend": "cpu"}
    health["now"] = Health("degraded", "the share is away")
    status, text = ask(monitor.port, "/healthz")
    assert status == 503 and "the share is away" in text


def test_what_is_not_there_and_who_may_not_ask(monitor: Monitor) -> None:
    assert monitor.port is not None
    assert ask(monitor.port, "/../../etc/passwd")[0] == 404
    assert ask(monitor.port, "/metrics", method="HEAD") == (200, "")
    assert ask(monitor.port, "/metrics", method="POST")[0] == 501
    assert ask(monitor.port, "/metrics", host="evil.example")[0] == 403
    assert ask(monitor.port, "/metrics", host="evil.example:8642")[0] == 403
    for host in ("localhost:8642", "127.0.0.1:8642", "[::1]:8642", "LOCALHOST"):
        assert ask(monitor.port, "/metrics", host=host)[0] == 200


def test_a_crowd_that_says_nothing_does_not_use_up_threads(monitor: Monitor) -> None:
    assert monitor.port is not None
    before = threading.active_count()
    crowd = [socket.create_connection(("127.0.0.1", monitor.port)) for _ in range(3 * AT_ONCE)]
    until(lambda: threading.active_count() >= before + AT_ONCE)
    assert threading.active_count() <= before + AT_ONCE
    for one in crowd:
        one.close()
    port = monitor.port
    until(lambda: threading.active_count() <= before)
    assert ask(port, "/healthz")[0] == 200


def test_who_says_nothing_for_long_makes_room(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert monitor.port is not None
    monkeypatch.setattr(monitor_module._Handler, "timeout", 0.2)
    crowd = [socket.create_connection(("127.0.0.1", monitor.port), timeout=LIMIT) for _ in range(AT_ONCE)]
    assert ask(monitor.port, "/healthz")[0] == 200
    for one in crowd:
        one.sendall(b"GET /healthz HT")
        assert one.recv(1) == b""
        one.close()


def test_who_sends_a_byte_now_and_then_makes_room_too(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert monitor.port is not None
    asked, seconds = threading.Semaphore(0), itertools.count()

    def monotonic() -> float:
        asked.release()
        return 3.0 * next(seconds)

    monkeypatch.setattr(monitor_module, "time", SimpleNamespace(monotonic=monotonic))
    with socket.create_connection(("127.0.0.1", monitor.port), timeout=LIMIT) as slow:
        for _ in range(5):  # begun at 0, and asked at 3, 6, 9 and 12 s
            assert asked.acquire(timeout=LIMIT)
            with contextlib.suppress(ConnectionError):
                slow.sendall(b"G")
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(1) == b""
    assert next(seconds) == 5


def test_a_site_that_hangs_leaves_health_and_metrics_alone(monitor: Monitor) -> None:
    """As it does when the output folder is on a share that does not answer."""
    assert monitor.port is not None
    port, answer = monitor.port, threading.Event()

    class Hanging:
        def answer(self, request: Request) -> Answer:
            answer.wait(LIMIT)
            return Answer(200, "text/plain", b"")

        def tidy(self) -> None:
            pass

    monitor.show(Hanging())
    with ThreadPoolExecutor(AT_ONCE) as people:
        asked = [people.submit(ask, port, "/data/micrograph/1") for _ in range(AT_ONCE)]
        until(lambda: sum(one.done() for one in asked) >= AT_ONCE - SITE_AT_ONCE)
        assert ask(port, "/healthz")[0] == ask(port, "/metrics")[0] == 200
        assert ask(port, "/data/list")[0] == 503
        answer.set()
        statuses = [one.result()[0] for one in asked]
    assert statuses.count(200) == SITE_AT_ONCE and statuses.count(503) == AT_ONCE - SITE_AT_ONCE
    assert ask(port, "/data/list")[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # no browser
        ({"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Dest": "image"}, 200),
        ({"Sec_Fetch_Site": "none", "Sec_Fetch_Dest": "document"}, 200),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "document"}, 200),  # a link in a wiki
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "iframe"}, 403),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "image"}, 403),
        ({"Sec_Fetch_Site": "same-site", "Sec_Fetch_Dest": "empty"}, 403),  # another port of this computer
    ],
)
def test_pages_from_elsewhere_cannot_have_it_work_for_them(
    monitor: Monitor, headers: dict[str, str], status: int
) -> None:
    assert monitor.port is not None
    assert ask(monitor.port, "/healthz", **headers)[0] == status


def test_a_port_that_is_taken_is_a_warning(caplog: pytest.LogCaptureFixture, monitor: Monitor) -> None:
    second = Monitor(Address("127.0.0.1", monitor.port or 0), lambda: Health("ok", ""), bytes)
    assert second.port is None
    assert f"port {monitor.port} cannot be used (Address already in use)" in caplog.text
    assert f"neither the live page http://127.0.0.1:{monitor.port}/ nor metrics" in caplog.text
    second.close()


def test_counters_and_figures_that_are_asked_for() -> None:
    metrics = Metrics()
    assert figures(metrics.text().decode())["emdenoised_micrographs_totaldone"] == 0
    metrics.count("done")
    metrics.count("retried")
    metrics.waited(3.0, live=True)
    metrics.waited(90.0, live=False)
    metrics.finished({"read": 0.25, "network": 2.0}, 1000, 3, "check")
    metrics.ask(lambda: [gauge("oldest_waiting_seconds", "x", {"": 7.0})])
    found = figures(metrics.text().decode())
    assert found["emdenoised_micrographs_totaldone"] == found["emdenoised_micrographs_totalretried"] == 1
    assert found["emdenoised_step_seconds_sumnetwork"] == 2.0 and found["emdenoised_step_seconds_countread"] == 1
    assert found["emdenoised_raw_bytes_total"] == 1000 and found["emdenoised_spikes_total"] == 3
    assert [found[f"emdenoised_verdicts_total{word}"] for word in VERDICTS] == [0, 1, 0]
    assert found["emdenoised_oldest_waiting_seconds"] == 7
    assert [found[f"emdenoised_waiting_seconds_sum{lane}"] for lane in ("live", "backlog")] == [3, 90]


def test_what_the_settings_allow_is_in_the_metrics() -> None:
    def told(backend: BackendConfig) -> dict[str, float]:
        return {one.name: one.samples[0].value for one in limits(backend)}

    every = len(os.sched_getaffinity(0))
    assert told(BackendConfig()) == {"emdenoised_threads": max(1, every - 1)}
    found = told(BackendConfig(threads=0, gpu_memory=2.0))
    assert found == {"emdenoised_threads": every, "emdenoised_gpu_memory_limit_bytes": 2 << 30}


def test_the_graphics_card_is_asked_through_nvidias_library(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def handle(device: int) -> str:
        if device > 0:
            raise NVMLError("no such card")
        return "card"

    closed: list[bool] = []
    stub = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: closed.append(True),
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetMemoryInfo=lambda card: SimpleNamespace(used=3, total=9),
        nvmlDeviceGetUtilizationRates=lambda card: SimpleNamespace(gpu=50),
    )
    monkeypatch.setitem(sys.modules, "pynvml", stub)
    told = {s.name + s.labels.get("kind", ""): s.value for one in graphics_card(0) for s in one.samples}
    assert told == {
        "emdenoised_gpu_memory_bytesused": 3,
        "emdenoised_gpu_memory_bytestotal": 9,
        "emdenoised_gpu_utilisation": 0.5,
    }
    assert graphics_card(1) == [] and len(closed) == 2
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert graphics_card(0) == []


@pytest.mark.parametrize(
    ("listen", "said"),
    [
        ("0.0.0.0:8642", "not this computer's own address"),
        ("[::]:8642", "not this computer's own address"),
        ("192.168.1.5:80", "not this computer's own address"),
        ("127.0.0.1", "must be an address and a port"),
        ("127.0.0.1:99999", "must be an address and a port"),
        ("999.1.1.1:80", "no valid address"),
        (8642, "must be an address and a port"),
    ],
)
def test_only_this_computers_own_addresses(tmp_path: Path, listen: Any, said: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"folders: {{drop: d, output: o, state: s}}\nmonitor: {{listen: {json.dumps(listen)}}}\n")
    with pytest.raises(ConfigError, match=rf"line 2: monitor.listen = .*{re.escape(said)}"):
        settings.load(file)


@pytest.mark.parametrize(
    ("listen", "found"),
    [("localhost:1", "127.0.0.1:1"), ("[::1]:8642", "[::1]:8642"), ("127.0.0.5:0", "127.0.0.5:0"), (None, "None")],
)
def test_addresses_that_may_be_listened_on(tmp_path: Path, listen: Any, found: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"folders: {{drop: d, output: o, state: s}}\nmonitor: {{listen: {json.dumps(listen)}}}\n")
    assert str(settings.load(file).monitor.listen) == found


# The real process


@pytest.fixture
def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_the_service_tells_what_it_did_and_how_it_is(site: Site, free_port: int) -> None:
    site.configure(monitor={"listen": f"127.0.0.1:{free_port}"}, output={"preview": False})
    site.write("a.tif", 1)
    (site.drop / "broken.tif").write_bytes(b"II*\0" + b"junk" * 100)
    process = site.launch("run", staged="impatient")
    site.ready(process)
    until(lambda: len(site.images()) == 1 and "quarantined" in site.said(process))
    found = figures(ask(free_port, "/metrics")[1])
    assert found["emdenoised_micrographs_totaldone"] == found["emdenoised_micrographs_totalquarantined"] == 1
    assert found["emdenoised_ledger_micrographsdone"] == found["emdenoised_ledger_micrographsquarantined"] == 1
    assert found["emdenoised_raw_bytes_total"] == (site.drop / "a.tif").stat().st_size
    assert sum(found[f"emdenoised_waiting_seconds_count{lane}"] for lane in ("live", "backlog")) == 1
    assert found["emdenoised_open_problems"] == 1
    assert found["emdenoised_oldest_waiting_seconds"] == 0 and found["emdenoised_healthy"] == 1
    assert {name for name in found if "seconds_count" in name} >= {
        f"emdenoised_step_seconds_count{step}" for step in ("read", "prepare", "network", "judge", "write")
    }
    assert ask(free_port, "/healthz")[0] == 200
    site.drop.rename(site.root / "away")
    until(lambda: ask(free_port, "/healthz")[0] == 503)
    assert "the drop folder is missing" in ask(free_port, "/healthz")[1]
    (site.root / "away").rename(site.drop)
    until(lambda: ask(free_port, "/healthz")[0] == 200)
    process.terminate()
    assert process.wait(LIMIT) == 0


def test_sighup_takes_the_new_settings_and_keeps_the_old_where_they_are_wrong(site: Site, free_port: int) -> None:
    site.configure(output={"preview": False})
    process = site.launch("run", staged="quick")
    site.ready(process)
    site.write("first.tif", 1)
    until(lambda: site.images() == {"first.tif"})

    good = site.config.read_text()
    site.config.write_text(good + "nonsense: 1\n")
    process.send_signal(signal.SIGHUP)
    until(lambda: "the settings were not changed" in site.said(process))
    assert "nonsense" in site.said(process)
    site.write("second.tif", 2)
    until(lambda: site.images() == {"first.tif", "second.tif"})

    site.configure(output={"preview": True}, monitor={"listen": f"127.0.0.1:{free_port}"}, log={"format": "json"})
    process.send_signal(signal.SIGHUP)
    until(lambda: site.said(process).count("ready: ") == 2)
    site.write("third.tif", 3)
    until(lambda: "third.tif" in site.images())
    assert (site.output / "third.tif.png").exists() and not (site.output / "first.tif.png").exists()
    assert ask(free_port, "/healthz")[0] == 200
    until(lambda: figures(ask(free_port, "/metrics")[1])["emdenoised_micrographs_totaldone"] == 3)

    lines = [json.loads(line) for line in site.said(process).splitlines() if line.startswith("{")]
    (done,) = (line for line in lines if line.get("outcome") == "done")
    assert done["micrograph"] == "third.tif" and done["level"] == "info" and done["message"].startswith("denoised")

    # What can only be seen when it is tried: the state folder of another service.
    other = Site(site.root / "other", site._write) if (site.root / "other").mkdir() is None else None
    assert other is not None
    beside = other.launch("run", staged="quick")
    other.ready(beside)
    site.config.write_text(good.replace("state: state", f"state: {other.state}"))
    process.send_signal(signal.SIGHUP)
    until(lambda: "the old ones are taken again" in site.said(process))
    site.write("fourth.tif", 4)
    until(lambda: "fourth.tif" in site.images())
    for one in (process, beside):
        one.terminate()
        assert one.wait(LIMIT) == 0
    site.config.write_text(good)
    site.check_outputs()


def test_the_service_manager_is_told_of_a_reload(site: Site) -> None:
    address = site.root / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(LIMIT)
        process = site.launch("run", staged="quick", environ={"NOTIFY_SOCKET": str(address)})
        told: list[str] = []

        def wait(word: str) -> None:
            while word not in (told[-1] if told else ""):
                told.append(manager.recv(4096).decode())

        wait("READY=1")
        process.send_signal(signal.SIGHUP)
        wait("RELOADING=1")
        assert "MONOTONIC_USEC=" in told[-1]
        wait("READY=1")
        process.terminate()
        wait("STOPPING=1")
        assert process.wait(LIMIT) == 0


def test_names_cannot_forge_lines_of_the_log(site: Site, make_log: Callable[..., str]) -> None:
    forged = "a\n2026-01-01 00:00:00 INFO all is well\x1b[2J.tif"
    site.write(forged, 1)
    assert site.finish("once", staged="quick")[0] == 0
    (site.drop / "b\nINFO forged.tif").write_bytes(b"junk")
    _, said = site.finish("once", staged="impatient")
    assert (
        not [line for line in said.splitlines() if line.startswith(("INFO forged", "2026-01-01"))]
        and "\x1b" not in said
    )
    _, status = site.finish("status")
    assert not [line for line in status.splitlines() if line.startswith(("INFO forged", "2026-01-01"))]
    assert "\n" not in make_log("text", "line\nof \x9b31m a stranger").rstrip("\n")
    assert json.loads(make_log("json", "line\nof a stranger"))["message"] == "line\nof a stranger"


@pytest.fixture
def make_log(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def make(style: Any, text: str) -> str:
        logs.set_up("info", style)
        logging.getLogger("x").info("%s", text)
        return capsys.readouterr().err

    return make
