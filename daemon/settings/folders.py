"""The three folders of the settings: their paths made absolute, kept apart, and created with care."""

import errno
import getpass
import os
import re
import stat
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, ValidationInfo, model_validator

from daemon.errors import ConfigError, EmdenoisedError, TransientError
from daemon.files import filesystem_type, is_network
from daemon.settings.yaml_file import Group


def to_path(value: object, info: ValidationInfo) -> Path:
    """Text of a settings file → absolute path; a Path (from the command line) is used as the shell gave it.

    `~` and environment variables are replaced; relative paths start at the validation context's "base" (the
    settings file's folder), else at the working folder. Raises ValueError.
    """
    if isinstance(value, Path):
        return value.absolute()
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a path, as text")
    if any(ord(letter) < 32 for letter in value):
        raise ValueError("has a control character in it; write the path in single quotes or without any")

    def variable(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise ValueError(f"the environment variable {name} is not set; set it or write the path out")
        return os.environ[name]

    text = re.sub(r"\$(?:(\w+)|\{(\w+)\})", variable, value)
    expanded = expand_home(Path(text))
    if expanded.parts[0].startswith("~"):
        raise ValueError(f"the home folder of `{expanded.parts[0]}` is not known here; write the path out")
    base: Path = (info.context or {}).get("base", Path.cwd())
    return base / expanded


AbsolutePath = Annotated[Path, BeforeValidator(to_path)]


class Folders(Group):
    """Where micrographs come from, where results go, and where the daemon keeps its state. Absolute paths."""

    drop: AbsolutePath
    """The folder to watch. Files in it are only ever read."""
    output: AbsolutePath
    """The folder for the results, which mirrors the sub-folders of `drop`."""
    state: AbsolutePath
    """The folder of the ledger and the GPU engines; on a local disk, never on a network share."""

    @property
    def engines(self) -> Path:
        """Where engines for a GPU are kept."""
        return self.state / "engines"

    @property
    def pictures(self) -> Path:
        """Where small pictures of the live page are kept."""
        return self.state / "page"

    @model_validator(mode="after")
    def _apart(self) -> "Folders":
        problems = []
        for one, other in (("drop", "output"), ("drop", "state"), ("output", "state")):
            first, second = getattr(self, one), getattr(self, other)
            if _lies_in(first, second) and _lies_in(second, first):
                problems.append(f"`{one}` and `{other}` are the same folder ({first}); give each its own")
            elif _lies_in(second, first) and one == "drop":
                problems.append(
                    f"`{other}` ({second}) lies inside `drop` ({first}), where the daemon would take its "
                    f"own files for micrographs; move `{other}` outside"
                )
            elif _lies_in(first, second) and other == "output":
                problems.append(
                    f"`drop` ({first}) lies inside `output` ({second}), where results could land among "
                    "the micrographs; move one of them outside the other"
                )
        kind = filesystem_type(self.state)
        if is_network(kind):
            problems.append(
                f"`state` ({self.state}) is on a network filesystem ({kind}), where the ledger could be "
                "damaged; choose a folder on a local disk"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self


def prepare(folders: Folders, create_drop: bool = False) -> None:
    """Create the state and output folders if missing, and with `create_drop` the drop folder.

    A missing drop folder is usually a share that is not mounted; one made on the local disk in its place would stay
    empty. Drop and output folder are created only in the user's home or where their parent exists. Raises ConfigError
    for a fault that a person must remove, TransientError for one that may pass (share not mounted, disk full).
    """
    prepare_state(folders)
    _create("output", folders.output, parents=_at_home(folders.output))
    _require_writable("output", folders.output)
    drop = folders.drop
    if create_drop:
        _create("drop", drop, parents=_at_home(drop))
    try:
        is_folder = stat.S_ISDIR(drop.stat().st_mode)
    except FileNotFoundError as error:
        raise TransientError(
            f"{drop}: the drop folder is missing; mount the share it is on, or create it (--create-drop)"
        ) from error
    except OSError as error:
        raise kind_of(error)(
            f"{drop}: the drop folder cannot be reached ({error.strerror}); check the share it is on "
            f"and what the user {_user()} may read"
        ) from error
    if not is_folder:
        raise ConfigError(f"{drop}: the drop folder is a file; choose another `folders.drop`")
    if not os.access(drop, os.R_OK | os.X_OK):
        raise ConfigError(
            f"{drop}: the drop folder may not be read by the user {_user()}; "
            "change its permissions, or choose another `folders.drop`"
        )


def prepare_state(folders: Folders) -> None:
    """Create the state folder if missing; no service can wait without it. Raises as `prepare`."""
    _create("state", folders.state, parents=True)
    _require_writable("state", folders.state)


def _require_writable(name: str, folder: Path) -> None:
    try:
        read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
    except OSError as error:
        raise kind_of(error)(
            f"{folder}: the {name} folder cannot be reached ({error.strerror}); check its disk or the share it is on"
        ) from error
    if read_only:
        raise TransientError(
            f"{folder}: the disk of the {name} folder is read-only now; make it writable, or choose another "
            f"`folders.{name}`"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{folder}: the {name} folder may not be written by the user {_user()}; "
            f"change its owner or permissions, or choose another `folders.{name}`"
        )


_MAY_PASS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EROFS,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ETIMEDOUT,
    errno.ENODEV,
    errno.EAGAIN,
    errno.EMFILE,
    errno.ENFILE,
}


def _create(name: str, folder: Path, parents: bool) -> None:
    try:
        if not parents and not folder.parent.is_dir():
            raise TransientError(
                f"{folder}: the {name} folder cannot be created because {folder.parent} is missing; "
                "mount the share it is on, or create it"
            )
        folder.mkdir(parents=parents, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(
            f"{folder}: the {name} folder cannot be created because a file has its name or that of a "
            f"folder above it; remove the file, or choose another `folders.{name}`"
        ) from error
    except OSError as error:
        raise kind_of(error)(
            f"{folder}: the {name} folder cannot be created ({error.strerror}); create it for the user "
            f"{_user()}, or choose another `folders.{name}`"
        ) from error


def kind_of(error: OSError) -> type[EmdenoisedError]:
    """TransientError where a folder's fault may pass (disk full, share away), ConfigError where a person is needed."""
    return TransientError if error.errno in _MAY_PASS else ConfigError


def _lies_in(inner: Path, outer: Path) -> bool:
    """Whether `inner` is `outer` or below it, through symlinks, bind mounts and case-blind filesystems."""
    real, wall = Path(os.path.realpath(inner)), Path(os.path.realpath(outer))
    for folder in (real, *real.parents):
        if folder == wall:
            return True
        try:
            if folder.samefile(wall):
                return True
        except OSError:
            continue  # one of the two does not exist yet, or cannot be reached: their names decide
    return False


def expand_home(path: Path) -> Path:
    """`~` and `~name` replaced by the home folder, if that is known."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises RuntimeError instead


def _at_home(folder: Path) -> bool:
    home = expand_home(Path("~"))
    real = Path(os.path.realpath(folder))
    return home.is_absolute() and home != Path("/") and real.is_relative_to(os.path.realpath(home))


def _user() -> str:
    """The name of the user of this process, or its number if it has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
