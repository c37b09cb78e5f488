"""The settings of the web server: where it listens, who may open the page, and what the page may do."""

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationInfo, model_validator

from daemon.settings.folders import AbsolutePath, to_path
from daemon.settings.yaml_file import Group

_LONGEST_SOCKET = 107
"""Bytes in the path of a UNIX socket, at most (unix(7))."""


@dataclass(frozen=True, slots=True)
class Address:
    """A loopback address to listen on, and a port; port 0: any that is free."""

    host: str
    port: int

    @property
    def family(self) -> socket.AddressFamily:
        """IPv4 or IPv6."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SocketFile:
    """A UNIX socket to listen on; who may use its file can connect. `group` None: nobody but the service's user."""

    path: Path
    group: str | None = None

    def __str__(self) -> str:
        return str(self.path)


def _to_address(value: object, info: ValidationInfo) -> Address | Path | None:
    if value is None or isinstance(value, (Address, Path)):
        return value
    if isinstance(value, str) and "/" in value:
        path = to_path(value, info)
        if len(os.fsencode(path)) > _LONGEST_SOCKET:
            raise ValueError(f"is too long for a socket, which may have {_LONGEST_SOCKET} bytes; choose a shorter path")
        return path
    match = (
        re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([0-9.]+|localhost)):(\d{1,5})", value)
        if isinstance(value, str)
        else None
    )
    if match is None or int(match[3]) > 65_535:
        raise ValueError("must be an address and a port, such as 127.0.0.1:8642, the path of a socket, or null")
    try:
        found = ipaddress.ip_address("127.0.0.1" if match[2] == "localhost" else match[1] or match[2])
    except ValueError as error:
        raise ValueError("has no valid address; write 127.0.0.1 and a port, such as 127.0.0.1:8642") from error
    if not found.is_loopback:
        raise ValueError(
            "is not this computer's own address: it would be open to the network; write 127.0.0.1 and, to look from "
            "elsewhere, use an SSH tunnel or a web server that asks who it is"
        )
    return Address(str(found), int(match[3]))


class MonitorConfig(Group):
    """The web server for people and programs on this computer."""

    listen: Annotated[
        Address | Path | None,
        BeforeValidator(_to_address),
        PlainSerializer(lambda one: None if one is None else str(one)),
    ] = Address("127.0.0.1", 8642)
    """Address and port of the live page, /metrics and /healthz, or the path of a UNIX socket; null: nothing listens."""
    group: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] | None = None
    """The group whose members may connect to the socket of `listen`; null: only the service's own user."""
    token_file: AbsolutePath | None = None
    """File with a token that the page asks for, once in each browser; null: it asks for none."""
    page: bool = True
    """Whether to serve the live page: the micrographs, before and after, at full resolution."""
    page_memory_mib: int = Field(default=256, ge=0, le=1_000_000)
    """MiB of micrographs that the page holds in memory while they are displayed."""
    actions: bool = False
    """Whether the page may retry micrographs and mark them as seen; everybody who can open it can then do so."""

    @property
    def address(self) -> Address | SocketFile | None:
        """`listen`, with the group of a socket."""
        return SocketFile(self.listen, self.group) if isinstance(self.listen, Path) else self.listen

    @model_validator(mode="after")
    def _of_socket(self) -> "MonitorConfig":
        if self.group is not None and not isinstance(self.listen, Path):
            raise ValueError(
                "`group` limits a socket, and a port is open to all users of this computer; write "
                "listen: /run/emdenoised/page.sock, or use `token_file`"
            )
        return self
