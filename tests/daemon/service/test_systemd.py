"""The service manager gets the service's state, and its absence is no fault."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon.service.systemd import Notifier, watchdog_interval


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        receiver.settimeout(5)
        yield receiver


@pytest.fixture
def short_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A socket's path holds at most 108 bytes."""
    path = tmp_path / "s"
    if len(str(path)) > 100:
        pytest.skip("the temporary folder's path is too long for a socket")
    return path


def test_every_state_arrives_as_systemd_expects_it(short_path: Path) -> None:
    with listening(str(short_path)) as receiver:
        notifier = Notifier({"NOTIFY_SOCKET": str(short_path)})
        notifier.ready("cpu, 2 threads")
        notifier.status("3 done,\n 1 waiting µ")
        notifier.watchdog()
        notifier.extend(60, "building")
        notifier.stopping()
        said = [receiver.recv(4096).decode() for _ in range(5)]
    assert notifier.listened_to
    assert said == [
        "READY=1\nSTATUS=cpu, 2 threads",
        "STATUS=3 done, 1 waiting µ",
        "WATCHDOG=1",
        "EXTEND_TIMEOUT_USEC=60000000\nSTATUS=building",
        "STOPPING=1",
    ]


@pytest.mark.skipif(not os.path.exists("/proc/net/unix"), reason="abstract socket names are Linux's own")  # noqa: PTH110
def test_abstract_names_are_understood() -> None:
    name = f"emdenoised-test-{os.getpid()}"
    with listening("\0" + name) as receiver:
        Notifier({"NOTIFY_SOCKET": "@" + name}).ready()
        assert receiver.recv(4096) == b"READY=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_without_a_service_manager_nothing_happens(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object) -> None:
        raise AssertionError("nobody listens, so no socket is wanted")

    monkeypatch.setattr(socket, "socket", no_socket)
    notifier = Notifier(environ)
    notifier.ready()
    notifier.status("busy")
    notifier.watchdog()
    notifier.stopping()
    assert not notifier.listened_to


def test_a_vanished_manager_does_not_stop_the_work_and_is_found_again(short_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(short_path)})
    notifier.watchdog()
    with listening(str(short_path)):
        notifier.watchdog()
    notifier.watchdog()
    short_path.unlink()
    with listening(str(short_path)) as receiver:
        notifier.status("")
        notifier.status("back")
        assert receiver.recv(4096) == b"STATUS=back"


def test_a_path_too_long_for_a_socket_is_no_crash(tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": "/" + "x" * 300})
    notifier.ready()
    assert notifier.listened_to


def test_the_process_environment_is_the_default(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(short_path))
    monkeypatch.setenv("WATCHDOG_USEC", "120000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with listening(str(short_path)) as receiver:
        Notifier().ready()
        assert receiver.recv(4096) == b"READY=1"
    assert watchdog_interval() == 60.0


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "120000000"}, 60.0),
        ({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": str(os.getpid())}, 60.0),
        ({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
    ],
)
def test_the_watchdog_is_called_at_half_of_its_limit(environ: dict[str, str], expected: float | None) -> None:
    assert watchdog_interval(environ) == expected
