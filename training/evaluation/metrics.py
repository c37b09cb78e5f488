"""How good is a restored image: errors against a known truth. Images are (H, W) float32."""

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import gaussian_kde

from daemon.micrograph import Image
from daemon.verdict import rings
from daemon.verdict.psnr import psnr_of_error

RINGS = rings.RINGS
"""Rings of the Fourier ring correlation between zero frequency and Nyquist's."""

KDE_BINS = 200
"""Points of a density curve: the paper's number of bins."""

_SSIM_SIGMA = 1.5
_SSIM_RADIUS = 5

_HANN_TIES = 1 + 2 * (2 / 3) ** 2 + 2 * (1 / 6) ** 2
"""Sum of the squared correlations (1, 2/3, 1/6) of neighbouring Fourier terms under a Hann window: its square root
per direction widens the spread of a correlation."""


def mse(image: Image, truth: Image) -> float:
    """Mean squared error, in the images' units squared."""
    return float(np.square(image - truth, dtype=np.float64).mean())


def psnr(image: Image, truth: Image, peak: float) -> float:
    """Peak signal-to-noise ratio, dB; infinite if the images are equal."""
    return psnr_of_error(peak, mse(image, truth))


def ssim(image: Image, truth: Image) -> float:
    """Structural similarity (Wang et al. 2004): Gaussian weights of σ 1.5, data range 1, no sample covariance.

    scikit-image's with those arguments, to rounding, at a fraction of its time.
    """
    x, y = image.astype(np.float64), truth.astype(np.float64)
    side = 2 * _SSIM_RADIUS + 1

    def local(values: NDArray[np.float64]) -> NDArray[np.float64]:
        blurred: NDArray[np.float64] = np.asarray(
            cv2.GaussianBlur(values, (side, side), _SSIM_SIGMA, borderType=cv2.BORDER_REFLECT), np.float64
        )
        return blurred

    mean_x, mean_y = local(x), local(y)
    variance_x, variance_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    index /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    inner = slice(_SSIM_RADIUS, -_SSIM_RADIUS)
    return float(index[inner, inner].mean())


def frequencies() -> NDArray[np.float64]:
    """Middle of every ring, cycles per pixel: (RINGS,)."""
    return (np.arange(RINGS) + 0.5) / (2 * RINGS)


def frc_noise(shape: tuple[int, int]) -> NDArray[np.float64]:
    """2σ line (RINGS,) of `rings.frc`: twice the spread of what two images of independent white noise give.

    Of a ring's n Fourier terms half are free (a real image's come in pairs), so σ = 1 / √n for an image without a
    window; the Hann window ties neighbouring terms together.
    """
    return np.minimum(1.0, 2 * _HANN_TIES / np.sqrt(np.maximum(rings.all_terms(shape), 1)))


def kde(values: ArrayLike, low: float, high: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Density of `values` at the middles of KDE_BINS bins in [low, high]: Gaussian kernels, Scott's bandwidth.

    Returns (positions, density). Values that are all alike have no bandwidth: they give their bin all the density.
    """
    data = np.asarray(values, np.float64)
    edges = np.linspace(low, high, KDE_BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    if len(data) < 2 or np.ptp(data) == 0:
        counts, _ = np.histogram(data, edges)
        return middles, counts / max(len(data), 1) / (edges[1] - edges[0])
    return middles, np.asarray(gaussian_kde(data, "scott")(middles), np.float64)
