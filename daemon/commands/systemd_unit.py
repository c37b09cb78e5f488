"""The installed systemd unit: which settings the service uses, and what it may read and write."""

import configparser
import grp
import os
import pwd
import shlex
import stat
import subprocess
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

_OWN = Path("/etc/systemd/system/emdenoised.service")
_PACKAGED = Path("/usr/lib/systemd/system/emdenoised.service")
UNIT = _PACKAGED if _PACKAGED.is_file() and not _OWN.is_file() else _OWN
"""The administrator's, which systemd prefers, or the Debian package's."""
_HIDDEN_BY = {
    "PrivateTmp": (Path("/tmp"), Path("/var/tmp")),
    "ProtectHome": (Path("/home"), Path("/root"), Path("/run/user")),
}
_DEFAULT_ACL = "system.posix_acl_default"
_ON = ("yes", "true", "on", "1")


@dataclass(frozen=True, slots=True)
class Unit:
    """The [Service] settings, with those that `systemctl edit` added: the last one counts."""

    settings: dict[str, str]

    def on(self, name: str) -> bool:
        """Whether a protection is in force."""
        return self.settings.get(name, "no").lower() in (*_ON, "tmpfs")

    @property
    def config(self) -> Path | None:
        """The settings that the service is started with; None if its command does not name them in full."""
        try:
            words = shlex.split(self.settings.get("ExecStart", ""))
        except ValueError:
            return None
        named = [after for word, after in pairwise(words) if word == "--config"]
        named += [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
        return Path(named[0]) if named and named[0].startswith("/") else None

    @property
    def user(self) -> pwd.struct_passwd | None:
        """Whose rights it has; None if there is no such user."""
        try:
            return pwd.getpwnam(self.settings.get("User", "root"))
        except KeyError:
            return None

    def groups(self, user: pwd.struct_passwd) -> list[int]:
        """Of the process that runs as `user`, its own first; names of groups that do not exist are left out."""
        named = [self.settings.get("Group", ""), *self.settings.get("SupplementaryGroups", "").split()]
        found = [one.gr_gid for one in grp.getgrall() if one.gr_name in named]
        own = next((one.gr_gid for one in grp.getgrall() if one.gr_name == named[0]), user.pw_gid)
        return list(dict.fromkeys((own, *found, *os.getgrouplist(user.pw_name, own))))

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
    folders = {one.with_name(one.name + ".d") for one in (unit, _OWN if unit == _PACKAGED else unit)}
    changes = [file for folder in folders for file in folder.glob("*.conf")]
    for file in (unit, *sorted(changes, key=lambda file: file.name)):
        parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#", ";"))
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        try:
            parser.read_string(file.read_text())
        except (OSError, configparser.Error, UnicodeDecodeError):
            continue
        if parser.has_section("Service"):
            settings |= dict(parser.items("Service"))
    return Unit(settings)


def name_of(user: int) -> str:
    """A user's name, or the number where it has none."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def may_ask_for(user: pwd.struct_passwd) -> bool:
    """Whether the kernel answers this process for a user: for itself, and for all others if it is root."""
    return os.geteuid() in (0, user.pw_uid)


def unreachable(user: pwd.struct_passwd, groups: list[int], folder: Path, wanted: str) -> Path | None:
    """The first folder on the way to `folder` that a user may not enter, or itself if one of `wanted` ("rwx") fails.

    The kernel decides, with access control lists, read-only mounts and all its other rules. Links are resolved
    first. To be called only where `may_ask_for` the user.
    """
    real = Path(os.path.realpath(folder))
    for place in (*reversed(real.parents), real):
        if not all(_may(user, groups, right, place) for right in (wanted if place == real else "x")):
            return place
    return None


def _may(user: pwd.struct_passwd, groups: list[int], right: str, place: Path) -> bool:
    """access(2) as that user, in a child process; test(1) is a program that every user may run."""
    if user.pw_uid == os.geteuid():
        return os.access(place, {"r": os.R_OK, "w": os.W_OK, "x": os.X_OK}[right])
    asked = ("test", f"-{right}", place)
    return subprocess.run(asked, user=user.pw_uid, group=groups[0], extra_groups=groups, check=False).returncode == 0


def readers(output: Path, umask: int) -> str | None:
    """Which group may read new results in a folder, "" for the service's own.

    None if everybody may, or if the folder has a default access control list: no umask applies below it.
    """
    if not umask & 0o004 or _has_default_acl(output):
        return None
    found = output.stat()
    if not found.st_mode & stat.S_ISGID:
        return ""
    try:
        return grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        return str(found.st_gid)


def _has_default_acl(folder: Path) -> bool:
    try:
        return _DEFAULT_ACL in os.listxattr(folder)
    except OSError:  # its filesystem has none
        return False
