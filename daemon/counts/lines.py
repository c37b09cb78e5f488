"""Hot and dead columns and rows of a camera: lines of pixels far brighter or darker than their neighbours.

Opposite pixels along the line protect one another from `daemon.counts.spikes`, and a line of saturated pixels raises
the mean and the noise of the image. So lines are found first, from the pixels, without gain or offset.

A real line passes through optics, which are at least as wide as a Gaussian of standard deviation 0.8 pixels
(`spikes.NARROWEST`): its neighbours hold 46 % of its excess over the background, whatever its position. A line whose
neighbours hold less than `ALONE` of it is a defect. For two defective lines side by side the same argument gives 21 %,
so these must also run through the whole image.

Lines of one value along their whole length, beside others that vary, do not belong to the picture, however dark it is:
up to `WIDEST` of them side by side.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from daemon.micrograph import Pixels

Indices = NDArray[np.intp]
Values = NDArray[np.float64]

_LENGTH, PART = 128, 16
"""A line is evaluated in pieces of about this length, each in parts of which the median counts: one X-ray hit is in
one part only."""
ALONE, _PAIR_ALONE = 0.3, 0.1
"""Share of a line's excess that its neighbours may hold, and of that of two lines side by side."""
EXACT = 1 << 15
"""Rows whose 16-bit pixels add up to 32 bits."""
TOGETHER = 1 << 17
"""Means evaluated together: few calls, and little memory."""
_REACH = 5
"""Pixels to either side that count as background."""
USUAL = 0.8
"""Share of the background's lines that must be as even as the neighbours: there may be another line among them."""
SIGNIFICANT = 1.0
"""Standard deviations of single pixels by which a line must differ; the median of a piece has a ninth of that."""
_SUSPECT = 6.0
"""Deviations, by the median, from which on a mean is worth a test."""
WIDEST = 4
"""Constant lines side by side: more may be a border, or a saturated part of the picture."""
CERTAIN = 30
"""Pixels of each line of the background that must differ from a constant line: a tenth of a trillionth is the chance
that Poisson's counts leave a line without any."""
MOST = 0.05
"""Share of all lines beyond which they belong to the picture and not to the camera."""


def find(pixels: Pixels) -> Indices:
    """Flat places, ascending, of the pixels (H, W) of any real dtype that lie in defective columns or rows."""
    bad = _mask(pixels)
    return np.flatnonzero(bad) if bad.any() else np.empty(0, np.intp)


def _mask(pixels: Pixels) -> NDArray[np.bool_]:
    """Marks these pixels (H, W)."""
    bad = np.zeros(pixels.shape, np.bool_)
    height, width = pixels.shape
    if min(height, width) < 2 * _REACH:
        return bad
    with np.errstate(all="ignore"):
        down, across = _both_means(pixels)
        for first, last, column in _along(pixels, down):
            bad[first:last, column] = True
        for first, last, row in _along(pixels.T, across):
            bad[row, first:last] = True
    return bad


def replaced(pixels: Pixels, places: Indices) -> Pixels:
    """A copy (H, W) with the pixels at the flat `places` taken from the next good column or row, three or six away.

    For measurements only: the noise of pixels three apart is independent.
    """
    if not len(places):
        return pixels
    bad = np.zeros(pixels.shape, np.bool_)
    bad.reshape(-1)[places] = True
    clean = pixels.copy()
    height, width = pixels.shape
    rows, columns = np.divmod(places, width)
    left = np.ones(len(places), np.bool_)
    for dy, dx in ((0, 3), (0, -3), (3, 0), (-3, 0), (0, 6), (0, -6), (6, 0), (-6, 0)):
        y, x = rows + dy, columns + dx
        good = left & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        good[good] = ~bad[y[good], x[good]]
        clean[rows[good], columns[good]] = pixels[y[good], x[good]]
        left &= ~good
    return clean


def _edges(length: int) -> list[int]:
    """Where the pieces of a line begin, and the end of the last."""
    return [int(edge) for edge in np.linspace(0, length, max(1, length // _LENGTH) + 1)]


def _both_means(pixels: Pixels) -> tuple[Values, Values] | tuple[None, None]:
    """Mean of each column (pieces, W) and of each row (pieces, H) in every piece, in one pass; None for large numbers.

    A piece is shorter than 256 pixels, so single precision adds up its 16-bit integers without rounding.
    """
    if pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > 2:
        return None, None
    (height, width), (tops, lefts) = pixels.shape, map(_edges, pixels.shape)
    down, across = np.empty((len(tops) - 1, width)), np.empty((len(lefts) - 1, height))
    even = width == (len(lefts) - 1) * lefts[1]
    room = np.empty((max(np.diff(tops)), width), np.float32)
    for piece, (top, bottom) in enumerate(pairwise(tops)):
        band = room[: bottom - top]
        np.copyto(band, pixels[top:bottom])
        down[piece] = np.einsum("ij->j", band)
        if even:
            across[:, top:bottom] = np.einsum("ijk->ji", band.reshape(len(band), len(lefts) - 1, -1))
        else:
            across[:, top:bottom] = np.add.reduceat(band, lefts[:-1], axis=1).T
    down /= np.diff(tops)[:, None]
    across /= np.diff(lefts)[:, None]
    return down, across


def _along(pixels: Pixels, means_of_all: Values | None) -> Iterator[tuple[int, int, int]]:
    """Defective pieces of columns: first row, row after the last, column.

    `means_of_all`: of each column in every piece, where they are known: a column of one value has it for its mean.
    """
    height, width = pixels.shape
    if width < 4 * _REACH or height < PART:
        return
    edges = _edges(height)
    found = np.zeros((2, len(edges) - 1, width), np.bool_)
    same, whole = None, pixels[0] == pixels[1]
    if means_of_all is not None:
        same = means_of_all == pixels[edges[:-1]]
        whole = same.all(axis=0) & (means_of_all == means_of_all[0]).all(axis=0)
    together = max(1, TOGETHER // width)
    for first in range(0, len(edges) - 1, together):
        parts = [pixels[top:bottom] for top, bottom in pairwise(edges[first : first + together + 1])]
        for piece, part in enumerate(parts, first):
            found[0, piece] = _constant(part, part[0] == part[1] if same is None else same[piece])
        means = np.array([_means(part) for part in parts]) if means_of_all is None else means_of_all[first:][:together]
        columns = [np.flatnonzero(odd) for odd in _suspects(means)]
        means = _around(parts, columns)
        places = [(piece, int(column)) for piece, some in enumerate(columns, first) for column in some]
        for lines in (1, 2):
            for index in np.flatnonzero(_defective(means, lines)).tolist():
                piece, begin = places[index]
                found[lines - 1, piece, begin : begin + lines] = True
    single, double = found
    double &= double.all(axis=0)
    bad = single | double | _constant(pixels, whole)
    if bad.any(axis=0).mean() > MOST:
        return
    for column in np.flatnonzero(bad.any(axis=0)):
        pieces = bad[:, column]
        if pieces.mean() >= 0.5:
            pieces = np.ones_like(pieces)
        elif column in (0, width - 1):
            continue  # a feature cut by the edge has a neighbour on one side only
        for piece in (int(one) for one in np.flatnonzero(pieces)):
            # The line may reach into the next piece by less than half of it.
            yield max(0, edges[piece] - _LENGTH // 2), min(height, edges[piece + 1] + _LENGTH // 2), int(column)


def _means(part: Pixels) -> Values:
    """Of each column (..., W) of some rows (..., h, W) the mean of its numbers; NaN where it has none."""
    rows = part.shape[-2]
    if part.dtype.kind in "iu" and part.dtype.itemsize <= 2 and rows <= EXACT:  # the same in half the time
        return np.asarray(part.sum(axis=-2, dtype=np.dtype(f"{part.dtype.kind}4")) / rows)
    means: Values = part.mean(axis=-2, dtype=np.float64)
    if part.dtype.kind == "f" and not np.isfinite(means).all():
        finite = np.isfinite(part)
        means = np.where(finite, part, 0).sum(axis=-2, dtype=np.float64) / finite.sum(axis=-2)
    return means


def _constant(part: Pixels, possible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which columns (W,) have one value in these rows, few side by side, beside others that vary.

    `possible`: marks all that have, and maybe others.
    """
    width, same = part.shape[1], possible.copy()
    if not same.any():
        return same
    for rows in (PART, len(part)):  # few are left each time
        candidates = np.flatnonzero(same)
        same[candidates] = (part[:rows, candidates] == part[0, candidates]).all(axis=0)
    if not same.any():
        return same
    if same.mean() > MOST:
        return np.zeros_like(same)
    for first, last in np.flatnonzero(np.diff(np.pad(same, 1).astype(np.int8))).reshape(-1, 2):
        few = last - first <= (WIDEST if first > 0 and last < width else 2)
        same[first:last] = few and _stands_out(part, same, first, last)
    return same


def _stands_out(part: Pixels, same: NDArray[np.bool_], first: int, last: int) -> bool:
    """Whether columns `first` to `last` - 1, each of one value, are unlike all of those beside that vary."""
    near = np.arange(max(0, first - _REACH), min(part.shape[1], last + _REACH))
    near = near[~same[near]]
    near = near[np.isfinite(part[:, near]).any(axis=0)]
    if len(near) < _REACH:
        return False
    means = _means(part[:, near])
    background, beside = float(np.median(means)), means[(near == first - 1) | (near == last)]
    for own in part[0, first:last].astype(np.float64):
        if np.count_nonzero(part[:, near[0]] != own) < CERTAIN:
            return False
        differing = (np.isfinite(part[:, near]) & (part[:, near] != own)).sum(axis=0).min()
        if differing < CERTAIN or np.abs(beside - background).max(initial=0.0) >= ALONE * abs(own - background):
            return False
    return True


def _suspects(means: Values) -> NDArray[np.bool_]:
    """Marks the columns of some pieces (n, W) whose mean differs from those two away far more than usual in the piece.

    The next may belong to the same line.
    """
    left = np.concatenate((means[:, 2:0:-1], means[:, :-2]), axis=1)  # at the edges the two on the other side
    right = np.concatenate((means[:, 2:], means[:, -2:-4:-1]), axis=1)
    if not np.isfinite(means).all():
        left, right = np.where(np.isfinite(left), left, right), np.where(np.isfinite(right), right, left)
    odd = np.abs(means - (left + right) / 2)
    return np.asarray(odd > _SUSPECT * 1.48 * _median(odd, axis=1)[:, None])


def _around(parts: list[Pixels], columns: list[Indices]) -> Values:
    """Means (n, pieces, 2 _REACH + 2) of columns and their neighbours in pieces of PART rows; NaN where there are none.

    `columns`: of each part (h, W), n in all.
    """
    reach = np.arange(-_REACH, _REACH + 2)
    longest = max(len(part) for part in parts) // PART
    windows = [np.empty((0, longest, len(reach)))]
    for part, chosen in zip(parts, columns, strict=True):
        if not len(chosen):
            continue
        at = chosen[:, None] + reach
        outside = (at < 0) | (at >= part.shape[1])
        needed, place = np.unique(np.where(outside, chosen[:, None], at), return_inverse=True)
        number = len(part) // PART
        means = np.full((longest, len(needed)), np.nan)
        means[:number] = _means(part[: number * PART, needed].reshape(number, PART, -1))
        window = means[:, place.reshape(at.shape)].swapaxes(0, 1)
        window.swapaxes(1, 2)[outside] = np.nan
        windows.append(window)
    return np.concatenate(windows)


def _defective(means: Values, lines: int) -> NDArray[np.bool_]:
    """Which of these (n,) are `lines` defective columns side by side. `means`: as `_around` gives them."""
    means = means[:, :, : 2 * _REACH + lines]
    columns = np.arange(means.shape[2])
    inside = (columns >= _REACH) & (columns < _REACH + lines)
    beside = (columns == _REACH - 1) | (columns == _REACH + lines)
    known: NDArray[np.bool_] = np.any(np.isfinite(means), axis=1)  # others hold no number in any row
    found: NDArray[np.bool_] = np.all(known[:, inside], axis=1) & (known[:, ~inside].sum(axis=1) >= _REACH)
    means = means[found]
    background = _median(means[:, :, ~inside], axis=2)[:, :, None]
    excess = _median(means - background, axis=1)
    own, others = excess[:, inside], np.abs(excess[:, ~inside])
    least = np.abs(own).min(axis=1)
    share = (ALONE if lines == 1 else _PAIR_ALONE) * least
    most = np.fmax.reduce(np.abs(excess[:, beside]), axis=1, initial=0.0)
    alone: NDArray[np.bool_] = (np.all(own > 0, axis=1) | np.all(own < 0, axis=1)) & (least > 0) & (most < share)
    for index in np.flatnonzero(alone):  # few
        rest = (means[index] - background[index] - excess[index])[:, ~inside]
        noise = float(np.sqrt(PART) * 1.48 * np.nanmedian(np.abs(rest)))
        noise = max(noise, float(np.sqrt(PART) * np.nanstd(rest)) / 3)
        alone[index] = least[index] > SIGNIFICANT * noise and float(np.nanquantile(others[index], USUAL)) < share[index]
    found[found] = alone
    return found


def _median(values: Values, axis: int) -> Values:
    """Of the numbers; NaN where there is none. numpy.nanmedian takes ten times as long for short axes."""
    if values.size and np.isfinite(values).all():
        low, high = (values.shape[axis] - 1) // 2, values.shape[axis] // 2
        ordered = np.partition(values, (low, high), axis=axis)
        return np.asarray((ordered.take(low, axis) + ordered.take(high, axis)) / 2)
    ordered = np.sort(values, axis=axis)  # NaN last
    number = np.isfinite(values).sum(axis=axis, keepdims=True)
    low, high = np.maximum(number - 1, 0) // 2, number // 2
    low, high = (np.take_along_axis(ordered, place, axis).squeeze(axis) for place in (low, high))
    return np.asarray((low + high) / 2)
