"""The one scaling between a micrograph's units and what a network sees; training imports it too.

*Counts* are detected quanta: ``counts = (pixel - offset) / gain``. *Dose* is the mean counts per pixel.
A network sees **linear noise units**, ``u = (counts - dose) / sqrt(dose + 3/8)``: centred, and with the
Poisson noise of an average pixel at standard deviation 1 whatever the dose, so half-precision
rounding stays far below the noise and a faint image on a high pedestal keeps its contrast.
``level = 1 / (2 sqrt(dose + 3/8))`` gives the network the dose; with it the network's graph takes the
variance-stabilising square root, and undoes it (see `training.network.FastDenoiser`).

Both directions are affine, so a round trip is exact to float32 rounding and the mean is carried through.
"""

from dataclasses import dataclass
from math import ceil, isfinite, sqrt
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from daemon.errors import MicrographError

ANSCOMBE = 3.0 / 8.0
"""Anscombe's constant (Biometrika 35, 246, 1948): 2 sqrt(x + 3/8) of a Poisson count has variance near 1."""

ScalingKind = Literal["noise_units", "minmax_crop"]
NOISE_UNITS: ScalingKind = "noise_units"
MINMAX_CROP: ScalingKind = "minmax_crop"
"""The paper's scaling: every tile to [0, 1] by its own extremes. Only to reproduce the paper."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """``units = (pixel - zero) / unit`` for a whole micrograph, and the `level` that the network takes.

    `zero` and `unit` are in the micrograph's own units; `level` is dimensionless.
    """

    zero: float
    unit: float
    level: float

    def to_units(self, pixels: ArrayLike) -> NDArray[np.float32]:
        """Pixels of any real dtype, any shape → network units, float32."""
        # The subtraction is done in float64 where float32 cannot hold neighbouring integers.
        array = np.asarray(pixels)
        exact = np.dtype(np.float32 if array.dtype.itemsize <= 2 or array.dtype == np.float32 else np.float64)
        units: NDArray[np.float32] = ((array.astype(exact) - self.zero) * (1.0 / self.unit)).astype(
            np.float32, copy=False
        )
        return units

    def to_pixels(self, units: NDArray[np.float32]) -> NDArray[np.float32]:
        """Network units → the micrograph's own units, float32."""
        return units * np.float32(self.unit) + np.float32(self.zero)


def noise_units(dose: float, gain: float = 1.0, offset: float = 0.0) -> Scaling:
    """The serving contract: linear noise units for a micrograph of `dose` mean counts per pixel.

    `gain` is the micrograph's units per count, `offset` its value at zero counts. Raises MicrographError
    if the dose is not a positive finite number (a gain or offset that does not fit the file).
    """
    if not (isfinite(dose) and dose > 0):
        raise MicrographError(
            f"the mean is {dose:g} counts per pixel after gain {gain:g} and offset {offset:g}; "
            "counts must be positive: correct the profile's gain and offset, or use gain: auto"
        )
    sigma = sqrt(dose + ANSCOMBE)
    return Scaling(zero=offset + gain * dose, unit=gain * sigma, level=0.5 / sigma)


@dataclass(frozen=True, slots=True)
class Noise:
    """How a camera turns counts into pixels: ``pixel = offset + gain (smeared Poisson counts + read-out)``.

    The variance of a pixel of mean m is ``gain sharing (m - offset) + (gain readout)^2``: the smearing of counts over
    neighbours averages their noise (`sharing`), read-out adds the same everywhere. That is the variance of plain counts
    of another gain and offset, the effective ones: the smearing changes the gain, read-out the offset and only that.
    Training and service both scale by these, so that the noise of an average pixel is 1 in either.
    """

    gain: float = 1.0
    """Pixel units per count."""
    offset: float = 0.0
    """Pixel value at zero counts."""
    readout: float = 0.0
    """Gaussian read-out noise, counts rms; white."""
    psf: float = 0.0
    """Standard deviation, in pixels, of the Gaussian over which a count is smeared."""

    @property
    def effective_gain(self) -> float:
        """Slope of the variance of single pixels against their mean, units."""
        return self.gain * sharing(self.psf)

    @property
    def effective_offset(self) -> float:
        """Pixel value at which that variance would vanish, units."""
        return self.offset - self.gain * self.readout**2 / sharing(self.psf)

    def scaling(self, mean: float) -> Scaling:
        """Noise units of a micrograph of this `mean`, in its units. Raises MicrographError like `noise_units`."""
        dose = (mean - self.effective_offset) / self.effective_gain
        return noise_units(dose, self.effective_gain, self.effective_offset)


COUNTS = Noise()
"""A camera whose pixels are plain counts."""


def sharing(psf: float) -> float:
    """Share of the variance of counts that is left in single pixels after a Gaussian smears them over `psf` pixels.

    The sum of the squares of the point spread, 1 without any; about ``1 / (4 pi psf^2)`` from one pixel on.
    """
    return float(np.square(_taps(psf)).sum()) ** 2


def neighbours(psf: float) -> float:
    """Correlation of the noise of neighbouring pixels where a Gaussian smears each count over `psf` pixels."""
    taps = _taps(psf)
    return float((taps[1:] * taps[:-1]).sum() / np.square(taps).sum())


def _taps(psf: float) -> NDArray[np.float64]:
    """A sampled Gaussian of standard deviation `psf` pixels, along one axis, whose sum is 1."""
    if psf <= 0:
        return np.ones(1)
    reach = ceil(4 * psf)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / psf) ** 2)
    return np.asarray(taps / taps.sum())


def minmax_crop(crop: ArrayLike) -> Scaling:
    """The paper's scaling (section 3.1) of one crop to [0, 1]; a constant crop maps to 0.

    One bright pixel changes what the network sees of everything else, which is why it is not the default.
    """
    array = np.asarray(crop)
    low, high = float(array.min()), float(array.max())
    return Scaling(zero=low, unit=(high - low) or 1.0, level=0.0)
