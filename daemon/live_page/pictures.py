"""Pure functions from pixels to displays: tiles, 8-bit picture files, a power spectrum, values along a line."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, hypot, log2

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from daemon.micrograph import Image
from daemon.output.preview import Sliceable, binned

TILE = 512
"""Side of a tile, pixels."""
_SPECTRUM_SIDE = 2048
"""Largest side of the central square that is transformed, pixels."""
_SPECTRUM_SHOWN = 512
"""Largest side of the spectrum's picture, pixels."""
_DECADES = 2.0
"""Distance of the spectrum's black below the noise of the raw image."""
SAMPLES = 2000
"""Most points of a line profile."""


@dataclass(frozen=True, slots=True)
class ShownSpectrum:
    """Logarithm (base 10) of the power at each frequency, zero in the middle: (n, n) float32, in units².

    White noise of variance v has power v everywhere. `side`: pixels of the square that was transformed, so that one
    step in `power` is `factor` / `side` cycles per pixel; zero frequency lies at (side / 2 + 1/2) / factor in both
    directions, where whole numbers are the corners of its pixels.
    """

    power: Image
    side: int
    factor: int


def levels(shape: tuple[int, int]) -> int:
    """The level at which the image fits into one tile. Level 0 has all pixels, each further one half a side's."""
    return max(0, ceil(log2(max(shape) / TILE)))


def tile_of(pixels: Sliceable, level: int, row: int, column: int) -> Image | None:
    """One tile, at most (TILE, TILE) float32: means over squares of side 2**level; None if the image has no such tile.

    Pixels at the far edges that do not fill a square are left out, as in `preview.binned`.
    """
    factor = 1 << level
    top, left = row * TILE * factor, column * TILE * factor
    height, width = pixels.shape
    if level > levels((height, width)) or top >= height or left >= width:
        return None
    part = pixels[top : min(top + TILE * factor, height), left : min(left + TILE * factor, width)]
    if row + column > 0 and min(part.shape) < factor:  # less than a pixel of this level
        return None
    return binned(part, factor)


def spectrum_size(shape: tuple[int, int]) -> tuple[int, int]:
    """`side` and `factor` (see `ShownSpectrum`) for an image (H, W)."""
    side = min(*shape, _SPECTRUM_SIDE)
    side -= side % 2 if side > 1 else 0
    return side, max(1, ceil(side / _SPECTRUM_SHOWN))


def spectrum(pixels: Sliceable, filled: Sequence[tuple[int, int, float]] = ()) -> ShownSpectrum:
    """The spectrum of the central square of an image (H, W), with a Hann window; NaN and Inf count as 0.

    `filled`: (row, column, value) of pixels to replace: the fringes of an X-ray hit would cover the whole spectrum.
    """
    height, width = pixels.shape
    side, factor = spectrum_size((height, width))
    top, left = ((length - side) // 2 for length in pixels.shape)
    square = binned(pixels[top : top + side, left : left + side], 1)
    for row, column, value in filled:
        if top <= row < top + side and left <= column < left + side:
            square[row - top, column - left] = value
    square -= square.mean(dtype=np.float64)
    window = np.hanning(side + 2)[1:-1].astype(np.float32)
    square *= window[:, None] * window[None, :]
    power = np.abs(np.fft.fft2(square)) ** 2 / float(np.square(window).sum(dtype=np.float64)) ** 2
    shown = binned(np.fft.fftshift(power), factor)
    floor = float(shown.max()) * 1e-12 or 1e-30
    return ShownSpectrum(np.log10(np.maximum(shown, np.float32(floor))), side, factor)


def spectrum_window(reference: ShownSpectrum) -> tuple[float, float]:
    """Black and white of a spectrum and of those compared: _DECADES below its median, and its 99.95 % quantile."""
    return float(np.median(reference.power)) - _DECADES, float(np.quantile(reference.power, 0.9995))


def along(pixels: Sliceable, begin: tuple[float, float], end: tuple[float, float], width: int) -> NDArray[np.float64]:
    """Values along a line from `begin` to `end` (row, column; whole numbers are the middles of pixels), float64.

    About one for each pixel, interpolated between neighbours, each the mean over `width` parallel lines a pixel apart.
    Values outside the image, and those that are not finite, are left out of the mean; NaN where none is left.
    """
    length = hypot(end[0] - begin[0], end[1] - begin[1])
    number = min(SAMPLES, max(2, round(length) + 1))
    step = np.linspace(0.0, 1.0, number)
    across = ((end[1] - begin[1]) / length, -(end[0] - begin[0]) / length) if length else (1.0, 0.0)
    offsets = np.arange(width) - (width - 1) / 2
    rows = begin[0] + step * (end[0] - begin[0]) + offsets[:, None] * across[0]
    columns = begin[1] + step * (end[1] - begin[1]) + offsets[:, None] * across[1]
    values = _between(pixels, rows, columns)
    good = np.isfinite(values)
    total = np.where(good, values, 0.0).sum(0)
    found: NDArray[np.float64] = np.where(good.any(0), total / np.maximum(good.sum(0), 1), np.nan)
    return found


def png(levels: NDArray[np.uint8]) -> bytes:
    """Grey levels (H, W) as a PNG file."""
    stream = io.BytesIO()
    Picture.fromarray(levels).save(stream, "PNG", compress_level=1)  # noise does not compress: do not try hard
    return stream.getvalue()


def jpeg(levels: NDArray[np.uint8]) -> bytes:
    """Grey levels (H, W) as a JPEG file, smaller and not exact."""
    stream = io.BytesIO()
    Picture.fromarray(levels).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _between(pixels: Sliceable, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values interpolated between four neighbours; NaN outside the image."""
    height, width = pixels.shape
    inside = (rows >= -0.5) & (rows <= height - 0.5) & (columns >= -0.5) & (columns <= width - 0.5)
    y, x = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    part = slice(int(y.min()), int(y.max()) + 2), slice(int(x.min()), int(x.max()) + 2)
    found = pixels[part]
    y, x = y - part[0].start, x - part[1].start
    top, left = np.floor(y).astype(np.intp), np.floor(x).astype(np.intp)
    bottom, right = np.ceil(y).astype(np.intp), np.ceil(x).astype(np.intp)  # on a pixel it is its own neighbour
    down, over = y - top, x - left
    upper = found[top, left] * (1 - over) + found[top, right] * over
    lower = found[bottom, left] * (1 - over) + found[bottom, right] * over
    values: NDArray[np.float64] = np.where(inside, upper * (1 - down) + lower * down, np.nan)
    return values
