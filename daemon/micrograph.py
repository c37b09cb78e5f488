"""What flows through the daemon: a micrograph as read, as prepared for the network, and as denoised."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.scaling import Scaling

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
    """Container: "tiff" or "mrc"."""
    pixel_size: PixelSize | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


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
class Prepared:
    """What a backend needs and nothing else: the camera's pixels, what to replace, how to scale.

    `pixels` (H, W) stay in the camera's dtype so that a GPU backend uploads the fewest bytes.
    """

    pixels: Pixels
    spikes: Spikes
    scaling: Scaling
