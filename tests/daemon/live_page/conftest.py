"""Finished micrographs, and the live page of them, without a daemon."""

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from finished import Clock, Finished
from gallery_pictures import make
from page_over_http import listening

from daemon.live_page.gallery import Gallery
from daemon.live_page.routes import Page
from daemon.live_page.server import Health
from daemon.settings.config import Config


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def finished(config: Callable[..., Config], clock: Clock) -> Iterator[Finished]:
    one = Finished(config(), clock)
    yield one
    one.ledger.close()


@pytest.fixture
def gallery(finished: Finished, clock: Clock) -> Iterator[Gallery]:
    one = make(finished, clock)
    yield one
    one.close()


@pytest.fixture
def page(finished: Finished, clock: Clock) -> Iterator[Page]:
    with closing(Page(finished.config, lambda: Health("ok", "events", "fake: fast"), clock)) as one:
        yield one


@pytest.fixture
def port(page: Page) -> Iterator[int]:
    with listening(page) as port:
        yield port
