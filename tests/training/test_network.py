"""The paper's network to the letter of its figure 1, and the fast one: what each promises by construction."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from daemon.counts.scaling import noise_units
from training.network import (
    BATCHNORM_MOMENTUM,
    Body,
    Ede2018,
    FastDenoiser,
    Layers,
    ResidualBlock,
    build,
    local_mean,
    smooth_mean,
)

DOSES = (0.1, 0.5, 20.0, 1000.0, 1e6)


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """The network with shapes and no numbers: full size costs nothing."""
    with torch.device("meta"):
        return make().eval()


@torch.no_grad()
def gigaflops(network: nn.Module, side: int = 512) -> float:
    """2 FLOP a multiply-add, one tile."""
    counter = FlopCounterMode(display=False)
    with counter:
        network(torch.zeros(1, 1, side, side, device="meta"), torch.zeros(1, 1, 1, 1, device="meta"))
    return float(counter.get_total_flops()) / 1e9


def count(parameters: object) -> int:
    return sum(p.numel() for p in parameters)  # type: ignore[attr-defined]


def exposed(dose: float, side: int = 128, seed: int = 0) -> tuple[Tensor, Tensor, float]:
    """Noise units (1, 1, S, S) and level of waves of 80 % contrast; and the noise unit in counts."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(side) / 9)
    counts = rng.poisson(dose * (1 + 0.8 * wave[:, None] * wave)).astype(np.float32)
    scaling = noise_units(max(float(counts.mean()), 1e-3))
    return torch.from_numpy(scaling.to_units(counts))[None, None], torch.full((1, 1, 1, 1), scaling.level), scaling.unit


# The paper's network


@pytest.fixture(scope="module")
def paper() -> nn.Module:
    return on_meta(Ede2018)


def test_the_papers_network_has_the_papers_size(paper: nn.Module) -> None:
    norms = count(p for m in paper.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    # 25.27 M weights of convolutions (one bias among them) and 0.14 M scales and shifts of BatchNorm: 25.40 M.
    assert count(paper.parameters()) - norms == 25_267_106
    assert norms == 137_074
    assert gigaflops(paper) == pytest.approx(139, rel=0.03)


@torch.no_grad()
def test_every_stage_has_the_shape_of_figure_1(paper: nn.Module) -> None:
    seen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = tuple(inputs[0].shape[1:]), tuple(output.shape[1:])

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in paper.named_modules() if name]
    out = paper(torch.zeros(1, 1, 512, 512, device="meta"))
    for handle in handles:
        handle.remove()
    assert out.shape == (1, 1, 512, 512)
    expected = {
        "entry.0": ((1, 512, 512), (128, 256, 256)),
        "entry.1": ((128, 256, 256), (128, 128, 128)),
        "entry.2": ((128, 128, 128), (256, 64, 64)),
        "entry.3": ((256, 64, 64), (728, 32, 32)),
        "middle.0": ((728, 32, 32), (728, 32, 32)),
        "middle.11": ((728, 32, 32), (728, 32, 32)),
        "pyramid.pointwise": ((728, 32, 32), (728, 32, 32)),
        "pyramid.atrous.0": ((728, 32, 32), (728, 32, 32)),
        "pyramid.atrous.2": ((728, 32, 32), (728, 32, 32)),
        "pyramid.bottleneck": ((3640, 32, 32), (256, 32, 32)),
        "resolve_4": ((384, 128, 128), (256, 128, 128)),
        "up_2": ((256, 128, 128), (256, 256, 256)),
        "resolve_2": ((384, 256, 256), (128, 256, 256)),
        "up_1": ((128, 256, 256), (128, 512, 512)),
        "resolve_1": ((128, 512, 512), (64, 512, 512)),
        "last": ((64, 512, 512), (1, 512, 512)),
    }
    assert {name: seen[name] for name in expected} == expected


def test_features_within_the_entry_blocks_are_the_papers(paper: nn.Module) -> None:
    assert isinstance(paper, Ede2018)
    pointwise = [
        [m.out_channels for m in block.body.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
        for block in paper.entry
    ]
    assert pointwise == [[64, 64, 128], [128, 128, 128], [256, 256, 256], [728, 728, 728]]


def test_twelve_middle_blocks_add_three_separable_convolutions_to_their_input(paper: nn.Module) -> None:
    assert isinstance(paper, Ede2018)
    assert len(paper.middle) == 12
    for block in paper.middle:
        assert isinstance(block, ResidualBlock)
        assert isinstance(block.shortcut, nn.Identity)
        assert sum(m.groups == 728 for m in block.modules() if isinstance(m, nn.Conv2d)) == 3


def test_the_pyramid_looks_6_12_and_18_pixels_away(paper: nn.Module) -> None:
    assert isinstance(paper, Ede2018)
    assert [branch[0].dilation for branch in paper.pyramid.atrous] == [(6, 6), (12, 12), (18, 18)]


def test_the_pooled_branch_of_the_pyramid_is_used() -> None:
    network = Ede2018(0.05).eval()
    bottleneck = network.pyramid.bottleneck[0]
    assert isinstance(bottleneck, nn.Conv2d)
    deep = bottleneck.in_channels // 5
    with torch.no_grad():
        bottleneck.weight[:, : 4 * deep] = 0
        units = torch.rand(1, deep, 4, 4)
        assert network.pyramid(units).std() > 0


def test_a_separable_convolution_normalises_after_its_depthwise_step_and_rectifies_at_the_end_only() -> None:
    kinds = [type(module) for module in Layers().sep(4, 8)]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.Conv2d, nn.BatchNorm2d, nn.ReLU6]


def test_batchnorm_forgets_at_the_papers_rate_and_no_convolution_before_it_has_a_bias(paper: nn.Module) -> None:
    assert BATCHNORM_MOMENTUM == pytest.approx(1 - 0.999)
    norms = [m for m in paper.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.momentum for m in norms} == {BATCHNORM_MOMENTUM}
    convolutions = {n: m for n, m in paper.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)}
    assert [name for name, m in convolutions.items() if m.bias is not None] == ["last"]
    assert len(norms) == len(convolutions) - 1


def test_weights_start_by_xaviers_rule() -> None:
    torch.manual_seed(0)
    checked = 0
    for module in Ede2018(0.25).modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or module.weight.numel() < 2000:
            continue
        fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(module.weight)
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert module.weight.abs().max() <= bound
        assert float(module.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)
        checked += 1
    assert checked > 40


@pytest.mark.parametrize(("width", "features"), [(1.0, 728), (0.5, 368), (0.25, 184), (0.01, 8)])
def test_width_multiplies_every_number_of_features(width: float, features: int) -> None:
    network = on_meta(lambda: Ede2018(width))
    assert isinstance(network, Ede2018)
    widths = {m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d)} - {1}
    assert features in widths
    assert all(number % 8 == 0 for number in widths)
    assert count(network.parameters()) <= 1.1 * max(width, 0.05) ** 2 * 25.4e6


def test_the_papers_network_learns_from_every_weight() -> None:
    torch.manual_seed(0)
    network = Ede2018(0.05).train()
    units, level, _ = exposed(20, 64)
    network(units.repeat(2, 1, 1, 1), level).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


# The fast network


class Fixed(nn.Module):
    """A body whose answer is known: the same correction everywhere."""

    def __init__(self, correction: float) -> None:
        super().__init__()
        self.correction = correction

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x[:, :1], self.correction)


def fast(body: nn.Module | None = None, seed: int = 0) -> FastDenoiser:
    torch.manual_seed(seed)
    network = FastDenoiser((8, 16), (1, 1), smooth=True).eval()
    if body is not None:
        network.body = body  # type: ignore[assignment]
    return network


def test_the_fast_network_is_a_sixth_of_the_papers() -> None:
    network = on_meta(FastDenoiser)
    assert count(network.parameters()) == pytest.approx(4.08e6, rel=0.01)
    assert gigaflops(network) == pytest.approx(26.6, rel=0.02)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())


def flat(dose: float, side: int = 128) -> tuple[Tensor, Tensor]:
    """Counts without any structure, in noise units, and their level."""
    counts = np.random.default_rng(0).poisson(dose, (side, side)).astype(np.float32)
    scaling = noise_units(dose)
    return torch.from_numpy(scaling.to_units(counts))[None, None], torch.full((1, 1, 1, 1), scaling.level)


@pytest.mark.parametrize("dose", [1, 50, 2000])
def test_without_a_correction_a_flat_field_loses_its_noise(dose: float) -> None:
    units, level = flat(dose)
    assert fast(Fixed(0))(units, level).std() < 0.1 * units.std()


def test_without_a_correction_a_strong_image_stays_as_it_is() -> None:
    y, x = np.mgrid[0:128, 0:128]
    truth = 2000 * (1 + 0.9 * np.sin(x / 3) * np.sin(y / 4))
    counts = np.random.default_rng(0).poisson(truth).astype(np.float32)
    scaling = noise_units(2000)
    units = torch.from_numpy(scaling.to_units(counts))[None, None]
    out = fast(Fixed(0))(units, torch.full((1, 1, 1, 1), scaling.level))
    # Its power is some 400 times that of the noise; a 400th of the difference from the mean is taken off.
    assert float((out - units).std()) < 0.01 * float(units.std())
    assert float((out - units).std()) > 0


@pytest.mark.parametrize("dose", DOSES)
def test_whatever_the_body_adds_everywhere_is_taken_back(dose: float) -> None:
    units, level = flat(dose, 256)
    network = fast(Fixed(3))
    difference = (network(units, level) - fast(Fixed(0))(units, level))[0, 0]
    # Three standard deviations of the noise were added: nothing of it may be left, in no block and not on average.
    assert abs(float(difference.mean())) < 0.01
    assert float(difference.reshape(4, 64, 4, 64).mean((1, 3)).abs().max()) < 0.03


@pytest.mark.parametrize("cell", [8, 16])
@pytest.mark.parametrize("mean", [local_mean, smooth_mean])
def test_a_local_mean_keeps_the_mean_of_the_frame(mean: Callable[[Tensor, int], Tensor], cell: int) -> None:
    image = torch.from_numpy(np.random.default_rng(0).random((1, 1, 96, 160)))  # bright at no special place
    image[..., :9, :5] += 50  # an edge counts as much as the middle
    assert float(mean(image, cell).mean()) == pytest.approx(float(image.mean()), rel=1e-12)


def test_a_smooth_mean_of_noise_has_no_lines_along_the_axes_of_its_spectrum() -> None:
    noise = torch.from_numpy(np.random.default_rng(1).standard_normal((32, 1, 256, 256)))
    window = torch.hann_window(256, periodic=False, dtype=torch.float64)

    def power(mean: Callable[[Tensor, int], Tensor]) -> Tensor:
        return torch.fft.rfft(mean(noise, 16) * window, dim=3).abs().square().mean((0, 1, 2))

    lobe = slice(256 // 12, 256 // 8)  # the first beyond the cells' own frequency
    assert float(power(smooth_mean)[lobe].max()) < 0.05 * float(power(local_mean)[lobe].max())


@torch.no_grad()
@pytest.mark.parametrize("dose", DOSES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_mean_of_a_frame_is_kept_whatever_the_weights(dose: float, seed: int) -> None:
    units, level, unit = exposed(dose, 512, seed)
    change = (fast(seed=seed)(units, level) - units).double() * unit
    assert float(change.abs().mean()) > 0.01 * unit  # the network does something
    assert abs(float(change.mean())) <= max(1e-3 * dose, 3 * (dose / units.numel()) ** 0.5)


@pytest.mark.parametrize("dose", DOSES)
@pytest.mark.parametrize("offset", [0.0, -5.0, -1e4], ids=["counts", "below zero", "far below zero"])
def test_no_count_no_light_and_negative_counts_leave_everything_finite(dose: float, offset: float) -> None:
    network = fast()
    scaling = noise_units(dose)
    counts = np.random.default_rng(0).poisson(dose, (64, 64)).astype(np.float32)
    counts[:32] = offset
    units = torch.from_numpy(scaling.to_units(counts))[None, None]
    out = network(units, torch.full((1, 1, 1, 1), scaling.level))
    out.abs().mean().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@torch.no_grad()
def test_micrographs_in_a_batch_do_not_see_each_other() -> None:
    network = fast()
    pairs = [exposed(2, 64, 1)[:2], exposed(500, 64, 2)[:2]]
    together = network(*(torch.cat(column) for column in zip(*pairs, strict=True)))
    for out, (units, level) in zip(together, pairs, strict=True):
        assert torch.allclose(out, network(units, level)[0], atol=1e-5)


@torch.no_grad()
def test_moved_by_its_grid_the_image_gives_the_same_result_moved() -> None:
    network = fast()
    units, level, _ = exposed(20, 512)
    whole = network(units, level)
    part = network(units[..., 128:, 96:], level)
    assert torch.allclose(part[..., 128:-128, 128:-128], whole[..., 256:-128, 224:-128], atol=1e-4)


@torch.no_grad()
def test_blocks_start_close_to_the_identity() -> None:
    torch.manual_seed(0)
    body = Body((8, 16), (1, 1))
    x = torch.randn(1, 8, 32, 32)
    assert (body.encoder[0](x) - x).std() < 0.2 * x.std()


def test_build_makes_what_the_manifest_names() -> None:
    assert isinstance(build("fast", {"widths": [8], "blocks": [1]}), FastDenoiser)
    assert isinstance(build("ede2018", {"width": 0.05}), Ede2018)
    with pytest.raises(TypeError, match="depth"):
        build("fast", {"depth": 3})
