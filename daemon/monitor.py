"""A small web server on this computer's own address: /metrics for Prometheus, /healthz for whoever watches services."""

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from daemon.config import Address

log = logging.getLogger(__name__)

REQUEST_SECONDS = 10
AT_ONCE = 16
_METRICS = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Health:
    """How the service is: "ok", or what is wrong in `detail`."""

    state: Literal["ok", "starting", "degraded", "failed"]
    detail: str
    backend: str = ""


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
                "monitor.listen: %s cannot be listened on (%s): there are no metrics; choose another port", address,
                error.strerror,
            )  # fmt: skip
            return
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="monitor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        if self.port is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: Address, health: Callable[[], Health], metrics: Callable[[], bytes]) -> None:
        self.address_family = address.family
        self.health, self.metrics = health, metrics
        self._places = threading.BoundedSemaphore(AT_ONCE)
        super().__init__((address.host, address.port), _Handler)

    def process_request(self, request: object, client_address: object) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)  # type: ignore[arg-type]
        else:
            self.shutdown_request(request)  # type: ignore[arg-type]

    def process_request_thread(self, request: object, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._places.release()

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
            self._answer(403, "text/plain", b"ask for it by the name localhost\n")
            return
        match self.path.partition("?")[0]:
            case "/healthz":
                health = self.server.health()
                text = json.dumps(asdict(health)) + "\n"
                self._answer(200 if health.state == "ok" else 503, "application/json", text.encode())
            case "/metrics":
                self._answer(200, _METRICS, self.server.metrics())
            case "/":
                self._answer(200, "text/plain", b"emdenoised: /healthz, /metrics\n")
            case _:
                self._answer(404, "text/plain", b"there are /healthz and /metrics\n")

    do_HEAD = do_GET  # noqa: N815 - the base class's word

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's word
        log.debug(format, *arguments)


def _is_here(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return name.lower() in ("localhost", "127.0.0.1", "[::1]")
