"""`emdenoised doctor`: is this installation sound, and if not, what to do about it."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import daemon
from daemon import config as settings
from daemon import manifest
from daemon.backends import open_backend
from daemon.config import Config
from daemon.denoise import canary
from daemon.errors import EmdenoisedError
from daemon.filesystem import filesystem_type, is_network
from daemon.flavour import find_gpu

LEAST_FREE = 5 << 30
NVIDIA = Path("/proc/driver/nvidia")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `remedy` says what to do unless `verdict` is "ok"."""

    verdict: Literal["ok", "note", "fault"]
    text: str
    remedy: str = ""


def examine(path: Path | None, overrides: dict[str, Path]) -> Iterator[Finding]:
    """Every check, in the order in which a fault in one explains the next."""
    yield python()
    yield package()
    try:
        config = settings.load(path, overrides)
    except EmdenoisedError as error:
        yield Finding("fault", f"the configuration cannot be used:\n{error}", "mend config.yaml, then run doctor again")
        return
    yield Finding("ok", f"configuration: {path or settings.default_config_path()}")
    checks: tuple[Callable[[Config], Iterator[Finding]], ...] = (folders, weights, backend)
    for check in checks:
        yield from check(config)


def python() -> Finding:
    return Finding("ok", f"Python {platform.python_version()}, emdenoised {daemon.__version__}")


def package() -> Finding:
    """A shared environment with the python-daemon distribution would put another `daemon` in our place."""
    folder = Path(daemon.__file__).parent
    if not (folder / "denoise.py").is_file():
        return Finding(
            "fault",
            f"the imported package `daemon` is not emdenoised's: {folder}",
            "install emdenoised into a virtual environment of its own",
        )
    return Finding("ok", f"package `daemon` is ours: {folder}")


def folders(config: Config) -> Iterator[Finding]:
    state = config.folders
    for name, folder, rights in (
        ("drop", state.drop, os.R_OK | os.X_OK),
        ("output", state.output, os.W_OK | os.X_OK),
        ("state", state.state, os.W_OK | os.X_OK),
    ):
        if not folder.is_dir():
            yield Finding(
                "note",
                f"{name} folder {folder} does not exist yet",
                "`emdenoised run` makes it"
                if name != "drop"
                else "`emdenoised run --create-drop` makes it; mount a share first",
            )
            continue
        if not os.access(folder, rights):
            yield Finding(
                "fault",
                f"{name} folder {folder}: this user may not {'read' if name == 'drop' else 'write'} it",
                f"give the user the service runs as the right to it (this is user id {os.getuid()})",
            )
            continue
        kind = filesystem_type(folder)
        free = shutil.disk_usage(folder).free
        yield Finding("ok", f"{name} folder {folder} ({kind}, {free / 2**30:.0f} GiB free)")
        if name == "drop" and is_network(kind):
            yield Finding(
                "note", f"{folder} is on a network share ({kind}), which sends no events", "it is polled instead"
            )
        if name != "drop" and free < LEAST_FREE:
            yield Finding("note", f"{folder}: only {free / 2**30:.1f} GiB are free", "free some space soon")


def weights(config: Config) -> Iterator[Finding]:
    for name in sorted({profile.weights for profile in config.profiles.values()}):
        try:
            found = manifest.load(manifest.locate(name))
        except EmdenoisedError as error:
            yield Finding(
                "fault", f"weights {name}: {error}", "reinstall emdenoised, or correct the profile's `weights`"
            )
        else:
            yield Finding(
                "ok", f"weights {name}: {found.network}, tile {found.tile}, halo {found.halo}, checksums right"
            )


def backend(config: Config) -> Iterator[Finding]:
    card = find_gpu(config.backend.device)
    if card is None and NVIDIA.exists():
        yield Finding(
            "fault" if config.backend.kind == "tensorrt" else "note",
            f"an NVIDIA driver is loaded ({NVIDIA}), but GPU {config.backend.device} does not answer",
            "look at `nvidia-smi`; load the driver's second module, `sudo modprobe nvidia-uvm`; in a service or a "
            "container allow the devices /dev/nvidia*",
        )
    elif card is None:
        yield Finding("ok", "no NVIDIA driver: there is the processor")
    else:
        yield Finding("ok", f"GPU {config.backend.device}: {card} ({card.capability})")
    name = config.profiles[config.default_profile].weights
    try:
        opened = open_backend(config.backend, manifest.locate(name), config.folders.engines)
    except EmdenoisedError as error:
        yield Finding("fault", f"backend {config.backend.kind}: {error}", "see above")
        return
    try:
        canary(opened)
    except EmdenoisedError as error:
        yield Finding("fault", f"backend {config.backend.kind}: {error}", "see above")
    else:
        yield Finding("ok", f"backend {opened.name}: the canary tile came out right")
    finally:
        opened.close()
