"""Clean micrographs → pairs of noisy and true crops, in the serving contract's noise units.

The paper's section 3.1 (area downsizing, random crops, eight symmetries, low and ordinary doses, Poisson noise)
with what real detectors add to it: doses from under one count per pixel upwards, and contrasts below one,
``true counts = dose (1 + contrast (x / mean x - 1))``; a crop stretched to [0, 1] has blacks of zero counts, which
real high-resolution and cryo micrographs never have.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daemon import formats
from daemon.errors import EmdenoisedError
from daemon.scaling import noise_units

log = logging.getLogger(__name__)

Image = NDArray[np.float32]

NOISE_OVER_RANGE = 0.035
"""A micrograph whose own noise exceeds this share of its grey range is binned before it may serve as truth."""

MAX_PIXELS = 2**28


@dataclass(frozen=True, slots=True)
class Batch:
    """Arrays (N, 1, S, S) float32 in noise units of the noisy crop's scaling; `level`, `weight` (N, 1, 1, 1).

    `weight` turns an error in those units into one in the noise of the crop's own mean dose.
    """

    noisy: Image
    truth: Image
    level: Image
    weight: Image


def own_noise(image: Image) -> float:
    """Standard deviation of white noise in an image, from its finest diagonal detail (Donoho's MAD estimate)."""
    detail = (image[:-1:2, :-1:2] - image[1::2, :-1:2] - image[:-1:2, 1::2] + image[1::2, 1::2]) / 2
    return float(np.median(np.abs(detail)) / 0.6745)


def bin2(image: Image) -> Image:
    """Area downsizing by two, as the paper does before cropping."""
    height, width = (side // 2 * 2 for side in image.shape)
    binned: Image = image[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3), dtype=np.float32)
    return binned


def truths(image: Image, smallest: int) -> list[Image]:
    """Two versions of a micrograph to serve as truth, in [0, 1]: as it is or binned until clean, and binned once more.

    Binning stops at `smallest` pixels; noise that is left only slows learning, for nothing can predict it. A
    micrograph whose short side is below `smallest` gives none.
    """
    low, high = np.percentile(image, (0.01, 99.99))
    image = np.clip((image - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)
    spread = float(np.subtract(*np.percentile(image, (99.5, 0.5)))) or 1.0
    versions: list[Image] = []
    while min(image.shape) >= smallest and len(versions) < 2:
        smaller = bin2(image)
        if own_noise(image) < NOISE_OVER_RANGE * spread or min(smaller.shape) < smallest:
            versions.append(image)
        image = smaller
    return versions


def load_folder(folder: Path, smallest: int = 192) -> dict[str, list[Image]]:
    """File name → truths, for every micrograph in a folder the daemon can read; others are reported and skipped."""
    loaded = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file():
            continue
        try:
            pixels = formats.read(path, MAX_PIXELS).pixels.astype(np.float32)
        except EmdenoisedError as error:
            log.warning("skipped: %s", error)
            continue
        if not np.isfinite(pixels).all():
            log.warning("skipped: %s: some pixels are not finite, and a truth must be whole", path)
        elif pixels.min() == pixels.max():
            log.warning("skipped: %s: constant image, nothing to learn from", path)
        elif versions := truths(pixels, smallest):
            loaded[path.name] = versions
        else:
            log.warning("skipped: %s: smaller than %d pixels", path, smallest)
    return loaded


def draw_dose(rng: np.random.Generator, mean: float) -> float:
    """Mean counts per pixel: half from the paper's low-dose law (peak 25 + Exp(75)), half log-uniform 0.5-5000."""
    if rng.random() < 0.5:
        return max(0.5, float(25 + rng.exponential(75)) * mean)
    return float(np.exp(rng.uniform(np.log(0.5), np.log(5000))))


def draw_crop(rng: np.random.Generator, images: Sequence[Image], side: int) -> Image:
    """A random crop, one of its eight symmetries, sometimes inverted or bent in grey scale; in [0, 1]."""
    image = images[int(rng.integers(len(images)))]
    row, column = (rng.integers(extent - side + 1) for extent in image.shape)
    crop = image[row : row + side, column : column + side]
    crop = np.rot90(crop, int(rng.integers(4)))
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.4:
        crop = (crop - crop.min()) / max(float(np.ptp(crop)), 1e-3)
    if rng.random() < 0.15:
        crop = 1 - crop
    if rng.random() < 0.3:
        crop = crop ** np.float32(np.exp(rng.uniform(-0.7, 0.7)))
    return np.ascontiguousarray(crop, np.float32)


def expose(rng: np.random.Generator, crop: Image, dose: float, contrast: float) -> tuple[Image, Image]:
    """Noisy counts and the true counts they were drawn from; the mean of the truth is `dose`.

    A crop that is black all over has no contrast to scale: its truth is the background, ``dose (1 - contrast)``.
    """
    mean = max(float(crop.mean()), 1e-3)
    truth = np.maximum(dose * (1 + contrast * (crop / mean - 1)), 0)
    return rng.poisson(truth).astype(np.float32), truth.astype(np.float32)


def draw_batch(
    rng: np.random.Generator, groups: Sequence[tuple[float, Sequence[Sequence[Image]]]], size: int, side: int
) -> Batch:
    """A batch of `size` crops of `side` pixels. `groups`: (probability, micrographs, each a list of versions)."""
    noisy: list[Image] = []
    truth: list[Image] = []
    level: list[float] = []
    weight: list[float] = []
    shares = np.array([share for share, _ in groups])
    while len(noisy) < size:
        members = groups[rng.choice(len(groups), p=shares / shares.sum())][1]
        crop = draw_crop(rng, members[int(rng.integers(len(members)))], side)
        contrast = 1.0 if rng.random() < 0.4 else float(np.exp(rng.uniform(np.log(0.02), 0)))
        counts, true_counts = expose(rng, crop, draw_dose(rng, float(crop.mean())), contrast)
        dose = max(float(counts.mean()), 0.1)
        # In service the scale is the whole micrograph's, so a crop may be darker or brighter than it says.
        frame = noise_units(dose * (float(np.exp(rng.uniform(-1.5, 1.5))) if rng.random() < 0.5 else 1.0))
        noisy.append(frame.to_units(counts))
        truth.append(frame.to_units(true_counts))
        level.append(frame.level)
        weight.append(frame.unit / noise_units(dose).unit)

    def column(values: list[float]) -> Image:
        return np.array(values, np.float32).reshape(-1, 1, 1, 1)

    return Batch(np.stack(noisy)[:, None], np.stack(truth)[:, None], column(level), column(weight))
