"""Tests whether two exposures show the same field of view in the same place with independent noise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daemon.micrograph import Image
from training.data.truths import own_noise

_ALIGN_SIDE = 1024
_ALIGN_BAND = (4.0, 0.2)
"""Exposures are compared between 4 waves per image and 0.2 cycles per pixel (the latter a Gaussian's σ)."""
_IN_COMMON = 3.0
"""Standard errors by which unshifted exposures must agree."""
_FOUND, _MOVED = 6.0, 4.0
"""Standard errors by which a significant shift must exceed all others, and be better than none."""
_APART = 0.15
"""Largest displacement of exposures, pixels: averaged over both directions, it costs 11 % at Nyquist's frequency and
3 % at half of it; half a pixel costs 100 % and 29 %."""
_SAME_NOISE = 0.97
"""Largest correlation of the finest detail of two exposures."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """Agreement of two exposures. All but the shifts (pixels) and the last in standard errors."""

    agreement: float
    """Agreement of their specimens, unshifted."""
    best: float
    """The same at the best shift."""
    shift_y: int
    shift_x: int
    better_by: float
    """Gain of agreement by the shift."""
    offset: tuple[float, float]
    """Shift of the second, down and right, for the best agreement, in pixels and fractions; near zero only."""
    offset_error: float
    """Its standard error, pixels."""
    finest_detail: float
    """Correlation of their finest detail, nearly all noise: 1 for one image in two files."""

    def refusal(self) -> str | None:
        """The reason why they are not two exposures of one field, or None."""
        if self.finest_detail > _SAME_NOISE:
            return (
                f"its two exposures are one and the same, noise included (correlation {self.finest_detail:.3f}); "
                "independent exposures are needed"
            )
        if self.best > _FOUND and self.better_by > _MOVED:
            return (
                f"its exposures agree better when shifted by ({self.shift_y}, {self.shift_x}) pixels (by "
                f"{self.better_by:.0f} standard errors): the specimen moved, or they show different fields; align them"
            )
        away = float(np.hypot(*self.offset))
        if away > _APART and away > _MOVED * self.offset_error:
            return (
                f"its exposures are {away:.2f} pixels apart (at most {_APART:g} are let through): learnt from, they "
                "would teach the network to blur; align them"
            )
        if self.agreement < _IN_COMMON:
            return (
                f"its exposures have nothing in common above their noise ({self.agreement:.1f} standard errors): "
                "different fields of view, or too few counts to tell"
            )
        return None


def compare(first: Image, second: Image) -> Alignment:
    """Cross-correlate two exposures (H, W), in counts. Their noise is at least that of counts."""
    height, width = (min(_ALIGN_SIDE, extent) for extent in first.shape)
    middle = tuple(
        slice((full - used) // 2, (full - used) // 2 + used)
        for full, used in zip(first.shape, (height, width), strict=True)
    )
    images = [image[middle] for image in (first, second)]
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[None, 1:-1]
    spectra = [np.fft.rfft2((image - image.mean(dtype=np.float64)) * window) for image in images]
    white = [float((window**2).sum()) * max(float(image.mean()), own_noise(image) ** 2) for image in images]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    waves = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None, :] * width)
    band = np.exp(-0.5 * (frequency / _ALIGN_BAND[1]) ** 2) * (waves > _ALIGN_BAND[0])
    correlation = np.fft.irfft2(spectra[0] * spectra[1].conj() * band, s=(height, width))
    signal = [np.maximum(np.abs(f) ** 2 - n, 0) for f, n in zip(spectra, white, strict=True)]
    twice = np.full(band.shape, 2.0)
    twice[:, 0] = 1
    variance = twice * band**2 * (signal[0] * white[1] + signal[1] * white[0] + white[0] * white[1])
    error = float(np.sqrt(variance.sum())) / (height * width)
    row, column = np.unravel_index(int(correlation.argmax()), correlation.shape)
    best = float(correlation[row, column])
    shift_y, shift_x = (
        (int(at) + extent // 2) % extent - extent // 2 for at, extent in ((row, height), (column, width))
    )
    offset, offset_error = _offset(spectra[0] * spectra[1].conj() * band * twice, variance, (height, width))
    one, other = ((i[::2, ::2] - i[1::2, ::2] - i[::2, 1::2] + i[1::2, 1::2]).astype(np.float64) for i in _even(images))
    power = float((one**2).sum() * (other**2).sum()) ** 0.5
    return Alignment(
        agreement=float(correlation[0, 0]) / error,
        best=best / error,
        shift_y=shift_y,
        shift_x=shift_x,
        better_by=(best - float(correlation[0, 0])) / (error * 2**0.5),
        offset=offset,
        offset_error=offset_error,
        finest_detail=float((one * other).sum()) / power if power else 1.0,
    )


def _offset(
    cross: NDArray[np.complex128], variance: NDArray[np.float64], shape: tuple[int, int]
) -> tuple[tuple[float, float], float]:
    """The shift near zero that turns a cross spectrum real, by Newton's method → ((down, right), its error)."""
    height, width = shape
    frequencies = np.stack(np.broadcast_arrays(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]))
    angular = 2 * np.pi * frequencies.reshape(2, -1)
    found, error = np.zeros(2), np.inf
    for _ in range(8):
        turned = cross.ravel() * np.exp(-1j * (found @ angular))
        curvature = (angular * turned.real) @ angular.T
        if np.linalg.det(curvature) <= 0 or curvature[0, 0] <= 0:
            return (0.0, 0.0), np.inf  # no common structure
        inverse = np.linalg.inv(curvature)
        found = np.clip(found + inverse @ (angular @ turned.imag), -1, 1)
        spread = inverse @ ((angular * variance.ravel()) @ angular.T) @ inverse
        error = float(np.sqrt(np.trace(spread) / 2))
    return (float(-found[0]), float(-found[1])), error


def _even(images: Sequence[Image]) -> Iterator[Image]:
    """Images without an odd last row or column."""
    return (image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2] for image in images)
