"""Muon on convolutions: its direction is the orthogonal matrix, whatever the memory format."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from training.network import build
from training.optimisers import ADAMW_SHARE, ConvolutionMuon, as_matrix, optimisers
from training.presets import FAST


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrix, by the singular values in float64."""
    u, _, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ vt


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (8, 24, 2, 2), (64, 4, 1, 1)])
def test_a_step_goes_along_the_orthogonal_matrix(shape: tuple[int, ...], channels_last: bool) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape))
    if channels_last:
        weight = nn.Parameter(weight.detach().to(memory_format=torch.channels_last))
    gradient = torch.randn(shape)
    before = weight.detach().clone()
    muon = ConvolutionMuon([weight], rate=0.1, decay=0.0)
    weight.grad = gradient.clone()
    muon.step()
    step = (before - weight.detach()).flatten(1).double()
    rows, columns = step.shape
    wanted = orthogonalised(gradient.flatten(1))
    scale = 0.1 * 0.2 * max(rows, columns) ** 0.5
    # Five Newton-Schulz steps bring singular values to between about 0.7 and 1.2, not to 1.
    values = torch.linalg.svdvals(step / scale)
    assert 0.5 < values.min() and values.max() < 1.3
    alike = (step * wanted).sum() / (step.norm() * wanted.norm())
    assert alike > 0.97


def test_both_memory_formats_take_the_same_steps() -> None:
    torch.manual_seed(1)
    start, gradients = torch.randn(12, 6, 3, 3), torch.randn(4, 12, 6, 3, 3)
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(start.clone(memory_format=layout))
        muon = ConvolutionMuon([weight], rate=0.02, decay=1e-2)
        for gradient in gradients:
            weight.grad = gradient
            muon.step()
        ends.append(weight.detach().contiguous())
    # The iteration is in bfloat16, whose sums depend on the order of the columns.
    assert torch.allclose(*ends, atol=2e-3)


def test_a_weight_without_a_gradient_stays_and_one_that_is_not_dense_is_refused() -> None:
    weight = nn.Parameter(torch.ones(4, 4, 3, 3))
    ConvolutionMuon([weight], rate=0.1, decay=0.0).step()
    assert torch.equal(weight, torch.ones(4, 4, 3, 3))
    with pytest.raises(ValueError, match="not dense"):
        as_matrix(torch.ones(4, 4, 3, 6)[..., ::2])


def test_first_and_last_convolution_and_biases_stay_with_adamw() -> None:
    network = build("fast", FAST.arguments)
    muon, adamw = optimisers(FAST, network)
    counts = [sum(p.numel() for group in one.param_groups for p in group["params"]) for one in (muon, adamw)]
    assert sum(counts) == sum(p.numel() for p in network.parameters())
    biases = sum(p.numel() for name, p in network.named_parameters() if name.endswith("bias"))
    ends = network.body.head.weight.numel() + network.body.tail.weight.numel()  # type: ignore[union-attr]
    assert counts[1] == biases + ends
    assert [group["share"] for one in (muon, adamw) for group in one.param_groups] == [1.0, ADAMW_SHARE]


def test_the_state_of_muon_survives_a_checkpoint() -> None:
    torch.manual_seed(2)
    start, gradients = torch.randn(8, 4, 3, 3), torch.randn(4, 8, 4, 3, 3)

    def run(resume: bool) -> np.ndarray:
        weight = nn.Parameter(start.clone())
        muon = ConvolutionMuon([weight], rate=0.05, decay=0.0)
        for number, gradient in enumerate(gradients):
            if resume and number == 2:
                state = muon.state_dict()
                muon = ConvolutionMuon([weight], rate=0.05, decay=0.0)
                muon.load_state_dict(state)
            weight.grad = gradient
            muon.step()
        return np.asarray(weight.detach().numpy())

    assert np.array_equal(run(False), run(True))


def test_clearing_gradients_clears_those_of_the_weights() -> None:
    network = build("fast", {"widths": [8, 16], "blocks": [1, 1]})
    both = optimisers(replace(FAST, rate=1e-3), network)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    for one in both:
        one.zero_grad()
    assert all(parameter.grad is None for parameter in network.parameters())
