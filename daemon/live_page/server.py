"""A small web server on this computer's own address: /metrics for Prometheus, /healthz for whoever watches services.

What else it serves is handed to it (`Monitor.show`): the live page, which knows the micrographs.
"""

import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, Protocol
from urllib.parse import parse_qsl

from daemon.settings.config import Address

log = logging.getLogger(__name__)

REQUEST_SECONDS = 10
"""A connection that says nothing for so long is closed."""
AT_ONCE = 16
SITE_AT_ONCE = 12
"""Of these so many for the site: a share that hangs must not keep health and metrics from being asked."""
GRACE_SECONDS = 1.0
PROTECTION = {
    # Nothing from elsewhere is loaded or asked, and what a file name may hold is never run.
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
    """How the service is: "ok", or what is wrong in `detail`."""

    state: Literal["ok", "starting", "degraded", "failed"]
    detail: str
    backend: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """A GET or HEAD: the path, without what follows "?", which is in `given`."""

    path: str
    given: Mapping[str, str] = field(default_factory=dict)
    etag: str = ""
    """The version that the browser has (If-None-Match)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent. With an `etag` the browser may keep it, and asks each time whether it still holds."""

    status: int
    kind: str
    body: bytes
    etag: str = ""
    retry_after: int = 0
    """Seconds, where it is worth asking again."""


class Site(Protocol):
    """What answers requests other than for health and metrics; called by several threads."""

    def answer(self, request: Request) -> Answer | None:
        """None for what is not there."""
        ...

    def tidy(self) -> None:
        """Called now and then, by the thread that listens."""
        ...


class Monitor:
    """Answers until `close`. A port that is taken is a warning: the micrographs do not depend on it.

    `health` and `metrics` are called by several threads.
    """

    def __init__(self, address: Address, health: Callable[[], Health], metrics: Callable[[], bytes]) -> None:
        self.port: int | None = None
        """Where it listens, if it does."""
        try:
            self._server = _Server(address, health, metrics)
        except OSError as error:
            log.warning(
                "monitor.listen: port %d cannot be used (%s): neither the live page http://%s/ nor metrics are served; "
                "end the program that has the port (another emdenoised?), or choose another one", address.port,
                error.strerror, address,
            )  # fmt: skip
            return
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="monitor", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """What a browser on this computer gets."""
        host = self._server.server_address[0]
        return f"http://{f'[{host!s}]' if self._server.address_family == socket.AF_INET6 else host!s}:{self.port}/"

    def show(self, site: Site | None) -> None:
        """From now on `site` answers what is neither health nor metrics."""
        if self.port is not None:
            self._server.site = site

    def close(self) -> None:
        """Stop listening."""
        if self.port is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


class _Server(ThreadingHTTPServer):
    """One thread for each connection, at most `AT_ONCE`; whoever comes then waits for a place, or is hung up on."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: Address, health: Callable[[], Health], metrics: Callable[[], bytes]) -> None:
        self.address_family = address.family
        self.health, self.metrics = health, metrics
        self.site: Site | None = None
        self._places = threading.BoundedSemaphore(AT_ONCE)
        self.of_site = threading.BoundedSemaphore(SITE_AT_ONCE)
        super().__init__((address.host, address.port), _Handler)

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


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "emdenoised"
    sys_version = ""
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:
        if not _is_here(self.headers.get("Host", "")):
            # A page from elsewhere that has its name resolve to this computer must not read us.
            self._answer(Answer(403, "text/plain", b"ask for it by the name localhost\n"))
            return
        if self._for_another_page():
            self._answer(Answer(403, "text/plain", b"this is not for pages from elsewhere\n"))
            return
        path, _, query = self.path.partition("?")
        match path:
            case "/healthz":
                health = self.server.health()
                text = json.dumps(asdict(health)) + "\n"
                self._answer(Answer(200 if health.state == "ok" else 503, "application/json", text.encode()))
            case "/metrics":
                self._answer(Answer(200, _METRICS, self.server.metrics()))
            case _:
                self._answer(self._of_site(path, query) or _elsewhere(path))

    def _of_site(self, path: str, query: str) -> Answer | None:
        site = self.server.site
        if site is None:
            return None
        try:
            given = dict(parse_qsl(query, max_num_fields=_MOST_PARAMETERS))
        except ValueError:
            return Answer(400, "text/plain", b"too many parameters\n")
        if not self.server.of_site.acquire(blocking=False):
            busy = json.dumps({"error": "too much is asked for at once; ask again"}).encode()
            return Answer(503, "application/json", busy, retry_after=1)
        try:
            return site.answer(Request(path, given, self.headers.get("If-None-Match", "")))
        finally:
            self.server.of_site.release()

    def _for_another_page(self) -> bool:
        """Whether a browser says so: such a page cannot read the answer, but could have us work. Links are fine."""
        return (
            self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
            and self.headers.get("Sec-Fetch-Dest") != "document"
        )

    do_HEAD = do_GET  # noqa: N815 - the base class's word

    def _answer(self, answer: Answer) -> None:
        known = answer.etag != "" and answer.etag == self.headers.get("If-None-Match", "")
        body = b"" if known else answer.body
        self.send_response(304 if known else answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "private, no-cache" if answer.etag else "no-store")
        if answer.etag:
            self.send_header("ETag", answer.etag)
        if answer.retry_after:
            self.send_header("Retry-After", str(answer.retry_after))
        for name, value in PROTECTION.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's word
        log.debug(format, *arguments)


def _elsewhere(path: str) -> Answer:
    if path == "/":
        return Answer(200, "text/plain", b"emdenoised: /healthz, /metrics\n")
    return Answer(404, "text/plain", b"there are /healthz and /metrics\n")


def _is_here(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return name.lower() in ("localhost", "127.0.0.1", "[::1]")
