"""A connection to one model of a Triton server, over gRPC; turns each failure into an error with its remedy.

A connection that failed is closed and replaced: after an error the state of its other requests is unknown.
"""

import os
import queue
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.backends.contract import INPUTS, OUTPUT, Contract
from daemon.errors import BackendError, ConfigError, ServerError
from daemon.settings.config import ServerConfig

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # decoders are started by exec
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # every failure is reported here

LARGEST_MESSAGE = 2**31 - 1
"""Bytes: gRPC's limit."""
_QUESTION_SECONDS = 10.0
"""Longest wait for what a server answers without computing."""
BEAT_SECONDS = 1.0
"""Between two calls of `progress`, at most."""
GRACE_SECONDS = 10.0
"""For gRPC to report that the time is over, before the wait ends without it."""
_CHANNEL = [
    ("grpc.max_send_message_length", LARGEST_MESSAGE),
    ("grpc.max_receive_message_length", LARGEST_MESSAGE),
    ("grpc.enable_http_proxy", 0),  # gRPC obeys http_proxy even for this computer's own address
    ("grpc.use_local_subchannel_pool", 1),  # or a new connection inherits the failed one's pause of up to two minutes
]


@dataclass(frozen=True, slots=True)
class About:
    """The model as the server states it."""

    server: str
    """Such as "Triton 2.51.0"."""
    runs_on: str
    """Triton's backend or platform, such as "onnxruntime"."""
    contract: Contract
    batch: int
    """Tiles that it takes at once."""
    fixed: bool
    """Whether it takes tiles of one size only."""


class ModelConnection:
    """Used by one thread. `progress` is called while an answer is waited for, for a watchdog.

    Raises ConfigError if the client is not installed or a certificate cannot be read.
    """

    def __init__(self, settings: ServerConfig, model: str, progress: Callable[[], None]) -> None:
        self._grpc = _client_library()
        self._settings, self._model, self._progress = settings, model, progress
        self._client = self._grpc.InferenceServerClient(
            settings.url, creds=_credentials(settings), channel_args=_CHANNEL
        )

    def about(self) -> About:
        """Ask the server for its version, and for the model. Raises ServerError."""
        with self._explained():
            patience = min(_QUESTION_SECONDS, self._settings.timeout_seconds)
            server = self._client.get_server_metadata(client_timeout=patience)
            found = self._client.get_model_config(self._model, client_timeout=patience).config
            parameters = {name: one.string_value for name, one in found.parameters.items()}
            units = next((one for one in found.input if one.name == INPUTS[0]), None)
            if units is None:
                raise ServerError(f"{self.where}: its model {self._model} has no input {INPUTS[0]!r}")
            return About(
                server=f"{server.name.capitalize()} {server.version}",
                runs_on=found.backend or found.platform,
                contract=Contract.read(parameters),
                batch=found.max_batch_size,
                fixed=all(side > 0 for side in list(units.dims)[-2:]),
            )

    def start(
        self, units: NDArray[np.float32], level: NDArray[np.float32], priority: int
    ) -> Callable[[], NDArray[np.float32]]:
        """Send a request; what is returned waits for the result.

        Both raise ServerError, or ConfigError for a request that the model does not take.
        """
        inputs = [self._input(name, value) for name, value in zip(INPUTS, (units, level), strict=True)]
        answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        end = time.monotonic() + self._settings.timeout_seconds + GRACE_SECONDS
        with self._explained():
            self._client.async_infer(
                self._model,
                inputs,
                lambda result, error: answers.put((result, error)),
                outputs=[self._grpc.InferRequestedOutput(OUTPUT)],
                priority=priority,
                timeout=int(self._settings.timeout_seconds * 1e6),  # in its queue, if it loses sight of this client
                client_timeout=self._settings.timeout_seconds,
            )
        return lambda: self._result(answers, units.shape, end)

    def close(self) -> None:
        """Cancel all open requests."""
        self._client.close()

    @property
    def where(self) -> str:
        """For messages."""
        return f"server {self._settings.url}"

    def _input(self, name: str, value: NDArray[np.float32]) -> Any:
        one = self._grpc.InferInput(name, list(value.shape), "FP32")
        one.set_data_from_numpy(value)
        return one

    def _result(
        self, answers: "queue.SimpleQueue[tuple[Any, Any]]", shape: tuple[int, ...], end: float
    ) -> NDArray[np.float32]:
        while time.monotonic() < end:
            self._progress()
            try:
                result, error = answers.get(timeout=BEAT_SECONDS)
            except queue.Empty:
                continue
            with self._explained():
                if error is not None:
                    raise error
                denoised: NDArray[np.float32] | None = result.as_numpy(OUTPUT)
            if denoised is None or denoised.shape != shape or denoised.dtype != np.float32:
                found = "nothing" if denoised is None else f"{denoised.dtype} {denoised.shape}"
                raise ServerError(f"{self.where}: its model {self._model} answered {found} to tiles of {shape}")
            return denoised
        raise ServerError(f"{self.where}: no answer within {self._settings.timeout_seconds:.0f} s")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raises ServerError, or ConfigError where only a person can help, for the client's errors."""
        try:
            yield
        except BackendError:
            raise
        except self._grpc.InferenceServerException as error:
            code = str(error.status() or "").removeprefix("StatusCode.")
            text = " ".join((error.message() or "no reason given").split())
            if code == "INVALID_ARGUMENT":
                raise ConfigError(
                    f"{self.where}: its model {self._model} does not take these requests ({text}); write its "
                    "repository again with `python -m engine_build`, and see backend.tile and backend.batch"
                ) from error
            raise ServerError(
                f"{self.where}, model {self._model}: {_REASONS.get(code, 'it failed')} ({code}: {text})"
            ) from error
        except ValueError as error:  # gRPC's, of a closed channel or an answer that is none
            raise ServerError(f"{self.where}: {error}") from error


_REASONS = {
    "UNAVAILABLE": "it does not answer, or refuses more requests",
    "DEADLINE_EXCEEDED": "no answer in time",
    "NOT_FOUND": "the model is not loaded",
    "INTERNAL": "the model failed",
    "UNIMPLEMENTED": "it is no Triton server",
    "RESOURCE_EXHAUSTED": "it has no memory left, or the messages are too long for it",
}
"""By gRPC's status codes."""


def _client_library() -> Any:
    """`tritonclient.grpc`. Raises ConfigError with the command that installs it."""
    try:
        import tritonclient.grpc as library
    except ImportError as error:
        raise ConfigError(
            f"backend.kind: server needs NVIDIA's client, which cannot be imported ({error}); type: {sys.executable} "
            "-m pip install 'tritonclient[grpc]'"
        ) from error
    return library


def _credentials(settings: ServerConfig) -> Any:
    """For TLS; None without it. Raises ConfigError naming the file that cannot be read."""
    import grpc

    if settings.ca is None and settings.cert is None:
        return None
    try:
        ca, key, cert = (file and file.read_bytes() for file in (settings.ca, settings.key, settings.cert))
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read ({error.strerror}); see backend.server") from error
    return grpc.ssl_channel_credentials(ca, key, cert)
