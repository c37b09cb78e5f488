"""The installed systemd unit, as far as it decides what the service may see: for the doctor."""

import configparser
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNIT = Path("/etc/systemd/system/emdenoised.service")
_HIDDEN_BY = {
    "PrivateTmp": (Path("/tmp"), Path("/var/tmp")),
    "ProtectHome": (Path("/home"), Path("/root"), Path("/run/user")),
}
_ON = ("yes", "true", "on", "1")


@dataclass(frozen=True, slots=True)
class Unit:
    """The [Service] settings, with those that `systemctl edit` added: the last one counts."""

    settings: dict[str, str]

    def on(self, name: str) -> bool:
        """Whether a protection is in force."""
        return self.settings.get(name, "no").lower() in (*_ON, "tmpfs")

    @property
    def user(self) -> pwd.struct_passwd | None:
        """Whose rights it has; None if there is no such user."""
        try:
            return pwd.getpwnam(self.settings.get("User", "root"))
        except KeyError:
            return None

    def hides(self, folder: Path) -> str | None:
        """The setting that keeps a folder from the service, or None."""
        real = Path(os.path.realpath(folder))
        for name, hidden in _HIDDEN_BY.items():
            if self.on(name) and any(real.is_relative_to(one) for one in hidden):
                return f"{name}={self.settings[name]}"
        return None


def load(unit: Path = UNIT) -> Unit | None:
    """The installed unit, or None if there is none."""
    settings: dict[str, str] = {}
    if not unit.is_file():
        return None
    for file in (unit, *sorted(unit.with_name(unit.name + ".d").glob("*.conf"))):
        parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#", ";"))
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        try:
            parser.read_string(file.read_text())
        except (OSError, configparser.Error, UnicodeDecodeError):
            continue
        if parser.has_section("Service"):
            settings |= dict(parser.items("Service"))
    return Unit(settings)


def unreachable(user: pwd.struct_passwd, folder: Path, wanted: int) -> Path | None:
    """The first folder on the way to `folder` that a user may not pass, or itself if it lacks `wanted` (4 | 2 | 1).

    By the mode bits: access control lists are not looked at, so a None is sure and a path is probable.
    """
    groups = set(os.getgrouplist(user.pw_name, user.pw_gid))
    for place in _way(folder):
        try:
            found = place.stat()
        except OSError:
            return place
        needed = wanted if place == folder else 1
        if user.pw_uid == 0:
            continue
        shift = 6 if found.st_uid == user.pw_uid else 3 if found.st_gid in groups else 0
        if (found.st_mode >> shift) & needed != needed:
            return place
    return None


def _way(folder: Path) -> Iterator[Path]:
    yield from reversed(folder.parents)
    yield folder


def readers(output: Path, umask: int) -> str | None:
    """Which group may read new results in a folder; None if everybody may, "" if it is the service's own."""
    if not umask & 0o004:
        return None
    found = output.stat()
    if not found.st_mode & stat.S_ISGID:
        return ""
    try:
        return grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        return str(found.st_gid)
