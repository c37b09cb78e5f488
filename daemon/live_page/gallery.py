"""Pictures of results for the live page, drawn on request and apart from the processing of micrographs.

By default raw and denoised have the same contrast, that of the denoised image. Few pictures are drawn at once, by
threads of low priority; a request that would wait too long is refused (`BusyError`). Displayed micrographs are held in
memory, within a limit and for a minute; small pictures are drawn once and kept in a `PictureCache`.
"""

import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from daemon import __version__
from daemon.errors import EmdenoisedError, MicrographError, TransientError
from daemon.formats.contrast import window
from daemon.formats.decoder import Reader
from daemon.formats.partial import ResultFile, open_result
from daemon.ledger.job import Job
from daemon.live_page import deep, pictures
from daemon.live_page.picture_cache import PictureCache
from daemon.logs import one_line, reason
from daemon.micrograph import Pixels
from daemon.output.preview import binned, grey
from daemon.output.record import Record, as_it_was_made, own_record, sha256_of_pixels
from daemon.settings.folders import Folders

T = TypeVar("T")
ShownPlane = Literal["raw", "denoised", "residual"]

AT_ONCE = 2
PATIENCE_SECONDS = 2.0
HELD_SECONDS = 60.0
_THUMBNAIL = 192
"""Longest side, pixels."""
_RESIDUAL_SIGMAS = 4.0
"""Black and white of the residual, in its own standard deviations at that level."""
_NICE = 5
_SAMPLE = 2048
_RECORDS = 16


class BusyError(EmdenoisedError):
    """Too many pictures are requested at once: ask again in a second."""


class NotThereError(EmdenoisedError):
    """There is no such picture; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class ShownResult:
    """A result in the output folder, with all that the page needs to show it."""

    job: Job
    image: Path
    key: str
    """Changes with the image file, and with the program that draws it."""
    shape: tuple[int, int]
    """Height and width, pixels."""
    record: Record = field(repr=False)
    """The JSON beside it."""
    raw_gone: str
    """Why the raw image cannot be shown; empty if it probably can: it was not read yet."""


@dataclass(slots=True)
class _Held:
    pixels: Pixels | ResultFile
    used: float
    memo: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Contrasts that were computed before."""


class Gallery:
    """The pictures of one set of folders. Used by any thread; `close` it last.

    `memory`, `disk`: limits in bytes of micrographs held in memory and of small pictures in the state folder.
    """

    def __init__(
        self,
        folders: Folders,
        reader: Reader,
        *,
        memory: int,
        disk: int,
        patience: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folders, self._reader = folders, reader
        self._memory, self._patience, self._clock = memory, patience, clock
        self.cache = PictureCache(folders.pictures, disk)
        self._places = threading.BoundedSemaphore(AT_ONCE)
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._held: OrderedDict[tuple[str, str], _Held] = OrderedDict()
        self._records: OrderedDict[str, Record] = OrderedDict()

    def close(self) -> None:
        """Free everything. Waits for pictures that are being drawn, but not for a share that hangs."""
        for _ in range(AT_ONCE):
            self._places.acquire(timeout=PATIENCE_SECONDS)
        with self._lock:
            self._held.clear()
        self._reader.close()

    @property
    def held(self) -> int:
        """Bytes of micrographs in memory."""
        with self._lock:
            return sum(one.pixels.nbytes for one in self._held.values())

    def tidy(self) -> None:
        """Free micrographs that were not displayed for HELD_SECONDS."""
        before = self._clock() - HELD_SECONDS
        with self._lock:
            for name in [name for name, one in self._held.items() if one.used < before]:
                del self._held[name]

    def find(self, job: Job) -> ShownResult:
        """The result of a job. Raises NotThereError."""
        if job.output is None:
            why = reason(job.error, self._folders.drop, job.path)
            raise NotThereError(f"{one_line(job.path)} has no result" + (f": {why}" if why else " yet"))
        image = Path(job.output)
        try:
            state = image.lstat()
            if not stat.S_ISREG(state.st_mode):
                raise NotThereError(f"{image} is not a plain file and is not shown")
            if not image.parent.resolve().is_relative_to(self._folders.output.resolve()):
                raise NotThereError(f"{image} lies outside the output folder and is not shown")
            version = f"{__version__}\0{job.output}\0{state.st_size}\0{state.st_mtime_ns}"
            key = hashlib.sha256(version.encode("utf-8", "surrogateescape")).hexdigest()[:24]
            record = self._record(key, image)
        except OSError as error:
            raise NotThereError(f"{image} cannot be read: {error.strerror}; was it moved or deleted?") from error
        return ShownResult(job, image, key, _shape(image, record), record, self._why_gone(job, record))

    def tile(self, result: ShownResult, plane: ShownPlane, level: int, row: int, column: int) -> bytes:
        """One tile (see `pictures.tile_of`): of the residual a PNG, of the others codes (see `deep`).

        Raises NotThereError, BusyError.
        """

        def draw() -> bytes:
            with self._explained(result):
                denoised = self._open(result, "denoised")
                if level > (highest := pictures.levels(denoised.pixels.shape)):
                    raise NotThereError(f"there are levels 0 to {highest}")
                raw = denoised if plane == "denoised" else self._open(result, "raw")
                found = pictures.tile_of(raw.pixels, level, row, column)
                if found is None:
                    raise NotThereError("the image has no such tile")
                if plane != "residual":
                    shared = self._contrast(denoised)
                    return deep.encode(found, shared, shared if plane == "denoised" else self._own(raw, level))
                other = pictures.tile_of(denoised.pixels, level, row, column)
                assert other is not None
                return pictures.png(grey(found - other, *self._spread(raw, denoised, level)))

        small = row == column == 0 and 0 < level == pictures.levels(result.shape)
        return self._kept(f"{result.key}-{plane}-tile", draw) if small else self.quietly(draw)

    def thumbnail(self, result: ShownResult) -> bytes:
        """JPEG of the denoised image. Raises NotThereError, BusyError."""

        def draw() -> bytes:
            with self._explained(result):
                denoised = self._open(result, "denoised")
                small = binned(denoised.pixels, ceil(max(denoised.pixels.shape) / _THUMBNAIL))
                return pictures.jpeg(grey(small, *window(small)))

        return self._kept(f"{result.key}-thumbnail", draw)

    def spectrum(self, result: ShownResult, plane: Literal["raw", "denoised"]) -> bytes:
        """PNG of the logarithm of the power, both in the grey scale of raw; X-ray hits are filled in.

        Raises NotThereError, BusyError.
        """

        def draw() -> bytes:
            with self._explained(result):
                spots = _spots(result.record)
                found = reference = pictures.spectrum(self._open(result, plane).pixels, spots)
                if plane != "raw" and not result.raw_gone:
                    with suppress(EmdenoisedError):  # a raw file that cannot be read: the denoised image alone
                        reference = pictures.spectrum(self._open(result, "raw").pixels, spots)
                return pictures.png(grey(found.power, *pictures.spectrum_window(reference)))

        return self._kept(f"{result.key}-spectrum-{plane}", draw)

    def profile(
        self, result: ShownResult, begin: tuple[float, float], end: tuple[float, float], width: int
    ) -> dict[str, list[float | None]]:
        """Values along a line (see `pictures.along`) of raw, if it can be shown, and denoised, in the file's units.

        Raises NotThereError, BusyError.
        """
        planes: tuple[Literal["raw", "denoised"], ...] = ("denoised",) if result.raw_gone else ("raw", "denoised")

        def measure() -> dict[str, list[float | None]]:
            with self._explained(result):
                values = {
                    plane: pictures.along(self._open(result, plane).pixels, begin, end, width) for plane in planes
                }
            return {plane: [float(one) if np.isfinite(one) else None for one in line] for plane, line in values.items()}

        return self.quietly(measure)

    def quietly(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread of low priority, so that micrographs do not wait for it. Raises BusyError."""
        if not self._places.acquire(timeout=self._patience):
            raise BusyError("other pictures are being drawn; ask again")
        done: Future[T] = Future()

        def paint() -> None:
            try:
                _lower_priority()
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)
            finally:
                self._places.release()

        # A daemon thread, not one of a pool: the process can end while it waits for a share.
        threading.Thread(target=paint, name="painter", daemon=True).start()
        return done.result()

    # Files

    def _record(self, key: str, image: Path) -> Record:
        """The record of an image; the last ones are remembered, because pictures of one image come in dozens."""
        with self._lock:
            if (known := self._records.get(key)) is not None:
                self._records.move_to_end(key)
                return known
        record = own_record(image)
        if record is None:
            raise NotThereError(f"{image} has no record of emdenoised beside it and is not shown")
        with self._lock:
            self._records[key] = record
            while len(self._records) > _RECORDS:
                self._records.popitem(last=False)
        return record

    def _why_gone(self, job: Job, record: Record) -> str:
        """Why the raw file is not the one that was denoised, by size and time; empty if it is."""
        try:
            state = (self._folders.drop / job.path).stat(follow_symlinks=False)
        except FileNotFoundError:
            return "the raw file no longer exists"
        except OSError as error:
            return f"the raw file cannot be reached ({error.strerror})"
        raw = record.raw
        if not raw.sha256:
            return "the record beside the result does not name its raw file: it is damaged"
        if raw.section is None and (state.st_size, state.st_mtime_ns) != (raw.size, raw.mtime_ns):
            return "the raw file is not the one that was denoised: it has changed since"
        return ""

    def _open(self, result: ShownResult, plane: Literal["raw", "denoised"]) -> _Held:
        """Pixels, from memory if they are held there. Raises as `Reader.read` does, and NotThereError."""
        name = result.key, plane
        with self._opening:
            with self._lock:
                if (found := self._held.get(name)) is not None:
                    found.used = self._clock()
                    self._held.move_to_end(name)
                    return found
            one = _Held(self._read_raw(result) if plane == "raw" else self._read_denoised(result), self._clock())
            with self._lock:
                if one.pixels.nbytes <= self._memory:
                    self._held[name] = one
                while sum(held.pixels.nbytes for held in self._held.values()) > self._memory:
                    self._held.popitem(last=False)
            return one

    def _read(self, path: Path, section: int | None = None) -> Pixels:
        return self._reader.read(path, section).pixels

    def _read_denoised(self, result: ShownResult) -> Pixels | ResultFile:
        """Its file, read part by part; all pixels if another program has saved it, compressed or in another dtype."""
        plain = open_result(result.image, result.shape, result.record.output.turned)
        if plain is not None:
            return plain
        return as_it_was_made(result.image, self._read(result.image), result.record)

    def _read_raw(self, result: ShownResult) -> Pixels:
        if result.raw_gone:
            raise NotThereError(result.raw_gone)
        raw, section = result.record.raw, result.record.raw.section
        pixels = self._read(self._folders.drop / result.job.path, None if section is None else section - 1)
        if pixels.shape != raw.shape:
            raise NotThereError("the raw file is not the one that was denoised: its size differs")
        if section is not None and sha256_of_pixels(pixels) != raw.sha256:
            raise NotThereError("the stack is not the one that was denoised: it has changed since")
        return pixels

    def _contrast(self, denoised: _Held) -> tuple[float, float]:
        if "window" not in denoised.memo:
            shape = denoised.pixels.shape
            denoised.memo["window"] = window(binned(denoised.pixels, 1 << pictures.levels(shape)))
        return denoised.memo["window"]

    def _own(self, raw: _Held, level: int) -> tuple[float, float]:
        """The values of the raw image that would be black and white if it were shown alone, at one level."""
        name = f"own {level}"
        if name not in raw.memo:
            raw.memo[name] = window(binned(raw.pixels[_middle(raw.pixels.shape)], 1 << level))
        return raw.memo[name]

    def _spread(self, raw: _Held, denoised: _Held, level: int) -> tuple[float, float]:
        """The residual's black and white at one level. From level to level noise averages out, structure does not."""
        name = f"spread {level}"
        if name not in raw.memo:
            middle = _middle(raw.pixels.shape)
            left = binned(raw.pixels[middle], 1 << level) - binned(denoised.pixels[middle], 1 << level)
            # By quartiles, because it contains X-ray hits.
            low, high = np.percentile(left, (25, 75))
            spread = _RESIDUAL_SIGMAS * float(high - low) / 1.349
            raw.memo[name] = (-spread, spread) if spread > 0 else (-1.0, 1.0)
        return raw.memo[name]

    def _kept(self, name: str, draw: Callable[[], bytes]) -> bytes:
        found = self.cache.get(name)
        if found is None:
            found = self.quietly(draw)
            self.cache.put(name, found)
        return found

    @contextmanager
    def _explained(self, result: ShownResult) -> Iterator[None]:
        """Turn the error of a file that cannot be read, or has changed, into a NotThereError."""
        try:
            yield
        except (MicrographError, TransientError) as error:
            raise NotThereError(str(error)) from error
        except MemoryError as error:
            raise NotThereError(f"{result.image}: there is not enough memory to show it now") from error


def _lower_priority() -> None:
    """Of this thread (Linux has one for each) and of the child processes that decode for it."""
    thread = threading.get_native_id()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _NICE))


def _middle(shape: tuple[int, ...]) -> tuple[slice, slice]:
    rows, columns = (slice(max(0, (side - _SAMPLE) // 2), (side + _SAMPLE) // 2) for side in shape)
    return rows, columns


def _shape(image: Path, record: Record) -> tuple[int, int]:
    shape = record.output.shape
    if shape is not None and min(shape) > 0:
        return shape
    raise NotThereError(f"the record beside {image} does not state its size: it is damaged")


def _spots(record: Record) -> list[tuple[int, int, float]]:
    """Row, column and new value of the spikes that the record lists."""
    return [
        (one.row, one.column, one.filled_with)
        for one in (record.spikes.listed if record.spikes else ())
        if one.row is not None and one.column is not None and one.filled_with is not None
    ]
