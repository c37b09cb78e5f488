"""May the result be believed? Checks against the raw data that hold whatever network ran."""

from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.dose import Choice
from daemon.errors import MicrographError
from daemon.micrograph import Image, Pixels, Spikes
from daemon.scaling import Scaling

BLOCK = 64
MEAN_TOLERANCE = 1e-3
COUNTING_ERRORS = 3.0
BLOCK_COUNTING_ERRORS = 4.0
"""The mean must be kept within 0.1 % or 3 counting errors, and in each 64 × 64 block within 4 counting errors."""


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
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(pixels: Pixels, denoised: Image, spikes: Spikes, choice: Choice, scaling: Scaling) -> Verdict:
    """Compare (H, W) raw pixels with their denoised image. Raises MicrographError if the result is not finite."""
    height, width = pixels.shape
    dose = choice.counts(scaling.zero)
    total = removed = squares = worst = 0.0
    for top in range(0, height, BLOCK):
        raw, out = counts(slice(top, top + BLOCK), pixels, denoised, spikes, choice, scaling)
        difference = raw - out
        total += float(out.sum())
        removed += float(difference.sum())
        squares += float(np.square(difference).sum())
        if len(raw) < BLOCK <= height:  # the last rows are judged as a block flush with the edge
            raw, out = counts(slice(height - BLOCK, height), pixels, denoised, spikes, choice, scaling)
        if min(height, width) >= BLOCK:
            worst = max(worst, block_errors(raw, out, dose))
    number = pixels.size - len(spikes)
    shift = removed / number
    errors = abs(shift) * sqrt(number / dose)
    noise = sqrt(max(squares / number - shift**2, 0.0) / dose)
    mean_denoised = scaling.zero + choice.gain * total / pixels.size
    warnings = []
    if abs(shift) > MEAN_TOLERANCE * dose and errors > COUNTING_ERRORS:
        warnings.append(f"the mean changed by {-shift / dose:+.2%} ({errors:.1f} counting errors)")
    if worst > BLOCK_COUNTING_ERRORS:
        warnings.append(f"the mean of a {BLOCK} x {BLOCK} block changed by {worst:.1f} counting errors")
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
        worst_block_counting_errors=worst,
        removed_noise=noise,
        warnings=tuple(warnings),
    )


Counts = NDArray[np.float64]


def counts(
    rows: slice, pixels: Pixels, denoised: Image, spikes: Spikes, choice: Choice, scaling: Scaling
) -> tuple[Counts, Counts]:
    """Some rows of raw and denoised, in counts relative to the dose; spikes count as unchanged.

    Relative, so that nothing is lost on a high pedestal. Raises MicrographError where the result is not finite.
    """
    raw, out = ((image[rows].astype(np.float64) - scaling.zero) / choice.gain for image in (pixels, denoised))
    if not np.isfinite(out).all():
        raise MicrographError(
            "the network's result holds NaN or Inf and was thrown away; "
            "report this file, and check the profile's gain and offset"
        )
    inside = (spikes.rows >= rows.start) & (spikes.rows < rows.stop)
    flagged = (spikes.rows[inside] - rows.start, spikes.columns[inside])
    raw[flagged] = out[flagged]
    return raw, out


def block_errors(raw: Counts, out: Counts, dose: float) -> float:
    """The largest change of a block's mean in one band of BLOCK rows, in that block's own counting errors."""
    width = raw.shape[1]
    starts = np.array([*range(0, width - BLOCK + 1, BLOCK), width - BLOCK])
    shift, level = (
        (np.diff(np.cumsum(np.pad(band.sum(0), (1, 0)))[np.stack([starts, starts + BLOCK])], axis=0)[0] / BLOCK**2)
        for band in (raw - out, raw)
    )
    # No block is darker than one electron: its counting error could not be told.
    return float((np.abs(shift) * BLOCK / np.sqrt(np.maximum(level + dose, 1 / BLOCK**2))).max())
