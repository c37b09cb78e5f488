"""Peak signal-to-noise ratio."""

from math import inf, log10, nan


def psnr_of_error(peak: float, error: float) -> float:
    """dB, of a mean squared error against a peak value in the same units; infinite where there is no error or peak.

    NaN for an error that is none: NaN, or an estimate below 0.
    """
    if error == 0 or peak <= 0:
        return inf
    return 10 * log10(peak**2 / error) if error > 0 else nan
