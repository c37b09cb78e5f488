"""Opens untrusted files of the drop folder: for reading only, and only regular files that are no links."""

import errno
import os
import stat
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from daemon.errors import MicrographError

_MOST = 1 << 24
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class RawFile:
    """A raw file and the files beside it, opened for reading, safely even if others have replaced them."""

    path: Path
    root: Path | None = None
    """Neither the file nor any folder on the way from here to it may be a link, which might lead out of the drop
    folder. None: the folders are not checked."""

    @classmethod
    def of(cls, file: "Path | RawFile") -> "RawFile":
        return file if isinstance(file, RawFile) else cls(file)

    def open(self) -> BinaryIO:
        """Open the file; a pipe does not block. Raises MicrographError for links and pipes, OSError otherwise."""
        path = self.path
        try:
            stream = open(path, "rb", opener=lambda *_: self._descriptor())  # noqa: SIM115 - the opener
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise MicrographError(
                    f"{path}: is a symbolic link or lies behind one, which is not followed; copy the file itself"
                ) from error
            if error.errno in (errno.ENXIO, errno.EISDIR):
                raise MicrographError(f"{path}: is not a regular file; move it away") from error
            raise
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            stream.close()
            raise MicrographError(f"{path}: is not a regular file; move it away")
        return stream

    def beside(self, name: str) -> bytes | None:
        """The bytes of a companion file in the same folder.

        Its name may differ in Unicode composition, and its ending in case, as on the vendor's Windows. None if it does
        not exist, is no regular file or is too large: the image is read without it.
        """
        wanted = self.path.with_name(name)
        spelt = wanted.name, wanted.stem + wanted.suffix.upper()
        composed = (unicodedata.normalize(form, name) for form in ("NFC", "NFD") for name in spelt)
        for name in dict.fromkeys((*spelt, *composed)):
            try:
                with replace(self, path=self.path.with_name(name)).open() as stream:
                    return stream.read() if os.fstat(stream.fileno()).st_size <= _MOST else None
            except (OSError, MicrographError):
                continue
        return None

    def _descriptor(self) -> int:
        if self.root is None:
            return os.open(self.path, _FILE)
        place = open_folder(self.path.parent, self.root)
        try:
            return os.open(self.path.name, _FILE, dir_fd=place)
        finally:
            os.close(place)


def open_folder(path: Path, root: Path) -> int:
    """A descriptor of a folder, reached from `root` without following links; `root` itself may be a link.

    The descriptor keeps that folder even if names change. Raises OSError, with ELOOP for a link.
    """
    place = os.open(root, _FOLDER)
    try:
        for folder in path.relative_to(root).parts:
            try:
                inner = os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=place)
            except NotADirectoryError as error:
                if stat.S_ISLNK(os.stat(folder, dir_fd=place, follow_symlinks=False).st_mode):
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error
                raise
            os.close(place)
            place = inner
    except BaseException:
        os.close(place)
        raise
    return place
