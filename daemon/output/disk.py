"""The disk or share of the results: is it mounted, what do its errors mean; temporary files, and their final names."""

import errno
import fcntl
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from daemon.errors import EmdenoisedError, MicrographError, StorageError, TransientError
from daemon.files import is_folder
from daemon.formats.raw_file import open_folder

_LEFTOVER_SECONDS = 86_400.0
"""A half-written file this old is removed, whichever machine wrote it."""

ALONE_SECONDS = 5.0
"""Another program may lock a folder for hours (flock(1)), or be stopped in the middle of a result."""
_ALONE_PAUSE = 0.02

_PREFIX, _SUFFIX = ".emdenoised-", ".tmp"
_HOST = re.sub(r"[^0-9A-Za-z]", "", socket.gethostname())[:32] or "here"

# Permanent: the disk does not take this one name or this one size.
_NAME = {
    errno.ENAMETOOLONG: "the name is too long for the output disk; shorten the file name",
    errno.EINVAL: "the output disk does not take this name; rename the file, without characters such as : ? * < >",
    errno.EILSEQ: "the output disk does not take this name; rename the file, without unusual characters",
    errno.EFBIG: "the result is larger than the output disk takes in one file; choose another disk",
    errno.ELOOP: "a link in the output folder stands in the place of a folder and is not followed; remove it",
    errno.EEXIST: "a file has the name of the folder that is needed here; move it away, then `emdenoised retry`",
    errno.ENOTDIR: "a file has the name of the folder that is needed here; move it away, then `emdenoised retry`",
    errno.EISDIR: "a folder has the name that is needed here; move it away, then `emdenoised retry`",
}
# These concern the whole disk.
_DISK = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EROFS: "the disk is mounted read-only: check it and mount it writable",
    errno.EIO: "the disk or share reports an input/output error: check its cable, share or health",
    errno.ESTALE: "the share went away: check that it is mounted",
}
_OTHER = {
    errno.EACCES: "writing is not allowed: give the service's user the right to write there",
    errno.EPERM: "writing is not allowed: give the service's user the right to write there",
    errno.ENOENT: "the output folder is gone: check that its disk or share is mounted",
}


class Mounted:
    """Remembers where the disk or share of `root` is mounted, to notice that it no longer is."""

    def __init__(
        self, root: Path, is_mount: Callable[[Path], bool] = os.path.ismount, name: str = "output folder"
    ) -> None:
        self._root, self._is_mount, self._name = root, is_mount, name
        self._point = self._mount_point()

    def require(self) -> None:
        """Raise StorageError if it is no longer mounted: results would fill the disk beneath the mount point."""
        point = self._mount_point()
        if point in self._point.parents:
            raise StorageError(
                f"{self._root}: the disk or share of the {self._name} is no longer mounted at {self._point}; "
                "mount it again"
            )
        self._point = point

    def _mount_point(self) -> Path:
        real = Path(os.path.realpath(self._root))
        return next((folder for folder in (real, *real.parents) if self._is_mount(folder)), Path("/"))


@contextmanager
def explained_writing(root: Path, path: Path) -> Iterator[None]:
    """Turn an OSError about `path` into an error of ours with its remedy.

    MicrographError: this file can never be written. StorageError: nothing can be written below `root` now.
    TransientError: other files can.
    """
    try:
        yield
    except OSError as error:
        raise _refusal(root, path, error) from error


def _refusal(root: Path, path: Path, error: OSError) -> EmdenoisedError:
    code = error.errno
    if code is None:  # numpy's short write
        what = f"it could not be written completely ({error}): the disk is probably full"
        return StorageError(f"{path}: cannot be written now, {what}")
    what = _DISK.get(code) or _OTHER.get(code) or f"{error.strerror}: check the output folder"
    wanted = f"{path}: cannot be written now, {what}"
    if code in _DISK or not is_folder(root):
        return StorageError(wanted)
    if code in _NAME:
        return MicrographError(f"{path}: cannot be written, {_NAME[code]}")
    try:
        with temporary_files() as temporary:
            temporary(root)
    except OSError:
        return StorageError(wanted)
    return TransientError(wanted)


def require_filled(folder: Path) -> None:
    """Raise TransientError if a folder is missing or empty, as is the mount point of a share that is away."""
    try:
        with os.scandir(folder) as found:
            if next(found, None) is not None:
                return
        problem = "is empty"
    except OSError as error:
        problem = f"cannot be listed ({error.strerror})"
    raise TransientError(f"{folder}: {problem}; mount its share, and run the same command again")


@contextmanager
def held(folder: Path, root: Path) -> Iterator[Path]:
    """Yields a path that leads to this folder below `root` even if a link takes its place meanwhile.

    Raises OSError, with ELOOP if part of `folder` is a link.
    """
    descriptor = open_folder(folder, root)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@contextmanager
def alone(folder: Path, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Of several processes that use this, only one is in the block for a folder (`held`) at any time.

    Waits at most `ALONE_SECONDS`, and not at all where the folder's disk or share has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        end = clock() + ALONE_SECONDS
        while clock() < end:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_ALONE_PAUSE)
            except OSError:
                break
            else:
                break
        yield
    finally:
        os.close(descriptor)


@contextmanager
def temporary_files() -> Iterator[Callable[[Path], Path]]:
    """Yields a function that makes an empty temporary file in a folder; those that were not renamed are removed.

    Their names hold the machine and the process that write them.
    """
    made: list[Path] = []

    def make(folder: Path) -> Path:
        made.append(folder / f"{temporary_prefix()}{secrets.token_hex(8)}{_SUFFIX}")
        made[-1].open("xb").close()
        return made[-1]

    try:
        yield make
    finally:
        for path in made:
            with suppress(OSError):  # an error that led here is the one to report
                path.unlink(missing_ok=True)


def temporary_prefix() -> str:
    """The beginning of the names of this process's temporary files."""
    return f"{_PREFIX}{_HOST}-{os.getpid()}-"


def clean_temporary(root: Path, dead: str | None = None) -> int:
    """Remove files that an interrupted run left half-written below `root`; returns how many. Never follows links.

    Call it before this process writes anything. Files that another process may still be writing are left alone; `dead`
    is the `temporary_prefix` of one that certainly has ended.
    """
    removed = 0
    for folder, _, names in os.walk(root):
        for name in names:
            if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
                path = Path(folder) / name
                with suppress(OSError):  # a leftover that cannot be removed does no harm
                    if _left_over(path) or (dead and name.startswith(dead)):
                        path.unlink()
                        removed += 1
    return removed


def _left_over(path: Path) -> bool:
    host, _, rest = path.name.removeprefix(_PREFIX).partition("-")
    process = rest.partition("-")[0]
    if host == _HOST and process.isascii() and process.isdigit():
        if int(process) == os.getpid():  # an earlier run: in a container the number is always the same
            return True
        try:
            os.kill(int(process), 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            pass  # it runs, as another user
    return time.time() - path.lstat().st_mtime > _LEFTOVER_SECONDS


def flush(path: Path) -> None:
    """Force a file, or a folder's list of names, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some shares cannot flush folders
            raise
    finally:
        os.close(descriptor)


def place(source: Path, target: Path, known_as: Path) -> None:
    """Give a finished file its name; never replaces a file. Raises MicrographError if the name is taken.

    `known_as`: the target's path in messages, where its folder is `held`.
    """
    try:
        os.link(source, target)  # unlike a rename, this fails where the name is taken
    except FileExistsError as error:
        raise MicrographError(
            f"{known_as}: appeared in the output folder while the result was being written and was "
            "not replaced: move it away, then run `emdenoised retry`"
        ) from error
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES):
            raise
        source.rename(target)  # FAT and some shares know no links; the name was free a moment ago
