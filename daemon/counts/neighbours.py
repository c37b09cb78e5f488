"""How unlikely a pixel's counts are beside those of its neighbours (the reasoning is in `daemon.counts.spikes`)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

CONFIDENCE = 3.0
"""Standard deviations by which the background is taken lower, and the neighbours higher, than measured."""


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """For n pixels: counts in their neighbours, number of these, and the share of the pixel that they must hold."""

    total: Values
    number: Values
    share: Values

    def of(self, chosen: NDArray[np.intp] | NDArray[np.bool_]) -> "Neighbours":
        return Neighbours(self.total[chosen], self.number[chosen], self.share[chosen])

    @property
    def brightest(self) -> Values:
        """The neighbours' mean counts at the upper end of its uncertainty."""
        return (np.sqrt(self.total) + CONFIDENCE / 2) ** 2 / np.maximum(self.number, 1)

    def unlikelihood(self, pixel: Values, background: Values) -> Values:
        """-ln of an upper bound on the probability of this many counts beside these neighbours; 0 if none are left."""
        number = np.maximum(self.number, 1)
        flatness = np.minimum(background / self.brightest, 1)
        times = number / np.where(self.number > 0, self.share, 1)
        # The pixel's expected counts over all its neighbours' together; background 0 gives 1 / share exactly.
        ratio = (times - (times - 1) * flatness) / number
        probability = ratio / (1 + ratio)
        every = np.maximum(pixel + self.total, 1e-30)
        with np.errstate(divide="ignore", invalid="ignore"):
            bound = np.where(pixel > 0, pixel * np.log(pixel / (every * probability)), 0) + np.where(
                self.total > 0, self.total * np.log(self.total / (every * (1 - probability))), 0
            )
        return np.where((self.number > 0) & (pixel > every * probability), bound, 0.0)
