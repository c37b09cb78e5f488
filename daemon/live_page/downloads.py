"""Files beside a result, sent as they are."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from daemon.live_page.gallery import NotThereError, ShownResult
from daemon.output.paths import beside

Part = Literal["image", "preview", "record"]
_ENDINGS = {"preview": ".png", "record": ".json"}
_PIECE = 1 << 18


def path_of(result: ShownResult, part: Part) -> Path:
    """Where the result's image, preview or record lies."""
    return result.image if part == "image" else beside(result.image, _ENDINGS[part])


def opened(path: Path) -> tuple[int, Iterator[bytes]]:
    """The size of a plain file and its content in pieces, fewer if it becomes another file. Raises NotThereError."""
    try:
        state = path.lstat()
    except OSError as error:
        raise NotThereError(f"{path} cannot be read: {error.strerror}; was it moved or deleted?") from error
    if not stat.S_ISREG(state.st_mode):
        raise NotThereError(f"{path} is not a plain file and is not sent")
    return state.st_size, _pieces(path, (state.st_dev, state.st_ino), state.st_size)


def _pieces(path: Path, identity: tuple[int, int], size: int) -> Iterator[bytes]:
    # Opened with the first piece, because a HEAD asks for none; opening a pipe of that name would block the thread.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
        state = os.fstat(stream.fileno())
        while size > 0 and identity == (state.st_dev, state.st_ino) and (piece := stream.read(min(_PIECE, size))):
            size -= len(piece)
            yield piece
