"""Decides who may see the live page, where the settings name a file with a token.

A program sends the token with each request, as `Authorization: Bearer TOKEN`. The page asks for it once and sends it in
the same way; the browser then keeps a cookie, which is made from the token and becomes invalid with it.
"""

import hmac
import re
from email.message import Message
from pathlib import Path

from daemon.errors import ConfigError

_COOKIE_SECONDS = 30 * 86_400
_TOKEN = re.compile(r"[!-~]{16,200}")


class Access:
    """Used by any thread."""

    def __init__(self, token: str) -> None:
        self._token = token.encode("ascii")
        # The name differs between services, because browsers share cookies among all ports of a computer.
        self._name = f"emdenoised-{self._made('name')[:8]}"
        self._value = self._made("value")

    @property
    def cookie(self) -> str:
        """For the header Set-Cookie."""
        return f"{self._name}={self._value}; Path=/; Max-Age={_COOKIE_SECONDS}; HttpOnly; SameSite=Strict"

    def has_token(self, headers: Message) -> bool:
        """Whether a request states the token itself."""
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and _same(given.strip(), self._token)

    def allows(self, headers: Message) -> bool:
        """Whether a request has the token or its cookie."""
        if self.has_token(headers):
            return True
        for part in headers.get("Cookie", "").split(";"):
            name, _, given = part.strip().partition("=")
            if name == self._name and _same(given, self._value.encode("ascii")):
                return True
        return False

    def _made(self, what: str) -> str:
        return hmac.new(self._token, f"emdenoised page {what}".encode(), "sha256").hexdigest()


def load(file: Path | None) -> Access | None:
    """The access that a token file gives; None for no file.

    Raises ConfigError if it cannot be read, may be read by everybody, or holds no token.
    """
    if file is None:
        return None
    try:
        mode, text = file.stat().st_mode, file.read_text(encoding="ascii").strip()
    except PermissionError as error:  # a new one would replace a token that is in use
        raise ConfigError(
            f"monitor.token_file: {file} cannot be read by this user; be the service's user "
            f"(sudo -u emdenoised ...), or give it the right: chgrp emdenoised {file} && chmod 640 {file}"
        ) from error
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not plain text"
        raise ConfigError(
            f"monitor.token_file: {file} cannot be read ({why}); make it, for the service's user: "
            f"openssl rand -hex 16 | sudo install -m 640 -g emdenoised /dev/stdin {file}"
        ) from error
    if mode & 0o007:
        raise ConfigError(f"monitor.token_file: every user may read or change {file}; type: chmod o= {file}")
    if _TOKEN.fullmatch(text) is None:
        raise ConfigError(
            f"monitor.token_file: {file} must hold one word of 16 to 200 letters, digits and signs; type: "
            f"openssl rand -hex 16 > {file}"
        )
    return Access(text)


def _same(given: str, wanted: bytes) -> bool:
    """Compares in a time that does not depend on where the two differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted)
