"""Recognises a fill value (pixels that were not recorded) by its size, where no tag states it, such as 1e30."""

from dataclasses import replace

import numpy as np

from daemon.micrograph import Micrograph, Pixels

_HUGE = 1e20
_APART = 1e6
"""How many times larger than any other value it is."""


def marked(micrograph: Micrograph) -> Micrograph:
    """The micrograph with `metadata["fill"]` where some pixels of one value dwarf all others, and a remark."""
    if "fill" in micrograph.metadata or micrograph.pixels.dtype.kind != "f":
        return micrograph
    value = _dwarfing(micrograph.pixels)
    if value is None:
        return micrograph
    number = int((micrograph.pixels == value).sum())
    remark = (
        f"{number} pixel{'s hold' if number > 1 else ' holds'} {value:g}, more than a million times any other value: "
        "taken for pixels that were not recorded"
    )
    metadata = {**micrograph.metadata, "fill": value}
    return replace(micrograph, metadata=metadata, warnings=(*micrograph.warnings, remark))


def _dwarfing(pixels: Pixels) -> float | None:
    ends = float(np.fmax.reduce(pixels, axis=None)), float(np.fmin.reduce(pixels, axis=None))
    if not max(map(abs, ends)) >= _HUGE:
        return None  # as in almost every image; the test is fast
    finite = pixels[np.isfinite(pixels)]
    sizes = np.abs(finite)
    largest = finite[sizes.argmax()] if sizes.size else pixels.dtype.type(0)
    others = sizes[finite != largest]
    fits = bool(others.size) and abs(float(largest)) >= _HUGE and float(others.max()) * _APART <= abs(float(largest))
    return float(largest) if fits else None
