"""The records that flow to a network and back: `Plane`, its `Survey`, the `Prepared` input and the `Denoised` image."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from daemon.counts.reason import Reason
from daemon.counts.scaling import Scaling
from daemon.micrograph import Image, Pixels

SMALLEST = 32
"""Shortest side of an image worth denoising, pixels."""
NOWHERE: NDArray[np.intp] = np.empty(0, np.intp)
"""No places."""


@dataclass(frozen=True, slots=True, eq=False)
class Spikes:
    """Pixels that no electron made (X-ray hits, hot pixels, NaN, Inf) and the values that replace them for the network.

    `rows`, `columns` (n,) intp; `values` (n,) float32, in the micrograph's own units.
    """

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """The result of one pass over all pixels, from which dose and spikes follow without another pass.

    `total` is the sum of the finite pixels, in the image's units. Places are flat, row * W + column, ascending.
    """

    total: float
    missing: NDArray[np.intp]
    """Places of the pixels that are not finite numbers."""
    suspects: NDArray[np.intp]
    """Places of the pixels that may be spikes: all spikes, and few others."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Input of the network: the camera's pixels (H, W), the pixels to replace and the scaling.

    `dose` is the mean counts per pixel, without the spikes. `doubts` are reasons to check the result; `remarks` only
    inform.
    """

    pixels: Pixels
    spikes: Spikes
    scaling: Scaling
    dose: float
    doubts: tuple[Reason, ...] = ()
    remarks: tuple[Reason, ...] = ()
    void: NDArray[np.intp] = field(default_factory=NOWHERE.copy)
    """Flat places, ascending, of pixels that the result keeps: regions without numbers, data bar and fill value. They
    are filled in for the network only."""
    lines: NDArray[np.intp] = field(default_factory=NOWHERE.copy)
    """Flat places of the spikes that lie in defective columns and rows."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """For the microscopist: remarks, then doubts."""
        return tuple(dict.fromkeys(reason.text for reason in (*self.remarks, *self.doubts)))


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """Input of a backend: the camera's pixels (H, W), in the camera's dtype, and the function that prepares them.

    A backend surveys the pixels with `gain`, `offset` and `false_alarm` as `spikes.survey` does, and passes the survey
    to `prepare`, which may raise MicrographError.
    """

    pixels: Pixels
    gain: float
    offset: float
    false_alarm: float
    prepare: Callable[[Survey], Prepared]
    passes: Literal[1, 8] = 1
    """How many orientations of the image are denoised and averaged (`daemon.backends.passes`)."""
    live: bool = True
    """Whether it was recorded just now: on a server that several computers share, these go before all backlogs."""

    @classmethod
    def known(cls, prepared: Prepared) -> "Plane":
        """A plane whose spikes and scaling are known already: the survey changes nothing."""
        return cls(prepared.pixels, 1.0, 0.0, 0.0, lambda _: prepared)


@dataclass(frozen=True, slots=True, eq=False)
class Denoised:
    """Output of a backend: `image` (H, W) float32 in the micrograph's own units, its input and the backend's name."""

    image: Image
    prepared: Prepared
    backend: str
    """Name of the backend at that moment."""
