"""`Micrograph`: an image plane as read, with pixel size and acquisition."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]
"""An image plane (H, W) in any real dtype, as the camera wrote it."""

Image = NDArray[np.float32]
"""An image plane (H, W), float32."""


@dataclass(frozen=True, slots=True)
class PixelSize:
    """Physical size of one pixel. `unit` is "nm", "um", "mm", "m", "angstrom" or as the file spells it."""

    y: float
    x: float
    unit: str


@dataclass(frozen=True, slots=True)
class Acquisition:
    """How a micrograph was taken, as its file states; None: unknown, never guessed."""

    voltage_kv: float | None = None
    magnification: float | None = None
    exposure_seconds: float | None = None
    """As the file states it: of an exposure or one frame of it, or per pixel of a scan."""
    microscope: str | None = None
    detector: str | None = None
    recorded: str | None = None
    """Date and time as the file spells them."""
    electrons_per_unit: float | None = None
    """Incident electrons for each unit of pixel value: the inverse of counts per electron."""
    electrons_per_pixel: float | None = None
    """Mean incident electrons per pixel."""

    @classmethod
    def stated(cls, **found: Any) -> "Acquisition":
        """From the values in a file; invalid, infinite or non-positive numbers and empty names are unknown."""
        kept: dict[str, Any] = {key: _words(value) if key in _NAMES else _number(value) for key, value in found.items()}
        return cls(**kept)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types; "unknown" where the file does not state it."""
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
    """One image plane and the facts in its file.

    `pixels` is (H, W), native byte order, in the file's own dtype and units; it is never written to.
    `pixel_size` is None if the file does not state one.
    `metadata` goes into the record (plain JSON types only).
    `warnings` are remarks for the microscopist (lenient header, zero tail, ...).
    """

    pixels: Pixels
    source: Path
    kind: str
    """Container: "tiff", "mrc" or a vendor's: "dm3", "dm4", "ser", "emd", "hspy"."""
    pixel_size: PixelSize | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    acquisition: Acquisition = UNKNOWN

    @property
    def bar(self) -> range:
        """Rows of the data bar, by `metadata["data_bar"]`; empty without one."""
        return self._barred("rows")

    @property
    def side_bar(self) -> range:
        """Columns of a data bar at the left or right edge."""
        return self._barred("columns")

    def _barred(self, lines: str) -> range:
        first, last = (self.metadata.get("data_bar") or {}).get(lines, (0, -1))
        return range(first, last + 1)
