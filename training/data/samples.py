"""Truths → batches of noisy and true crops. Every sample is a pure function of (seed, step, index).

The paper's section 3.1 (random crops, eight symmetries, low and ordinary doses, Poisson noise, mean-matched truth) is
`PaperDraw`. `Draw` adds conditions of real detectors: doses from under one count per pixel upwards, and contrasts below
one, ``true counts = dose (1 + contrast (x / mean x - 1))``; a crop stretched to [0, 1] has blacks of zero counts,
unlike real high-resolution and cryo micrographs. Its batches are in the serving contract's noise units.

The order of the data needs no state: a training that resumes at step `s`, on another machine or with the samples of a
step divided among processes, gets the same samples; and any process may draw them ahead.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from math import exp, log, sqrt
from typing import Protocol

import numpy as np

from daemon.counts.scaling import COUNTS, Noise, noise_units, sharing
from training.data.exposure import IDEAL, Detector, Image, expose, paper_low_dose, paper_ordinary_dose, paper_pair
from training.data.truths import Truth

logger = logging.getLogger(__name__)

FAINTEST_DOSE = 0.5
"""No crop is exposed with fewer mean counts per pixel than this."""
LEAST_MEASURED = 0.1
"""Smallest mean counts per pixel in the scaling of a crop."""

STRETCHED, INVERTED, BENT = 0.4, 0.15, 0.3
"""Shares of crops with these changes of the grey scale (`regrade`)."""
BEND, STRANGEST = 0.7, 1.5
"""Largest logarithms of the exponent of a bent grey scale, and of a frame's brightness over a crop's."""


class Drawn(Protocol):
    """Input of a loss: a `Batch`, or the same as tensors on the training's device."""

    @property
    def noisy(self) -> object: ...
    @property
    def truth(self) -> object: ...
    @property
    def level(self) -> object: ...
    @property
    def weight(self) -> object: ...


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Arrays (N, 1, S, S) float32 in noise units of the noisy crop's scaling; `level`, `weight` (N, 1, 1, 1).

    `weight` turns an error in those units into one in the noise of the crop's own mean dose; with an emphasis on
    defects it is (N, 1, S, S), larger there. In the paper's protocol the units are those of the noisy crop scaled to
    [0, 1], `level` is 0 and `weight` is 1.
    """

    noisy: Image
    truth: Image
    level: Image
    weight: Image


@dataclass(frozen=True, slots=True)
class Draw:
    """Distribution of samples. Shares are probabilities."""

    side: int = 128
    """Height and width of a crop, pixels."""
    simulated: float = 0.3
    """Share of simulated crops; all of them if there are no truths, none if there are no scenes."""
    low: float = 0.40
    """Share of peak doses from the paper's low law, 25 + Exp(75)."""
    ordinary: float = 0.25
    """Share of peak doses from the paper's ordinary law, U(200, 2500)."""
    doses: tuple[float, float] = (FAINTEST_DOSE, 5000.0)
    """All others: mean counts per pixel, log-uniform between these."""
    sparse: float = 0.3
    """Share of the simulated crops with few counts per atom, independent of the other shares: rare in the paper's laws,
    but here a network most easily completes a lattice and removes its defects."""
    sparse_doses: tuple[float, float] = (FAINTEST_DOSE, 20.0)
    """Their mean counts per pixel, log-uniform between these."""
    faint: float = 0.4
    """Share of the simulated crops, independent of the other shares, whose contrast follows from the dose, which is
    log-uniform: point defects are barely visible in them at any dose."""
    visibilities: tuple[float, float] = (0.5, 4.0)
    """Their contrast times the square root of their mean counts per pixel, log-uniform between these."""
    full_contrast: float = 0.5
    """Share of crops with full contrast: blacks have no counts."""
    contrasts: tuple[float, float] = (0.02, 1.0)
    """All others: log-uniform between these."""
    flat: float = 0.0
    """Share of crops without any specimen; their doses are log-uniform."""
    stranger: float = 0.5
    """Share of crops from a frame that is darker or brighter by up to a factor of e^1.5 = 4.5: in service the scale is
    that of the whole micrograph."""
    real_detector: float = 0.0
    """Share of crops recorded by a detector that adds read-out noise, point spread and spikes."""
    emphasis: float = 0.0
    """How much more a squared error weighs at a point defect or a single atom, where scenes mark them: a network that
    is asked for the least error removes what is rare."""
    worst_detector: Detector = IDEAL
    """Its read-out noise, point spread and spikes are uniform between none and these; gain and offset are these."""
    misjudged: float = 0.0
    """Standard deviation of the logarithm of the gain in the scaling of crops over the true one: in service the gain is
    measured, with an error."""


@dataclass(frozen=True, slots=True)
class PaperDraw:
    """Distribution of samples of the paper's protocol."""

    side: int = 512
    """Height and width of a crop, pixels."""
    low: float = 1.0
    """Share of low doses; the others are ordinary ones."""
    simulated: float = 0.0
    """Share of simulated crops."""


def sample(draw: Draw, truths: Sequence[Truth], scenes: Sequence[Image], seed: int, step: int, index: int) -> Batch:
    """Sample `index` of step `step` of the run `seed`: a batch of one, the same for the same arguments.

    `scenes` are simulated images (H, W) float32 in [0, 1]. Raises ValueError if there is nothing to draw from.
    """
    rng = np.random.default_rng([seed, step, index])
    versions, simulated = _versions(rng, draw.simulated, truths, scenes)
    crop, places = apart(draw_crop(rng, versions, draw.side))
    crop = regrade(rng, crop)
    contrast = 1.0 if rng.random() < draw.full_contrast else _log_uniform(rng, draw.contrasts)
    dose = mean_dose(draw, rng, float(crop.mean()), simulated)
    if simulated and rng.random() < draw.faint:
        dose, contrast = barely_visible(draw, rng)
    if draw.flat and rng.random() < draw.flat:
        crop, dose, places = np.full_like(crop, 0.5), _log_uniform(rng, draw.doses), np.zeros_like(crop)
    detector = IDEAL
    if rng.random() < draw.real_detector:
        worst = draw.worst_detector
        shares = dict(zip(("readout", "psf", "hot_pixels", "x_rays"), rng.random(4), strict=True))
        detector = replace(worst, **{name: float(share) * getattr(worst, name) for name, share in shares.items()})
    frame = exp(rng.uniform(-STRANGEST, STRANGEST)) if rng.random() < draw.stranger else 1.0
    pixels, truth = expose(rng, crop, dose, contrast, detector)
    misjudged = exp(draw.misjudged * rng.standard_normal()) if draw.misjudged else 1.0
    made = in_noise_units(pixels, truth, frame, detector.noise, misjudged)
    return replace(made, weight=made.weight * np.sqrt(1 + draw.emphasis * places)) if draw.emphasis else made


def apart(crop: Image) -> tuple[Image, Image]:
    """A crop, and the places of its defects, where it has them (H, W, 2)."""
    if crop.ndim == 2:
        return crop, np.zeros_like(crop)
    return np.ascontiguousarray(crop[..., 0]), crop[..., 1]


def batch(
    draw: Draw, truths: Sequence[Truth], scenes: Sequence[Image], seed: int, step: int, indices: Sequence[int]
) -> Batch:
    """The samples `indices` of one step, in that order."""
    return _together([sample(draw, truths, scenes, seed, step, index) for index in indices])


def paper_sample(
    draw: PaperDraw, truths: Sequence[Truth], scenes: Sequence[Image], seed: int, step: int, index: int
) -> Batch:
    """As `sample`, by the paper's section 3.1: the crop stretched to [0, 1], exposed, and scaled to [0, 1] again."""
    rng = np.random.default_rng([seed, step, index])
    versions, _ = _versions(rng, draw.simulated, truths, scenes)
    crop = stretched(draw_crop(rng, versions, draw.side))
    dose = paper_low_dose(rng) if rng.random() < draw.low else paper_ordinary_dose(rng)
    pair = paper_pair(rng, crop, dose)
    one = np.ones((1, 1, 1, 1), np.float32)
    return Batch(pair.noisy[None, None], pair.truth[None, None], 0 * one, one)


def paper_batch(
    draw: PaperDraw, truths: Sequence[Truth], scenes: Sequence[Image], seed: int, step: int, indices: Sequence[int]
) -> Batch:
    """As `batch`, by the paper's section 3.1."""
    return _together([paper_sample(draw, truths, scenes, seed, step, index) for index in indices])


def draw_crop(rng: np.random.Generator, versions: Sequence[Image], side: int) -> Image:
    """A random crop (side, side) of one of the versions of a micrograph, in one of its eight symmetries.

    Smaller micrographs are continued by their mirror images.
    """
    image = versions[int(rng.integers(len(versions)))]
    row, column = (int(rng.integers(max(extent - side, 0) + 1)) for extent in image.shape[:2])
    crop = image[row : row + side, column : column + side]
    if crop.shape[:2] != (side, side):
        _say_mirrored(image.shape[:2], side)
        missing = [(0, side - extent) for extent in crop.shape[:2]]
        crop = np.pad(crop, [*missing, *[(0, 0)] * (crop.ndim - 2)], mode="reflect")
    crop = np.rot90(crop, int(rng.integers(4)))
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return np.ascontiguousarray(crop, np.float32)


def stretched(crop: Image) -> Image:
    """To [0, 1]; a constant crop stays constant."""
    low = crop.min()
    return np.asarray((crop - low) / max(float(crop.max() - low), 1e-3), np.float32)


def regrade(rng: np.random.Generator, crop: Image) -> Image:
    """Sometimes stretched to [0, 1], inverted, or bent in its grey scale: dark field for bright, thick for thin."""
    if rng.random() < STRETCHED:
        crop = stretched(crop)
    if rng.random() < INVERTED:
        crop = 1 - crop
    if rng.random() < BENT:
        crop = np.power(crop, np.float32(exp(rng.uniform(-BEND, BEND))))
    return crop


def mean_dose(draw: Draw, rng: np.random.Generator, mean: float, simulated: bool = False) -> float:
    """Mean counts per pixel for a crop whose mean grey is `mean`: the paper's laws are of the peak, where grey is 1."""
    if simulated and rng.random() < draw.sparse:
        return _log_uniform(rng, draw.sparse_doses)
    which = rng.random()
    if which < draw.low:
        return max(FAINTEST_DOSE, paper_low_dose(rng) * mean)
    if which < draw.low + draw.ordinary:
        return max(FAINTEST_DOSE, paper_ordinary_dose(rng) * mean)
    return _log_uniform(rng, draw.doses)


def barely_visible(draw: Draw, rng: np.random.Generator) -> tuple[float, float]:
    """Mean counts per pixel and contrast of a faint crop."""
    dose = _log_uniform(rng, draw.doses)
    lowest, highest = draw.contrasts
    return dose, min(highest, max(lowest, _log_uniform(rng, draw.visibilities) / sqrt(dose)))


def in_noise_units(
    pixels: Image, truth: Image, frame: float = 1.0, camera: Noise = COUNTS, misjudged: float = 1.0
) -> Batch:
    """A batch of one from a noisy and a true crop (S, S), in the noise units of a frame `frame` times as bright.

    The units are those of service: of `camera`, with `misjudged` times its gain. The weight is in noise of the crop's
    own mean dose at frequency zero: a smeared camera's noise of 1 hides more smooth structure than white noise of 1,
    which no network can avoid.
    """
    effective = replace(camera, gain=camera.gain * misjudged)
    gain, offset = effective.effective_gain, effective.effective_offset
    measured = (float(pixels.mean(dtype=np.float64)) - offset) / gain
    dose = max(measured, LEAST_MEASURED)  # also a crop without counts needs a scale
    scaling = noise_units(dose * frame, gain, offset)
    own = noise_units(dose, gain, offset)
    weight = scaling.unit / own.unit * sqrt(misjudged * sharing(camera.psf))
    return Batch(
        scaling.to_units(pixels)[None, None],
        scaling.to_units(truth)[None, None],
        *(np.full((1, 1, 1, 1), value, np.float32) for value in (scaling.level, weight)),
    )


def _versions(
    rng: np.random.Generator, simulated: float, truths: Sequence[Truth], scenes: Sequence[Image]
) -> tuple[Sequence[Image], bool]:
    """The versions of one micrograph, or one simulated scene and True."""
    if not truths and not scenes:
        raise ValueError("there is neither a truth nor a scene to draw from")
    if scenes and (not truths or rng.random() < simulated):
        return (scenes[int(rng.integers(len(scenes)))],), True
    return truths[int(rng.integers(len(truths)))].versions, False


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return exp(rng.uniform(log(limits[0]), log(limits[1])))


def _together(samples: Sequence[Batch]) -> Batch:
    return Batch(*(np.concatenate([getattr(one, field.name) for one in samples]) for field in fields(Batch)))


@cache
def _say_mirrored(shape: tuple[int, ...], side: int) -> None:
    logger.info("a micrograph of %d × %d pixels is continued by its mirror image to crops of %d", *shape, side)
