"""Whether whole numbers have a sign, by their pixels: the wrong reading jumps between neighbours."""

import numpy as np

from daemon.micrograph import Pixels

FEWER, FAR_FEWER = 1.3, 30.0
"""How many times larger the differences of the wrong reading are: decidedly, and beyond doubt."""


def differences(signed: Pixels, unsigned: Pixels) -> tuple[float, float]:
    """Sums of the differences between neighbours in a row of both readings (H, W), in pairs where these differ."""
    apart = np.diff(signed < 0, axis=1)  # of the others the difference is the same either way
    of_signed, of_unsigned = (
        float(np.abs(np.diff(plane.astype(np.int32), axis=1))[apart].sum(dtype=np.float64))
        for plane in (signed, unsigned)
    )
    return of_signed, of_unsigned
