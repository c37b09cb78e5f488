"""Puts the weights of a fast network into a deeper one, whose result they do not change at first."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_BLOCK = re.compile(r"body\.(?:en|de)coder\.\d+\.\d+\.(first|second)\.(weight|bias)")


def grown(weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """`weights`, completed for a `network` with more residual blocks at some of its resolutions.

    The second convolution of each new block is zero: the block adds nothing until training changes it. The first one
    is as `network` has it. Weights of another network remain without what they lack, and do not load.
    """
    complete = dict(weights)
    for name, value in network.state_dict().items():
        if name not in complete and (found := _BLOCK.fullmatch(name)):
            complete[name] = torch.zeros_like(value) if found[1] == "second" else value
    return complete
