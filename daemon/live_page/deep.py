"""Tiles at a depth of 16 bits, from which the browser draws any contrast without asking again.

A code counts steps from `ZERO`, the value that is black by default: FINE steps for each of the 255 default grey levels.
So 65,536 codes reach from 12 default contrast ranges below black to 19 above white, in 2,040 steps a range; what lies
beyond is cut off. They are not compressed: noise hardly shrinks, and a PNG costs the processor ten times as much.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from daemon.micrograph import Image

FINE = 8
ZERO = 12 * 255 * FINE
KIND = "application/octet-stream"
HEAD = struct.Struct("<HHdddd")
"""Width and height, pixels; `shared` and `own` of `encode`."""


def encode(panel: Image, shared: tuple[float, float], own: tuple[float, float]) -> bytes:
    """Values (H, W) as a head and (H, W) uint16 codes, little-endian.

    `shared`: the values that are black and white by default, in the file's units, alike for raw and denoised. `own`:
    those that would suit this image at this level alone.
    """
    low, high = shared
    with np.errstate(over="ignore"):
        steps = (panel - np.float32(low)) * np.float32(255.0 / (high - low)) * np.float32(FINE)
    codes: NDArray[np.uint16] = np.clip(np.floor(steps) + np.float32(ZERO), 0, 65_535).astype("<u2")
    height, width = panel.shape
    return HEAD.pack(width, height, *shared, *own) + codes.tobytes()
