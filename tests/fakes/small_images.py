"""A micrograph in memory, and what stands for its result."""

from pathlib import Path
from typing import Any

import numpy as np

from daemon.micrograph import Micrograph, PixelSize


def micrograph(height: int = 96, width: int = 128) -> Micrograph:
    pixels = np.random.default_rng(3).poisson(20, (height, width)).astype(np.uint16)
    return Micrograph(pixels, Path("raw.tif"), "tiff", PixelSize(0.2, 0.2, "nm"))


def denoised(height: int = 96, width: int = 128) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (20 + 5 * np.sin(np.arange(height * width).reshape(height, width) / 9)).astype(np.float32)
