"""May the result be believed? Checks against the raw data that hold whatever network ran."""

from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np

from daemon.dose import Choice
from daemon.errors import MicrographError
from daemon.micrograph import Image, Pixels, Spikes
from daemon.scaling import ANSCOMBE, Scaling

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
    total = total_square = removed = 0.0
    worst = 0.0
    for top in range(0, height, BLOCK):
        band = slice(top, min(top + BLOCK, height))
        # Relative to the mean, so that float32 loses nothing on a high pedestal.
        out = (denoised[band].astype(np.float64) - scaling.zero) / choice.gain
        raw = (pixels[band].astype(np.float64) - scaling.zero) / choice.gain
        inside = (spikes.rows >= band.start) & (spikes.rows < band.stop)
        flagged = (spikes.rows[inside] - top, spikes.columns[inside])
        if not np.isfinite(out).all():
            raise MicrographError(
                "the network's result holds NaN or Inf and was thrown away; "
                "report this file, and check the profile's gain and offset"
            )
        raw[flagged] = out[flagged]
        difference = raw - out
        total += float(out.sum())
        removed += float(difference.sum())
        total_square += float(np.square(difference).sum())
        if out.shape[0] == BLOCK and width >= BLOCK:
            columns = width // BLOCK * BLOCK
            shift = difference[:, :columns].reshape(BLOCK, -1, BLOCK).mean((0, 2))
            level = out[:, :columns].reshape(BLOCK, -1, BLOCK).mean((0, 2)) + choice.counts(scaling.zero)
            worst = max(worst, float((np.abs(shift) * BLOCK / np.sqrt(np.maximum(level, 0) + ANSCOMBE)).max()))
    number = pixels.size - len(spikes)
    dose = choice.counts(scaling.zero)
    shift = removed / number
    errors = abs(shift) * sqrt(number) / sqrt(dose + ANSCOMBE)
    noise = sqrt(max(total_square / number - shift**2, 0.0)) / sqrt(dose + ANSCOMBE)
    mean_denoised = scaling.zero + choice.gain * total / pixels.size
    warnings = []
    if abs(shift) > MEAN_TOLERANCE * dose and errors > COUNTING_ERRORS:
        warnings.append(f"the mean changed by {shift / dose:.2%} ({errors:.1f} counting errors)")
    if worst > BLOCK_COUNTING_ERRORS:
        warnings.append(f"the mean of a 64 x 64 block changed by {worst:.1f} counting errors")
    if noise > 1.5:
        warnings.append(
            f"{noise:.1f} times the noise expected from the counts was removed: gain or offset may be "
            "wrong, or structure was lost; compare with the raw image"
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
