"""Compares a result with the raw data, independently of the network, and decides the verdict: good, check or reject."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from daemon.counts.plane import Prepared, Spikes
from daemon.counts.profiles import Choice
from daemon.counts.reason import Reason
from daemon.counts.scaling import Scaling, sharing
from daemon.errors import MicrographError
from daemon.micrograph import Image, Pixels
from daemon.verdict import residual
from daemon.verdict.residual import Residual

Word = Literal["good", "check", "reject"]

BLOCK = 64
_MEAN_TOLERANCE = 1e-3
COUNTING_ERRORS = 3.0
_BLOCK_COUNTING_ERRORS = 4.0
"""The mean must be kept within 0.1 % or 3 counting errors, and in each 64 × 64 block within 4 counting errors."""
DARKEST = 0.05
"""Share of the dose, and one electron, that the counts of a block are taken to be at least."""
_FLOAT32_PEDESTAL = 1e3
"""Pedestal, noise units, up to which float32 is exact enough; it takes half the time."""

# Limits of the figures; benchmarks/verdict.py measures how many bad and good results they reject.
REJECTED = 0.95
"""Estimated squared error over that of the raw image; the estimate is a little low where there is fine structure."""
STRONGLY_CORRELATED, REJECTED_CORRELATED = 0.4, 0.8
"""Above the first correlation of neighbours the spectrum of the noise is less certain; the second is the limit then."""
_MOSTLY_STRUCTURE = 0.4
"""Share of the noise that was kept, above which noise and structure are hardly distinct."""
_NOISE_KEPT, _UNTOUCHED = 0.45, 0.9
"""Share of the noise that was kept where the image shows only noise, over the whole image and in one patch."""
_BLOCK_REMOVED = 1.5
"""Largest mean square removed from a block, over the noise."""
CORRELATED = 0.2
"""Correlation of neighbours above which noise resembles structure, and a network keeps some of it."""
_BEATEN = 0.05
"""Squared error, over that of the raw image, by which a Gaussian blur may be better."""
_INVENTED = 0.03
"""Power, over that of the noise, of structure in the result alone."""
_NOT_NOISE = 0.1
"""Correlation of neighbours in the removed part, beyond that of the detector's noise."""
_STRUCTURE_LOST = 0.15
_LINE_LOST = 20.0
_STRONG_CONTRAST = 1.2
SMALLEST = 128
"""Side, pixels, of the smallest crops in training; smaller images are too small for `_doubts`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Means in the micrograph's own units, over pixels that are not spikes; errors in counting errors."""

    word: Word
    """good: nothing speaks against it; check: compare the raw image; reject: probably worse than the raw image."""
    why: tuple[Reason, ...]
    """Reasons why it is not good, the most important first."""
    remarks: tuple[Reason, ...]
    """Remarks that do not make it doubtful."""
    mean_raw: float
    mean_denoised: float
    mean_shift: float
    """Change of the mean counts, as a share of them."""
    mean_shift_counting_errors: float
    worst_block_counting_errors: float
    """Largest change of a 64 × 64 block's mean; the counts of a block are taken to be at least 5 % of the dose."""
    worst_block_removed: float
    """Largest mean square removed from such a block, over the noise expected from its counts."""
    removed_noise: float
    """Standard deviation of the removed part over that of the noise expected from the counts: at most about 1."""
    evidence: Residual | None
    """Figures from the difference of raw and denoised image; None where the image shows no noise."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons why it is not good, in words."""
        return tuple(reason.text for reason in self.why)

    @property
    def headline(self) -> str | None:
        """The most important reason."""
        return self.why[0].text if self.why else None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types; `codes` belong to `reasons` in order, `details` are all reasons but the headline."""
        figures = {key: value for key, value in asdict(self).items() if key not in ("word", "why", "remarks")}
        return {
            "word": self.word,
            "headline": self.headline,
            "reasons": list(self.reasons),
            "codes": [reason.code for reason in self.why],
            "details": list(self.reasons[1:]),
            "remarks": [reason.as_json() for reason in self.remarks],
            **figures,
        }


def judge(denoised: Image, prepared: Prepared, choice: Choice) -> Verdict:
    """Compare a denoised image (H, W) with its input. Raises MicrographError if it is not finite."""
    pixels, spikes, scaling = prepared.pixels, prepared.spikes, prepared.scaling
    dose, gain = choice.effective_counts(scaling.zero), choice.noise.effective_gain
    narrow = pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32
    with np.errstate(all="ignore"):
        sums = None
        if narrow and abs(scaling.zero) < _FLOAT32_PEDESTAL * scaling.unit:
            sums = _compare(pixels, denoised, spikes, choice, scaling, np.dtype(np.float32))
        # Also where float32 overflowed: the result may be right.
        if sums is None:
            sums = _compare(pixels, denoised, spikes, choice, scaling, np.dtype(np.float64))
    if sums is None:
        raise MicrographError(
            "the network's result holds NaN or Inf and was discarded; "
            "report this file, and check the profile's gain and offset"
        )
    number = pixels.size - len(spikes)
    shift = sums.removed / number
    # Smearing lowers the noise of single pixels, not that of the mean of many.
    errors = abs(shift) * sqrt(number * sharing(choice.psf) / dose)
    noise = sqrt(max(sums.squares / number - shift**2, 0.0) / dose)
    mean_denoised = scaling.zero + gain * sums.total / pixels.size
    removed = sums.squares / number / dose
    evidence = residual.examine(pixels, denoised, spikes, choice, scaling, removed)
    rejected = [] if evidence is None else list(_against(evidence))
    reasons = list(rejected)
    counted = scaling.zero - choice.offset
    change = -shift * gain / (counted if counted > 0 else dose * gain)
    reasons += _of_means(change, errors, sums.worst)
    remarks: list[Reason] = []
    if evidence is None:
        text = "it shows no noise (blank, enlarged or synthetic), so nothing indicates how good the result is"
        reasons.append(Reason("no-noise", text))
    elif min(pixels.shape) >= SMALLEST:
        reasons += _doubts(evidence, choice.dose_known)
        remarks += _remarks(evidence)
        if sums.most > _BLOCK_REMOVED * evidence.noise:
            text = f"{sums.most / evidence.noise:.2g} times the noise was removed from a {BLOCK} x {BLOCK} block"
            reasons.append(Reason("block-removed", f"{text}: compare the raw image"))
    if min(pixels.shape) < SMALLEST:
        height, width = pixels.shape
        reasons.append(Reason("small", f"{width} x {height} pixels are fewer than the network was trained on"))
    reasons += prepared.doubts
    remarks += prepared.remarks
    return Verdict(
        word="reject" if rejected else "check" if reasons else "good",
        why=tuple(reasons),
        remarks=tuple(remarks),
        mean_raw=mean_denoised + gain * shift,
        mean_denoised=mean_denoised,
        mean_shift=change,
        mean_shift_counting_errors=errors,
        worst_block_counting_errors=sums.worst,
        worst_block_removed=sums.most,
        removed_noise=noise,
        evidence=evidence,
    )


def _against(found: Residual) -> Iterator[Reason]:
    """Reasons why the result is probably worse than the raw image."""
    limit = REJECTED_CORRELATED if found.detector_correlation > STRONGLY_CORRELATED else REJECTED
    if found.error_ratio > limit:
        yield Reason(
            "worse",
            f"its squared error is estimated at {found.error_ratio:.2g} times the raw image's: use that one, and check "
            "gain, offset and profile",
        )


def _of_means(change: float, errors: float, worst: float) -> Iterator[Reason]:
    """Reasons if means were not kept: of all pixels (relative `change`; counting `errors`) or of the worst block."""
    if abs(change) > _MEAN_TOLERANCE and errors > COUNTING_ERRORS:
        yield Reason("mean", f"the mean changed by {change:+.2%} ({errors:.1f} counting errors)")
    if worst > _BLOCK_COUNTING_ERRORS:
        text = f"the mean of a {BLOCK} x {BLOCK} block changed by {worst:.1f} counting errors"
        yield Reason("block-mean", text)


def _doubts(found: Residual, dose_known: bool) -> Iterator[Reason]:
    """Further reasons to check the result."""
    if found.invented > _INVENTED:
        share = f"{sqrt(found.invented):.0%} of the noise's standard deviation"
        yield Reason("invented", f"it holds structure that the raw image does not ({share}): compare the raw image")
    correlated = found.detector_correlation > CORRELATED and not (found.kept > _MOSTLY_STRUCTURE and dose_known)
    if found.kept_alone > _NOISE_KEPT and not correlated:
        share = f"about {found.kept_alone:.0%} of the noise is still in it"
        yield Reason("noise-left", f"{share}, also where the raw image shows only noise")
    elif found.kept_most > _UNTOUCHED:
        share = f"about {min(found.kept_most, 1):.0%} of the noise is still there"
        yield Reason("part-untouched", f"in a part of it {share}: compare the raw image")
    if found.over_gaussian > _BEATEN:
        yield Reason(
            "gaussian",
            f"a Gaussian blur of {found.gaussian:g} pixels is estimated to be closer to the truth (by "
            f"{min(found.over_gaussian, 1):.0%} of the raw image's squared error): compare the raw image",
        )
    if found.residual_correlation > max(found.detector_correlation, 0) + _NOT_NOISE:
        yield Reason(
            "over-smoothed",
            "more than noise was removed: the removed part is correlated between neighbouring pixels "
            f"({found.residual_correlation:.2f})",
        )
    if found.structure_removed > _STRUCTURE_LOST:
        share = f"about {min(found.structure_removed, 1):.0%} of its contrast"
        yield Reason("contrast-lost", f"the strongest structure lost {share}")
    if found.line_removed > _LINE_LOST and found.line_share > _STRUCTURE_LOST:
        share = f"about {found.line_share:.0%} of its contrast"
        yield Reason(
            "spacing-lost", f"a structure of {found.line_spacing:.3g} pixels lost {share}: compare the raw image"
        )
    if found.contrast > _STRONG_CONTRAST:
        text = f"the contrast ({found.contrast:.2g} of the mean) is stronger than any the network was trained on"
        yield Reason("contrast", text)


def _remarks(found: Residual) -> Iterator[Reason]:
    """Remarks on the image."""
    if found.detector_correlation > CORRELATED:
        yield Reason(
            "correlated",
            f"the noise of neighbouring pixels is correlated ({found.detector_correlation:.2f}), as a scintillator or "
            f"interpolation makes it: about {min(max(found.kept, 0), 1):.0%} of it is still in the result",
        )


Values = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums over all pixels, in counts relative to the dose: result, removed part, and its square."""

    total: float
    removed: float
    squares: float
    worst: float
    """Largest change of a block's mean, in its counting errors."""
    most: float
    """Largest mean square removed from a block, over the noise expected of it."""


def _compare(
    pixels: Pixels, denoised: Image, spikes: Spikes, choice: Choice, scaling: Scaling, exact: np.dtype[Any]
) -> _Sums | None:
    """One pass over both images in bands of BLOCK rows that stay in the cache; None if a sum is not finite.

    `exact`: the type of differences and of sums within a band; further sums are float64.
    """
    height, width = pixels.shape
    dose, gain = choice.effective_counts(scaling.zero), choice.noise.effective_gain
    room = np.empty((min(BLOCK, height), width), exact)
    units = np.array([gain, gain, gain**2])
    whole, found = np.zeros((3, width)), []
    for top in range(0, height, BLOCK):
        rows = slice(top, min(top + BLOCK, height))
        band = _band(rows, pixels, denoised, spikes, scaling, room)
        whole += band
        if rows.stop - top < BLOCK <= height:  # the last rows are judged as a block flush with the edge
            band = _band(slice(height - BLOCK, height), pixels, denoised, spikes, scaling, room)
        if min(height, width) >= BLOCK:
            found.append(_blocks(band))
    removed, level, squares = (whole.sum(axis=1) / units).tolist()
    if not np.isfinite((removed, level, squares)).all():
        return None
    if not found:
        return _Sums(level - removed, removed, squares, 0.0, 0.0)
    shifts, levels, powers = (blocks / unit for blocks, unit in zip(np.stack(found, axis=1), units, strict=True))
    # A block without light has no counting error, but no network is exact. Where the dose is a stand-in, the noise is
    # taken as even.
    noise = np.maximum(levels + dose, max(DARKEST * dose, 1 / BLOCK**2) if choice.dose_known else dose)
    worst = float((np.abs(shifts) * BLOCK / np.sqrt(noise / sharing(choice.psf))).max())
    return _Sums(level - removed, removed, squares, worst, float((powers / noise).max()))


def _band(
    rows: slice, pixels: Pixels, denoised: Image, spikes: Spikes, scaling: Scaling, room: Values
) -> NDArray[np.float64]:
    """Sums (3, W) over some rows of each column: raw minus denoised, raw less the mean, and the square of the first.

    In the micrograph's units. Spikes, NaN and Inf among them, count as unchanged.
    """
    difference = room[: rows.stop - rows.start]
    out = denoised[rows]
    np.copyto(difference, pixels[rows], casting="unsafe")
    difference -= out
    inside = slice(*np.searchsorted(spikes.rows, (rows.start, rows.stop)))
    difference[spikes.rows[inside] - rows.start, spikes.columns[inside]] = 0
    sums = np.empty((3, out.shape[1]))
    sums[0] = difference.sum(axis=0)
    sums[1] = out.sum(axis=0, dtype=room.dtype)
    sums[1] += sums[0] - len(out) * scaling.zero
    sums[2] = np.einsum("ij,ij->j", difference, difference)
    return sums


def _blocks(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means (n, blocks) in a band of BLOCK rows from sums over its columns (n, W); the last is flush with the edge."""
    number, width = sums.shape
    full = width // BLOCK * BLOCK
    inner, last = sums[:, :full].reshape(number, -1, BLOCK).sum(axis=2), sums[:, -BLOCK:].sum(axis=1)
    return np.asarray(np.column_stack((inner, last)) / BLOCK**2)
