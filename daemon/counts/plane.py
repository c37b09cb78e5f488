"""What flows to a network and back: the camera's plane, its survey, what was prepared, and what came out."""

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


@dataclass(frozen=True, slots=True, eq=False)
class Spikes:
    """Pixels no electron put there (X-ray hits, hot pixels, NaN, Inf) and what the network sees instead.

    `rows`, `columns` (n,) intp; `values` (n,) float32, in the micrograph's own units.
    """

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What one look at every pixel finds; dose and spikes are told from it without another.

    `total` is the sum of the finite pixels, in the image's units. Places are flat, row * W + column, ascending.
    """

    total: float
    missing: NDArray[np.intp]
    """Places of the pixels that are not finite numbers."""
    suspects: NDArray[np.intp]
    """Places of the pixels that may be spikes: all that are one, and few that are none."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What the network needs: the camera's pixels (H, W), what to replace, how to scale; and what is known of it.

    `dose` is the mean counts per pixel, without the spikes; for `doubts` somebody should check the result, `remarks`
    should be known.
    """

    pixels: Pixels
    spikes: Spikes
    scaling: Scaling
    dose: float
    doubts: tuple[Reason, ...] = ()
    remarks: tuple[Reason, ...] = ()
    void: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    """Flat places, ascending, of what stays as it is: regions without numbers, data bar and fill value. They are filled
    in for the network, not in the result."""
    lines: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    """Flat places of the spikes that lie in defective columns and rows."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """For the microscopist: remarks, then doubts."""
        return tuple(dict.fromkeys(reason.text for reason in (*self.remarks, *self.doubts)))


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """What a backend is given: the camera's pixels (H, W), in the camera's dtype, and what makes of them a `Prepared`.

    A backend surveys the pixels where it has them, with `gain`, `offset` and `false_alarm` as `spikes.survey` does,
    and calls `prepare` with what it found. That may raise MicrographError.
    """

    pixels: Pixels
    gain: float
    offset: float
    false_alarm: float
    prepare: Callable[[Survey], Prepared]
    passes: Literal[1, 8] = 1
    """How many orientations of the image are denoised and averaged (`daemon.backends.passes`)."""

    @classmethod
    def known(cls, prepared: Prepared) -> "Plane":
        """One whose spikes and scaling are known: its survey finds nothing new."""
        return cls(prepared.pixels, 1.0, 0.0, 0.0, lambda _: prepared)


@dataclass(frozen=True, slots=True, eq=False)
class Denoised:
    """What a backend gives back: `image` (H, W) float32 in the micrograph's own units, what it was made from and by."""

    image: Image
    prepared: Prepared
    backend: str
    """Name of the backend, as it was at that moment."""
