"""What a test of a denoiser is: something that is run on counts, and a verdict."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from daemon.micrograph import Image

Denoise = Callable[[Image], Image]
Real = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Guard:
    """The verdict of one test: `worst` must be `sense` the `limit`. `numbers` holds plain JSON types only."""

    name: str
    worst: float
    sense: Literal["<=", ">="]
    limit: float
    statistic: str
    """What `worst` is, in words."""
    numbers: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        """False also where `worst` is not a number."""
        return bool(self.worst <= self.limit if self.sense == "<=" else self.worst >= self.limit)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ok": self.ok,
            "worst": self.worst if np.isfinite(self.worst) else None,
            "sense": self.sense,
            "limit": self.limit,
            "statistic": self.statistic,
            "numbers": dict(self.numbers),
        }


def counts_from(denoise: Denoise, counts: Image) -> Image:
    """Run a denoiser. Raises ValueError if what comes back is not a finite image of the same shape."""
    result = np.asarray(denoise(counts.copy()), np.float32)
    if result.shape != counts.shape or not np.isfinite(result).all():
        raise ValueError(f"the denoiser gave {result.shape}, or pixels that are not finite, for {counts.shape}")
    return result
