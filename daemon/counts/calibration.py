"""Calibrates a camera by flat fields and darks: gain, offset, read-out, point spread, linearity and defects.

Photon transfer: the variance of counts grows with their mean, and the slope is the gain. Frames of one brightness are
compared in pairs, so that the fixed pattern cancels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray

from daemon.counts.noise import PILE, Estimate, Spectra, patch_spectra
from daemon.counts.point_spread import spread
from daemon.counts.scaling import sharing
from daemon.errors import MicrographError
from daemon.micrograph import Pixels
from daemon.settings.camera_file import Camera, Defects

Values = NDArray[np.float64]

_SAME = 0.02
"""Relative difference of means below which frames have the same brightness."""
SATURATED = 1e-3
"""Share of the pixels in the highest value from which on a frame is saturated."""
UNEVEN, BLOCK = 1.5, 32
"""Ratio of the brightest to the darkest parts of a flat, in blocks of so many pixels, from which on it is no flat."""
_OUTLIER = 8.0
"""Standard deviations beyond which a pixel is an X-ray hit, hot or dead."""
BENT = 0.05
"""Relative deviation of the variance from its line beyond which the camera is not linear."""
_BLIND = 0.5
"""Share of the light below which a pixel is dead."""
LISTED = 1000
"""Defective pixels listed, at most."""
_FAINT = 3.0
"""Standard errors by which the light of a level must exceed the darks."""


@dataclass(slots=True, eq=False)
class Level:
    """Frames of one brightness, added one by one."""

    mean: float
    """Of the first frame, units."""
    number: int = 0
    pairs: int = 0
    drift: float = 0.0
    """Largest difference of a frame's mean from the first, as a share of the light."""
    total: Values = field(default_factory=lambda: np.zeros((0, 0)))
    variances: list[float] = field(default_factory=list)
    spectra: list[Spectra] = field(default_factory=list)
    waiting: Values | None = None
    """A frame without a partner so far."""

    def add(self, frame: Values, dark: bool) -> None:
        """Add a frame (H, W)."""
        self.total = frame.copy() if not self.number else self.total + frame
        self.number += 1
        mean = float(frame.mean())
        self.drift = max(self.drift, abs(mean / self.mean - 1) if self.mean and not dark else 0.0)
        if self.waiting is None:
            self.waiting = frame
            return
        first, self.waiting = self.waiting, None
        ratio = 1.0 if dark else float(first.mean()) / mean  # a lamp drifts
        difference = (first - ratio * frame) / sqrt(1 + ratio**2)
        self.pairs += 1
        self.variances.append(_variance(difference))
        self.spectra.append(patch_spectra(difference))

    @property
    def average(self) -> Values:
        """(H, W), units."""
        return self.total / self.number

    @property
    def centre(self) -> float:
        """Mean of all frames, units, without defects."""
        return _robust_mean(self.average)

    @property
    def variance(self) -> Estimate:
        """Of single pixels' noise, units²."""
        value = float(np.mean(self.variances))
        return Estimate(value, value * sqrt(2 / (self.pairs * self.total.size)))


def _robust_mean(image: Values) -> float:
    middle = float(np.median(image))
    scale = 1.4826 * float(np.median(np.abs(image - middle)))
    good = np.abs(image - middle) <= _OUTLIER * scale if scale > 0 else np.ones_like(image, bool)
    return float(image[good].mean())


def _variance(difference: Values) -> float:
    """Variance of noise, without outliers."""
    difference = difference - np.median(difference)
    scale = 1.4826 * float(np.median(np.abs(difference)))
    good = np.abs(difference) <= _OUTLIER * scale if scale > 0 else np.ones_like(difference, bool)
    return float(np.square(difference[good]).mean())


class Frames:
    """Flats and darks of one camera, added one by one."""

    def __init__(self) -> None:
        self.flats: list[Level] = []
        self.darks = Level(0.0)
        self.shape: tuple[int, ...] | None = None
        self.saturated: list[str] = []

    def add(self, pixels: Pixels, name: str, dark: bool) -> None:
        """Add a frame (H, W); saturated flats are left out. Raises MicrographError for unsuitable frames."""
        if self.shape is None:
            self.shape = pixels.shape
        if pixels.shape != self.shape:
            raise MicrographError(
                f"{name}: is {pixels.shape[1]} x {pixels.shape[0]} pixels, where the frames before it have "
                f"{self.shape[1]} x {self.shape[0]}; calibrate one camera, size and binning at a time"
            )
        frame = pixels.astype(np.float64)
        if not np.isfinite(frame).all():
            raise MicrographError(f"{name}: some of its values are not finite numbers; export it again")
        if frame.min() == frame.max():
            raise MicrographError(f"{name}: every pixel has the same value, so it is no exposure; leave it out")
        if dark:
            self.darks.add(frame, dark=True)
            return
        if _saturation(frame) > SATURATED:
            self.saturated.append(name)
            return
        uneven = _unevenness(frame)
        if uneven > UNEVEN:
            raise MicrographError(
                f"{name}: its brightest parts have {uneven:.2g} times the light of its darkest: no flat field; take "
                "it without a specimen, aperture or beam edge, with the beam spread evenly"
            )
        mean = float(frame.mean())
        level = next((one for one in self.flats if abs(mean / one.mean - 1) < _SAME), None) if mean else None
        if level is None:
            level = Level(mean)
            self.flats.append(level)
        level.add(frame, dark=False)


def _saturation(frame: Values) -> float:
    """Share of the pixels in the highest value, if they pile up there."""
    values, numbers = np.unique(frame, return_counts=True)
    if len(values) < 2 or numbers[-1] <= PILE * numbers[-2]:
        return 0.0
    return float(numbers[-1] / frame.size)


def _unevenness(frame: Values) -> float:
    rows, columns = (size // BLOCK * BLOCK for size in frame.shape)
    if not rows or not columns:
        raise MicrographError(f"frames of at least {BLOCK} x {BLOCK} pixels are needed to calibrate a camera")
    blocks = frame[:rows, :columns].reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    means = np.median(blocks, axis=(1, 3)).ravel()
    low, high = np.quantile(means, [0.02, 0.98])
    return float(high / low) if low > 0 else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """A camera, and remarks on its calibration."""

    camera: Camera
    remarks: tuple[str, ...]


def calibrate(frames: Frames, made: str, detector: str | None = None, voltage_kv: float | None = None) -> Calibrated:
    """The camera of these frames. Raises MicrographError, with the remedy, if there are too few."""
    levels = sorted((one for one in frames.flats if one.pairs), key=lambda one: one.centre)
    dark = frames.darks if frames.darks.pairs else None
    remarks = _remarks(frames, dark)
    if not levels or len(levels) + (dark is not None) < 2:
        raise _too_few(frames, len(levels))
    assert frames.shape is not None
    slope, offset, readout = _transfer(levels, dark)
    linear = _linear_to(levels, offset, readout)
    usable = [one for one in levels if linear is None or one.centre <= linear] or levels[:1]
    if linear is not None:
        slope, offset, readout = _transfer(usable, dark)
        remarks.append(f"above {linear:.4g} units the camera is no longer linear; brighter flats were not used")
    psf, spectrum = spread([one for level in usable[-1:] for one in level.spectra], readout if dark else None)
    gain = slope.value / sharing(psf.value)
    wide, narrow = (sharing(max(psf.value + sign * psf.error, 0)) for sign in (1, -1))
    doubt = (narrow - wide) / 2 / sharing(psf.value)
    camera = Camera(
        made=made,
        size=(frames.shape[0], frames.shape[1]),
        detector=detector,
        voltage_kv=voltage_kv,
        gain=gain,
        gain_error=float(np.hypot(slope.error / slope.value, doubt)),
        offset=offset,
        readout=sqrt(max(readout, 0.0)) / gain,
        psf=psf.value,
        psf_error=psf.error,
        linear_to=linear,
        fixed_pattern=_fixed_pattern(usable[-1], offset),
        defects=_defects(usable[-1], dark, offset),
        curve=tuple(
            (one.centre, one.variance.value, float(one.number)) for one in ([dark] if dark else []) + list(levels)
        ),
        spectrum=spectrum,
    )
    return Calibrated(camera, tuple(remarks))


def _too_few(frames: Frames, levels: int) -> MicrographError:
    """The error that lists the frames, and those that are missing."""
    single = f"; {len(frames.flats) - levels} brightness(es) have one frame only" if frames.flats else ""
    saturated = f"; {len(frames.saturated)} frame(s) are saturated" if frames.saturated else ""
    return MicrographError(
        f"too few frames to calibrate by: pairs at {levels} brightness(es), darks: {frames.darks.number}"
        f"{single}{saturated}; take at least two flats at each of two brightnesses, or at one and two darks"
    )


def _remarks(frames: Frames, dark: Level | None) -> list[str]:
    remarks = []
    if frames.saturated:
        remarks.append(f"{len(frames.saturated)} saturated frame(s) were left out: {', '.join(frames.saturated[:5])}")
    alone = sum(not one.pairs for one in frames.flats)
    if alone:
        remarks.append(
            f"{alone} brightness(es) have a single frame and were left out: take two or more of each; if they were "
            f"meant to be alike, the lamp drifts by more than {_SAME:.0%} between frames"
        )
    drift = max((one.drift for one in frames.flats), default=0.0)
    if drift > _SAME / 4:
        remarks.append(f"the light changed by up to {drift:.1%} between frames of one brightness; this was corrected")
    if dark is None:
        remarks.append(
            "without darks, offset and read-out noise cannot be separated: the offset holds both, and the "
            "read-out is stated as 0; take two or more darks and give them with --dark"
        )
    return remarks


def _transfer(levels: Sequence[Level], dark: Level | None) -> tuple[Estimate, float, float]:
    """Slope of variance against mean, units; value at zero counts, units; variance of the read-out noise, units²."""
    points = ([dark] if dark else []) + list(levels)
    mean = np.array([one.centre for one in points])
    variance = np.array([one.variance.value for one in points])
    error = np.array([max(one.variance.error, 1e-3 * one.variance.value) for one in points])
    weight = 1 / np.square(np.maximum(error, 1e-12 * variance.max()))
    centre, height = np.average(mean, weights=weight), np.average(variance, weights=weight)
    spread_ = float((weight * np.square(mean - centre)).sum())
    slope = float((weight * (mean - centre) * (variance - height)).sum() / spread_) if spread_ > 0 else 0.0
    if slope <= _FAINT / sqrt(spread_ or inf):
        raise MicrographError(
            "the noise of the flats does not grow with their brightness, so they are no raw exposures of counts; use "
            "frames as the camera records them, not averaged, filtered or corrected for gain"
        )
    if dark is not None:
        return Estimate(slope, 1 / sqrt(spread_)), dark.centre, dark.variance.value
    return Estimate(slope, 1 / sqrt(spread_)), float(centre - height / slope), 0.0


def _linear_to(levels: Sequence[Level], offset: float, readout: float) -> float | None:
    """Mean, units, of the last level before the first whose variance falls below the line through the darker ones."""
    for number in range(2, len(levels)):
        below = levels[:number]
        gains = [(one.variance.value - readout) / (one.centre - offset) for one in below]
        expected = float(np.median(gains)) * (levels[number].centre - offset) + readout
        if levels[number].variance.value < (1 - BENT) * expected:
            return below[-1].centre
    return None


def _fixed_pattern(level: Level, offset: float) -> float | None:
    """Rms of the differences between pixels that all frames of a level share, as a share of the light."""
    if level.number < 4 or level.centre <= offset:
        return None
    pattern = _detail(level.average)
    left = _variance(pattern) - level.variance.value / level.number
    return sqrt(max(left, 0.0)) / (level.centre - offset)


def _detail(image: Values) -> Values:
    """An image less its means over blocks."""
    rows, columns = (np.arange(size) // BLOCK for size in image.shape)
    rows, columns = (np.minimum(one, max(one[-1] - 1, 0)) for one in (rows, columns))
    places = rows[:, None] * (columns[-1] + 1) + columns[None, :]
    number = np.bincount(places.ravel())
    means = np.bincount(places.ravel(), image.ravel()) / number
    return np.asarray(image - means[places])


def _defects(level: Level, dark: Level | None, offset: float) -> Defects:
    light = _detail(level.average)
    bright = level.centre - offset
    noise = 1.4826 * float(np.median(np.abs(light)))
    dead = light < -max(_BLIND * bright, _OUTLIER * noise)
    hot = light > max(_BLIND * bright, _OUTLIER * noise)
    if dark is not None:
        glow = _detail(dark.average)
        hot |= glow > _OUTLIER * 1.4826 * float(np.median(np.abs(glow)))
    hot &= ~dead
    rows, columns = (_lines(light, axis) for axis in (1, 0))
    places = np.argwhere(hot | dead)[:LISTED]
    return Defects(
        hot=int(hot.sum()),
        dead=int(dead.sum()),
        places=tuple((int(y), int(x)) for y, x in places),
        rows=rows,
        columns=columns,
    )


def _lines(light: Values, axis: int) -> tuple[int, ...]:
    """Rows (axis 1) or columns (axis 0) whose median stands out from the others'."""
    middle = np.median(light, axis=axis)
    scale = 1.4826 * float(np.median(np.abs(middle - np.median(middle))))
    apart = np.abs(middle - np.median(middle))
    return tuple(int(one) for one in np.flatnonzero(apart > _OUTLIER * scale)) if scale else ()
