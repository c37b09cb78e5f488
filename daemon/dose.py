"""Which dose profile a micrograph gets, and how its pixels become counts."""

from dataclasses import dataclass, replace
from math import sqrt
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from daemon.config import Config, Profile
from daemon.errors import MicrographError
from daemon.micrograph import Micrograph, Pixels

PATCH = 128
PATCHES = 8
"""The noise is measured on at most 8 × 8 patches of 128 × 128 pixels: a million pixels say enough."""
BLOCK = 16
COUNTS_LIKE = (0.7, 1.4)
"""Integers whose variance over mean lies in here are taken for counts as they are."""
CREDIBLE_DOSE = (0.05, 5000.0)
"""Mean counts per pixel outside this range say that the values are not proportional to counts at all."""
PEDESTAL_DOSE = 1000.0
"""Data without a zero of counts are served as if on a pedestal this high: their noise is nearly even."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A profile for one micrograph. `gain`: units per count; `offset`: value at zero counts; `why`: in words."""

    profile: Profile
    why: str
    gain: float
    offset: float
    warnings: tuple[str, ...] = ()

    def counts(self, value: float) -> float:
        """A value in the micrograph's units → counts."""
        return (value - self.offset) / self.gain


def choose(config: Config, relative: PurePath, micrograph: Micrograph, named: str | None = None) -> Choice:
    """The first profile whose rules hold for the file at `relative` (to the drop folder), else the default.

    `named` overrides the rules. Raises MicrographError if the profile's gain is to be measured and cannot be.
    """
    if named is not None:
        return scaled(config.profiles[named], f"{named}: asked for", micrograph)
    for profile in config.profiles.values():
        rules = profile.match
        if not rules.states_a_rule or not rules.path_fits(relative):
            continue
        stated = [f"{key} {value}" for key, value in (("folder", rules.folder), ("name", rules.name)) if value]
        choice = scaled(profile, f"{profile.name}: {', '.join(stated)}", micrograph)
        if not rules.measured:
            return choice
        dose = choice.counts(finite_mean(micrograph.pixels))
        if profile.dose is not None and profile.dose[0] <= dose <= profile.dose[1]:
            stated.append(f"measured {dose:.3g} counts per pixel")
            return replace(choice, why=f"{profile.name}: {', '.join(stated)}")
    name = config.default_profile
    return scaled(config.profiles[name], f"{name}: default, no rule fits", micrograph)


def scaled(profile: Profile, why: str, micrograph: Micrograph) -> Choice:
    """The profile with its gain and offset as stated, or as measured from the image's own noise (gain: auto)."""
    if profile.gain != "auto":
        return Choice(profile, why, profile.gain, profile.offset)
    gain, offset, remark = measure(micrograph.pixels)
    return Choice(profile, why, gain, offset, (remark,) if remark else ())


def finite_mean(pixels: Pixels) -> float:
    """Mean of the finite pixels, in the image's units, without a copy of the whole image."""
    total, number = 0.0, 0
    for top in range(0, pixels.shape[0], PATCH):
        rows = pixels[top : top + PATCH].astype(np.float64)
        good = np.isfinite(rows)
        total += float(rows[good].sum())
        number += int(good.sum())
    if not number:
        raise MicrographError("no pixel of the image is a finite number; export it again from the camera's software")
    return total / number


def measure(pixels: Pixels) -> tuple[float, float, str | None]:
    """(gain, offset, remark) from the image itself, so that an average pixel's noise has its true size.

    The noise is read off the finest diagonal detail of small blocks, where specimens show least. Variance
    over mean is the gain if the values are proportional to counts; if they cannot be (a mean near zero, or far above
    its noise), the noise is taken to be even. Raises MicrographError for an image without noise.
    """
    mean, variance = block_statistics(pixels)
    noisy = variance > 0
    if not noisy.any():
        raise MicrographError(
            "the image has no noise at all (it is constant, blank or synthetic), so its counts "
            "cannot be measured; state gain and offset in the profile if it is to be processed"
        )
    mean, variance = mean[noisy], variance[noisy]
    positive = mean > 0
    if positive.mean() > 0.9:
        ratio = variance[positive] / mean[positive]
        # Blocks full of fine structure look noisier than they are.
        plain = ratio <= 2 * np.median(ratio)
        gain = float(variance[positive][plain].sum() / mean[positive][plain].sum())
        if np.issubdtype(pixels.dtype, np.integer) and COUNTS_LIKE[0] <= gain <= COUNTS_LIKE[1]:
            return 1.0, 0.0, None
        if CREDIBLE_DOSE[0] <= mean.mean() / gain <= CREDIBLE_DOSE[1] and float(np.quantile(mean, 0.01)) > -3 * gain:
            return (
                gain,
                0.0,
                (
                    f"the pixel values are not plain counts: their noise fits a gain of {gain:.3g} units "
                    "per count, which was used; state gain and offset in a profile if you know them"
                ),
            )
    sigma = sqrt(float(np.median(variance)))
    gain = sigma / sqrt(PEDESTAL_DOSE)
    return (
        gain,
        finite_mean(pixels) - PEDESTAL_DOSE * gain,
        (
            f"the pixel values are not proportional to counts: even noise of {sigma:.3g} units was measured and used; "
            f"the dose is not known, {PEDESTAL_DOSE:g} stands for it; state gain and offset in a profile if you know "
            "them"
        ),
    )


def block_statistics(pixels: Pixels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and noise variance of 16 × 16 blocks, in the image's units, of patches spread over the image."""
    height, width = pixels.shape
    means, variances = [], []
    for top in starts(height):
        for left in starts(width):
            patch = pixels[top : top + PATCH, left : left + PATCH].astype(np.float64)
            rows, columns = (side // BLOCK for side in patch.shape)
            blocks = patch[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2)
            detail = blocks[..., ::2, ::2] - blocks[..., 1::2, ::2] - blocks[..., ::2, 1::2] + blocks[..., 1::2, 1::2]
            good = np.isfinite(blocks).all((2, 3))
            means.append(blocks.mean((2, 3))[good])
            variances.append((np.square(detail).mean((2, 3)) / 4)[good])
    mean, variance = np.concatenate(means), np.concatenate(variances)
    if not len(mean):
        if min(pixels.shape) < BLOCK:
            raise MicrographError(f"the image {pixels.shape} is too small to measure its counts; crop it less")
        raise MicrographError("the image is full of NaN or Inf, so its counts cannot be measured; export it again")
    return mean, variance


def starts(size: int) -> list[int]:
    """Where patches begin along one axis."""
    return sorted({int(start) for start in np.linspace(0, max(size - PATCH, 0), min(PATCHES, -(-size // PATCH)))})
