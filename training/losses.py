"""Losses: functions of the network's output and a batch, in noise units unless stated otherwise.

`weight` turns errors into units of the noise at each crop's own mean dose; `level` is ``1 / (2 sqrt(dose + 3/8))``.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from daemon.counts.scaling import ANSCOMBE
from training.data.samples import Drawn

Loss = Callable[[Tensor, Drawn], Tensor]

_EASY = 1e-4
"""Error (variance over noise variance) below which an easy crop no longer gains weight in `balanced`."""


def on(values: object, like: Tensor) -> Tensor:
    """An array of a batch as a tensor on the output's device."""
    return torch.as_tensor(values).to(like.device, non_blocking=True)


def _crop_errors(output: Tensor, batch: Drawn) -> Tensor:
    """Mean squared error of every crop (N,), over the noise variance at its mean dose."""
    error = (output - on(batch.truth, output)) * on(batch.weight, output)
    return error.square().mean((1, 2, 3))


def balanced(output: Tensor, batch: Drawn) -> Tensor:
    """Mean over crops of the fourth root of their mean squared error.

    With the plain squared error, crops of high dose and contrast dominate; with its logarithm, which is PSNR, easy
    faint ones do. The fourth root is a compromise.
    """
    return (_crop_errors(output, batch) + _EASY).pow(0.25).mean()


def root(output: Tensor, batch: Drawn) -> Tensor:
    """Mean over crops of the root of their mean squared error: full contrast counts more than in `balanced`."""
    return (_crop_errors(output, batch) + _EASY).sqrt().mean()


def logarithmic(output: Tensor, batch: Drawn) -> Tensor:
    """Mean over crops of the logarithm of their mean squared error: PSNR up to a factor."""
    return (_crop_errors(output, batch) + _EASY).log().mean()


def mse(output: Tensor, batch: Drawn) -> Tensor:
    """Mean squared error; its minimiser is the expectation, so a noisy target serves as well as a clean one."""
    return _crop_errors(output, batch).mean()


def huber(output: Tensor, batch: Drawn) -> Tensor:
    """Squared error up to one noise σ, absolute beyond. Only for clean targets: it is biased on noisy ones."""
    weight = on(batch.weight, output)
    return F.huber_loss(output * weight, on(batch.truth, output) * weight)


def poisson(output: Tensor, batch: Drawn) -> Tensor:
    """Negative log-likelihood of noisy target counts under the predicted ones, per pixel, over the mean dose.

    The expectation minimises it, as of the squared error, but dark pixels weigh as much as their noise allows. The
    target must be noisy or clean counts of the input's own scale. Below a thousandth of the mean dose the likelihood is
    continued by a parabola, so that predictions below zero counts are corrected.
    """
    sigma = 0.5 / on(batch.level, output)
    dose = sigma.square() - ANSCOMBE
    rate, target = (units * sigma / dose + 1 for units in (output, on(batch.truth, output)))
    least = 1e-3
    above = rate.clamp(min=least)
    below = ((rate - target).square() - (least - target).square()) / (2 * least)
    likelihood = above - target * torch.log(above) + torch.where(rate < least, below, 0.0)
    return likelihood.mean()


GRID = 16
"""Period of the coarsest grid that strided layers of the fast network lay over the image, pixels."""
_BAND = 3
"""Height of a band, in periods."""


def grid(output: Tensor, batch: Drawn) -> Tensor:
    """Mean square of the pattern that flat crops share with the network's own grid, in units of their noise variance.

    On a flat field a network with strides adds a faint pattern of their period: far too faint to move any other loss,
    but a spot in the spectrum. Averaging cells of the grid leaves that pattern and a little noise, and the noise
    would be most of the square. So averages over two halves are multiplied instead: their noise is independent, and the
    expectation is the pattern's square alone. The halves are those of bands of rows and of columns, because a
    network that recognises the borders of the crop learns opposite patterns for the halves of the crop as a whole.
    A negative mean product counts as zero. Zero also for a batch without flat crops. Raises RuntimeError for crops that
    are no multiple of `GRID` pixels, or of one row of cells.
    """
    truth = on(batch.truth, output)
    flat = truth.amax((1, 2, 3)) == truth.amin((1, 2, 3))
    error = ((output - truth) * on(batch.weight, output))[flat]
    if not len(error):
        return output.new_zeros(())
    rows, columns = (extent // GRID for extent in error.shape[2:])
    cells = error.reshape(-1, rows, GRID, columns, GRID).permute(0, 1, 3, 2, 4)
    return (_repeated(cells) + _repeated(cells.transpose(1, 2))) / 2 * len(error) / len(output)


def _repeated(cells: Tensor) -> Tensor:
    """Mean square of what both halves of (crops, rows, columns, `GRID`, `GRID`) share, in each band of rows."""
    bands, half = max(1, cells.shape[1] // _BAND), cells.shape[2] // 2
    banded = cells[:, : _BAND * bands].reshape(cells.shape[0], bands, -1, *cells.shape[2:])
    first, second = (part.mean((2, 3)) for part in (banded[:, :, :, :half], banded[:, :, :, half : 2 * half]))
    first, second = (part - part.mean((2, 3), keepdim=True) for part in (first, second))
    shared: Tensor = (first * second).mean().clamp(min=0)
    return shared


def structural_similarity(output: Tensor, truth: Tensor, sigma: float = 1.5, radius: int = 5) -> Tensor:
    """Mean SSIM of (N, 1, H, W) pairs of data range 1 (Wang et al., IEEE TIP 13, 600, 2004), differentiable."""
    x = torch.arange(-radius, radius + 1, dtype=output.dtype, device=output.device)
    window = torch.exp(-0.5 * (x / sigma) ** 2)
    window = window / window.sum()
    kernel = (window[:, None] * window)[None, None]

    def smooth(image: Tensor) -> Tensor:
        return F.conv2d(image, kernel)

    mean_x, mean_y = smooth(output), smooth(truth)
    var_x = smooth(output.square()) - mean_x.square()
    var_y = smooth(truth.square()) - mean_y.square()
    both = smooth(output * truth) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    similarity = similarity / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2))
    return similarity.mean()


def huberised(clip: bool = False, ssim: float = 0.0) -> Loss:
    """The paper's loss (section 3.2, equation 2): 1000 MSE of the batch, its square root from 1.0 upwards.

    For crops scaled to [0, 1]. Args: `clip` outputs to [0, 1] first; add `ssim` times the distance from the highest
    SSIM (the experiments of section 5.2).
    """

    def loss(output: Tensor, batch: Drawn) -> Tensor:
        truth = on(batch.truth, output)
        output = output.clamp(0, 1) if clip else output
        scaled = 1000 * (output - truth).square().mean()
        # The square root has no gradient at 0, and torch.where evaluates both branches.
        value = torch.where(scaled < 1, scaled, scaled.clamp(min=1).sqrt())
        return value + ssim * (1 - structural_similarity(output, truth)) if ssim else value

    return loss


LOSSES: dict[str, Loss] = {
    "balanced": balanced,
    "root": root,
    "logarithmic": logarithmic,
    "mse": mse,
    "huber": huber,
    "poisson": poisson,
    "huberised": huberised(),
}
