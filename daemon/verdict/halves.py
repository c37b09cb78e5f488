"""Measures the error of a denoised image without its truth, by two independent halves of its own counts.

Binomial thinning (`daemon.counts.thinning`) makes two images A and B of half the dose with independent noise. Then
``mean((denoised A - B)²) = mean((denoised A - truth)²) + mean(truth)``, because B is the truth plus Poisson noise. So
the squared error of a denoised half is known without the truth. Fourier ring correlations between halves show up to
which detail they agree. All this holds at half the dose, and for counts only; at the full dose the result is better.
"""

from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.backends.manifest import Manifest
from daemon.backends.protocol import Backend
from daemon.counts import lines, no_specimen
from daemon.counts.no_specimen import NoSpecimen
from daemon.counts.noise import WINDOW
from daemon.counts.prepare import plane
from daemon.counts.profiles import Choice, DoseEvidence
from daemon.counts.thinning import examine, thin
from daemon.errors import MicrographError
from daemon.micrograph import Image, Pixels
from daemon.verdict import rings
from daemon.verdict.psnr import psnr_of_error
from daemon.verdict.rings import RINGS, free_terms

LARGEST = 2048
"""Side of the central part of a larger image that is evaluated, pixels."""
BLOCK, FEWEST = 64, 4
"""Side, pixels, of the blocks whose spread gives the errors, and the fewest blocks along each axis."""
_THRESHOLD = 1 / 7
"""Of the Fourier ring correlation of two halves, where their detail ends (Rosenthal and Henderson, 2003: 0.143)."""
_CHANCE = 4.0
"""Standard errors of a ring's correlation, below which it may be chance."""
_PEAK_PERCENTILE = 99.9
"""Of the denoised half: the peak for PSNR."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """Squared errors in counts², at half the dose; `frc_*` are means over RINGS rings up to half a cycle per pixel."""

    dose: float
    """Mean counts per pixel of a half."""
    error: float
    """Mean squared error of a denoised half."""
    error_deviation: float
    """Its standard error."""
    raw_error: float
    """That of a half as recorded: its mean counts."""
    psnr: float
    """Of a denoised half, dB."""
    raw_psnr: float
    frc_raw: tuple[float, ...]
    """Of the two halves as recorded."""
    frc_denoised: tuple[float, ...]
    """Of the two denoised halves. Structure that a network invents agrees in both, so this proves no detail."""
    frc_cross: tuple[float, ...]
    """Of a denoised half with the other as recorded: invented structure does not agree here."""
    detail_raw: float | None
    """Period, pixels, of the finest detail in which the halves as recorded agree; None: none."""
    detail_cross: float | None
    """That of a denoised half with the other as recorded."""
    invented: float
    """Power of structure in both denoised halves but in neither half as recorded, over the noise of a half; 0 if not
    significant."""

    @property
    def gain_db(self) -> float:
        """Improvement by denoising, dB."""
        return self.psnr - self.raw_psnr

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "gain_db": self.gain_db, "holds": "at half the dose"}

    def describe(self) -> str:
        """For the terminal."""
        low, high = (self.error + sign * 2 * self.error_deviation for sign in (-1, 1))
        raw, cross = ("none" if one is None else f"{one:.3g} pixels" for one in (self.detail_raw, self.detail_cross))
        return (
            f"at half the dose ({self.dose:.3g} counts per pixel): squared error {self.error:.3g} counts² "
            f"({max(low, 0):.3g} to {high:.3g}), {self.raw_error:.3g} as recorded: {self.gain_db:+.1f} dB; PSNR "
            f"{self.psnr:.1f} dB, {self.raw_psnr:.1f} as recorded; detail down to {cross}, {raw} as recorded; invented "
            f"texture: {f'{self.invented:.2g} of the noise power' if self.invented else 'none found'}"
        )


def assess(pixels: Pixels, choice: Choice, weights: Manifest, backend: Backend, seed: int = 0) -> Assessment:
    """Assess the denoising of an image (H, W) by `backend`, which runs `weights`, on two halves of its counts.

    Raises MicrographError, with the measurement, if its values are not plain counts.
    """
    pixels = no_specimen.picture(pixels, choice.dose_evidence.no_specimen)
    height, width = pixels.shape
    top, left = (max(0, (side - LARGEST) // 2) for side in (height, width))
    middle = pixels[top : top + LARGEST, left : left + LARGEST]
    counts: Image = ((middle.astype(np.float64) - choice.offset) / choice.gain).astype(np.float32)
    if not np.isfinite(counts).all():
        raise MicrographError("not applicable: some of its values are not finite numbers")
    if len(choice.dose_evidence.no_specimen.filled):
        raise MicrographError("not applicable: some of its pixels hold the fill value that the file states")
    bad = lines.find(middle)
    test = examine(lines.replaced(counts, bad), middle.dtype.name)
    if test.reasons:
        raise MicrographError(f"not applicable: {'; '.join(test.reasons)}")
    known = DoseEvidence(no_specimen=NoSpecimen(lines=bad))  # in both halves
    plain = Choice(choice.profile, "a half", 1.0, 0.0, dose_evidence=known)
    halves = thin(np.random.default_rng(seed), counts, 0.5)
    done = list(backend.denoise([plane(half, plain, weights.dose_range) for half in halves]))
    sound = np.ones(counts.shape, bool)
    for one in done:  # X-ray hits and hot pixels are in both halves
        sound[one.prepared.spikes.rows, one.prepared.spikes.columns] = False
    (first, second), (ours, other) = (tuple(one.image for one in done), halves)
    error, deviation = _error(((first, other), (second, ours)), sound)
    dose = float(np.mean([half[sound].mean(dtype=np.float64) for half in halves]))
    peak = float(np.percentile(first, _PEAK_PERCENTILE))
    for image, half in ((first, ours), (second, other)):
        half[~sound] = image[~sound]
    raw, denoised = rings.frc(ours, other), rings.frc(first, second)
    cross = (rings.frc(first, other) + rings.frc(second, ours)) / 2
    return Assessment(
        dose=dose,
        error=error,
        error_deviation=deviation,
        raw_error=dose,
        psnr=psnr_of_error(peak, error),
        raw_psnr=psnr_of_error(peak, dose),
        frc_raw=_listed(raw),
        frc_denoised=_listed(denoised),
        frc_cross=_listed(cross),
        detail_raw=_detail(raw, counts.shape),
        detail_cross=_detail(cross, counts.shape),
        invented=_invented((first, second), (ours, other), dose),
    )


def _error(pairs: tuple[tuple[Image, Image], ...], sound: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean squared error of denoised halves against the truth, each (denoised, other half), and its standard error."""
    parts = []
    for denoised, other in pairs:
        excess = np.square(denoised.astype(np.float64) - other) - other
        excess[~sound] = 0
        parts.append(excess)
    excess = np.mean(parts, axis=0)
    rows, columns = (max(FEWEST, side // BLOCK) for side in excess.shape)
    blocks = np.array(
        [part.mean() for band in np.array_split(excess, rows) for part in np.array_split(band, columns, 1)]
    )
    return float(excess.mean() * excess.size / sound.sum()), float(blocks.std(ddof=1)) / sqrt(len(blocks))


def _invented(denoised: tuple[Image, Image], halves: tuple[Image, Image], dose: float) -> float:
    """Power that two denoised halves (H, W) share with each other but not with the other half, over the noise.

    A denoised half is independent of the noise of the other half, so the network has added this power. An estimate that
    is only too faint shares less with the other denoised half than with the other half.
    """
    shape = denoised[0].shape
    window = np.outer(*(np.hanning(side) for side in shape))
    spectra = (np.fft.rfft2((image - image.mean()) * window).ravel() for image in (*denoised, *halves))
    one, two, ours, other = spectra
    ring, twins = rings.terms(shape)
    noise = dose * float(np.square(window).sum())
    excess = (one * two.conj() - (one * other.conj() + two * ours.conj()) / 2).real * twins
    chance = (np.square(np.abs(one)) + np.square(np.abs(two))) / 8 * noise * np.square(twins)
    common, variance = (np.bincount(ring, terms, RINGS + 1)[:RINGS] for terms in (excess, chance))
    beyond = common > _CHANCE * np.sqrt(WINDOW * variance)
    return float(common[beyond].sum() / (noise * twins.sum()))


def _detail(correlation: NDArray[np.float64], shape: tuple[int, ...]) -> float | None:
    """Period, pixels, of the finest ring that agrees significantly; None if there is none."""
    terms = free_terms(shape)
    above = np.flatnonzero(correlation >= np.maximum(_THRESHOLD, _CHANCE / np.sqrt(np.maximum(terms, 1))))
    return float(2 * RINGS / (above[-1] + 0.5)) if len(above) else None


def _listed(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)
