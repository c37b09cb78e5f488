"""`emdenoised doctor`: tests this installation and gives a remedy for each fault."""

import argparse
import getpass
import grp
import os
import platform
import pwd
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer

import daemon
from daemon.backends import manifest, open_backend
from daemon.backends.canary import canary
from daemon.backends.gpu import driver
from daemon.backends.gpu.nvidia import find_gpu
from daemon.commands import systemd_unit
from daemon.commands.shared import folders_of, settings_file
from daemon.commands.terminal import coloured, wrapped
from daemon.errors import ConfigError, EmdenoisedError
from daemon.files import filesystem_type, is_network
from daemon.formats import rosettasciio
from daemon.live_page import access
from daemon.settings import config as settings
from daemon.settings.config import Config
from daemon.settings.monitor import Address, SocketFile

_LEAST_FREE = 5 << 30
UNIT = systemd_unit.UNIT


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `remedy` is empty if `verdict` is "ok"."""

    verdict: Literal["ok", "note", "fault"]
    text: str
    remedy: str = ""


def examine(path: Path, overrides: dict[str, Path]) -> Iterator[Finding]:
    """Every check, in the order in which a fault in one explains the next."""
    yield python()
    yield package()
    try:
        config = settings.load(path, overrides)
    except EmdenoisedError as error:
        yield Finding("fault", f"the configuration cannot be used:\n{error}", "correct the file, then run doctor again")
        return
    yield Finding("ok", f"configuration: {path}")
    checks: tuple[Callable[[Config], Iterator[Finding]], ...]
    checks = (folders, events, unit, monitor, reader, weights, backend)
    for check in checks:
        yield from check(config)


def python() -> Finding:
    return Finding("ok", f"Python {platform.python_version()}, emdenoised {daemon.__version__}")


def package() -> Finding:
    """A shared environment with the python-daemon distribution would put another `daemon` in our place."""
    folder = Path(daemon.__file__).parent
    if not (folder / "micrograph.py").is_file():
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
        if _absent(folder):
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
                f"give the user that the service runs as the right to do so (this user has id {os.getuid()})",
            )
            continue
        kind = filesystem_type(folder)
        free = shutil.disk_usage(folder).free
        yield Finding("ok", f"{name} folder {folder} ({kind}, {free / 2**30:.0f} GiB free)")
        if name == "drop" and is_network(kind):
            yield Finding(
                "note", f"{folder} is on a network share ({kind}), which sends no events", "it is polled instead"
            )
        if name != "drop" and free < _LEAST_FREE:
            yield Finding("note", f"{folder}: only {free / 2**30:.1f} GiB are free", "free some space soon")


def _absent(folder: Path) -> bool:
    """Whether the folder does not exist; False where this user may not find out."""
    try:
        return not stat.S_ISDIR(folder.stat().st_mode)
    except PermissionError:
        return False
    except OSError:
        return True


def events(config: Config) -> Iterator[Finding]:
    """Whether the kernel still has watches: other programs may have used them up."""
    if not os.access(config.folders.drop, os.R_OK) or config.arrival.polling == "always":
        return
    observer = Observer()
    try:
        observer.schedule(FileSystemEventHandler(), str(config.folders.drop), recursive=config.arrival.recursive)
        observer.start()
    except OSError as error:
        yield Finding(
            "note",
            f"{config.folders.drop} cannot be watched for events ({error.strerror or error}): it is polled instead",
            "raise the kernel's limits: sudo sysctl fs.inotify.max_user_watches=524288 "
            "fs.inotify.max_user_instances=512, and the same in /etc/sysctl.d/",
        )
    else:
        observer.stop()
        observer.join()
        yield Finding("ok", "the kernel watches the drop folder")


def monitor(config: Config) -> Iterator[Finding]:
    address, file = config.monitor.address, config.monitor.token_file
    try:
        access.load(file)
    except ConfigError as error:
        yield Finding("fault", str(error), "without it there is neither a live page nor metrics")
    if isinstance(address, SocketFile):
        yield from _socket(address)
    elif address is not None and address.port != 0:
        yield _port(address)


def _socket(where: SocketFile) -> Iterator[Finding]:
    folder = where.path.parent
    if not folder.is_dir():
        yield Finding(
            "fault", f"monitor.listen: {folder} is missing", f"make the folder {folder} for the service's user"
        )
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield Finding("fault", f"monitor.listen: {folder} cannot be written", "give the service's user the right to")
    if where.group is None:
        return
    try:
        members = grp.getgrnam(where.group)
    except KeyError:
        yield Finding("fault", f"monitor.group: there is no group {where.group}", f"sudo groupadd {where.group}")
        return
    if os.geteuid() != 0 and members.gr_gid not in (os.getegid(), *os.getgroups()):
        yield Finding(
            "fault",
            f"monitor.group: this user is not a member of {where.group}",
            f"sudo usermod -aG {where.group} {getpass.getuser()}, and start the service again",
        )


def _port(address: Address) -> Finding:
    with socket.socket(address.family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            return Finding(
                "note",
                f"monitor.listen: port {address.port} cannot be used ({error.strerror}): no live page http://{address}/",
                "if the service is running, it has the port; else choose another port, or null",
            )
    return Finding("ok", f"live page and metrics: port {address.port} is free")


def unit(config: Config) -> Iterator[Finding]:
    """Whether the installed service, which has fewer rights than this user, can work."""
    found = systemd_unit.load(UNIT)
    if found is None:
        return
    yield Finding("ok", f"service: {UNIT}")
    name, user = found.settings.get("User", "root"), found.user
    if user is None:
        yield Finding("fault", f"{UNIT}: there is no user {name}", f"sudo useradd --system {name}")
        return
    if found.on("MemoryDenyWriteExecute"):
        yield Finding(
            "fault",
            f"{UNIT}: MemoryDenyWriteExecute stops the network runtimes, which write machine code",
            "sudo systemctl edit emdenoised, and take that line back",
        )
    if found.on("PrivateDevices") and driver.LOADED.exists():
        yield Finding(
            "fault",
            f"{UNIT}: PrivateDevices hides the graphics card",
            "sudo systemctl edit emdenoised, and take that line back",
        )
    yield from _reached(config, found, user)
    umask = int(found.settings.get("UMask", "0022"), 8)
    output = config.folders.output
    if os.access(output, os.F_OK) and (group := systemd_unit.readers(output, umask)) is not None:
        yield Finding(
            "ok" if group else "note",
            f"results can be read by the group {group or name + ', and by nobody else'}",
            ""
            if group
            else f"give the folder to your users' group: sudo chgrp GROUP {output} && sudo chmod 2770 {output}, "
            f"and add {name} to it",
        )


def _reached(config: Config, found: systemd_unit.Unit, user: pwd.struct_passwd) -> Iterator[Finding]:
    """Whether the service can reach its folders, and its user may use them."""
    name = user.pw_name
    for key, rights, what in (("drop", "rx", "read"), ("output", "wx", "write"), ("state", "wx", "write")):
        folder: Path = getattr(config.folders, key)
        if hidden := found.hides(folder):
            yield Finding(
                "fault",
                f"{key} folder {folder}: it is hidden from the service ({hidden} in {UNIT})",
                "choose a folder elsewhere, such as /srv, or take that line back: sudo systemctl edit emdenoised",
            )
        elif _absent(folder):
            continue
        elif not systemd_unit.may_ask_for(user):
            yield Finding(
                "note",
                f"{key} folder {folder}: only root and the service's user {name} can find out whether it may {what} it",
                f"run the doctor as that user: sudo -u {name} emdenoised doctor",
            )
        elif wall := systemd_unit.unreachable(user, found.groups(user), folder, rights):
            yield Finding(
                "fault",
                f"{key} folder {folder}: the service's user {name} may not {what} it; the obstacle is {wall}",
                f"sudo setfacl -m u:{name}:{rights.replace('w', 'rw') if wall.samefile(folder) else 'x'} {wall}",
            )


def reader(config: Config) -> Iterator[Finding]:
    """Whether the optional reader of vendors' formats is installed."""
    if rosettasciio.missing(config.arrival.extensions) is not None:
        text = f"{', '.join(rosettasciio.SUFFIXES)} files wait: their reader, RosettaSciIO, is not installed"
        yield Finding("note", text, f"{rosettasciio.INSTALL}, then start the service again")
    elif rosettasciio.installed():
        text = f"reader of {', '.join(rosettasciio.SUFFIXES)} files: RosettaSciIO {version('rosettasciio')}"
        yield Finding("ok", text)


def weights(config: Config) -> Iterator[Finding]:
    for name in sorted({profile.weights for profile in config.profiles.values()}):
        try:
            found = manifest.verified(name).manifest
        except EmdenoisedError as error:
            yield Finding(
                "fault", f"weights {name}: {error}", "reinstall emdenoised, or correct the profile's `weights`"
            )
        else:
            yield Finding(
                "ok",
                f"weights {name}: {found}, {found.network}, tile {found.tile}, halo {found.halo}, checksums right",
            )


def graphics_card(config: Config) -> Iterator[Finding]:
    card = find_gpu(config.backend.device)
    if card is None and driver.LOADED.exists():
        yield Finding(
            "note" if config.backend.kind == "cpu" else "fault",
            driver.why_no_gpu(config.backend.device),
            "run `nvidia-smi`; in a service or a container allow the devices /dev/nvidia*",
        )
    elif card is None:
        yield Finding("ok", "no NVIDIA driver: the processor is used")
    else:
        yield Finding("ok", f"GPU {config.backend.device}: {card} ({card.capability})")


def backend(config: Config) -> Iterator[Finding]:
    if config.backend.kind != "server":
        yield from graphics_card(config)
    name = config.profiles[config.default_profile].weights
    try:
        opened = open_backend(config.backend, manifest.verified(name), config.folders.engines)
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


def run_doctor(options: argparse.Namespace) -> int:
    """Prints every finding; 1 if there is a fault."""
    faults = 0
    for finding in examine(settings_file(options), folders_of(options)):
        faults += finding.verdict == "fault"
        word = {"ok": "  ok  ", "note": " note ", "fault": "FAULT "}[finding.verdict]
        print(wrapped(f"{word} {finding.text}", 7).replace(word, coloured(finding.verdict, word), 1))
        if finding.remedy:
            print(wrapped(f"        → {finding.remedy}"))
    print("all is well" if not faults else f"{faults} fault{'s' if faults > 1 else ''} to fix")
    return 1 if faults else 0
