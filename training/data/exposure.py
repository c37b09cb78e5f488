"""A noiseless crop → what a detector records of it, and the truth that a denoiser is to find again.

Two conventions. `expose` is physics: mean dose, contrast and the terms of a real detector. `paper_pair` is section 3.1
of Ede's paper to the letter, on which its table rests. Both are pure functions of a NumPy generator.
"""

from dataclasses import dataclass
from math import ceil, inf, log

import numpy as np
from numpy.typing import NDArray

from daemon.counts.scaling import Noise, Scaling, minmax_crop

Image = NDArray[np.float32]

XRAY_COUNTS = (100.0, 30_000.0)
"""What one X-ray leaves behind, in counts; log-uniform. Part of it spills into a neighbouring pixel."""
MOST_SPILT = 0.3
"""The largest part that does; uniform from nothing up to this."""

HOT_COUNTS = (20.0, 2_000.0)
"""What a hot pixel adds to every exposure, in counts; log-uniform."""

DARKEST_MEAN = 1e-3
"""A crop whose mean grey is below this is a black one: it has no contrast to scale."""


@dataclass(frozen=True, slots=True)
class Detector:
    """What a camera adds to counting: ``pixel = offset + gain (blurred Poisson counts + read-out + spikes)``.

    By default nothing: pixels are counts. Raises ValueError for values outside their range.
    """

    readout: float = 0.0
    """Gaussian read-out noise, counts rms."""
    gain: float = 1.0
    """Pixel units per count."""
    offset: float = 0.0
    """Pixel value at zero counts."""
    psf: float = 0.0
    """Standard deviation in pixels of the Gaussian over which a count is smeared; it makes the noise correlated."""
    hot_pixels: float = 0.0
    """Expected share of hot pixels."""
    x_rays: float = 0.0
    """Expected X-ray hits per pixel."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("readout", 0, inf),
            ("psf", 0, 20),
            ("hot_pixels", 0, 0.1),
            ("x_rays", 0, 0.1),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} of a detector must lie in [{low}, {high}], not {getattr(self, name)}")
        if not 0 < self.gain < inf or not abs(self.offset) < inf:
            raise ValueError(f"a detector needs a positive gain and a finite offset, not {self.gain} and {self.offset}")

    @property
    def noise(self) -> Noise:
        """What its noise is like, spikes left out: the model that service scales by."""
        return Noise(self.gain, self.offset, self.readout, self.psf)


IDEAL = Detector()
"""Counts, and nothing else."""


def expose(
    rng: np.random.Generator, crop: Image, dose: float, contrast: float, detector: Detector = IDEAL
) -> tuple[Image, Image]:
    """Record a crop (H, W) >= 0 with `dose` mean counts per pixel → (pixels, truth), float32 in the detector's units.

    ``true counts = dose (1 + contrast (crop / mean(crop) - 1))``, so their mean is `dose` whatever the contrast in
    (0, 1]. The truth is what the detector would show on average: smeared by its point spread, for denoising is
    not deconvolution, and without spikes. A crop that is black all over has no contrast to scale: its truth is the
    background, ``dose (1 - contrast)``.
    """
    mean = max(float(crop.mean()), DARKEST_MEAN)
    truth = np.maximum(dose * (1 + contrast * (crop / mean - 1)), 0)
    counts = rng.poisson(truth).astype(np.float32)
    if detector == IDEAL:
        return counts, truth.astype(np.float32)
    if detector.psf:
        counts, truth = (smear(image, detector.psf) for image in (counts, truth))
    if detector.readout:
        counts = counts + np.float32(detector.readout) * rng.standard_normal(counts.shape, np.float32)
    _strike(rng, counts, detector.hot_pixels, HOT_COUNTS, spill=False)
    _strike(rng, counts, detector.x_rays, XRAY_COUNTS, spill=True)
    pixels, truth = (image * np.float32(detector.gain) + np.float32(detector.offset) for image in (counts, truth))
    return pixels.astype(np.float32, copy=False), truth.astype(np.float32, copy=False)


def smear(image: Image, sigma: float) -> Image:
    """Gaussian blur of `sigma` pixels, mirrored at the edges so that no count is lost."""
    reach = ceil(4 * sigma)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        padded = np.pad(image, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], mode="symmetric")
        extent = image.shape[axis]
        shifted = (padded[k : k + extent] if axis == 0 else padded[:, k : k + extent] for k in range(2 * reach + 1))
        image = np.add.reduce([np.float32(tap) * part for tap, part in zip(taps, shifted, strict=True)])
    return image


def _strike(rng: np.random.Generator, counts: Image, share: float, strength: tuple[float, float], spill: bool) -> None:
    """Add spikes to `counts`, in place."""
    height, width = counts.shape
    number = int(rng.poisson(share * counts.size)) if share else 0
    rows, columns = rng.integers(height, size=number), rng.integers(width, size=number)
    energy = np.exp(rng.uniform(log(strength[0]), log(strength[1]), number)).astype(np.float32)
    if spill:
        share_spilt = rng.uniform(0, MOST_SPILT, number).astype(np.float32)
        np.add.at(counts, ((rows + rng.integers(2, size=number)) % height, (columns + 1) % width), energy * share_spilt)
        energy *= 1 - share_spilt
    np.add.at(counts, (rows, columns), energy)


# The paper's protocol (section 3.1)

LOW_DOSE = (25.0, 75.0)
"""Peak counts per pixel: the least, and the mean of what is added to it, which is exponentially distributed."""
ORDINARY_DOSE = (200.0, 2500.0)
"""Peak counts per pixel: uniform between these."""


def paper_low_dose(rng: np.random.Generator) -> float:
    """Peak counts per pixel of the paper's low doses: 25 + Exp(75)."""
    least, mean_excess = LOW_DOSE
    return least + float(rng.exponential(mean_excess))


def paper_ordinary_dose(rng: np.random.Generator) -> float:
    """Peak counts per pixel of the paper's ordinary doses: uniform from 200 to 2500."""
    return float(rng.uniform(*ORDINARY_DOSE))


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One crop of the paper's protocol, all (H, W) float32.

    `noisy` and `truth` are in the units the paper's errors are stated in (noisy in [0, 1]); `counts` and
    `true_counts` are the same in counts per pixel, the latter ``dose * crop`` and not matched in mean.
    `scaling` takes counts to the units of `noisy`.
    """

    noisy: Image
    truth: Image
    scaling: Scaling
    counts: Image
    true_counts: Image


def paper_pair(rng: np.random.Generator, crop: Image, peak_dose: float) -> Pair:
    """A crop (H, W) in [0, 1] exposed as in section 3.1: Poisson counts of ``peak_dose * crop``, scaled to [0, 1].

    "After noise application, ground truth crops were scaled to have the same means as their noisy counterparts":
    ``truth = crop * mean(noisy) / mean(crop)``. A black crop gives zeros.
    """
    true_counts = np.float32(peak_dose) * crop.astype(np.float32, copy=False)
    counts = rng.poisson(true_counts).astype(np.float32)
    scaling = minmax_crop(counts)
    noisy = scaling.to_units(counts)
    mean = float(crop.mean(dtype=np.float64))
    truth = crop * np.float32(float(noisy.mean(dtype=np.float64)) / mean if mean > 0 else 0.0)
    return Pair(noisy, truth.astype(np.float32, copy=False), scaling, counts, true_counts)
