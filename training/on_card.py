"""As `training.data.samples`, on the training's device: it stores the images, and draws, exposes and scales crops.

One processor core draws some hundred crops a second, one graphics card trains on ten thousand. The laws are those of
`training.data.samples.sample` and `training.data.exposure.expose`, but the samples differ: whole batches are drawn at
once from torch's generator, seeded by (seed, step), so that a training that resumes on the same kind of device gets the
same samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, log

import numpy as np
import torch
from torch import Tensor

from daemon.counts.scaling import ANSCOMBE
from training.data import exposure, samples
from training.data.exposure import IDEAL, Detector, Image
from training.data.samples import Draw
from training.data.truths import Truth


@dataclass(frozen=True, slots=True, eq=False)
class CardBatch:
    """A `training.data.samples.Batch` of tensors: (N, 1, S, S) and (N, 1, 1, 1), float32, on the stock's device."""

    noisy: Tensor
    truth: Tensor
    level: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Stock:
    """Images (H, W) of any sizes on one device, row after row and one after the other, float32.

    `first`, `height`, `width` (images,) int64: index in `pixels` of the first pixel, and extent. `truths` (t, 2) int64:
    number of the first version of each micrograph and number of versions, repeated by its frequency; `scenes` (first,
    count): the simulated images.
    """

    pixels: Tensor
    places: Tensor
    """Of the same shape, float16: where scenes mark point defects and single atoms; 0 elsewhere."""
    first: Tensor
    height: Tensor
    width: Tensor
    truths: Tensor
    scenes: tuple[int, int]

    @staticmethod
    def of(truths: Sequence[Truth], scenes: Sequence[Image], device: torch.device) -> "Stock":
        """Copy truths, each as often as it occurs in the list, and scenes (H, W), or (H, W, 2) if they mark defects.

        Raises ValueError if there are none.
        """
        if not truths and not scenes:
            raise ValueError("there is neither a truth nor a scene to draw from")
        images: list[Image] = []
        place: dict[int, tuple[int, int]] = {}
        for truth in truths:
            if id(truth) not in place:
                place[id(truth)] = len(images), len(truth.versions)
                images += truth.versions
        begin = len(images)
        images += scenes
        height, width = torch.tensor([image.shape[:2] for image in images]).unbind(1)
        ends = (height * width).cumsum(0)
        first = ends - height * width
        pixels = torch.empty(int(ends[-1]), device=device)
        places = torch.zeros(len(pixels), dtype=torch.float16, device=device)
        for image, start, end in zip(images, first.tolist(), ends.tolist(), strict=True):
            image, marks = samples.apart(image)
            pixels[start:end] = torch.from_numpy(np.array(image, np.float32).reshape(-1))
            places[start:end] = torch.from_numpy(np.array(marks, np.float16).reshape(-1))
        entries = torch.tensor([place[id(truth)] for truth in truths], dtype=torch.int64).reshape(-1, 2)
        first, height, width, entries = (values.to(device) for values in (first, height, width, entries))
        return Stock(pixels, places, first, height, width, entries, (begin, len(images) - begin))


class Dice:
    """Random numbers of one batch of `count` samples: per sample (count,) float64, or per pixel like an image."""

    def __init__(self, device: torch.device, count: int, *seed: int) -> None:
        state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]) >> 1
        self._generator = torch.Generator(device).manual_seed(state)
        self._device, self._count = device, count

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        shape = (self._count,)
        return low + (high - low) * torch.rand(shape, generator=self._generator, device=self._device).double()

    def log_uniform(self, limits: tuple[float, float]) -> Tensor:
        return self.uniform(log(limits[0]), log(limits[1])).exp()

    def chance(self, share: float) -> Tensor:
        """(count,) bool."""
        return self.uniform() < share

    def below(self, limit: Tensor | int) -> Tensor:
        """Whole numbers from 0 to `limit` - 1, int64; `limit` below 2**24."""
        return (self.uniform() * limit).long()

    def normal(self) -> Tensor:
        return torch.randn(self._count, generator=self._generator, device=self._device).double()

    def uniform_like(self, image: Tensor) -> Tensor:
        return torch.rand(image.shape, generator=self._generator, device=self._device)

    def normal_like(self, image: Tensor) -> Tensor:
        return torch.randn(image.shape, generator=self._generator, device=self._device)

    def poisson(self, mean: Tensor) -> Tensor:
        return torch.poisson(mean, generator=self._generator)


@dataclass(frozen=True, eq=False)
class Cameras:
    """A `training.data.exposure.Detector` of each sample, (N,) float64 each, none worse than `worst`."""

    gain: Tensor
    offset: Tensor
    readout: Tensor
    psf: Tensor
    hot_pixels: Tensor
    x_rays: Tensor
    worst: Detector

    @cached_property
    def taps(self) -> Tensor:
        """Their point spreads along one axis, (N, taps), of sum 1; a single 1 where there is none."""
        reach = ceil(4 * self.worst.psf)
        offset = torch.arange(-reach, reach + 1, device=self.psf.device)
        sigma = self.psf.clamp(min=1e-3)[:, None]
        taps = torch.exp(-0.5 * (offset / sigma) ** 2) * (offset.abs() <= torch.ceil(4 * sigma))
        return taps / taps.sum(1, keepdim=True)

    @cached_property
    def sharing(self) -> Tensor:
        """(N,): as `daemon.counts.scaling.sharing`."""
        return self.taps.square().sum(1).square()


def batch_on_card(draw: Draw, stock: Stock, seed: int, step: int, indices: Sequence[int]) -> CardBatch:
    """One sample of a step for each of `indices`; processes that share a batch begin with different ones.

    The same for the same arguments on the same kind of device.
    """
    dice = Dice(stock.pixels.device, len(indices), seed, step, indices[0])
    crop, places, simulated = draw_crops(dice, draw, stock)
    crop = regrade(dice, crop)
    contrast = torch.where(dice.chance(draw.full_contrast), 1.0, dice.log_uniform(draw.contrasts))
    dose = mean_doses(draw, dice, _mean(crop), simulated)
    dose, contrast = barely_visible(draw, dice, dose, contrast, simulated)
    if draw.flat:
        flat = dice.chance(draw.flat)
        crop = torch.where(_each(flat), 0.5, crop)
        dose = torch.where(flat, dice.log_uniform(draw.doses), dose)
        places = torch.where(_each(flat), 0.0, places)
    cameras = draw_cameras(draw, dice)
    frame = torch.where(dice.chance(draw.stranger), dice.uniform(-samples.STRANGEST, samples.STRANGEST).exp(), 1.0)
    pixels, truth = expose(dice, crop, dose, contrast, cameras)
    misjudged = (draw.misjudged * dice.normal()).exp()
    made = in_noise_units(pixels, truth, frame, cameras, misjudged)
    if draw.emphasis:
        made = replace(made, weight=made.weight * torch.sqrt(1 + draw.emphasis * places)[:, None])
    return made


def draw_crops(dice: Dice, draw: Draw, stock: Stock) -> tuple[Tensor, Tensor, Tensor]:
    """Random crops (N, S, S) of random images, each in one of its eight symmetries, the places of their defects, and a
    mask (N,) of simulated ones.

    Smaller images are continued by their mirror images.
    """
    begin, scenes = stock.scenes
    entry = stock.truths[dice.below(len(stock.truths))] if len(stock.truths) else None
    image = begin + dice.below(scenes)
    if entry is not None:
        version = entry[:, 0] + dice.below(entry[:, 1])
        image = torch.where(dice.chance(draw.simulated if scenes else 0.0), image, version)
    height, width = stock.height[image], stock.width[image]
    top, left = (dice.below((extent - draw.side).clamp(min=0) + 1) for extent in (height, width))
    across = torch.arange(draw.side, device=image.device)
    row, column = across[None, :, None], across[None, None, :]
    row, column = (torch.where(_each(dice.chance(0.5)), draw.side - 1 - index, index) for index in (row, column))
    turned = _each(dice.chance(0.5))
    row, column = torch.where(turned, column, row), torch.where(turned, row, column)
    row, column = _reflected(row + _each(top), _each(height)), _reflected(column + _each(left), _each(width))
    index = _each(stock.first[image]) + row * _each(width) + column
    return stock.pixels[index], stock.places[index].float(), image >= begin


def regrade(dice: Dice, crop: Tensor) -> Tensor:
    """As `training.data.samples.regrade`."""
    low, high = crop.amin((1, 2), keepdim=True), crop.amax((1, 2), keepdim=True)
    crop = torch.where(_each(dice.chance(samples.STRETCHED)), (crop - low) / (high - low).clamp(min=1e-3), crop)
    crop = torch.where(_each(dice.chance(samples.INVERTED)), 1 - crop, crop)
    bent = crop.clamp(min=0).pow(_each(dice.uniform(-samples.BEND, samples.BEND).exp().float()))
    return torch.where(_each(dice.chance(samples.BENT)), bent, crop)


def mean_doses(draw: Draw, dice: Dice, mean: Tensor, simulated: Tensor) -> Tensor:
    """As `training.data.samples.mean_dose`, for crops of these mean greys (N,)."""
    which = dice.uniform()
    least, excess = exposure.LOW_DOSE
    low = least - excess * torch.log1p(-dice.uniform())
    peak = torch.where(which < draw.low, low, dice.uniform(*exposure.ORDINARY_DOSE))
    by_peak = (peak * mean).clamp(min=samples.FAINTEST_DOSE)
    dose = torch.where(which < draw.low + draw.ordinary, by_peak, dice.log_uniform(draw.doses))
    return torch.where(simulated & dice.chance(draw.sparse), dice.log_uniform(draw.sparse_doses), dose)


def barely_visible(draw: Draw, dice: Dice, dose: Tensor, contrast: Tensor, simulated: Tensor) -> tuple[Tensor, Tensor]:
    """Doses and contrasts (N,), some of the simulated ones as `training.data.samples.barely_visible` draws them."""
    faint, other = simulated & dice.chance(draw.faint), dice.log_uniform(draw.doses)
    visible = (dice.log_uniform(draw.visibilities) / other.sqrt()).clamp(*draw.contrasts)
    return torch.where(faint, other, dose), torch.where(faint, visible, contrast)


def draw_cameras(draw: Draw, dice: Dice) -> Cameras:
    """Detectors up to the worst one for the draw's share of the samples, counters for the others."""
    worst, real = draw.worst_detector if draw.real_detector else IDEAL, dice.chance(draw.real_detector).double()
    spoilt = {name: real * dice.uniform(0, getattr(worst, name)) for name in ("readout", "psf", "hot_pixels", "x_rays")}
    return Cameras(1 + real * (worst.gain - 1), real * worst.offset, worst=worst, **spoilt)


def expose(dice: Dice, crop: Tensor, dose: Tensor, contrast: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """As `training.data.exposure.expose`: crops (N, S, S) → (pixels, truth) in each detector's units.

    Two X-rays in one pixel add up.
    """
    relative = crop / _each(_mean(crop).clamp(min=exposure.DARKEST_MEAN)).float()
    truth = (_each(dose) * (1 + _each(contrast) * (relative - 1))).float().clamp(min=0)
    counts = dice.poisson(truth)
    if cameras.worst.psf:
        counts, truth = smear(counts, cameras.taps), smear(truth, cameras.taps)
    if cameras.worst.readout:
        counts = counts + _each(cameras.readout).float() * dice.normal_like(counts)
    if cameras.worst.hot_pixels:
        counts = counts + _strike(dice, counts, cameras.hot_pixels, exposure.HOT_COUNTS, spill=False)
    if cameras.worst.x_rays:
        counts = counts + _strike(dice, counts, cameras.x_rays, exposure.XRAY_COUNTS, spill=True)
    gain, offset = _each(cameras.gain).float(), _each(cameras.offset).float()
    return counts * gain + offset, truth * gain + offset


def smear(images: Tensor, taps: Tensor) -> Tensor:
    """Images (N, H, W) with the point spread of each along both axes, mirrored at the edges; taps (N, 2 reach + 1)."""
    reach = taps.shape[1] // 2
    for axis in (1, 2):
        extent = images.shape[axis]
        index = torch.arange(-reach, extent + reach, device=images.device) % (2 * extent)
        padded = images.index_select(axis, torch.minimum(index, 2 * extent - 1 - index))
        parts = (padded.narrow(axis, k, extent) * _each(tap).float() for k, tap in enumerate(taps.unbind(1)))
        images = torch.stack([*parts]).sum(0)
    return images


def in_noise_units(pixels: Tensor, truth: Tensor, frame: Tensor, cameras: Cameras, misjudged: Tensor) -> CardBatch:
    """As `training.data.samples.in_noise_units`, for (N, S, S) pixels and truths."""
    gain = cameras.gain * misjudged
    offset = cameras.offset - gain * cameras.readout.square() / cameras.sharing
    gain = gain * cameras.sharing
    dose = ((_mean(pixels) - offset) / gain).clamp(min=samples.LEAST_MEASURED)
    sigma, own = (dose * frame + ANSCOMBE).sqrt(), (dose + ANSCOMBE).sqrt()
    zero, unit = _each(offset + gain * dose * frame).float(), _each(gain * sigma).float()
    noisy, true = ((image - zero) / unit for image in (pixels, truth))
    weight = sigma / own * (misjudged * cameras.sharing).sqrt()
    level = 0.5 / sigma
    return CardBatch(noisy[:, None], true[:, None], *(_each(x).float()[:, None] for x in (level, weight)))


def _strike(dice: Dice, counts: Tensor, share: Tensor, strength: tuple[float, float], spill: bool) -> Tensor:
    """Spikes to add to `counts`."""
    hits = dice.poisson(_each(share).float().expand_as(counts))
    low, high = (log(limit) for limit in strength)
    energy = hits * torch.exp(low + (high - low) * dice.uniform_like(counts))
    if not spill:
        return energy
    spilt = exposure.MOST_SPILT * energy * dice.uniform_like(counts)
    below = spilt * (dice.uniform_like(counts) < 0.5)
    return energy - spilt + (spilt - below).roll(1, 2) + below.roll((1, 1), (1, 2))


def _each(values: Tensor) -> Tensor:
    """A number for each sample (N,) beside images (N, H, W)."""
    return values[:, None, None]


def _mean(images: Tensor) -> Tensor:
    """(N,) float64."""
    return images.mean((1, 2), dtype=torch.float64)


def _reflected(index: Tensor, extent: Tensor) -> Tensor:
    """Indices beyond an extent, turned back at the last pixel, which is not repeated."""
    period = (2 * extent - 2).clamp(min=1)
    index = index % period
    return torch.minimum(index, period - index)
