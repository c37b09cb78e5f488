"""The values to show as black and white: in previews, on the live page, and in programs that open results."""

import numpy as np

from daemon.micrograph import Image

WINDOW = (0.5, 99.5)
"""Percentiles of the denoised image that become black and white."""
_SAMPLE = 200_000


def window(panel: Image) -> tuple[float, float]:
    """The values of an image (H, W) of finite pixels that become black and white: the percentiles WINDOW."""
    sample = panel.reshape(-1)[:: max(1, panel.size // _SAMPLE)]
    low, high = (float(value) for value in np.percentile(sample, WINDOW))
    return (low, high) if high > low else (low - 1.0, low + 1.0)
