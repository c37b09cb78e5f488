"""Galleries for tests, and the pixels of the pictures that they answer with."""

import io

import numpy as np
from finished import Clock, Finished
from numpy.typing import NDArray
from PIL import Image as Picture

from daemon.formats.decoder import Reader
from daemon.live_page import deep
from daemon.live_page.gallery import Gallery

SHAPE = (1100, 1300)
MIB = 1 << 20


def make(finished: Finished, clock: Clock, memory: int = 64 * MIB, disk: int = 8 * MIB) -> Gallery:
    reader = Reader(1 << 26, 30)
    return Gallery(finished.config.folders, reader, memory=memory, disk=disk, patience=0.05, clock=clock)


def seen(picture: bytes) -> NDArray[np.uint8]:
    """The grey levels of a picture; of a tile's codes, as the browser draws them by default."""
    if picture.startswith((b"\x89PNG", b"\xff\xd8")):
        return np.asarray(Picture.open(io.BytesIO(picture)))
    levels = (codes(picture).astype(int) - deep.ZERO) // deep.FINE
    return np.clip(levels, 0, 255).astype(np.uint8)


def codes(tile: bytes) -> NDArray[np.uint16]:
    width, height, *_ = deep.HEAD.unpack_from(tile)
    return np.frombuffer(tile, "<u2", offset=deep.HEAD.size).reshape(height, width)
