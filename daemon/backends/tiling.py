"""Plans tiles of one shape over an image of any shape, cuts them (`cut`) and joins their results (`place`).

The outermost `halo` pixels of a tile next to another lack context: their result is discarded. There is no halo at the
image's own edges, because networks are trained on crops with such edges; an image that fits a tile is computed as it
is. Tile origins are multiples of `align`, so that a network with that total stride has the same grid in every tile as
in the whole frame; beyond the image the last tile is reflected (`numpy.pad`'s "reflect", repeatedly if needed). Rows
and columns are planned separately, so all edge cases have one dimension.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.backends.manifest import Manifest
from daemon.counts.plane import SMALLEST
from daemon.errors import MicrographError, WeightsError


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """A tile along one axis."""

    origin: int
    """First pixel of the tile in the image."""
    window: slice
    """The part of the image from which it is made."""
    index: NDArray[np.intp] | None
    """For each pixel of the tile (tile,) its place in the window; None: the tile is the window."""
    inner: slice
    """The part of the tile whose result is used."""
    core: slice
    """Place of that part in the image."""
    weight: NDArray[np.float32] | None
    """Weights of these pixels; over all tiles those of a pixel add up to 1. None: 1 everywhere."""


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """Source, destination and used part of a tile."""

    rows: Span
    columns: Span

    @property
    def window(self) -> tuple[slice, slice]:
        """The part of the image from which the tile is made: ``tile.expand(image[tile.window])`` is the tile."""
        return self.rows.window, self.columns.window

    def expand(self, window: NDArray[Any]) -> NDArray[Any]:
        """The window of the image → the tile, reflected where it reaches beyond. A view where it does not."""
        if self.rows.index is not None:
            window = window.take(self.rows.index, axis=0)
        if self.columns.index is not None:
            window = window.take(self.columns.index, axis=1)
        return window


@dataclass(frozen=True, slots=True, eq=False)
class TilePlan:
    """The tiles of an image of `shape`, in reading order; `len` of them."""

    shape: tuple[int, int]
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[Tile]:
        return (Tile(row, column) for row in self.rows for column in self.columns)

    def canvas(self) -> NDArray[np.float32]:
        """An empty output (H, W) float32 for `place` to fill."""
        return np.zeros(self.shape, dtype=np.float32)


def plan(shape: tuple[int, int], tile: int | tuple[int, int], halo: int, align: int = 1, blend: int = 0) -> TilePlan:
    """Cover an (H, W) image with as few tiles as possible, spread evenly.

    `tile` is the side, or the two sides, in pixels. With `blend` > 0 neighbours cross-fade linearly over that
    many pixels around each seam, where both are valid; 0 cuts. Raises MicrographError if the image is smaller
    than 32 x 32, ValueError if tile, halo, align and blend contradict one another.
    """
    height, width = shape
    if min(height, width) < SMALLEST:
        raise MicrographError(
            f"the image is {width} x {height} pixels; at least {SMALLEST} x {SMALLEST} are needed to denoise it"
        )
    sides = (tile, tile) if isinstance(tile, int) else tile
    rows, columns = (_spans(size, side, halo, align, blend) for size, side in zip((height, width), sides, strict=True))
    return TilePlan((height, width), rows, columns)


def require(folder: Path, weights: Manifest, tile: int | tuple[int, int], halo: int, blend: int) -> None:
    """Raises WeightsError if the weights in `folder` cannot be served with such tiles."""
    several = 2 * (tile if isinstance(tile, int) else max(tile)) + SMALLEST
    try:
        plan((several, several), tile, halo, weights.align, blend)
    except ValueError as error:
        raise WeightsError(
            f"{folder}: {error}; `backend.tile: 0` in config.yaml takes one that fits, "
            f"such as the weights' own {weights.tile}"
        ) from error


def even_side(extent: int, number: int, shared: int, align: int) -> int:
    """The least side of so many tiles over `extent` pixels whose neighbours share `shared`, a multiple of align."""
    return -(-(extent - shared) // (number * align)) * align + shared


def cut(tile: Tile, image: NDArray[Any]) -> NDArray[Any]:
    """A tile of an (H, W) image, in the image's dtype. May be a view of the image: not to be written to."""
    return tile.expand(image[tile.window])


def place(tile: Tile, result: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Write the used part of a tile's result to its place in `out`, which began as the plan's canvas."""
    rows, columns = tile.rows, tile.columns
    valid = result[rows.inner, columns.inner]
    if rows.weight is None and columns.weight is None:
        out[rows.core, columns.core] = valid
        return
    if rows.weight is not None:
        valid = valid * rows.weight[:, None]
    if columns.weight is not None:
        valid = valid * columns.weight
    out[rows.core, columns.core] += valid


def _spans(size: int, tile: int, halo: int, align: int, blend: int) -> tuple[Span, ...]:
    if tile <= 0 or align <= 0 or halo < 0 or blend < 0 or tile % align:
        raise ValueError(
            f"tile {tile}, halo {halo}, align {align}, blend {blend}: the tile must be a positive "
            "multiple of align, and neither halo nor blend negative"
        )
    longest = (tile - 2 * halo - blend) // align * align
    last = max(-((tile - size) // align) * align, 0)
    if longest <= 0 < last:
        raise ValueError(
            f"tile {tile} leaves nothing inside halo {halo}, align {align} and blend {blend}: use a larger tile"
        )
    steps = -(-last // longest) if last else 0
    origins = [last * i // max(steps, 1) // align * align for i in range(steps + 1)]
    # Each seam lies in the middle of the overlap of two neighbours.
    seams = [(left + tile + right) // 2 for left, right in pairwise(origins)]
    fades = [np.ones(size), *(_fade(size, seam, blend) for seam in seams), np.zeros(size)]
    return tuple(
        _span(size, tile, origin, before - after)
        for origin, (before, after) in zip(origins, pairwise(fades), strict=True)
    )


def _fade(size: int, seam: int, blend: int) -> NDArray[np.float64]:
    """0 before the seam and 1 after it, with a ramp of `blend` pixels between."""
    from_start = np.arange(size) - (seam - blend // 2)
    return np.clip((from_start + 0.5) / blend, 0, 1) if blend else (from_start >= 0).astype(np.float64)


def _span(size: int, tile: int, origin: int, weight: NDArray[np.float64]) -> Span:
    used = np.flatnonzero(weight)
    start, stop = int(used[0]), int(used[-1]) + 1
    index = _reflected(np.arange(origin, origin + tile), size)
    low, high = int(index.min()), int(index.max()) + 1
    inside = origin >= 0 and origin + tile <= size
    faded = weight[start:stop].astype(np.float32)
    return Span(
        origin=origin,
        window=slice(low, high),
        index=None if inside else index - low,
        inner=slice(start - origin, stop - origin),
        core=slice(start, stop),
        weight=None if bool((faded == 1).all()) else faded,
    )


def _reflected(index: NDArray[np.intp], size: int) -> NDArray[np.intp]:
    period = 2 * (size - 1)
    index = index % period
    return np.minimum(index, period - index)
