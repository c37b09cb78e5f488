"""What the live page may change: only with `monitor.actions`, and only at the request of the page itself."""

import hmac
import logging
import secrets
from pathlib import Path

from daemon.ledger.jobs import Ledger
from daemon.live_page.gallery import NotThereError
from daemon.live_page.server import Request
from daemon.logs import one_line

log = logging.getLogger(__name__)


class Actions:
    """Used by any thread. `state`: the state folder, with the ledger."""

    def __init__(self, state: Path, allowed: bool) -> None:
        self._state, self._allowed = state, allowed
        self._token = secrets.token_urlsafe(24)

    @property
    def token(self) -> str | None:
        """What the page has to send along; None if it may change nothing. Only pages of this server can read it."""
        return self._token if self._allowed else None

    def why_not(self, request: Request) -> str:
        """Why a request is refused; empty if it is allowed."""
        if not self._allowed:
            return "the live page may change nothing: monitor.actions is false in the settings"
        if not hmac.compare_digest(request.token.encode("utf-8", "replace"), self._token.encode()):
            return "the page is older than the service's settings: load it again"
        return ""

    def retry(self, number: int) -> None:
        """Job `number`, quarantined or waiting for a retry -> pending, attempts set to 0.

        Raises NotThereError for any other, LedgerError, LedgerUnavailableError.
        """
        with Ledger(self._state, "edit") as ledger:
            found = ledger.retry(only=number)
        if not found:
            raise NotThereError(f"micrograph {number} is not quarantined, or has a newer revision: load the page again")
        log.info("%s: retried from the live page", one_line(found[0].path), extra={"micrograph": found[0].path})

    def acknowledge(self, number: int) -> None:
        """Mark job `number`, quarantined or rejected, as seen by a person. Raises as `retry` does."""
        with Ledger(self._state, "edit") as ledger:
            found = ledger.acknowledge(only=number)
        if not found:
            raise NotThereError(f"micrograph {number} is no open problem any more: load the page again")
        log.info("%s: acknowledged on the live page", one_line(found[0].path), extra={"micrograph": found[0].path})
