"""Splits an image into bands that stay in the processor's cache while several passes are made over each."""

from daemon.micrograph import Image

_PIXELS = 1 << 17


def bands(pixels: Image) -> list[Image]:
    """Views of successive rows of (H, W)."""
    step = max(1, _PIXELS // pixels.shape[1])
    return [pixels[top : top + step] for top in range(0, len(pixels), step)]
