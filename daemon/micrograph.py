"""What flows through the daemon: a micrograph as read, as prepared for the network, and as denoised."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.counts.scaling import Scaling

Pixels = NDArray[Any]
"""An image plane (H, W) in any real dtype, as the camera wrote it."""

Image = NDArray[np.float32]
"""An image plane (H, W), float32."""


@dataclass(frozen=True, slots=True)
class PixelSize:
    """Physical size of one pixel. `unit` is "nm", "um", "mm", "m", "angstrom" or whatever the file said."""

    y: float
    x: float
    unit: str


@dataclass(frozen=True, slots=True)
class Acquisition:
    """How a micrograph was taken, as far as its file says so; None is "unknown", and never guessed."""

    voltage_kv: float | None = None
    magnification: float | None = None
    exposure_seconds: float | None = None
    """As the file states it: of an exposure or one frame of it, or per pixel of a scan."""
    microscope: str | None = None
    detector: str | None = None
    recorded: str | None = None
    """When, in the file's own words."""
    electrons_per_unit: float | None = None
    """Incident electrons for each unit of pixel value: the inverse of counts per electron."""
    electrons_per_pixel: float | None = None
    """Mean incident electrons per pixel."""

    @classmethod
    def stated(cls, **found: Any) -> "Acquisition":
        """From what a file holds: numbers that are none, not finite or not above 0 and empty names are unknown."""
        kept: dict[str, Any] = {key: _words(value) if key in _NAMES else _number(value) for key, value in found.items()}
        return cls(**kept)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types; "unknown" where the file says nothing."""
        return {key: "unknown" if value is None else value for key, value in asdict(self).items()}


_NAMES = ("microscope", "detector", "recorded")


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if isfinite(number) and number > 0 else None


def _words(value: Any) -> str | None:
    text = " ".join(value.split())[:200] if isinstance(value, str) else ""
    return text if text and text.isprintable() else None


UNKNOWN = Acquisition()


@dataclass(frozen=True, slots=True, eq=False)
class Micrograph:
    """One image plane and what its file says about it.

    `pixels` is (H, W), native byte order, in the file's own dtype and units; it is never written to.
    `pixel_size` is None where the file does not state one: unknown is never invented.
    `metadata` holds what is worth carrying into the output (plain JSON types only).
    `warnings` are remarks a microscopist should see (lenient header, zero tail, ...).
    """

    pixels: Pixels
    source: Path
    kind: str
    """Container: "tiff", "mrc" or a vendor's: "dm3", "dm4", "ser", "emd", "hspy"."""
    pixel_size: PixelSize | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    acquisition: Acquisition = UNKNOWN


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

    `dose` is the mean counts per pixel, without the spikes; `warnings` are for the microscopist, `doubts` those of them
    for which somebody should look at the result.
    """

    pixels: Pixels
    spikes: Spikes
    scaling: Scaling
    dose: float
    warnings: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    void: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    """Flat places of the pixels in regions without numbers, ascending: filled in for the network, not in the result."""


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
