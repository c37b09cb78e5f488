"""The engine for this card and these weights: the existing one, or one built by a child process.

The builder imports what the daemon never does, and may crash: so it is a process of its own.
"""

import logging
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.backends.gpu.engine import OPTIONS, EngineManifest, Sides, Wanted, engine_path, load_manifest, stale
from daemon.backends.gpu.nvidia import RTX_CARDS, Flavour, Gpu, choose, load_tensorrt
from daemon.backends.manifest import Manifest
from daemon.errors import BackendError, ConfigError, WeightsError
from daemon.settings.config import EX_CONFIG, BackendConfig

log = logging.getLogger(__name__)

TICK = 0.25
"""Seconds between two calls of `progress` while a child works."""


@dataclass(frozen=True, slots=True)
class EngineOrder:
    """Which engine is wanted: of the weights in `folder`, kept in `engines`, for this card, tile and batch."""

    settings: BackendConfig
    folder: Path
    weights: Manifest
    engines: Path
    gpu: Gpu
    tile: Sides
    batch: int

    @property
    def flavour(self) -> Flavour:
        """Raises ConfigError if none is installed."""
        return choose(self.settings.flavour, self.gpu)

    @property
    def path(self) -> Path:
        return engine_path(self.engines, self.weights, self.flavour, self.tile, self.batch)

    @property
    def wanted(self) -> Wanted:
        flavour = self.flavour
        onnx, version = self.weights.sha256[self.weights.onnx], load_tensorrt(flavour).__version__
        return Wanted(onnx, flavour, version, self.gpu, self.tile, self.batch, OPTIONS)

    @property
    def command(self) -> list[str]:
        """What builds it."""
        flavour, gpu = self.flavour, self.gpu
        known = gpu.capability if gpu.capability in RTX_CARDS else "current"
        return [
            sys.executable, "-m", "engine_build", str(self.folder), "--flavour", flavour,
            *(["--targets", known] if flavour == "rtx" else []), "--tile", "{}x{}".format(*self.tile),
            "--batch", str(self.batch), "--device", str(self.settings.device), "-o", str(self.engines),
        ]  # fmt: skip


def existing(order: EngineOrder) -> tuple[Path, EngineManifest] | None:
    """An engine that fits and has run on this card, if it is there."""
    about, _ = _look(order.path, order.wanted)
    return None if about is None or about.gate.ran_on != str(order.gpu) else (order.path, about)


def engine(
    order: EngineOrder, progress: Callable[[], None] = lambda: None, *, rebuild_because: str = ""
) -> tuple[Path, EngineManifest]:
    """The engine that is ordered, fresh and gated on this card, built if need be. This process must hold no context
    on the card: one in exclusive mode would be closed to the builder.

    `progress` is called now and then; if it raises, the builder is stopped. `rebuild_because`: why it is to be built
    even if there is one that fits. Raises ConfigError if a person is needed: TensorRT is not installed, the engine must
    be rebuilt and `settings.rebuild` is off, or these weights make no engine; BackendError if building failed for
    another reason.
    """
    path, wanted, command, gpu = order.path, order.wanted, order.command, order.gpu
    about, reasons = _look(path, wanted)
    if rebuild_because:
        about, reasons = None, (rebuild_because,)
    if about is None:
        by_hand = " ".join(command[1:])
        if not order.settings.rebuild:
            raise ConfigError(
                f"{path}: {'; '.join(reasons)}; backend.rebuild is false, so build it yourself: python {by_hand}"
            )
        log.info("%s: %s; it is built now, which takes seconds to minutes", path, "; ".join(reasons))
        run(command, progress)
        about, reasons = _look(path, wanted)
        if about is None:
            raise BackendError(f"{path}: was just built, and yet {'; '.join(reasons)}; please report this")
    if about.gate.ran_on != str(gpu):
        log.info("%s: has not run on this card yet (%s); it is compared with float32 now", path, gpu)
        run([*command, "--gate-only"], progress)
        about = load_manifest(path)
        if about.gate.ran_on != str(gpu):
            raise BackendError(f"{path}: was just compared on {about.gate.ran_on}, not on {gpu}; report this")
    return path, about


def _look(path: Path, wanted: Wanted) -> tuple[EngineManifest | None, tuple[str, ...]]:
    """The manifest of an engine that can be used, else why none can."""
    try:
        about = load_manifest(path)
    except WeightsError as error:
        return None, (str(error) if path.exists() else "there is no such engine yet",)
    reasons = stale(about, wanted)
    return (None if reasons else about), reasons


def run(command: Sequence[str], progress: Callable[[], None] = lambda: None) -> None:
    """Run a builder to its end; its output goes to the log. Errors as `engine`."""
    # Not from the working folder: there could lie anything of the same name.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
        text=True, errors="replace",
    ) as child:  # fmt: skip
        last: deque[str] = deque(maxlen=1)
        listener = threading.Thread(target=_relay, args=(child, last), name="builder")
        listener.start()
        try:
            while child.poll() is None:
                progress()
                try:
                    child.wait(TICK)
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            child.kill()  # it writes whole files or none
            raise
        finally:
            listener.join()
    said = "".join(last) or "it said nothing"
    if child.returncode == EX_CONFIG:
        raise ConfigError(said)
    if child.returncode:
        how = f"was killed by signal {-child.returncode}" if child.returncode < 0 else "failed"
        raise BackendError(f"the engine builder {how}: {said}; it is tried again when the service restarts")


def _relay(child: "subprocess.Popen[str]", last: deque[str]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        if text := line.rstrip():
            last.append(text)
            log.info("builder: %s", text)
