"""Common to all readers: errors, the extent of data, checks, summing frames."""

import errno
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

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
"""Exceptions that third-party parsers raise for damaged or hostile bytes."""

LARGEST_PACKED = 15
"""Of 4-bit counts."""
_PACKED_TEXT = re.compile(r"\b4[ -]?bits?[ -]packed\b", re.IGNORECASE)
_STACK_ALLOWANCE = 100
"""A stack may hold this many times `max_pixels` in all; only one plane of it is in memory at a time."""


class DamagedError(Exception):
    """The bytes are no complete image. `cut`: the header proves that data are missing."""

    def __init__(self, reason: str, *, cut: bool = False) -> None:
        super().__init__(reason)
        self.cut = cut


class CodecNeededError(Exception):
    """The pixels are compressed, and no codec may run in this process."""


_BROKEN: tuple[type[Exception], ...] = (DamagedError, OSError, *PARSER_ERRORS)


@dataclass(frozen=True, slots=True)
class Extent:
    """First byte of the image data in the file and the byte after them; `tail`: bytes of the last row or block."""

    start: int
    end: int
    tail: int


@contextmanager
def explained_reading(path: Path) -> Iterator[None]:
    """Turn exceptions from reading `path` into MicrographError (damaged) or TransientError (try again)."""
    try:
        yield
    except EmdenoisedError:
        raise
    except DamagedError as error:
        raise MicrographError(f"{path}: {error}; copy the file again, or export it again at the microscope") from error
    except OSError as error:
        if not may_pass(error):
            raise MicrographError(f"{path}: damaged ({error}); copy or export the file again") from error
        if error.errno == errno.EISDIR:
            raise MicrographError(f"{path}: is a folder, not a micrograph; move it away") from error
        raise TransientError(
            f"{path}: cannot be read now ({error.strerror}): check that the share is connected, "
            "that no program has locked the file, and that the service may read it"
        ) from error
    except MemoryError as error:
        raise TransientError(
            f"{path}: not enough memory to read it now: close other programs or lower max_pixels"
        ) from error
    except PARSER_ERRORS as error:
        raise MicrographError(
            f"{path}: damaged or of an unknown kind ({first_line(error)}); copy or export it again"
        ) from error


def may_pass(error: OSError) -> bool:
    """Whether it comes from the disk or the share, and not from the content.

    In damaged files parsers seek to invalid offsets (EINVAL), and raise their own OSErrors, which have no number.
    """
    return error.errno in errno.errorcode and error.errno != errno.EINVAL


def number(text: str | None) -> float | None:
    """The finite number that a file states as text, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if isfinite(value) else None


def check_pixels(path: Path, height: int, width: int, frames: int, max_pixels: int) -> None:
    """Raises MicrographError for more pixels than allowed, before memory is allocated."""
    if height * width > max_pixels or height * width * frames > _STACK_ALLOWANCE * max_pixels:
        shape = f"{frames} x {height} x {width}" if frames > 1 else f"{height} x {width}"
        raise MicrographError(
            f"{path}: claims {shape} pixels, more than max_pixels = {max_pixels} allows; "
            "if that is its true size raise max_pixels in the configuration, otherwise the header is damaged"
        )


def check_plane(path: Path, height: int, width: int) -> None:
    """Raises MicrographError for a size that is no image plane."""
    if height < 1 or width < 1:
        raise MicrographError(f"{path}: has no pixels ({height} x {width}); export it again")
    if height == 1 or width == 1:
        raise MicrographError(f"{path}: is a line of {height * width} values, not an image; it was left alone")


def refuse_packed(path: Path, text: str, by: str, pixels: Pixels, frames: int, *, stated: bool = False) -> None:
    """Raises MicrographError for the sum (H, W) of `frames` that `text` calls packed, unless it is of 4-bit counts.

    The text remains where a program has unpacked them. `by`: the text's place in the file, for the message. `stated`:
    the header proves it without the text.
    """
    if (stated or _PACKED_TEXT.search(text)) and (pixels.max() > LARGEST_PACKED * frames or pixels.min() < 0):
        raise MicrographError(
            f"{path}: holds packed 4-bit values by its {by} (a raw SerialEM movie; unpack it with IMOD's newstack), "
            "not one intensity per pixel; it was left alone"
        )


def pick_section(path: Path, section: int, sections: int) -> range:
    """The range of one section of a stack, counted from 0. Raises MicrographError if it does not exist."""
    if section >= sections:
        raise MicrographError(f"{path}: has {sections} sections and not the {section + 1} it had; copy it again")
    return range(section, section + 1)


def sum_frames(frames: Iterable[Pixels], chosen: range, stored: int) -> tuple[Pixels, list[str]]:
    """Sum planes (H, W) of one dtype without overflow: integers widened, floats summed in float64; and remarks.

    `chosen`: which of the `stored` frames they are, from 0. One plane keeps its type, in native byte order. Sums of
    float16 and float32 are rounded to float32 at the end. Raises DamagedError naming a frame that cannot be read: a
    sum without it would have another dose.
    """
    planes = _named(frames, chosen, stored)
    count = len(chosen)
    _, first = next(planes)
    if count == 1:
        return np.ascontiguousarray(first, first.dtype.newbyteorder("=")), []
    dtype = first.dtype
    wide: np.dtype[np.generic] = np.dtype(np.float64)
    if dtype.kind in "iu" and dtype.itemsize < 8:
        most = count * int(np.iinfo(dtype).max)
        fits = most <= (2**32 - 1 if dtype.kind == "u" else 2**31 - 1)
        wide = np.dtype(f"{dtype.kind}{4 if fits else 8}")
    total = first.astype(wide)
    empty = [] if first.any() else ["1"]
    for number, frame in planes:
        if not frame.any():
            empty.append(str(number))
        np.add(total, frame, out=total, casting="unsafe")
    remarks = [
        f"a stack of {count} frames was summed into one image; frames were not aligned, and an offset "
        f"per frame counts {count} times"
    ]
    if 0 < len(empty) < count:
        which = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        remarks.append(
            f"{len(empty)} of the {count} frames summed hold zeros only (number {which}): the beam was off, or they "
            "were never written and their dose is missing"
        )
    return (total.astype(np.float32) if dtype.kind == "f" and dtype.itemsize <= 4 else total), remarks


def _named(frames: Iterable[Pixels], chosen: range, stored: int) -> Iterator[tuple[int, Pixels]]:
    """Each frame with its number, from 1; errors name the frame if there are several."""
    iterator = iter(frames)
    for index in chosen:
        try:
            frame = next(iterator)
        except StopIteration:
            raise DamagedError(f"frame {index + 1} of {stored} is missing") from None
        except _BROKEN as error:
            if stored == 1 or (isinstance(error, OSError) and may_pass(error)):
                raise
            cut = isinstance(error, DamagedError) and error.cut
            raise DamagedError(f"frame {index + 1} of {stored} is damaged ({first_line(error)})", cut=cut) from error
        if stored > 1 and frame.dtype.kind == "f" and not np.isfinite(frame).any():
            raise DamagedError(f"frame {index + 1} of {stored} holds no finite number")
        yield index + 1, frame


def first_line(error: Exception) -> str:
    """The first line of a parser's message, shortened."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def frame_facts(numbers: range, stored: int, dtype: np.dtype[Any], section: int | None) -> dict[str, Any]:
    """For a micrograph's metadata: number and type of its frames, and its section and the number of sections."""
    facts = {"frames": len(numbers), "dtype": dtype.name}
    return facts if section is None else {**facts, "section": section + 1, "sections": stored}


def tail_remarks(pixels: Pixels) -> list[str]:
    """A remark if the last rows are all zero, as a cut copy, a dark border or a beam stop leaves them."""
    height = pixels.shape[0]
    rows = 0
    while rows < height and not pixels[height - 1 - rows].any():
        rows += 1
    if rows == 0:
        return []
    return [f"the last {rows} of {height} rows are zero: a dark border, or a copy that was cut"]
