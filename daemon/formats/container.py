"""What reading TIFF and reading MRC have in common: what can be wrong, where the data lie, summing frames."""

import errno
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from daemon.errors import EmdenoisedError, MicrographError, TransientError
from daemon.micrograph import Pixels

PARSER_ERRORS: tuple[type[Exception], ...] = (
    ValueError,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    AssertionError,
    EOFError,
    RuntimeError,  # imagecodecs derives its errors from it; so does RecursionError
    SyntaxError,  # malformed XML
    ImportError,  # a codec that is not installed
    struct.error,
    zlib.error,
)
"""What third-party parsers are known to raise on damaged or hostile bytes."""

STACK_ALLOWANCE = 100
"""A stack may hold this many times `max_pixels` in all; only one plane of it is in memory at a time."""


class DamagedError(Exception):
    """The bytes are not a whole image. `cut` is True where the header proves that data are missing."""

    def __init__(self, reason: str, *, cut: bool = False) -> None:
        super().__init__(reason)
        self.cut = cut


class CodecNeededError(Exception):
    """The pixels are compressed, and the caller wants no codec to run in this process."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the image data lie in the file, bytes; `tail` is the length of the last row (or block) of them."""

    start: int
    end: int
    tail: int


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what reading `path` raises into MicrographError (damaged) or TransientError (try again)."""
    try:
        yield
    except EmdenoisedError:
        raise
    except DamagedError as error:
        raise MicrographError(f"{path}: {error}; copy the file again, or export it again at the microscope") from error
    except OSError as error:
        # Parsers seek to nonsense offsets in damaged files: EINVAL is about the content, the rest about the disk.
        # They also make up errors of their own, with anything at all in the place of the number.
        if error.errno == errno.EINVAL or not isinstance(error.errno, int):
            raise MicrographError(f"{path}: damaged ({error}); copy or export the file again") from error
        if error.errno == errno.EISDIR:
            raise MicrographError(f"{path}: is a folder, not a micrograph; move it away") from error
        raise TransientError(
            f"{path}: cannot be read now ({error.strerror}); it is tried again: check that the share is connected, "
            "that no program has locked the file, and that the service may read it"
        ) from error
    except MemoryError as error:
        raise TransientError(
            f"{path}: not enough memory to read it now; it is tried again: close other programs or lower max_pixels"
        ) from error
    except PARSER_ERRORS as error:
        cause = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise MicrographError(f"{path}: damaged or of an unknown kind ({cause}); copy or export it again") from error


_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def open_raw(path: Path, below: Path | None = None) -> BinaryIO:
    """Open a raw file for reading, whatever has taken its place meanwhile.

    A pipe must not make us wait for its other end, and a link must not lead out of the drop folder: the file itself is
    none, nor is any folder on the way from `below` (without it, those are not looked at). Raises MicrographError for
    all these, OSError otherwise.
    """
    try:
        stream = open(path, "rb", opener=lambda *_: _descriptor(path, below))  # noqa: SIM115 - the opener
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


def _descriptor(path: Path, below: Path | None) -> int:
    if below is None:
        return os.open(path, _FILE)
    *folders, name = path.relative_to(below).parts
    place = os.open(below, _FOLDER)
    try:
        for folder in folders:
            try:
                inner = os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=place)
            except NotADirectoryError as error:
                if stat.S_ISLNK(os.stat(folder, dir_fd=place, follow_symlinks=False).st_mode):
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error
                raise
            os.close(place)
            place = inner
        return os.open(name, _FILE, dir_fd=place)
    finally:
        os.close(place)


def check_pixels(path: Path, height: int, width: int, frames: int, max_pixels: int) -> None:
    """Refuse a claim of too many pixels before anything is allocated for it. Raises MicrographError."""
    if height * width > max_pixels or height * width * frames > STACK_ALLOWANCE * max_pixels:
        shape = f"{frames} x {height} x {width}" if frames > 1 else f"{height} x {width}"
        raise MicrographError(
            f"{path}: claims {shape} pixels, more than max_pixels = {max_pixels} allows; "
            "if that is its true size raise max_pixels in the configuration, otherwise the header is damaged"
        )


def check_plane(path: Path, height: int, width: int) -> None:
    """Refuse what is not an image plane. Raises MicrographError."""
    if height < 1 or width < 1:
        raise MicrographError(f"{path}: has no pixels ({height} x {width}); export it again")
    if height == 1 or width == 1:
        raise MicrographError(f"{path}: is a line of {height * width} values, not an image; it was left alone")


def pick_section(path: Path, section: int, sections: int) -> range:
    """The one section of a stack that is wanted, counted from 0. Raises MicrographError if it is not there."""
    if section >= sections:
        raise MicrographError(f"{path}: has {sections} sections and not the {section + 1} it had; copy it again")
    return range(section, section + 1)


def sum_frames(frames: Iterable[Pixels], count: int, dtype: np.dtype[np.generic]) -> Pixels:
    """Sum `count` planes (H, W) of `dtype` without overflow: integers widened, floats summed in float64.

    One plane comes back as it is. Sums of float16 and float32 are rounded to float32 at the end.
    """
    iterator = iter(frames)
    first = next(iterator)
    if count == 1:
        return first
    wide: np.dtype[np.generic] = np.dtype(np.float64)
    if dtype.kind in "iu" and dtype.itemsize < 8:
        most = count * int(np.iinfo(dtype).max)  # type: ignore[type-var]
        fits = most <= (2**32 - 1 if dtype.kind == "u" else 2**31 - 1)
        wide = np.dtype(f"{dtype.kind}{4 if fits else 8}")
    total = first.astype(wide)
    for frame in iterator:
        np.add(total, frame, out=total, casting="unsafe")
    return total.astype(np.float32) if dtype.kind == "f" and dtype.itemsize <= 4 else total


def sum_remark(frames: int) -> str:
    """What the user should know of a summed stack."""
    return (
        f"a stack of {frames} frames was summed into one image; frames were not aligned, and an offset "
        f"per frame counts {frames} times"
    )


def tail_remark(pixels: Pixels) -> str | None:
    """A remark if the last rows are all zero, as a cut copy, a dark border or a beam stop leaves them."""
    height = pixels.shape[0]
    rows = 0
    while rows < height and not pixels[height - 1 - rows].any():
        rows += 1
    if rows == 0:
        return None
    return f"the last {rows} of {height} rows are zero: a dark border, or a copy that was cut"
