"""May the result be believed? Checks against the raw data that hold whatever network ran."""

from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from daemon.dose import Choice
from daemon.errors import MicrographError
from daemon.micrograph import Image, Pixels, Spikes
from daemon.scaling import Scaling

Word = Literal["good", "check", "reject"]

BLOCK = 64
MEAN_TOLERANCE = 1e-3
COUNTING_ERRORS = 3.0
BLOCK_COUNTING_ERRORS = 4.0
"""The mean must be kept within 0.1 % or 3 counting errors, and in each 64 × 64 block within 4 counting errors."""
FLOAT32_PEDESTAL = 1e3
"""Up to so many noise units of pedestal float32 is exact enough, and half the time."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Means in the micrograph's own units, over pixels that are not spikes; errors in counting errors."""

    mean_raw: float
    mean_denoised: float
    mean_shift: float
    """Change of the mean counts, as a share of them."""
    mean_shift_counting_errors: float
    worst_block_counting_errors: float
    """Largest change of a 64 × 64 block's mean."""
    removed_noise: float
    """Standard deviation of what was removed over that of the noise expected from the counts: at most about 1."""
    word: Word
    """good: nothing speaks against it; check: look at it; reject: it is probably worse than the raw image."""
    reasons: tuple[str, ...]
    """Why it is not good, the most important first."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(pixels: Pixels, denoised: Image, spikes: Spikes, choice: Choice, scaling: Scaling) -> Verdict:
    """Compare (H, W) raw pixels with their denoised image. Raises MicrographError if the result is not finite."""
    dose = choice.counts(scaling.zero)
    narrow = pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32
    with np.errstate(all="ignore"):
        sums = None
        if narrow and abs(scaling.zero) < FLOAT32_PEDESTAL * scaling.unit:
            sums = _compare(pixels, denoised, spikes, choice, scaling, np.dtype(np.float32))
        # Also where float32 overflowed, which may not be the result's fault.
        if sums is None:
            sums = _compare(pixels, denoised, spikes, choice, scaling, np.dtype(np.float64))
    if sums is None:
        raise MicrographError(
            "the network's result holds NaN or Inf and was thrown away; "
            "report this file, and check the profile's gain and offset"
        )
    number = pixels.size - len(spikes)
    shift = sums.removed / number
    errors = abs(shift) * sqrt(number / dose)
    noise = sqrt(max(sums.squares / number - shift**2, 0.0) / dose)
    mean_denoised = scaling.zero + choice.gain * sums.total / pixels.size
    warnings = []
    if abs(shift) > MEAN_TOLERANCE * dose and errors > COUNTING_ERRORS:
        warnings.append(f"the mean changed by {-shift / dose:+.2%} ({errors:.1f} counting errors)")
    if sums.worst > BLOCK_COUNTING_ERRORS:
        warnings.append(f"the mean of a {BLOCK} x {BLOCK} block changed by {sums.worst:.1f} counting errors")
    if noise > 1.5:
        warnings.append(
            f"{noise:.1f} times the noise expected from the counts was removed: gain or offset may be wrong, or "
            "structure was lost; compare with the raw image"
        )
    return Verdict(
        mean_raw=mean_denoised + choice.gain * shift,
        mean_denoised=mean_denoised,
        mean_shift=-shift / dose,
        mean_shift_counting_errors=errors,
        worst_block_counting_errors=sums.worst,
        removed_noise=noise,
        word="check" if warnings else "good",
        reasons=tuple(warnings),
    )


Values = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class _Sums:
    """Over all pixels, in counts relative to the dose: of the result, of what was removed, and of its square."""

    total: float
    removed: float
    squares: float
    worst: float
    """Largest change of a block's mean, in its counting errors."""


def _compare(
    pixels: Pixels, denoised: Image, spikes: Spikes, choice: Choice, scaling: Scaling, exact: np.dtype[Any]
) -> _Sums | None:
    """One pass over both images in bands of BLOCK rows that stay in the cache; None if a sum is not finite.

    `exact` is the type differences are taken in; within a band sums are taken in it, too, beyond it in float64.
    """
    height, width = pixels.shape
    dose, gain = choice.counts(scaling.zero), choice.gain
    room = np.empty((min(BLOCK, height), width), exact)
    total = removed = squares = worst = 0.0
    for top in range(0, height, BLOCK):
        rows = slice(top, min(top + BLOCK, height))
        difference, shift, level = _band(rows, pixels, denoised, spikes, scaling, room)
        total += float((level - shift).sum())
        removed += float(shift.sum())
        squares += float(np.einsum("ij,ij->i", difference, difference).sum(dtype=np.float64))
        if rows.stop - top < BLOCK <= height:  # the last rows are judged as a block flush with the edge
            _, shift, level = _band(slice(height - BLOCK, height), pixels, denoised, spikes, scaling, room)
        if min(height, width) >= BLOCK:
            worst = max(worst, _block_errors(shift / gain, level / gain, dose))
    if not np.isfinite((total, removed, squares)).all():
        return None
    return _Sums(total / gain, removed / gain, squares / gain**2, worst)


def _band(
    rows: slice, pixels: Pixels, denoised: Image, spikes: Spikes, scaling: Scaling, room: Values
) -> tuple[Values, NDArray[np.float64], NDArray[np.float64]]:
    """Of some rows: raw minus denoised (n, W); its sums over each column (W,); those of raw, less the mean.

    In the micrograph's units. Spikes, NaN and Inf among them, count as unchanged.
    """
    difference = room[: rows.stop - rows.start]
    out = denoised[rows]
    np.copyto(difference, pixels[rows], casting="unsafe")
    difference -= out
    inside = slice(*np.searchsorted(spikes.rows, (rows.start, rows.stop)))
    difference[spikes.rows[inside] - rows.start, spikes.columns[inside]] = 0
    shift = difference.sum(axis=0).astype(np.float64)
    kept = out.sum(axis=0, dtype=room.dtype).astype(np.float64) - len(out) * scaling.zero
    return difference, shift, kept + shift


def _block_errors(shift: NDArray[np.float64], level: NDArray[np.float64], dose: float) -> float:
    """The largest change of a block's mean in one band of BLOCK rows, in that block's own counting errors.

    `shift` and `level` (W,): sums over columns of what was removed and of the raw counts, relative to the dose.
    """
    width = len(shift)
    starts = np.array([*range(0, width - BLOCK + 1, BLOCK), width - BLOCK])
    removed, raw = (
        np.diff(np.cumsum(np.pad(sums, (1, 0)))[np.stack([starts, starts + BLOCK])], axis=0)[0] / BLOCK**2
        for sums in (shift, level)
    )
    # No block is darker than one electron: its counting error could not be told.
    return float((np.abs(removed) * BLOCK / np.sqrt(np.maximum(raw + dose, 1 / BLOCK**2))).max())
