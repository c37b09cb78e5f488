"""The two networks: the paper's, exactly by its figure 1, and a fast one for tensor cores and CPUs.

Both have the same interface, the serving contract of `daemon.counts.scaling`: ``units`` (N, 1, H, W) and ``level``
(N, 1, 1, 1), float32, in; denoised ``units`` (N, 1, H, W) out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daemon.counts.scaling import ANSCOMBE

NetworkName = Literal["fast", "ede2018"]

BATCHNORM_MOMENTUM = 0.001
"""The paper's decay rate of 0.999 (section 3.2); PyTorch's momentum is one minus TensorFlow's decay."""


@dataclass(frozen=True, slots=True)
class Layers:
    """The paper's layers, and the alternatives of its section 5."""

    activation: Literal["relu6", "relu"] = "relu6"
    renormalise: bool = False
    """Batch renormalisation in place of batch normalisation."""
    bilinear: bool = False
    """Bilinear upsampling and a convolution in place of each transposed convolution (section 4.2)."""

    def finish(self, features: int) -> list[nn.Module]:
        """Normalisation and activation, which follow every convolution."""
        return [self.norm(features), nn.ReLU6(inplace=True) if self.activation == "relu6" else nn.ReLU(inplace=True)]

    def norm(self, features: int) -> nn.BatchNorm2d:
        return (BatchRenorm2d if self.renormalise else nn.BatchNorm2d)(features, momentum=BATCHNORM_MOMENTUM)

    def conv(self, in_features: int, features: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
        """The paper's "Conv": convolution → BatchNorm → ReLU6. No bias, BatchNorm follows."""
        convolution = nn.Conv2d(in_features, features, kernel, stride, padding=kernel // 2, bias=False)
        return nn.Sequential(convolution, *self.finish(features))

    def sep(self, in_features: int, features: int, stride: int = 1, rate: int = 1) -> nn.Sequential:
        """The paper's "Sep": depthwise 3×3 → BatchNorm → pointwise 1×1 → BatchNorm → ReLU6 (section 2)."""
        depthwise = nn.Conv2d(in_features, in_features, 3, stride, rate, rate, groups=in_features, bias=False)
        return nn.Sequential(depthwise, self.norm(in_features), *self.conv(in_features, features))

    def transposed(self, in_features: int, features: int) -> nn.Sequential:
        """The paper's transposed convolution, 3×3 with stride 2: twice the height and width."""
        if self.bilinear:
            up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
            return nn.Sequential(up, *self.conv(in_features, features, kernel=3))
        convolution = nn.ConvTranspose2d(in_features, features, 3, 2, 1, output_padding=1, bias=False)
        return nn.Sequential(convolution, *self.finish(features))


class BatchRenorm2d(nn.BatchNorm2d):
    """Batch renormalisation (Ioffe, NeurIPS 2017): in training, too, it normalises by the running statistics.

    The batch's statistics are corrected towards the running ones by ``r`` and ``d``, which carry no gradient and may
    not exceed limits that widen with the steps taken, as in the paper.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name torch gives it)
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        progress = min(1.0, float(self.num_batches_tracked) / 40_000)
        largest_r, largest_d = 1 + 2 * progress, 5 * progress
        mean = input.mean((0, 2, 3))
        deviation = (input.var((0, 2, 3), unbiased=False) + self.eps).sqrt()
        running = (self.running_var + self.eps).sqrt()
        r = (deviation / running).detach().clamp(1 / largest_r, largest_r)
        d = ((mean - self.running_mean) / running).detach().clamp(-largest_d, largest_d)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(deviation.square() - self.eps, self.momentum or 0.0)

        def per_feature(values: Tensor) -> Tensor:
            return values[None, :, None, None]

        out = (input - per_feature(mean)) / per_feature(deviation) * per_feature(r) + per_feature(d)
        return out * per_feature(self.weight) + per_feature(self.bias)


class ResidualBlock(nn.Module):
    """``body(x) + shortcut(x)``; the shortcut is the identity unless one is given."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.shortcut(x)
        return out


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling (paper section 2.3): five branches, concatenated, 1×1 bottleneck."""

    def __init__(self, layers: Layers, in_features: int, features: int, rates: Sequence[int] = (6, 12, 18)) -> None:
        super().__init__()
        self.pointwise = layers.conv(in_features, in_features)
        self.atrous = nn.ModuleList(layers.sep(in_features, in_features, rate=rate) for rate in rates)
        self.bottleneck = layers.conv((2 + len(rates)) * in_features, features)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear", align_corners=False)
        out: Tensor = self.bottleneck(torch.cat([self.pointwise(x), *(branch(x) for branch in self.atrous), pooled], 1))
        return out


class Ede2018(nn.Module):
    """The atrous convolutional encoder-decoder of Ede & Beanland (2018), figure 1.

    The authors' released code differs from the figure in two places, where this follows the figure: there the
    pooled branch of the pyramid is computed but not used, and the last convolution is followed by BatchNorm and
    ReLU6 (by section 3.2 outputs are not clipped).

    Args:
        width: multiplies every number of features (rounded to a multiple of 8); 1.0 is the paper's.
        activation, renormalise, bilinear: alternatives of its section 5; see `Layers`.
        carried: whether the mean of each image is carried from input to result, as an export does. The paper's network
            does not, but the truths that it learns from have the means of their noisy crops (section 3.1).

    `level` is ignored: the paper's network does not take the dose.
    """

    stride = 16

    def __init__(
        self,
        width: float = 1.0,
        activation: Literal["relu6", "relu"] = "relu6",
        renormalise: bool = False,
        bilinear: bool = False,
        carried: bool = False,
    ) -> None:
        super().__init__()
        self.carried = carried
        layers = Layers(activation, renormalise, bilinear)
        conv, sep = layers.conv, layers.sep

        def wide(features: int) -> int:
            return max(8, round(features * width / 8) * 8)

        f64, f128, f256, f728 = map(wide, (64, 128, 256, 728))

        def entry(in_features: int, first: int, last: int) -> ResidualBlock:
            body = nn.Sequential(sep(in_features, first), sep(first, first), sep(first, last, stride=2))
            return ResidualBlock(body, conv(in_features, last, stride=2))

        self.entry = nn.ModuleList(
            [entry(1, f64, f128), entry(f128, f128, f128), entry(f128, f256, f256), entry(f256, f728, f728)]
        )
        self.middle = nn.Sequential(
            *(ResidualBlock(nn.Sequential(*(sep(f728, f728) for _ in range(3)))) for _ in range(12))
        )
        self.pyramid = AtrousPyramid(layers, f728, f256)

        def resolve(in_features: int, features: int) -> ResidualBlock:
            return ResidualBlock(
                nn.Sequential(sep(in_features, features), sep(features, features)), conv(in_features, features)
            )

        self.resolve_4 = resolve(f256 + f128, f256)
        self.up_2 = layers.transposed(f256, f256)
        self.resolve_2 = resolve(f256 + f128, f128)
        self.up_1 = layers.transposed(f128, f128)
        self.resolve_1 = resolve(f128, f64)
        self.last = nn.Conv2d(f64, 1, 3, padding=1)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)  # section 3.2; the other convolutions have none
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, units: Tensor, level: Tensor | None = None) -> Tensor:
        half = self.entry[0](units)
        quarter = self.entry[1](half)
        deep = self.middle(self.entry[3](self.entry[2](quarter)))
        semantics = F.interpolate(self.pyramid(deep), scale_factor=4, mode="bilinear", align_corners=False)
        x = self.up_2(self.resolve_4(torch.cat([semantics, quarter], 1)))
        x = self.up_1(self.resolve_2(torch.cat([x, half], 1)))
        out: Tensor = self.last(self.resolve_1(x))
        return out + (units - out).mean((2, 3), keepdim=True) if self.carried else out


class Block(nn.Module):
    """x + conv(relu(conv(x))), 3×3, no normalisation; starts close to the identity."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(features, features, 3, padding=1)
        self.second = nn.Conv2d(features, features, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(F.relu(self.first(x)))
        return out


class Body(nn.Module):
    """The part of `FastDenoiser` that runs in half precision: maps (N, 4, H, W) in, the correction (N, 1, H, W) out.

    Its convolutions have biases: the noise in its input is 1 everywhere, so thresholds have an absolute size.
    """

    def __init__(self, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()

        def stage(features: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(Block(features) for _ in range(count)))

        pairs = list(pairwise(widths))
        # A 6×6 convolution of stride 2 is a 3×3 one on the 2× pixel-unshuffled input, in one ONNX operator.
        self.head = nn.Conv2d(4, widths[0], 6, stride=2, padding=2)
        self.encoder = nn.ModuleList(stage(*args) for args in zip(widths, blocks, strict=True))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairs)
        self.decoder = nn.ModuleList(stage(*args) for args in list(zip(widths, blocks, strict=True))[:-1])
        self.tail = nn.Conv2d(widths[0], 4, 3, padding=1)
        with torch.no_grad():
            self.tail.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        skips = []
        for encode, down in zip(self.encoder, self.down, strict=False):
            x = encode(x)
            skips.append(x)
            x = down(x)
        x = self.encoder[-1](x)
        for decode, up, skip in zip(reversed(self.decoder), reversed(self.up), reversed(skips), strict=True):
            x = decode(up(x) + skip)
        out: Tensor = F.pixel_shuffle(self.tail(x), 2)
        return out


_SPLINE = 4
"""Points for each cell between which a smooth mean is interpolated linearly."""


def local_mean(x: Tensor, cell: int) -> Tensor:
    """Average of (N, 1, H, W) over 3 × 3 cells of `cell` × `cell` pixels, interpolated between their centres."""
    cells = F.avg_pool2d(_edged(F.avg_pool2d(x, cell)), 3, 1)
    out: Tensor = F.interpolate(cells, scale_factor=cell, mode="bilinear", align_corners=False)
    return out


def smooth_mean(x: Tensor, cell: int) -> Tensor:
    """As `local_mean`, but interpolated smoothly, about as by a cubic spline.

    Linear interpolation of noise has kinks at the cells' centres: faint lines along both axes of the spectrum.
    """
    cells = F.avg_pool2d(_edged(F.avg_pool2d(x, cell)), 3, 1)
    fine = F.interpolate(cells, scale_factor=_SPLINE, mode="bilinear", align_corners=False)
    for _ in range(2):
        fine = F.avg_pool2d(_edged(fine), 3, 1)
    out: Tensor = F.interpolate(fine, scale_factor=cell // _SPLINE, mode="bilinear", align_corners=False)
    return out


def _edged(x: Tensor) -> Tensor:
    # Repeated at the edges, each value counts as one in all: the mean of the frame is kept exactly.
    return F.pad(x, (1, 1, 1, 1), mode="replicate")


COARSE_KNOTS = (0.3, 0.45, 0.55, 0.61)
"""Noise levels (of 2.4, 0.9, 0.5 and 0.3 counts) at which the slope of the pattern changes, in weights up to fast-3."""
_PATTERN_HIGHEST = 0.66
"""The noise level of 0.2 counts; above it the pattern is that of 0.2 counts."""


def pattern_terms(noise: Tensor, knots: Sequence[float]) -> Tensor:
    """(N, 1, H, W) noise levels → (N, 2 + knots, H, W): 1, the level, and how far it is beyond each of the knots."""
    noise = noise.clamp(max=_PATTERN_HIGHEST)
    return torch.cat([torch.ones_like(noise), noise, *(F.relu(noise - knot) for knot in knots)], 1)


class FastDenoiser(nn.Module):
    """A U-Net of plain 3×3 convolutions that corrects a local Wiener filter.

    1. The local mean is the image averaged over about 100 pixels: its noise is negligible.
    2. The remainder is variance-stabilised with Anscombe's square root around that mean: noise of 1 in bright and dark
       alike, whatever the pedestal. With ``c = 1 + 2 level u`` (counts over dose, plus Anscombe's constant) the
       stabilised pixel is ``2 u / (1 + sqrt c)``.
    3. Where its power over those 100 pixels is P, noise is the share 1 / P of it; taking that share of each pixel's
       difference from the local mean is Lee's filter (IEEE PAMI 2, 165, 1980). A faint image becomes its local mean, a
       bright one stays as it was, and the remaining error is at most about one σ of noise. A plain residual
       network would have to reproduce the noise of a faint image to 1 % in order to subtract it.
    4. The body gets the stabilised pixel, the same times the root of the share (of order 1 at any dose), the share
       and the noise level at the local mean, and adds its correction in units of the local noise.
    5. Changes of the local mean are undone: the difference between input and result, averaged over about 50
       pixels, is added back. So the network keeps counts by construction, outside its training range too.

    All but the body stays in float32 when the body is run in half precision.

    Args:
        widths: features at 1/2, 1/4, … of the resolution.
        blocks: residual blocks at each of them, on the way down and again on the way up.
        smooth: whether the carried mean of step 5 is smooth (`smooth_mean`); False for weights up to fast-2.
        levelled: whether the regular pattern that the body's strides leave on flat fields is subtracted. Its terms,
            the buffer `pattern`, are not trained but measured (`training.levelling`).
        knots: noise levels at which the slope of that pattern changes.
    """

    cell = 32
    """Side of the cells over which mean and power are taken, pixels; tiles must lie on this grid."""
    carry_cell = 16
    """The same for the mean that is carried: it keeps the counts of 64 × 64 blocks within about 4 counting errors, and
    lets 2 % (at high doses 4 %) of the noise through."""
    stride = cell

    pattern: Tensor
    """(period², 2 + knots, 1, 1): for each pixel of a cell of the grid, a function of the noise level."""

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 256),
        blocks: Sequence[int] = (1, 1, 2, 2),
        levelled: bool = False,
        smooth: bool = False,
        knots: Sequence[float] = COARSE_KNOTS,
    ) -> None:
        super().__init__()
        self.body = Body(widths, blocks)
        self.period = 2 ** len(widths)
        """Side of the cells of the grid that the body's strides lay over the image, pixels."""
        self.levelled = levelled
        self.smooth = smooth
        self.knots = tuple(knots)
        if levelled:
            self.register_buffer("pattern", torch.zeros(self.period**2, 2 + len(self.knots), 1, 1))

    def forward(self, units: Tensor, level: Tensor) -> Tensor:
        mean = local_mean(units, self.cell)
        least = 2 * ANSCOMBE**0.5 * level  # the noise of no counts at all
        spread, mean_spread = (torch.sqrt(F.relu(1 + 2 * level * x)) for x in (units, mean))
        stabilised = 2 * units / (1 + spread) - 2 * mean / (1 + mean_spread)
        mean_spread = torch.maximum(mean_spread, least)
        share = 1 / local_mean(stabilised.square(), self.cell).clamp(min=1)
        noise = level / mean_spread
        inputs = torch.cat([stabilised, stabilised * share.sqrt(), share, noise], 1)
        correction = self.body(inputs)
        if self.levelled:
            terms = pattern_terms(F.avg_pool2d(noise, self.period), self.knots)
            correction = correction - F.pixel_shuffle(F.conv2d(terms, self.pattern), self.period)
        return self.carried(units, units - share * (units - mean) + mean_spread * correction, level)

    def carried(self, units: Tensor, out: Tensor, level: Tensor) -> Tensor:
        """The result with the local mean of the input: step 5."""
        mean = smooth_mean if self.smooth else local_mean
        carry = mean(units - out, self.carry_cell)
        # A finer second pass keeps the counts of smaller regions but also more noise: for high doses.
        carry = carry + F.relu(1 - 8 * level) * mean(units - out - carry, self.carry_cell // 2)
        return out + carry


def build(network: NetworkName, arguments: dict[str, Any]) -> FastDenoiser | Ede2018:
    """The network that a manifest names. Raises TypeError for arguments it does not take."""
    return FastDenoiser(**arguments) if network == "fast" else Ede2018(**arguments)
