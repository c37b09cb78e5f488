"""The network on a Triton server: this side cuts and joins tiles, the server computes them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from daemon.backends.connection import LARGEST_MESSAGE, ModelConnection
from daemon.backends.contract import PRIORITY_BACKLOG, PRIORITY_LIVE, Contract
from daemon.backends.framing import Frame, Framed, Result, Tiles
from daemon.backends.manifest import Manifest
from daemon.errors import ConfigError, EmdenoisedError, WeightsError
from daemon.settings.config import BackendConfig

TRUSTED_SECONDS = 10.0
"""So long a model counts as the one that was checked: a server may load another one under its name."""
_ENVELOPE = 1 << 16
"""Bytes of a request besides its tiles, at most."""

T = TypeVar("T")


class ServerBackend(Framed):
    """`Backend` on a Triton server, which is asked only when the first micrograph comes.

    Reads ahead: `in_flight` requests are on their way at once. Raises ServerError whenever the server cannot be used
    now, and connects again at the next micrograph; WeightsError and ConfigError if its model is of other weights.
    The constructor raises ConfigError for settings that can never be used.
    """

    def __init__(
        self, settings: BackendConfig, folder: Path, manifest: Manifest, progress: Callable[[], None] = lambda: None
    ) -> None:
        frame = Frame(tile=manifest.tile_of(settings.tile), halo=manifest.halo, batch=settings.batch)
        super().__init__(folder, manifest, frame, progress)
        if frame.batch * frame.tile**2 * 4 + _ENVELOPE > LARGEST_MESSAGE:
            raise ConfigError(
                f"{frame.batch} tiles of {frame.tile} pixels exceed the 2 GiB of one request; lower backend.batch or "
                "backend.tile"
            )
        self.in_flight = settings.server.in_flight
        self._settings, self._model = settings.server, settings.server.model or manifest.name
        self._connection: ModelConnection | None = None
        self._checked = 0.0
        self._name = f"server {self._settings.url}: not connected"
        ModelConnection(self._settings, self._model, progress).close()  # finds a missing client or certificate now

    @property
    def name(self) -> str:
        """See `Backend`."""
        return self._name

    def connected(self) -> Frame:
        """See `Framed`. Checks the model when it connects, and again where the last check is long ago."""
        if self._connection is None or time.monotonic() - self._checked > TRUSTED_SECONDS:
            self._guarded(self._check)
        return self.frame

    def run(self, units: Tiles, level: Tiles, live: bool) -> Result:
        """See `Framed`."""
        connection = self._connection
        assert connection is not None
        wait = self._guarded(lambda: connection.start(units, level, PRIORITY_LIVE if live else PRIORITY_BACKLOG))
        return lambda: self._guarded(wait)

    def close(self) -> None:
        """See `Backend`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _guarded(self, step: Callable[[], T]) -> T:
        """After an error the connection is closed, with all its requests."""
        try:
            return step()
        except EmdenoisedError:
            self.close()
            raise

    def _check(self) -> None:
        """Raises WeightsError or ConfigError if the model is not that of the weights."""
        if self._connection is None:
            self._connection = ModelConnection(self._settings, self._model, self.progress)
        about = self._connection.about()
        where = f"server {self._settings.url}: its model {self._model}"
        if (why := about.contract.other_network(self.manifest)) is not None:
            raise WeightsError(
                f"{where} {why}; write its repository again (`python -m engine_build {self.manifest.name} --triton "
                "DIR`), or choose the weights that it has"
            )
        self._require_size(where, about.contract, about.batch)
        self.frame = Frame(self.frame.tile, self.frame.halo, self.frame.batch, fixed=about.fixed)
        runs_on, precision = about.runs_on, about.contract.precision
        self._name = f"server {self._settings.url}: {about.server}, {self._model} on {runs_on}, {precision}"
        self._checked = time.monotonic()

    def _require_size(self, where: str, contract: Contract, batch: int) -> None:
        if contract.tile != str(self.frame.tile):
            raise ConfigError(
                f"{where} has tiles of {contract.tile} pixels, and here they are {self.frame.tile}; set backend.tile: "
                f"{contract.tile}, or write its repository again with --tile {self.frame.tile}"
            )
        if self.frame.batch > batch:
            raise ConfigError(f"{where} takes {batch} tiles at once; set backend.batch to that or less")
