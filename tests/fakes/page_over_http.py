"""The live page over HTTP, without a daemon: on a free port, and asked as a browser or a program asks."""

import http.client
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from daemon.live_page.routes import Page
from daemon.live_page.server import Health, Monitor, Request
from daemon.settings.monitor import Address


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    """With names in lower case."""
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)

    @property
    def said(self) -> tuple[int, str]:
        return self.status, self.body.decode()


@contextmanager
def listening(page: Page) -> Iterator[int]:
    """The port on which the page answers."""
    monitor = Monitor(Address("127.0.0.1", 0), lambda: Health("ok", ""), bytes)
    monitor.show(page)
    assert monitor.port is not None
    yield monitor.port
    monitor.close()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> Reply:
    """`headers`: "_" stands for "-"."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.putrequest(method, path, skip_host=True)
        for name, value in ({"Host": f"127.0.0.1:{port}"} | headers).items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


def data(page: Page, path: str, **given: str) -> Any:
    """The same without HTTP."""
    answer = page.answer(Request(path, given))
    assert answer is not None
    return json.loads(answer.body)
