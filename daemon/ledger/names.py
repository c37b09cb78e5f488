"""Folded names of micrographs, which the ledger keeps beside its jobs: a search reads nothing else.

SQLite calls `stored` once for each new job (trigger `job_named`). Names are bytes, as paths are: not all are UTF-8.
"""

import re

from daemon.settings.names import folded


def stored(path: bytes) -> bytes:
    """The name by which a path is found: `folded`."""
    return encode(folded(decode(path)))


def encode(text: str) -> bytes:
    """Text as the ledger stores it."""
    return text.encode("utf-8", "surrogateescape")


def decode(name: bytes) -> str:
    """The text of a stored name or path."""
    return name.decode("utf-8", "surrogateescape")


def certain(glob: str) -> bytes:
    """The longest part of a folded glob that all names it matches contain: SQLite finds these, Python compares them."""
    return encode(max(re.split(r"[*?]", glob.partition("[")[0]), key=len))
