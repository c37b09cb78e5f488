"""Measures the regular pattern that a fast network leaves on flat fields, and makes the network subtract it.

On a flat field a network with strides adds a faint pattern of their period: a thousandth of the noise, far too faint to
move any loss, but a spot in the spectrum. What remains of it after the finish (`training.losses.grid`) hardly depends
on anything but the noise level; so it is measured once, on more pixels than any training sees, and subtracted.
"""

import numpy as np
import torch
from torch import Tensor

from daemon.counts.scaling import noise_units
from training.network import FastDenoiser, pattern_terms

COUNTS = (0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.5, 4.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 5000.0)
"""Mean counts per pixel of the flat fields."""
KNOTS = tuple(sorted(round(noise_units(counts).level, 4) for counts in COUNTS[1:-1]))
"""Noise levels of all of them but the outermost: between neighbours the pattern is interpolated linearly. With fewer
knots a deeper network kept up to 3e-4 of the noise at one frequency, which is a spot where little noise is left."""
SIDE, MARGIN = 512, 64
"""Side of the flat fields and width of the border that is left out, pixels."""
FRAMES = 24
"""Flat fields of each mean: the pattern is measured to about 5e-5 of the noise."""


@torch.no_grad()
def level(network: FastDenoiser, frames: int = FRAMES, seed: int = 0) -> None:
    """Set the network's `pattern` to what it leaves on `frames` flat fields of each of `COUNTS`, by least squares.

    With `KNOTS` there are as many terms as measurements. Raises ValueError for a network made without `levelled`.
    """
    if not network.levelled:
        raise ValueError("this network has no pattern to set; build it with levelled=True")
    network.eval()
    network.pattern.zero_()
    terms, patterns = [], []
    for counts in COUNTS:
        noise, pattern = pattern_of(network, counts, frames, seed)
        terms.append(pattern_terms(noise.reshape(1, 1, 1, 1), network.knots).flatten())
        patterns.append(pattern.flatten())
    found = torch.linalg.lstsq(torch.stack(terms).double(), torch.stack(patterns)).solution
    network.pattern.copy_(found.T[..., None, None])


@torch.no_grad()
def pattern_of(network: FastDenoiser, counts: float, frames: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise level of flat fields, and their average cell (period, period) less its mean, in units of their noise."""
    rng = np.random.default_rng([seed, round(100 * counts)])
    inner = slice(MARGIN, SIDE - MARGIN)
    cells = (SIDE - 2 * MARGIN) // network.period
    levels, patterns = [], []
    for _ in range(frames):
        field = rng.poisson(counts, (SIDE, SIDE)).astype(np.float32)
        scaling = noise_units(float(field.mean(dtype=np.float64)))
        units, noise = torch.from_numpy(scaling.to_units(field))[None, None], torch.tensor(scaling.level)
        out = network(units, noise.reshape(1, 1, 1, 1))[0, 0, inner, inner].double()
        cell = out.reshape(cells, network.period, cells, network.period).mean((0, 2))
        levels.append(noise.double())
        patterns.append(cell - cell.mean())
    return torch.stack(levels).mean(), torch.stack(patterns).mean(0)
