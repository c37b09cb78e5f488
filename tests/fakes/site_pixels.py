"""The pixels that the live page should show of a micrograph at full resolution."""

import numpy as np
from finished import Finished, counts, smoothed

from daemon.formats.contrast import window
from daemon.live_page.routes import Page
from daemon.output import preview

SHAPE = (1300, 1500)
Served = tuple[Page, int]


def expected(finished: Finished, seed: int) -> dict[str, np.ndarray]:
    """The grey levels of raw and denoised at full resolution."""
    raw = counts(seed, SHAPE)
    denoised = smoothed(raw)
    scale = window(preview.binned(denoised, 4))
    return {"raw": preview.grey(raw, *scale), "denoised": preview.grey(denoised, *scale)}


def origin(canvas: np.ndarray) -> tuple[int, int]:
    """Where the upper left corner of a centred image lies on the canvas, at 100 %."""
    height, width = canvas.shape[:2]
    return tuple(int(np.floor((side - whole) / 2 + 0.5)) for side, whole in ((height, SHAPE[0]), (width, SHAPE[1])))  # type: ignore[return-value]


def part(image: np.ndarray, canvas: np.ndarray, moved: tuple[int, int] = (0, 0)) -> np.ndarray:
    """What of an image should be seen on the canvas, at 100 %."""
    top, left = origin(canvas)
    y, x = -top - moved[0], -left - moved[1]
    return image[y : y + canvas.shape[0], x : x + canvas.shape[1]]
