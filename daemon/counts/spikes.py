"""Finds spikes, pixels that no electron made (X-ray hits, hot pixels, NaN, Inf), and replaces their values.

Brightness alone does not decide. A real feature reaches the detector through optics, so it is at least as wide as a
Gaussian of standard deviation `NARROWEST` pixels. For any non-negative object f blurred that way, above any
background b the object stays above, and for any step v

    f(x + v) + f(x - v) - 2 b  >=  2 exp(-|v|² / 2 NARROWEST²) (f(x) - b)

because the inequality holds for each point of the object (cosh >= 1) and adds up; lattices, edges, lines and
single columns at any sub-pixel position are all covered. So opposite neighbours bound how bright a pixel can
be, and counting states how sure that is: given k + S counts in a pixel and its neighbours, k is binomial with at
most a known probability, whatever the true brightness. A pixel is a spike when its k is impossible (Chernoff
bound below `false_alarm`) and it also stands far outside the image's own local spread, which protects data
whose noise is not Poisson's or whose gain is unknown.

A found pixel counts as missing from then on, and with it every pair it belongs to, so the rest of a hit loses
its protection while a real column under a hit keeps its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.counts.neighbours import CONFIDENCE, Neighbours
from daemon.counts.plane import NOWHERE, Spikes, Survey
from daemon.counts.stand_ins import stand_ins
from daemon.errors import MicrographError
from daemon.micrograph import Pixels

Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]
Values = NDArray[np.float64]

NARROWEST = 0.8
"""Standard deviation, pixels, of the narrowest real feature (a full width at half maximum of 1.9 pixels)."""
_INNER = ((0, 1), (1, 0), (1, 1), (1, -1))
_OUTER = ((0, 2), (2, 0))
"""Steps to opposite neighbours. The outer ones catch a 2 x 2 hit, whose pixels shield one another from the inner."""
_ONE_SIDED = 0.1
"""Share of a pixel's brightness that its neighbours must hold where no opposite pair is left, as in a corner."""
_BACKGROUND_RADIUS = 4
"""Pixels to either side in which the background is estimated."""
_SPREAD_QUANTILE, _SPREAD_FACTOR, SPREAD_BLOCK = 0.99, 4.0, 64
"""A spike exceeds its neighbours by 4 times what 1 % of the pixels of its 64 x 64 block do (10 sigma if Gaussian)."""
_FULL_BLOCK = (1 - _SPREAD_QUANTILE) * SPREAD_BLOCK**2
"""Suspects in a block beyond which its noise is not Poisson's."""
FALSE_ALARM = 1e-9
"""Probability below which a pixel's count is impossible."""
ROUNDS = 8
"""Of the search, at most: a hit covers a few pixels, and further rounds would remove structure."""
BAND = 2 * SPREAD_BLOCK
"""Rows surveyed at a time, a multiple of the block: memory does not grow with the image."""
CHUNK, AT_ONCE = 1 << 16, 1 << 12
"""Suspects, and pixels whose background is measured, at a time."""
FEW = 1 << 10
"""Pixels of which it takes longer to exclude most than to examine all."""
_NEVER = 1e30


def find(
    pixels: Pixels, gain: float, offset: float, *, false_alarm: float = FALSE_ALARM, surveyed: Survey | None = None
) -> Spikes:
    """Find the spikes of an (H, W) image of any real dtype; the array is only read.

    `gain` (units per count) and `offset` (value at zero counts) turn pixels into counts; `false_alarm` is the
    probability at which a pixel counts as impossible (0: no finite one ever does). NaN and Inf are always spikes.
    `surveyed`: the survey of the same pixels with the same gain, offset and false alarm, if there is one already.
    The result is sorted by row, then column. Its values, in the image's own units, are the mean of the good pixels in
    the surrounding 5 x 5, or of the nearest ones in a void: the mean and not the median, since the median of 0.1
    counts is 0.
    Raises MicrographError if no pixel is finite, or if gain and offset cannot be used.
    """
    if surveyed is None:
        surveyed = survey(pixels, gain, offset, false_alarm)
    if len(surveyed.missing) == pixels.size:
        raise MicrographError(
            "no pixel of the image is a finite number: there is nothing to denoise; "
            "export it again from the camera's software"
        )
    missing = np.zeros(pixels.shape, dtype=np.bool_)
    missing.reshape(-1)[surveyed.missing] = True
    field_of_view = _Field(pixels, gain, offset, missing)
    rows, columns = np.divmod(field_of_view.thinned(surveyed.suspects), pixels.shape[1])
    places = [surveyed.missing]
    for _ in range(ROUNDS):
        found = field_of_view.impossible(rows, columns, limit_of(false_alarm))
        rows, columns = rows[found], columns[found]
        if not len(rows):
            break
        missing[rows, columns] = True
        places.append(rows * pixels.shape[1] + columns)
        rows, columns = _around(rows, columns, missing)
    rows, columns = np.divmod(np.sort(np.concatenate(places)), pixels.shape[1])
    return Spikes(rows, columns, stand_ins(pixels, missing, rows, columns))


def require_counts(gain: float, offset: float) -> None:
    """Raises MicrographError if gain and offset cannot turn pixels into counts."""
    if not (isfinite(gain) and gain > 0 and isfinite(offset)):
        raise MicrographError(
            f"gain {gain:g} and offset {offset:g} cannot turn pixels into counts: "
            "the gain must be positive and both finite; correct them in the profile"
        )


def limit_of(false_alarm: float) -> float:
    """The bound on -ln(probability) from which on a pixel counts as impossible."""
    return -log(false_alarm) if false_alarm else _NEVER


def infill(pixels: Pixels, spikes: Spikes) -> Pixels:
    """A copy of the image, in a floating dtype that holds it exactly, with the stand-ins in the spikes' places."""
    filled = pixels.astype(np.result_type(pixels.dtype, np.float32))
    filled[spikes.rows, spikes.columns] = spikes.values
    return filled


def within(spikes: Spikes, rows: slice, columns: slice) -> Spikes:
    """The spikes inside a window of the image (plain slices with start and stop), counted from its corner."""
    first, last = np.searchsorted(spikes.rows, (rows.start, rows.stop))
    inside = spikes.columns[first:last]
    chosen = first + np.flatnonzero((inside >= columns.start) & (inside < columns.stop))
    return Spikes(spikes.rows[chosen] - rows.start, spikes.columns[chosen] - columns.start, spikes.values[chosen])


@np.errstate(over="ignore", invalid="ignore")
def survey(pixels: Pixels, gain: float, offset: float, false_alarm: float = FALSE_ALARM) -> Survey:
    """Sum of the pixels, places without a finite value, and suspects: a cheap test that every spike of `find` passes.

    Arguments as in `find`. Raises MicrographError if gain and offset cannot be used.

    The binomial's Kullback-Leibler divergence is at most its chi-squared, (k - m)² / (k / 8 + m) for a mean m
    of eight neighbours, and least when the eight are as bright as the pixel may be. Missing ones count as 0.
    """
    require_counts(gain, offset)
    limit = limit_of(false_alarm)
    height, width = pixels.shape
    total = 0.0
    missing, suspects = [], []
    # float32 cannot distinguish neighbouring large integers until the offset is subtracted.
    exact = np.dtype(np.float32 if pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32 else np.float64)
    for top in range(0, height, BAND):
        bottom = min(top + BAND, height)
        first, last = max(top - 1, 0), min(bottom + 1, height)
        counts = ((pixels[first:last].astype(exact) - offset) / gain).astype(np.float32, copy=False)
        finite = np.isfinite(counts)
        band = pixels[top:bottom]
        if (whole := finite[top - first : bottom - first]).all():
            total += float(band.sum(dtype=np.float64))
        else:
            total += float(band.sum(dtype=np.float64, where=whole))
            missing.append(np.flatnonzero(~whole) + top * width)
        padded = np.zeros((bottom - top + 2, width + 2), dtype=np.float32)
        np.maximum(counts, 0, out=padded[first - top + 1 : last - top + 1, 1:-1], where=finite)
        across = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
        pixel = padded[1:-1, 1:-1]
        mean = (across[:-2] + across[1:-1] + across[2:] - pixel) / 8
        excess = pixel - mean
        bright = (excess > 0) & (excess * excess >= limit * 0.999 * (pixel / 8 + mean))
        bright &= pixel >= limit / log(9) * 0.999
        _thin(bright, excess)
        suspects.append(np.flatnonzero(bright) + top * width)
    return Survey(total, np.concatenate([*missing, NOWHERE]), np.concatenate(suspects))


def _thin(bright: Mask, excess: NDArray[np.float32]) -> None:
    """In a block full of suspects the noise is not Poisson's: keep only those that its own spread allows."""
    if np.count_nonzero(bright) <= _FULL_BLOCK:
        return
    for top in range(0, len(bright), SPREAD_BLOCK):
        for left in range(0, bright.shape[1], SPREAD_BLOCK):
            block = slice(top, top + SPREAD_BLOCK), slice(left, left + SPREAD_BLOCK)
            if np.count_nonzero(bright[block]) > _FULL_BLOCK:
                bright[block] &= excess[block] > _SPREAD_FACTOR / 2 * np.quantile(excess[block], _SPREAD_QUANTILE)


@dataclass(slots=True, eq=False)
class _Field:
    """The image in counts; NaN outside it and where `missing` is set."""

    pixels: Pixels
    gain: float
    offset: float
    missing: Mask
    spreads: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)

    def thinned(self, places: Indices) -> Indices:
        """Suspects without those that `_thin` leaves out: a GPU's survey does not do this."""
        height, width = self.missing.shape
        across = -(-width // SPREAD_BLOCK)
        blocks = places // width // SPREAD_BLOCK * across + places % width // SPREAD_BLOCK
        number, suspects = np.unique(blocks, return_counts=True)
        kept = np.ones(len(places), dtype=np.bool_)
        for block in number[suspects > _FULL_BLOCK]:
            top, left = (int(side) * SPREAD_BLOCK for side in divmod(block, across))
            bottom, right = min(top + SPREAD_BLOCK, height), min(left + SPREAD_BLOCK, width)
            excess = self._excess(slice(top, bottom), slice(left, right))
            inside = np.flatnonzero(blocks == block)
            rows, columns = places[inside] // width - top, places[inside] % width - left
            kept[inside] = excess[rows, columns] > _SPREAD_FACTOR / 2 * np.quantile(excess, _SPREAD_QUANTILE)
        return places[kept]

    def _excess(self, rows: slice, columns: slice) -> Values:
        """By how many counts each pixel of a block exceeds its eight neighbours' mean; missing ones count as 0."""
        y, x = np.mgrid[rows.start - 1 : rows.stop + 1, columns.start - 1 : columns.stop + 1]
        counts = np.maximum(np.nan_to_num(self._at(y.ravel(), x.ravel()), nan=0.0), 0).reshape(y.shape)
        sums = np.lib.stride_tricks.sliding_window_view(counts, (3, 3)).sum((2, 3))
        middle = counts[1:-1, 1:-1]
        return np.asarray(middle - (sums - middle) / 8)

    def impossible(self, rows: Indices, columns: Indices, limit: float) -> Mask:
        """Marks those of these pixels (n,) that no real feature explains."""
        parts = [
            self._impossible(rows[i : i + CHUNK], columns[i : i + CHUNK], limit) for i in range(0, len(rows), CHUNK)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.bool_)

    def _impossible(self, rows: Indices, columns: Indices, limit: float) -> Mask:
        pixel = np.maximum(self._at(rows, columns), 0)
        found = np.zeros(len(rows), dtype=np.bool_)
        for steps, ring in ((_INNER, 0), (_OUTER, 1)):
            open_ = np.flatnonzero(~found)
            if len(open_) > FEW and self._never_negative:
                open_ = open_[self._possible(rows[open_], columns[open_], pixel[open_], steps, limit)]
            if not len(open_):
                continue
            near = self._neighbours(rows[open_], columns[open_], steps)
            # With the neighbours as the background the bound is tightest: what passes even that needs no more work.
            passed = np.flatnonzero(near.unlikelihood(pixel[open_], near.brightest) >= limit)
            open_, near = open_[passed], near.of(passed)
            if not len(open_):
                continue
            excess = pixel[open_] - near.total / np.maximum(near.number, 1)
            far_out = self._far_out(rows[open_], columns[open_], excess, ring)
            open_, near = open_[far_out], near.of(far_out)
            background = self._background(rows[open_], columns[open_])
            found[open_] = near.unlikelihood(pixel[open_], background) >= limit
        return found

    @property
    def _never_negative(self) -> bool:
        return self.pixels.dtype.kind in "iu" and int(np.iinfo(self.pixels.dtype).min) >= self.offset

    def _possible(
        self, rows: Indices, columns: Indices, pixel: Values, steps: Sequence[tuple[int, int]], limit: float
    ) -> Mask:
        """Marks the pixels (n,) that are not explained by their first two neighbours alone, as almost all others are.

        More counts beside a pixel, or fewer neighbours, only ever make it likelier.
        """
        dy, dx = steps[0]
        total = self._at(rows + dy, columns + dx) + self._at(rows - dy, columns - dx)
        known = Neighbours(
            np.where(np.isnan(total), 0, total), np.full(len(rows), 2.0 * len(steps)), np.ones(len(rows))
        )
        return np.asarray(known.unlikelihood(pixel, known.brightest) >= limit * (1 - 1e-9))

    def _at(self, rows: Indices, columns: Indices) -> Values:
        height, width = self.missing.shape
        y, x = rows, columns
        if rows.size and (rows.min() < 0 or columns.min() < 0 or rows.max() >= height or columns.max() >= width):
            y, x = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
        lost = self._taken(self.missing, y, x)
        if y is not rows:
            lost |= (y != rows) | (x != columns)
        with np.errstate(over="ignore", invalid="ignore"):
            counts = self._taken(self.pixels, y, x).astype(np.float64)
            counts -= self.offset
            counts /= self.gain
        counts[lost] = np.nan
        return counts

    @staticmethod
    def _taken(plane: NDArray[Any], y: Indices, x: Indices) -> NDArray[Any]:
        """plane[y, x], in half the time where that is possible."""
        return plane.reshape(-1).take(y * plane.shape[1] + x) if plane.flags.c_contiguous else plane[y, x]

    def _neighbours(self, rows: Indices, columns: Indices, steps: Sequence[tuple[int, int]]) -> Neighbours:
        dy, dx = np.array(steps).T[:, :, None]
        one, other = self._at(rows + dy, columns + dx), self._at(rows - dy, columns - dx)  # (steps, n)
        known, also = ~np.isnan(one), ~np.isnan(other)
        # A pair counts whole or not at all: the inequality holds for the two together, not for each.
        whole = known & also
        total, number = np.where(whole, one + other, 0.0).sum(axis=0), 2.0 * whole.sum(axis=0)
        share = (2.0 * whole * np.exp(-(dy * dy + dx * dx) / (2 * NARROWEST**2))).sum(axis=0)
        if steps is _INNER and len(lone := np.flatnonzero(number == 0)):
            total[lone] = (np.nan_to_num(one[:, lone]) + np.nan_to_num(other[:, lone])).sum(axis=0)
            number[lone] = (known[:, lone] + 0.0 + also[:, lone]).sum(axis=0)
            share[lone] = _ONE_SIDED
        return Neighbours(np.maximum(total, 0), number, share)

    def _background(self, rows: Indices, columns: Indices) -> Values:
        """A low estimate of the local background: the least of 9 x 9 pixels, less its own uncertainty."""
        reach = np.arange(-_BACKGROUND_RADIUS, _BACKGROUND_RADIUS + 1)
        dy, dx = (steps.reshape(-1, 1) for steps in np.meshgrid(reach, reach))
        least = np.empty(len(rows))
        for start in range(0, len(rows), AT_ONCE):  # few calls for few pixels, and little memory for many
            part = slice(start, start + AT_ONCE)
            around = self._at((rows[part] + dy).ravel(), (columns[part] + dx).ravel())
            least[part] = np.fmin.reduce(around.reshape(len(dy), -1), axis=0)
        least = np.nan_to_num(least)
        return np.asarray(least - CONFIDENCE * np.sqrt(np.maximum(least, 0)))

    def _far_out(self, rows: Indices, columns: Indices, excess: Values, ring: int) -> Mask:
        """Which pixels exceed _SPREAD_FACTOR times their block's spread by that much."""
        far = self._surely_far_out(rows, columns, excess)
        rest = np.flatnonzero(~far)
        if len(rest):
            far[rest] = excess[rest] > _SPREAD_FACTOR * self._spread(rows[rest], columns[rest], ring)
        return far

    def _surely_far_out(self, rows: Indices, columns: Indices, excess: Values) -> Mask:
        """Whether so few pixels of the block are so bright at all that its spread need not be measured.

        By no more than its own counts can a pixel exceed its neighbours, where no counts are negative.
        """
        if self.pixels.dtype.kind not in "iu":
            return np.zeros(len(rows), np.bool_)
        kind, (height, width) = np.iinfo(self.pixels.dtype), self.pixels.shape
        limit = least = np.ceil(self.offset + self.gain * excess / _SPREAD_FACTOR)
        if kind.bits <= 32:  # compared in the camera's own type, which takes a third of the time
            with np.errstate(invalid="ignore"):
                limit = np.clip(least, kind.min, kind.max).astype(self.pixels.dtype)
        sides = min(SPREAD_BLOCK, height), min(SPREAD_BLOCK, width)
        most = (size := (sides[0] - 4) * (sides[1] - 4)) - _quantile_place(size)
        possible, never_negative = least <= kind.max, self._never_negative
        tops, lefts = _first(rows // SPREAD_BLOCK, height).tolist(), _first(columns // SPREAD_BLOCK, width).tolist()
        found = ~(excess <= 0)
        for index in np.flatnonzero(found).tolist():  # a view of each block is less work than a copy of all
            top, left = tops[index], lefts[index]
            block = self.pixels[top : top + sides[0], left : left + sides[1]]
            brighter = np.count_nonzero(block[2:-2, 2:-2] >= limit[index]) if possible[index] else 0
            found[index] = brighter < most and (never_negative or block.min() >= self.offset)
        return np.asarray(found)

    def _spread(self, rows: Indices, columns: Indices, ring: int) -> Values:
        blocks, which = np.unique(np.stack((rows, columns)) // SPREAD_BLOCK, axis=1, return_inverse=True)
        spreads = np.array([self._block_spread(int(y), int(x))[ring] for y, x in blocks.T])
        return np.asarray(spreads[which.reshape(-1)], dtype=np.float64)

    def _block_spread(self, y: int, x: int) -> tuple[float, float]:
        """By how many counts the top 1 % of a block's pixels exceed their inner and outer neighbours' mean."""
        if (y, x) not in self.spreads:
            top, left = (int(_first(at, size)) for at, size in zip((y, x), self.missing.shape, strict=True))
            block = slice(top, top + SPREAD_BLOCK), slice(left, left + SPREAD_BLOCK)
            with np.errstate(over="ignore", invalid="ignore"):
                counts = (self.pixels[block].astype(np.float64) - self.offset) / self.gain
            counts[self.missing[block]] = np.nan  # a hot column is more than 1 % of a block
            inner, outer = (self._top(counts, steps) for steps in (_INNER, _OUTER))
            self.spreads[y, x] = inner, outer
        return self.spreads[y, x]

    @staticmethod
    def _top(counts: Values, steps: Sequence[tuple[int, int]]) -> float:
        height, width = counts.shape
        middle = counts[2:-2, 2:-2]
        with np.errstate(over="ignore", invalid="ignore"):
            excess = middle - sum(
                counts[2 + s * dy : height - 2 + s * dy, 2 + s * dx : width - 2 + s * dx]
                for dy, dx in steps
                for s in (-1, 1)
            ) / (2 * len(steps))
        excess = excess[np.isfinite(excess)]
        if not excess.size:
            return 0.0
        place = _quantile_place(excess.size)
        return max(float(np.partition(excess, place)[place]), 0.0)


def _quantile_place(size: int) -> int:
    """Where the quantile of a block's spread is among so many sorted values."""
    return min(int(_SPREAD_QUANTILE * size), size - 1)


def _first(block: Any, size: int) -> Any:
    """First pixel of blocks along one axis; a narrow last one is widened inwards, or a hit could be 1 % of it."""
    return np.clip(block * SPREAD_BLOCK, 0, max(size - SPREAD_BLOCK, 0))


def _around(rows: Indices, columns: Indices, missing: Mask) -> tuple[Indices, Indices]:
    """Pixels whose neighbours have changed: those within two of a new spike, each once."""
    height, width = missing.shape
    reach = np.arange(-2, 3)
    y, x = np.broadcast_arrays((rows[:, None] + reach)[:, :, None], (columns[:, None] + reach)[:, None, :])
    y, x = y.ravel(), x.ravel()
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    y, x = y[inside], x[inside]
    places = np.sort((y * width + x)[~missing[y, x]])  # numpy.unique takes five times as long
    places = places[np.flatnonzero(np.diff(places, prepend=-1))]
    return np.divmod(places, width)
