"""Reads micrographs, those that need a codec in a child process: a crash, hang or bomb then costs only that one.

    parent                                        child
    path, section, limits  (JSON)          ───►   reads under limits of memory and processor time
    ◄───  all but the pixels (JSON), and a descriptor of the shared memory that holds them

Plain pixels need no codec and are read in this process, without a copy.
"""

import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from daemon import formats
from daemon.errors import EmdenoisedError, MicrographError, ReaderMissingError, TransientError
from daemon.formats.raw_file import RawFile
from daemon.micrograph import Acquisition, Micrograph, PixelSize

_ONE = 1 << 17
"""Bytes of the longest message: paths and remarks."""
_BASE = 1 << 30
_PER_PIXEL = 24
"""Bytes: a plane of the widest numbers as read, as decoded and as passed on."""
_PATIENCE = 5
"""Longest elapsed time over the allowed processor time: a share may be slow."""
_ERRORS = {one.__name__: one for one in (MicrographError, ReaderMissingError, TransientError)}
_PROGRAM = "from daemon.formats.decoder import main; main()"


class Reader:
    """Reads micrographs of at most `max_pixels`; decoding one may take the processor `seconds`.

    Any number of threads may use it at once; each uses its own child, which is started at the first need and kept.
    `close` ends the children. `root` as in `formats.RawFile`, `references` as in `formats.read`.
    """

    def __init__(
        self,
        max_pixels: int,
        seconds: float,
        program: str = _PROGRAM,
        root: Path | None = None,
        *,
        references: bool = False,
    ) -> None:
        self._max_pixels, self._seconds, self._program, self._root = max_pixels, seconds, program, root
        self._references = references
        self._idle: list[_Child] = []
        self._lock = threading.Lock()

    def read(self, path: Path, section: int | None = None) -> Micrograph:
        """As `formats.read`; also raises MicrographError for a file that crashes its decoder."""
        try:
            raw = RawFile(path, self._root)
            return formats.read(raw, self._max_pixels, section, decode=False, references=self._references)
        except formats.CodecNeededError:
            pass
        with self._lock:
            child = self._idle.pop() if self._idle else None
        if child is not None and not child.lives:
            child.end()
            child = None
        child = child or _Child(self._program)
        try:
            return child.read(raw, section, self._max_pixels, self._seconds, self._references)
        finally:
            if child.sound:
                with self._lock:
                    self._idle.append(child)
            else:
                child.end()

    def count(self, path: Path) -> int | None:
        """As `formats.count`."""
        return formats.count(RawFile(path, self._root))

    def close(self) -> None:
        """End the children; no thread may be reading."""
        while self._idle:
            self._idle.pop().end()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Child:
    """The parent's side of a reading process."""

    def __init__(self, program: str) -> None:
        self.sound = True
        """Whether its last read succeeded: after a failed one its memory may be corrupt."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # Python must not import modules from the working folder.
            environment = {**os.environ, "PYTHONSAFEPATH": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", program, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                )
            except OSError as error:
                self._socket.close()
                raise TransientError(f"the process that decodes compressed files does not start: {error}") from error

    def read(
        self,
        raw: RawFile,
        section: int | None,
        max_pixels: int,
        seconds: float,
        references: bool,
    ) -> Micrograph:
        path, root = raw.path, raw.root
        self.sound = False
        self._socket.settimeout(_PATIENCE * seconds)
        try:
            request = [str(path), section, max_pixels, seconds, root and str(root), references]
            self._socket.send(json.dumps(request).encode())
            answer, handed, _, _ = socket.recv_fds(self._socket, _ONE, 1)
        except TimeoutError as error:
            raise TransientError(
                f"{path}: is not read after {_PATIENCE * seconds:.0f} s: check the share it is on"
            ) from error
        except OSError:  # it has died
            answer, handed = b"", []
        if not answer:
            raise self._died(path, seconds)
        found = json.loads(answer)
        if "error" in found:
            raise _ERRORS[found["kind"]](found["error"])
        micrograph = _micrograph(path, found, handed[0])
        self.sound = True
        return micrograph

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._socket.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # it waits for a share that hangs, and ends when that is back
            self._process.wait(1)

    def _died(self, path: Path, seconds: float) -> Exception:
        """The error that fits the exit status of the child."""
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return TransientError(f"{path}: the process that decodes it does not answer")
        if status == -signal.SIGXCPU:
            return MicrographError(
                f"{path}: decoding it takes more than {seconds:g} s (backend.decode_seconds): it is damaged, or very "
                "large; export it again without compression"
            )
        if status < 0 and -status in (signal.SIGKILL, signal.SIGTERM):
            return TransientError(
                f"{path}: the process that decodes it was killed from outside, perhaps for lack of memory; it is tried "
                "again"
            )
        if status < 0:
            return MicrographError(
                f"{path}: its decoder crashed on it ({signal.Signals(-status).name}): it is damaged; copy it again, or "
                "export it again without compression"
            )
        return TransientError(
            f"{path}: the process that decodes it failed (exit status {status}); run emdenoised doctor"
        )


def _micrograph(path: Path, answer: Mapping[str, Any], descriptor: int) -> Micrograph:
    """The child's answer as a micrograph, with the pixels in shared memory."""
    height, width = answer["pixels"]
    dtype = np.dtype(answer["dtype"])
    try:
        memory = mmap.mmap(descriptor, height * width * dtype.itemsize, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    size = PixelSize(*answer["size"]) if answer["size"] else None
    pixels = np.frombuffer(memory, dtype).reshape(height, width)
    taken = Acquisition(**answer["acquisition"])
    return Micrograph(pixels, path, answer["kind"], size, answer["metadata"], tuple(answer["warnings"]), taken)


# The child's side


def main() -> None:
    """Answer requests until the parent closes the socket or ends. The socket's descriptor is the only argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=int(sys.argv[1])) as parent:
        while request := parent.recv(_ONE):
            path, section, max_pixels, seconds, root, references = json.loads(request)
            _limit(max_pixels, seconds)
            answer, descriptors = _answer(RawFile(Path(path), root and Path(root)), section, max_pixels, references)
            try:
                socket.send_fds(parent, [json.dumps(answer).encode()], descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)


def _limit(max_pixels: int, seconds: float) -> None:
    """Limit this process to further processor `seconds` and the memory that `max_pixels` need."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent.ru_utime + spent.ru_stime + seconds) + 1, hard))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _BASE + _PER_PIXEL * max_pixels
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _answer(raw: RawFile, section: int | None, max_pixels: int, references: bool) -> tuple[dict[str, Any], list[int]]:
    path = raw.path
    try:
        one = formats.read(raw, max_pixels, section, references=references)
        descriptor = _share(one.pixels)
    except MemoryError:
        return _too_large(path), []
    except TransientError as error:
        return (_too_large(path) if isinstance(error.__cause__, MemoryError) else _refusal(error)), []
    except MicrographError as error:
        return _refusal(error), []
    size = one.pixel_size
    return {
        "pixels": one.pixels.shape,
        "dtype": one.pixels.dtype.str,
        "size": None if size is None else (size.y, size.x, size.unit),
        "kind": one.kind,
        "metadata": dict(one.metadata),
        "warnings": one.warnings,
        "acquisition": asdict(one.acquisition),
    }, [descriptor]


def _refusal(error: EmdenoisedError) -> dict[str, Any]:
    kind = next(name for name, one in _ERRORS.items() if isinstance(error, one))
    return {"error": str(error), "kind": kind}


def _too_large(path: Path) -> dict[str, Any]:
    return _refusal(
        MicrographError(
            f"{path}: decoding it needs more memory than backend.max_pixels allows for; raise that if it is its true "
            "size, or export it without compression"
        )
    )


def _share(pixels: np.ndarray[Any, Any]) -> int:
    """Copy an array to shared memory; returns its descriptor."""
    descriptor = os.memfd_create("micrograph")
    try:
        data = memoryview(pixels.data).cast("B")
        while data:
            data = data[os.write(descriptor, data) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
