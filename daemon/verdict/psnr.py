"""Peak signal-to-noise ratio."""

from math import inf, log10


def psnr_of_error(peak: float, error: float) -> float:
    """dB, of a mean squared error against a peak value in the same units; infinite where there is no error or peak."""
    return 10 * log10(peak**2 / error) if error > 0 and peak > 0 else inf
