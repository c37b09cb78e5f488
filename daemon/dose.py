"""Which dose profile a micrograph gets, and how its pixels become counts."""

from dataclasses import dataclass, replace
from math import inf, sqrt
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from daemon.config import Config, Profile
from daemon.errors import MicrographError
from daemon.micrograph import Micrograph, Pixels

PATCH = 128
PATCHES = 8
"""The noise is measured on at most 8 × 8 patches of 128 × 128 pixels: a million pixels say enough."""
BLOCK = 16
NO_COUNTS = "the pixel values are not plain counts"
ADVICE = "state gain and offset in a profile if you know them"
GROUPS, LEAST_GROUP = 16, 24
"""Blocks are grouped by brightness, at most 16 groups of at least 24, before a line is fitted."""
COUNTS_LIKE = 0.12
"""Integers whose gain differs from 1 by less are taken for counts as they are."""
SLACK = 0.15
"""Share of the gain by which a slope may miss it beyond its own uncertainty: fine structure adds a little variance."""
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
    dose_known: bool = True
    """False where the counts are a stand-in: only the noise was measured."""

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
        # A sum of frames has the offset of each.
        return Choice(profile, why, profile.gain, profile.offset * int(micrograph.metadata.get("frames", 1)))
    found = measure(micrograph.pixels)
    remarks = (found.remark,) if found.remark else ()
    return Choice(profile, why, found.gain, found.offset, remarks, found.dose_known)


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


class Measured(NamedTuple):
    """What an image says of its own counts; `remark` for the user, `dose_known` False if it only says its noise."""

    gain: float
    offset: float
    remark: str | None
    dose_known: bool = True


def measure(pixels: Pixels) -> Measured:
    """Gain and offset from the image itself, so that an average pixel's noise has its true size.

    The noise is read off the finest diagonal detail of small blocks, where specimens show least. How its variance
    grows with the mean decides, the simplest explanation first: plain counts; proportional to counts; counts on a
    pedestal; or, if the noise does not grow with the signal, even noise and an unknown dose. Raises MicrographError
    for an image without noise.
    """
    mean, variance = block_statistics(pixels)
    noisy = variance > 0
    if not noisy.any():
        raise MicrographError(
            "the image shows no noise from pixel to pixel (it is constant, blank, enlarged or synthetic), so its "
            "counts cannot be measured; state gain and offset in the profile if it is to be processed"
        )
    mean, variance = mean[noisy], variance[noisy]
    line = Line.through(mean, variance)
    average = float(mean.mean())
    ratio = line.at(average) / average if average > 0 else 0.0
    if ratio > 0 and CREDIBLE_DOSE[0] <= average / ratio <= CREDIBLE_DOSE[1] and line.fits(ratio):
        if np.issubdtype(pixels.dtype, np.integer) and abs(ratio - 1) < COUNTS_LIKE:
            return Measured(1.0, 0.0, None)
        remark = f"{NO_COUNTS}: their noise fits {ratio:.3g} units per count, which was used; {ADVICE}"
        return Measured(ratio, 0.0, remark)
    if line.slope > 5 * line.error:
        offset = average - line.at(average) / line.slope
        credible = CREDIBLE_DOSE[0] <= (average - offset) / line.slope <= CREDIBLE_DOSE[1]
        if credible and offset <= np.quantile(mean, 0.01):  # or the dark of the image would hold negative counts
            found = f"{line.slope:.3g} units per count and {offset:.3g} units at zero counts"
            remark = f"{NO_COUNTS}: their noise fits {found}, which were used; {ADVICE}"
            return Measured(line.slope, offset, remark)
    sigma = sqrt(max(line.at(average), float(variance.min())))
    gain = sigma / sqrt(PEDESTAL_DOSE)
    found = f"even noise of {sigma:.3g} units was measured and used; the dose is not known"
    remark = f"{NO_COUNTS}, nor does their noise grow as that of counts: {found}; {ADVICE}"
    return Measured(gain, finite_mean(pixels) - PEDESTAL_DOSE * gain, remark, dose_known=False)


@dataclass(frozen=True, slots=True)
class Line:
    """Variance against mean, in units² and units. `error` is one standard error of `slope`."""

    centre: float
    height: float
    slope: float
    error: float

    @classmethod
    def through(cls, mean: NDArray[np.float64], variance: NDArray[np.float64]) -> "Line":
        """A line through groups of blocks of like brightness, whatever fine structure a minority of blocks shows."""
        groups = np.array_split(np.argsort(mean), int(np.clip(len(mean) // LEAST_GROUP, 1, GROUPS)))
        x = np.array([mean[group].mean() for group in groups])
        # Blocks full of fine structure look noisier than they are.
        y = np.array([noise[noise <= 2 * np.median(noise)].mean() for noise in (variance[group] for group in groups)])
        weight = 1 / np.maximum(y, 1e-3 * y.max()) ** 2  # the relative error is the same for all
        centre, height = np.average(x, weights=weight), np.average(y, weights=weight)
        spread = float((weight * (x - centre) ** 2).sum())
        if len(groups) < 4 or spread == 0:
            return cls(float(centre), float(height), 0.0, inf)
        slope = float((weight * (x - centre) * (y - height)).sum()) / spread
        residual = y - height - slope * (x - centre)
        error = sqrt(float((weight * residual**2).sum()) / (len(groups) - 2) / spread)
        return cls(float(centre), float(height), slope, error)

    def at(self, mean: float) -> float:
        """The variance at a mean."""
        return self.height if self.error == inf else self.height + self.slope * (mean - self.centre)

    def fits(self, gain: float) -> bool:
        """Whether the slope may be `gain`, as it is where values are proportional to counts."""
        return abs(self.slope - gain) <= 3 * self.error + SLACK * gain


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
