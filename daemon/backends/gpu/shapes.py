"""Chooses tile sizes for each shape of frame, so that little is computed twice and the card's memory suffices.

Neighbouring tiles overlap, and a frame that is no multiple of a tile is reflected to fill the last: 4096 x 4096 pixels
in tiles of 1024 compute 1.56 times the frame. So frames of one shape that keep coming get an engine whose tiles fit
them. Building one takes seconds to minutes, so a few frames of a shape come first through tiles that exist.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import lcm

from daemon.backends import tiling
from daemon.backends.gpu.engine import Sides

_QUANTUM = 128
"""Sides of such tiles are multiples of it, pixels: shapes that nearly agree share an engine."""
_MOST_TILES = 8
"""Along each axis."""
SHARE_OF_CARD = 1 / 4
"""Of the card's memory that a network may take for its tiles."""
_UNKNOWN_CARD = 4 << 30
"""Bytes that a card is taken to have if its memory is not known."""
WORTH = 1.1
"""An engine is built if tiles that exist compute so many times the pixels."""
FRAMES_FIRST = 3
"""Frames of one shape that come before an engine is built for them."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How frames are cut: pixels as in `tiling.plan`."""

    halo: int
    blend: int
    align: int


@lru_cache(256)
def computed(shape: Sides, tile: Sides, serving: Serving) -> int:
    """Pixels that the network computes for a frame (H, W) in such tiles."""
    return len(tiling.plan(shape, tile, serving.halo, serving.align, serving.blend)) * tile[0] * tile[1]


@lru_cache(256)
def fitting(shape: Sides, serving: Serving, largest: int) -> Sides | None:
    """The tiles of at most `largest` pixels that compute least for a frame (H, W), of equals the largest and widest.

    None if none of up to _MOST_TILES x _MOST_TILES do.
    """
    step = lcm(_QUANTUM, serving.align)
    shared = -(-(2 * serving.halo + serving.blend) // serving.align) * serving.align

    def sides(extent: int) -> set[int]:
        found = {-(-extent // step) * step}
        if extent > shared:
            evenly = (tiling.even_side(extent, number, shared, serving.align) for number in range(2, _MOST_TILES + 1))
            found |= {-(-side // step) * step for side in evenly}
        return {side for side in found if side > shared}

    tiles = [(rows, columns) for rows in sides(shape[0]) for columns in sides(shape[1]) if rows * columns <= largest]
    return min(tiles, key=lambda tile: (computed(shape, tile, serving), -tile[0] * tile[1], -tile[1]), default=None)


class Shapes:
    """Chooses tiles for frames: `base`, whose engine always exists, or larger ones that fit.

    Args:
        memory: bytes of the card's that may be used; 0 if not known.
        a_pixel: bytes on the card for each pixel of a tile, all tiles at once together.
    """

    def __init__(self, base: Sides, serving: Serving, memory: int, a_pixel: float, *, fixed: bool) -> None:
        self._base, self._serving, self._fixed = base, serving, fixed
        self._largest = int((memory or _UNKNOWN_CARD) * SHARE_OF_CARD / a_pixel)
        self._seen: Counter[Sides] = Counter()
        self._refused: set[Sides] = set()

    def best(self, shape: Sides) -> Sides:
        """The tiles that would compute least."""
        if self._fixed or computed(shape, self._base, self._serving) == self._base[0] * self._base[1]:
            return self._base
        best = fitting(shape, self._serving, self._largest)
        if best is None or best in self._refused:
            return self._base
        return min(self._base, best, key=lambda tile: computed(shape, tile, self._serving))

    def choose(self, shape: Sides, existing: Iterable[Sides]) -> Sides:
        """The tiles for a frame that is here: of the existing ones, or, if it is worth it, the best."""
        best = self.best(shape)
        there = {self._base, *existing} - self._refused
        nearest = min(there, key=lambda tile: computed(shape, tile, self._serving))
        least = computed(shape, best, self._serving)
        if best in there or computed(shape, nearest, self._serving) <= WORTH * least:
            return best if best in there else nearest
        self._seen[shape] += 1
        return best if self._seen[shape] > FRAMES_FIRST else nearest

    def refuse(self, tile: Sides) -> None:
        """There can be no such engine: it was not built, or the memory it needs is not free."""
        self._refused.add(tile)

    def lower(self) -> None:
        """Memory ran out: from now on no larger tiles than the base."""
        self._fixed = True

    def described(self, shape: Sides, tile: Sides) -> str:
        """The plan in words, for the log."""
        share = computed(shape, tile, self._serving) / (shape[0] * shape[1])
        number = computed(shape, tile, self._serving) // (tile[0] * tile[1])
        return (
            f"frames of {shape[1]} x {shape[0]} pixels: {number} tile{'s' if number > 1 else ''} of "
            f"{tile[1]} x {tile[0]}, {share:.2f} times the frame computed"
        )
