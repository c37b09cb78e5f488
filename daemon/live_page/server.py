"""A small web server for this computer only: /metrics for Prometheus, /healthz for programs that watch services.

All other paths are answered by the `Site` that `Monitor.show` sets: the live page. With a token in the settings,
only those who have it see the site (`access`); metrics, which name no file, and whether all is well are for everybody.
"""

import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Protocol
from urllib.parse import parse_qsl, quote

from daemon.live_page import socket_file
from daemon.live_page.access import Access
from daemon.settings.monitor import Address, SocketFile

log = logging.getLogger(__name__)

_REQUEST_SECONDS = 10.0
"""A connection whose request is not complete after so long, or that takes nothing for so long, is closed."""
AT_ONCE = 16
"""Connections at a time."""
SITE_AT_ONCE = 12
"""Those of them for the site: requests that a hanging share blocks must leave places for health and metrics."""
GRACE_SECONDS = 1.0
PROTECTION = {
    # Nothing is loaded from other servers, and scripts in a file name never run.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Sent with every answer."""
_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_MOST_PARAMETERS = 8


@dataclass(frozen=True, slots=True)
class Health:
    """The state of the service; if it is not "ok", `detail` gives the reason."""

    state: Literal["ok", "starting", "degraded", "failed"]
    detail: str
    backend: str = ""


_ACTIONS = "/act/"
"""Paths that a POST may have."""
LOG_IN = "/act/log-in"
TOKEN = "X-Emdenoised-Token"


@dataclass(frozen=True, slots=True)
class Request:
    """The path, and in `given` the parameters after "?"."""

    path: str
    given: Mapping[str, str] = field(default_factory=dict)
    etag: str = ""
    """The version that the browser has (If-None-Match)."""
    token: str = ""
    """Of a POST: what the page was given to prove that it was read from here (TOKEN)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response. With an `etag` the browser may cache it, and asks each time whether it is still valid."""

    status: int
    kind: str
    body: bytes
    etag: str = ""
    retry_after: int = 0
    """Seconds after which to ask again; 0: no such header."""
    parts: Iterator[bytes] | None = None
    """In place of `body`, what is too large for the memory."""
    length: int | None = None
    """Of all `parts`, bytes, where it is known."""
    save_as: str = ""
    """Name under which the browser saves it instead of showing it."""
    cookie: str = ""
    """What the browser keeps and sends with further requests (Set-Cookie)."""


class Site(Protocol):
    """Answers requests other than for health and metrics; called by several threads."""

    def answer(self, request: Request) -> Answer | None:
        """None if there is no such path."""
        ...

    def act(self, request: Request) -> Answer | None:
        """Answer a POST below _ACTIONS from a page of this server. None if there is no such path."""
        ...

    def ask_for_token(self, request: Request) -> Answer:
        """Answer a request without the token of this server."""
        ...

    def tidy(self) -> None:
        """Called about twice a second by the thread that listens."""
        ...


class Monitor:
    """Answers until `close`. If its port or socket cannot be used, it logs a warning and does nothing.

    `health` and `metrics` are called by several threads. `access`: who may see the site; None: who can connect.
    """

    def __init__(
        self,
        address: Address | SocketFile,
        health: Callable[[], Health],
        metrics: Callable[[], bytes],
        access: Access | None = None,
    ) -> None:
        self.listens = False
        self.port: int | None = None
        """The port it listens on, if it does and it is not a socket."""
        try:
            self._server = _Server(address, health, metrics, access)
        except OSError as error:
            log.warning("%s", _unusable(address, error))
            return
        self.listens = True
        if isinstance(address, Address):
            self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="monitor", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """The URL for a browser on this computer, or the path of the socket."""
        if self.port is None:
            return str(self._server.server_address)
        host = self._server.server_address[0]
        return f"http://{f'[{host!s}]' if self._server.address_family == socket.AF_INET6 else host!s}:{self.port}/"

    def show(self, site: Site | None) -> None:
        """Set the site, which answers requests other than for health and metrics."""
        if self.listens:
            self._server.site = site

    def close(self) -> None:
        """Stop listening."""
        if self.listens:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


class _Server(ThreadingHTTPServer):
    """One thread for each connection, at most `AT_ONCE`; a further one waits GRACE_SECONDS and is then closed."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self,
        address: Address | SocketFile,
        health: Callable[[], Health],
        metrics: Callable[[], bytes],
        access: Access | None,
    ) -> None:
        self.file = address if isinstance(address, SocketFile) else None
        self._bound = False
        self.address_family = socket.AF_UNIX if isinstance(address, SocketFile) else address.family
        self.health, self.metrics, self.access = health, metrics, access
        self.site: Site | None = None
        self._places = threading.BoundedSemaphore(AT_ONCE)
        self.of_site = threading.BoundedSemaphore(SITE_AT_ONCE)
        where: Any = str(address) if isinstance(address, SocketFile) else (address.host, address.port)
        super().__init__(where, _Handler)

    def server_bind(self) -> None:
        if self.file is None:
            super().server_bind()
        else:
            socket_file.bind(self.socket, self.file)
            self._bound = True

    def server_close(self) -> None:
        super().server_close()
        if self.file is not None and self._bound:  # or it is that of another service
            self.file.path.unlink(missing_ok=True)

    def process_request(self, request: object, client_address: object) -> None:
        assert isinstance(request, socket.socket)
        if not self._places.acquire(timeout=GRACE_SECONDS):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started now
            self._places.release()
            raise

    def process_request_thread(self, request: object, client_address: object) -> None:
        assert isinstance(request, socket.socket)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def service_actions(self) -> None:
        if (site := self.site) is not None:
            site.tidy()

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("a request from %s failed", client_address, exc_info=True)


class _Incoming(io.RawIOBase):
    """What a client sends, until `seconds` are over in all: one that sends a byte now and then holds no place."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection, self._seconds = connection, seconds
        self._end = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request is not complete")
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(self._seconds)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "emdenoised"
    sys_version = ""
    timeout = _REQUEST_SECONDS

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Incoming(self.connection, self.timeout))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that cannot be understood: as any other, with PROTECTION."""
        self._answer(Answer(code, "text/plain", f"{message or self.responses[code][0]}\n".encode()))

    def do_GET(self) -> None:
        if not _is_here(self.headers.get("Host", "")):
            # DNS rebinding: a foreign page whose name resolves to this computer must not read our answers.
            self._answer(Answer(403, "text/plain", b"ask for it by the name localhost\n"))
            return
        if self._for_another_page():
            self._answer(Answer(403, "text/plain", b"this is not for pages from elsewhere\n"))
            return
        path, _, query = self.path.partition("?")
        match path:
            case "/healthz":
                health = self.server.health()
                if not self._known():  # the reason may name a micrograph
                    health = replace(health, detail="", backend="")
                text = json.dumps(asdict(health)) + "\n"
                self._answer(Answer(200 if health.state == "ok" else 503, "application/json", text.encode()))
            case "/metrics":
                self._answer(Answer(200, _METRICS, self.server.metrics()))
            case _:
                self._answer_of_site(path, query)

    def do_POST(self) -> None:
        path, _, query = self.path.partition("?")
        if not path.startswith(_ACTIONS):
            self.send_error(501)
        elif not (_is_here(self.headers.get("Host", "")) and self._from_own_page()):
            self._answer(Answer(403, "text/plain", b"only the live page may ask for this\n"))
        elif self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self._answer(Answer(413, "text/plain", b"send no body\n"))
        elif path == LOG_IN:
            self._answer(self._logged_in())
        else:
            self._answer_of_site(path, query)

    def _answer_of_site(self, path: str, query: str) -> None:
        site = self.server.site
        if site is None:
            self._answer(_elsewhere(path))
            return
        try:
            given = dict(parse_qsl(query, max_num_fields=_MOST_PARAMETERS))
        except ValueError:
            self._answer(Answer(400, "text/plain", b"too many parameters\n"))
            return
        if not self.server.of_site.acquire(blocking=False):
            busy = json.dumps({"error": "too much is asked for at once; ask again"}).encode()
            self._answer(Answer(503, "application/json", busy, retry_after=1))
            return
        try:
            request = Request(path, given, self.headers.get("If-None-Match", ""), self.headers.get(TOKEN, ""))
            if not self._known():
                found: Answer | None = site.ask_for_token(request)
            else:
                found = site.act(request) if self.command == "POST" else site.answer(request)
            self._answer(found or _elsewhere(path))
        finally:
            self.server.of_site.release()

    def _known(self) -> bool:
        """Whether who asks may see the site."""
        return self.server.access is None or self.server.access.allows(self.headers)

    def _logged_in(self) -> Answer:
        access = self.server.access
        if access is None:
            return _elsewhere(LOG_IN)
        if not access.has_token(self.headers):
            log.info("the live page was asked for with a wrong token")
            return Answer(403, "application/json", b'{"error":"this is not the token"}')
        return Answer(200, "application/json", b"{}", cookie=access.cookie)

    def _for_another_page(self) -> bool:
        """Whether a foreign page sent the request: it cannot read the answer, but causes work. Links are allowed."""
        return (
            self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
            and self.headers.get("Sec-Fetch-Dest") != "document"
        )

    def _from_own_page(self) -> bool:
        """Whether a script of a page that this server sent has made the request."""
        if self.server.file is not None and self.headers.get("Sec-Fetch-Site") == "same-origin":
            return True  # a web server in front of the socket has another name and its own certificate
        return (
            self.headers.get("Origin", "").lower() == f"http://{self.headers.get('Host', '')}".lower()
            and self.headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"
        )

    do_HEAD = do_GET  # noqa: N815 - the base class's word

    def _answer(self, answer: Answer) -> None:
        known = answer.etag != "" and answer.etag == self.headers.get("If-None-Match", "")
        body = b"" if known else answer.body
        self.send_response(304 if known else answer.status)
        self.send_header("Content-Type", answer.kind)
        length = len(body) if answer.parts is None else answer.length
        if length is not None:
            self.send_header("Content-Length", str(length))
        if answer.save_as:
            self.send_header("Content-Disposition", f"attachment; filename*=UTF-8''{quote(answer.save_as, safe='')}")
        self.send_header("Cache-Control", "private, no-cache" if answer.etag else "no-store")
        if answer.etag:
            self.send_header("ETag", answer.etag)
        if answer.cookie:
            self.send_header("Set-Cookie", answer.cookie)
        if answer.retry_after:
            self.send_header("Retry-After", str(answer.retry_after))
        for name, value in PROTECTION.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            for part in (body,) if answer.parts is None else answer.parts:
                self.wfile.write(part)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's word
        log.debug(format, *arguments)


def _unusable(address: Address | SocketFile, error: OSError) -> str:
    """Why nobody can connect, and what to do."""
    why = error.strerror or str(error)
    if isinstance(address, SocketFile):
        return (
            f"monitor.listen: {address} cannot be used: {why}; neither the live page nor metrics are served until then"
        )
    return (
        f"monitor.listen: port {address.port} cannot be used ({why}): neither the live page http://{address}/ nor "
        "metrics are served; end the program that has the port (another emdenoised?), or choose another one"
    )


def _elsewhere(path: str) -> Answer:
    if path == "/":
        return Answer(200, "text/plain", b"emdenoised: /healthz, /metrics\n")
    return Answer(404, "text/plain", b"there are /healthz and /metrics\n")


def _is_here(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return name.lower() in ("localhost", "127.0.0.1", "[::1]")
