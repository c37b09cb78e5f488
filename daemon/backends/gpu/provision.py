"""The engine that is needed here and now: the one that lies there, or one made by a child process.

The builder imports what the daemon never does, and may crash: so it is a process of its own.
"""

import logging
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from daemon.backends.gpu.engine import OPTIONS, EngineManifest, Wanted, engine_path, load_manifest, stale, tile_of
from daemon.backends.gpu.nvidia import RTX_TARGETS, Flavour, Gpu, choose, load_tensorrt
from daemon.backends.manifest import Manifest
from daemon.errors import BackendError, ConfigError, WeightsError
from daemon.settings.config import EX_CONFIG, BackendConfig

log = logging.getLogger(__name__)

TICK = 0.25
"""Seconds between two calls of `progress` while a child works."""


def engine(
    settings: BackendConfig,
    folder: Path,
    weights: Manifest,
    engines: Path,
    gpu: Gpu,
    progress: Callable[[], None] = lambda: None,
) -> tuple[Path, EngineManifest]:
    """The engine for the weights in `folder` on this card, fresh and gated on it, built in `engines` if need be.

    `progress` is called now and then; if it raises, the builder is stopped. Raises ConfigError if a person is needed:
    TensorRT is not installed, the engine must be rebuilt and `settings.rebuild` is off, or these weights make no
    engine; BackendError if building failed for another reason.
    """
    flavour = choose(settings.flavour, gpu)
    tile = tile_of(weights, settings.tile)
    path = engine_path(engines, weights, flavour, tile, settings.batch)
    wanted = Wanted(
        weights.sha256[weights.onnx], flavour, load_tensorrt(flavour).__version__, gpu, tile, settings.batch, OPTIONS
    )
    command = _command(settings, folder, flavour, gpu, tile, engines)
    about, reasons = _look(path, wanted)
    if about is None:
        by_hand = " ".join(command[1:])
        if not settings.rebuild:
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


def _command(settings: BackendConfig, folder: Path, flavour: Flavour, gpu: Gpu, tile: int, engines: Path) -> list[str]:
    targets = ["--targets", gpu.capability if gpu.capability in RTX_TARGETS else "current"] if flavour == "rtx" else []
    return [
        sys.executable, "-m", "engine_build", str(folder), "--flavour", flavour, *targets, "--tile", str(tile),
        "--batch", str(settings.batch), "--device", str(settings.device), "-o", str(engines),
    ]  # fmt: skip


def run(command: Sequence[str], progress: Callable[[], None] = lambda: None) -> None:
    """Run a builder to its end; what it says goes to the log. Errors as `engine`."""
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
