"""The live page for one group only: by a socket with its group, or by a token; and attacks on both."""

import grp
import http.client
import os
import re
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from finished import Finished, counts
from page_over_http import Reply, ask
from site_of_daemon import LIMIT, Site, free_port, until

from daemon.errors import ConfigError
from daemon.live_page import access
from daemon.live_page.routes import Page
from daemon.live_page.server import LOG_IN, Health, Monitor
from daemon.settings import config as settings
from daemon.settings.monitor import Address, SocketFile

TOKEN = "0123456789abcdef-of-the-lab"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
TIRED = Health("degraded", "'alice/secret.tif' is not read", "cpu")


@contextmanager
def served(page: Page | None, address: Address | SocketFile, token: str | None = None) -> Iterator[Monitor]:
    one = Monitor(address, lambda: TIRED, lambda: b"figures\n", None if token is None else access.Access(token))
    one.show(page)
    yield one
    one.close()


@pytest.fixture
def locked(page: Page) -> Iterator[int]:
    with served(page, Address("127.0.0.1", 0), TOKEN) as one:
        assert one.port is not None
        yield one.port


def own(port: int) -> dict[str, str]:
    return {"Origin": f"http://127.0.0.1:{port}", "Sec_Fetch_Site": "same-origin"}


def cookie_of(port: int) -> str:
    reply = ask(port, LOG_IN, "POST", **BEARER, **own(port))
    assert reply.status == 200
    return reply.headers["set-cookie"]


# The token


def test_the_page_asks_once_and_the_browser_keeps_a_cookie(locked: int, finished: Finished) -> None:
    job = finished.add("alice/a.tif", counts(1))
    first = ask(locked, "/")
    assert first.status == 401 and b'type="password"' in first.body and first.headers["cache-control"] == "no-store"
    for path in ("/login.js", "/page.css", "/icon.svg"):
        assert ask(locked, path).status == 200
    cookie = cookie_of(locked)
    assert cookie.endswith("; HttpOnly; SameSite=Strict") and TOKEN not in cookie
    kept = f"other=1; {cookie.partition(';')[0]}"
    assert b"Follow newest" in ask(locked, "/", Cookie=kept).body
    assert ask(locked, f"/data/micrograph/{job.id}", Cookie=kept).data["path"] == "alice/a.tif"
    assert ask(locked, "/data/state", **BEARER).status == 200  # a program


@pytest.mark.parametrize(
    "path",
    ["/data/state", "/data/list", "/data/table", "/data/table.csv", "/data/session", "/page.js", "/index.html",
     "/data/micrograph/{}", "/file/{}/image", "/picture/{}/thumbnail", "/picture/{}/raw/0/0/0", "/login.html", "//"],
)  # fmt: skip
def test_without_the_token_nothing_of_a_micrograph_is_answered(locked: int, finished: Finished, path: str) -> None:
    job = finished.add("alice/a.tif", counts(1))
    for method in ("GET", "HEAD"):
        reply = ask(locked, path.format(job.id), method)
        assert reply.status == 401 and b"alice" not in reply.body


def test_what_is_not_the_token_is_refused(locked: int) -> None:
    name, _, value = cookie_of(locked).partition(";")[0].partition("=")
    wrong: list[dict[str, str]] = [
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {value}"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer \xe9"},
        {"Authorization": "B" * 60_000},
        {"Cookie": name},
        {"Cookie": f"{name}="},
        {"Cookie": f"{name}={TOKEN}"},
        {"Cookie": f"{name}={value[:-1]}"},
        {"Cookie": f"x{name}={value}"},
        {"Cookie": f"{name}=\xe9"},
        {"X_Emdenoised_Token": TOKEN},
    ]
    for headers in wrong:
        assert ask(locked, "/data/state", **headers).status == 401, headers
    assert ask(locked, f"/data/state?token={TOKEN}").status == 401
    with closing(access_of_other(f"{TOKEN}2")) as other:
        assert other.port is not None
        assert ask(other.port, "/data/state", Cookie=f"{name}={value}").status == 401


def access_of_other(token: str) -> Monitor:
    one = Monitor(Address("127.0.0.1", 0), lambda: TIRED, bytes, access.Access(token))
    one.show(NoMicrographs())  # type: ignore[arg-type]
    return one


class NoMicrographs:
    def ask_for_token(self, request: object) -> object:
        from daemon.live_page.server import Answer

        return Answer(401, "text/plain", b"")

    def tidy(self) -> None:
        pass


def test_pages_from_elsewhere_can_neither_log_in_nor_use_the_cookie(locked: int) -> None:
    kept = cookie_of(locked).partition(";")[0]
    here = own(locked)
    for headers in (
        {},
        {"Origin": "http://evil.example"},
        here | {"Origin": "null"},
        here | {"Sec_Fetch_Site": "cross-site"},
        here | {"Sec_Fetch_Site": "same-site"},
        {"Origin": "http://evil.example", "Host": "evil.example"},
    ):
        reply = ask(locked, LOG_IN, "POST", **BEARER, **headers)
        assert reply.status == 403 and "set-cookie" not in reply.headers, headers
    assert ask(locked, LOG_IN, "POST", **BEARER, **here, Content_Length="5").status == 413
    assert ask(locked, "/data/state", Cookie=kept, Sec_Fetch_Site="cross-site").status == 403
    assert ask(locked, "/data/state", Cookie=kept, Host="evil.example").status == 403
    assert ask(locked, LOG_IN, **BEARER).status == 404
    assert ask(locked, "/act/retry/1", "POST", **here).status == 401


def test_headers_cannot_be_smuggled_in(locked: int) -> None:
    """A path with line ends must not become a header of the answer, and a doubled header must not open the page."""
    for path in ("/%0d%0aSet-Cookie:%20a=b", "/data/state%0d%0aAuthorization:%20Bearer"):
        assert "set-cookie" not in ask(locked, path).headers
    with socket.create_connection(("127.0.0.1", locked), timeout=LIMIT) as raw:
        raw.sendall(
            b"GET /data/state HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer nothing\r\n"
            b"Authorization: Bearer " + TOKEN.encode() + b"\r\n\r\n"
        )
        assert b" 401 " in raw.makefile("rb").readline()


def test_health_and_metrics_are_for_everybody_without_names(locked: int) -> None:
    assert ask(locked, "/metrics").body == b"figures\n"
    reply = ask(locked, "/healthz")
    assert reply.status == 503 and reply.data == {"state": "degraded", "detail": "", "backend": ""}
    assert ask(locked, "/healthz", **BEARER).data["detail"] == TIRED.detail


def test_without_a_token_file_nobody_is_asked(port: int) -> None:
    assert ask(port, "/data/state").status == 200
    assert ask(port, LOG_IN, "POST", **own(port)).status == 404


def test_a_token_file_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(ConfigError, match=r"monitor.token_file: .*token cannot be read .*openssl rand"):
        access.load(file)
    for text, said in (("short", "16 to 200"), ("two words, neither counts", "one word"), ("é" * 20, "plain text")):
        file.write_text(text)
        file.chmod(0o640)
        with pytest.raises(ConfigError, match=said):
            access.load(file)
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match=r"every user may read .*chmod o="):
        access.load(file)
    file.chmod(0o640)
    assert access.load(file) is not None and access.load(None) is None


def test_a_token_of_the_service_is_not_replaced_by_who_may_not_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(ConfigError, match=r"cannot be read by this user.*sudo -u emdenoised") as found:
        access.load(tmp_path / "token")
    assert "openssl" not in str(found.value)


# The socket


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=LIMIT)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


def ask_socket(path: Path, what: str, method: str = "GET", **headers: str) -> Reply:
    with closing(UnixConnection(path)) as connection:
        connection.request(method, what, headers={key.replace("_", "-"): value for key, value in headers.items()})
        answer = connection.getresponse()
        return Reply(answer.status, dict(answer.getheaders()), answer.read())


def test_a_socket_is_open_to_its_group_only(page: Page, tmp_path: Path) -> None:
    group = grp.getgrgid(os.getegid())
    path = tmp_path / "page.sock"
    for one, mode in ((SocketFile(path, group.gr_name), 0o660), (SocketFile(path), 0o600)):
        with served(page, one) as monitor:
            found = path.stat()
            assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == mode
            assert found.st_gid == group.gr_gid
            assert monitor.listens and monitor.port is None and monitor.address == str(path)
            assert ask_socket(path, "/data/state").status == 200 and ask_socket(path, "/metrics").body == b"figures\n"
        assert not path.exists()


def test_through_a_socket_the_rules_for_foreign_pages_hold(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "page.sock"
    with served(page, SocketFile(path), TOKEN):
        assert ask_socket(path, "/metrics", Host="evil.example").status == 403
        assert ask_socket(path, "/data/state").status == 401
        # A web server in front of it asks for "localhost"; the browser's page has another name.
        there = {"Origin": "https://em.example.org", **BEARER}
        assert ask_socket(path, LOG_IN, "POST", Sec_Fetch_Site="same-origin", **there).status == 200
        assert ask_socket(path, LOG_IN, "POST", Sec_Fetch_Site="cross-site", **there).status == 403
        assert ask_socket(path, LOG_IN, "POST", **there).status == 403


def test_only_the_socket_of_a_dead_service_is_replaced(
    page: Page, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "page.sock"
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(path))
    with served(page, SocketFile(path)):
        with served(page, SocketFile(path)) as second:
            assert not second.listens
        assert "another program listens there" in caplog.text
        assert ask_socket(path, "/metrics").status == 200
    path.write_text("notes")
    with served(page, SocketFile(path)) as third:
        assert not third.listens and path.read_text() == "notes"
    for wrong, said in (
        (SocketFile(tmp_path / "no/page.sock"), "the folder .*no is missing"),
        (SocketFile(tmp_path / "b.sock", "no-such-group"), "there is no group no-such-group"),
    ):
        caplog.clear()
        with served(page, wrong) as one:
            assert not one.listens
        assert re.search(said, caplog.text)
        assert not wrong.path.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{listen: 127.0.0.1:8642, group: lab}", "`group` limits a socket"),
        ("{listen: /run/x/page.sock, group: 'a b'}", "monitor.group"),
        (f"{{listen: /run/{'x' * 107}}}", "too long for a socket"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"folders: {{drop: d, output: o, state: s}}\nmonitor: {text}\n")
    with pytest.raises(ConfigError, match=said):
        settings.load(file)


def test_a_socket_in_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("folders: {drop: d, output: o, state: s}\nmonitor: {listen: ./page.sock, group: lab}\n")
    found = settings.load(file).monitor
    assert found.address == SocketFile(tmp_path / "page.sock", "lab")
    assert found.model_dump(mode="json")["listen"] == str(tmp_path / "page.sock")


# The real process


def reachable(asked: Callable[[], Reply]) -> int:
    """The status of an answer; 0 while the server is between two settings."""
    try:
        return asked().status
    except (OSError, http.client.HTTPException):
        return 0


def test_the_service_takes_a_new_token_and_a_socket_on_reload(site: Site, tmp_path: Path) -> None:
    port, token = free_port(), site.root / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    site.configure(monitor={"listen": f"127.0.0.1:{port}", "token_file": str(token)})
    process = site.launch("run", staged="quick")
    site.ready(process)
    assert ask(port, "/data/state").status == 401 and ask(port, "/data/state", **BEARER).status == 200
    token.write_text("another-0123456789")
    process.send_signal(signal.SIGHUP)
    until(lambda: reachable(lambda: ask(port, "/data/state", **BEARER)) == 401)
    path = tmp_path / "page.sock"
    site.configure(monitor={"listen": str(path), "token_file": str(token)})
    process.send_signal(signal.SIGHUP)
    until(lambda: reachable(lambda: ask_socket(path, "/data/state", Authorization="Bearer another-0123456789")) == 200)
    token.chmod(0o644)
    process.send_signal(signal.SIGHUP)
    until(lambda: "every user may read" in site.said(process))
    assert not path.exists()  # closed rather than open to all
    process.terminate()
    assert process.wait(LIMIT) == 0
    status, said = site.finish("check")
    assert status == 78 and "chmod o=" in said
