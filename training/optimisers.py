"""The optimisers of the recipes: one or two of PyTorch's own, which the loop steps together.

**Muon** (K. Jordan, 2024) replaces the momentum of a matrix by the nearest orthogonal matrix, so that all directions
of a layer change at the same rate. A convolution counts as a matrix (out, in · k · k), a transposed one as
(in, out · k · k). AdamW trains the first and the last convolution and all biases.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.presets import Recipe

_MUON_MOMENTUM = 0.95
ADAMW_SHARE = 0.5
"""Rate of AdamW over that of Muon in one network."""


class ConvolutionMuon(torch.optim.Muon):
    """PyTorch's Muon, which takes matrices only, for the weights (4-D) of convolutions.

    Its matrices share their memory with the weights, which therefore must be dense: contiguous, or channels last.
    Raises ValueError for others.
    """

    def __init__(self, weights: Sequence[nn.Parameter], rate: float, decay: float) -> None:
        self._weights = tuple(weights)
        self._matrices = tuple(nn.Parameter(as_matrix(weight.detach())) for weight in weights)
        super().__init__(
            self._matrices, rate, weight_decay=decay, momentum=_MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw"
        )

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step along the weights' gradients; a weight without a gradient stays."""
        for weight, matrix in zip(self._weights, self._matrices, strict=True):
            # In the weight's own memory format, so that the columns of both matrices are the same.
            matrix.grad = None if weight.grad is None else as_matrix(torch.empty_like(weight).copy_(weight.grad))
        super().step(closure)  # type: ignore[no-untyped-call]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the weights, too."""
        super().zero_grad(set_to_none)
        for weight in self._weights:
            weight.grad = None


def as_matrix(weight: Tensor) -> Tensor:
    """A dense weight (n, ...) as a matrix (n, rest) of the same memory. Raises ValueError if it is not dense."""
    channels_last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    if not (weight.is_contiguous() or channels_last):
        raise ValueError(f"a weight of shape {tuple(weight.shape)} and strides {weight.stride()} is not dense")
    columns = weight[0].numel()
    return weight.as_strided((len(weight), columns), (columns, 1))


def optimisers(recipe: Recipe, network: nn.Module) -> list[torch.optim.Optimizer]:
    """The recipe's optimisers over all parameters. Each group's `share` is its rate over the recipe's.

    The network must keep its memory format from now on.
    """
    parameters = list(network.parameters())
    decay = recipe.decay
    chosen: list[torch.optim.Optimizer]
    match recipe.optimiser:
        case "muon":
            inner = _inner_convolutions(network)
            known = {id(parameter) for parameter in inner}
            others = [parameter for parameter in parameters if id(parameter) not in known]
            adamw = torch.optim.AdamW(others, recipe.rate, betas=(recipe.beta1, 0.98), weight_decay=decay)
            chosen = [ConvolutionMuon(inner, recipe.rate, decay), adamw]
        case "adamw":
            chosen = [torch.optim.AdamW(parameters, recipe.rate, betas=(recipe.beta1, 0.98), weight_decay=decay)]
        case "adam":
            chosen = [torch.optim.Adam(parameters, recipe.rate, betas=(recipe.beta1, 0.999), weight_decay=decay)]
        case "rmsprop":
            chosen = [torch.optim.RMSprop(parameters, recipe.rate, alpha=0.9, weight_decay=decay)]
        case "nesterov":
            chosen = [torch.optim.SGD(parameters, recipe.rate, momentum=0.9, nesterov=True, weight_decay=decay)]
    for number, one in enumerate(chosen):
        for group in one.param_groups:
            group["share"] = ADAMW_SHARE if number else 1.0
    return chosen


def _inner_convolutions(network: nn.Module) -> list[nn.Parameter]:
    """Weights of all convolutions but the first and the last, in the order of the network's modules."""
    layers = (module for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d))
    return [dict(layer.named_parameters())["weight"] for layer in layers][1:-1]
