"""The regular pattern of a fast network on flat fields is measured at export and subtracted in service."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from daemon.counts.scaling import noise_units
from engine_build.export import export
from training.levelling import KNOTS, level, pattern_of
from training.network import COARSE_KNOTS, FastDenoiser, build

ARGUMENTS = {"widths": [8, 16, 16], "blocks": [1, 1, 1]}


def patterned(levelled: bool = True, knots: Sequence[float] = KNOTS) -> FastDenoiser:
    """A network of random weights, whose correction is strong enough to leave a clear pattern at three strides."""
    torch.manual_seed(1)
    network = build("fast", ARGUMENTS | {"levelled": levelled, "knots": knots}).eval()
    assert isinstance(network, FastDenoiser)
    with torch.no_grad():
        network.body.tail.weight.mul_(3)
    return network


@pytest.fixture(scope="module")
def network() -> FastDenoiser:
    network = patterned()
    level(network, frames=6)
    return network


@pytest.mark.parametrize("counts", [1.2, 20.0, 600.0])
def test_the_pattern_goes_at_doses_at_which_it_was_not_measured(network: FastDenoiser, counts: float) -> None:
    _, before = pattern_of(patterned(), counts, frames=6, seed=5)
    _, after = pattern_of(network, counts, frames=6, seed=5)  # the same noise
    _, other = pattern_of(patterned(), counts, frames=6, seed=6)
    assert before.shape == (8, 8)
    assert float(after.square().mean()) < float(before.square().mean()) / 16
    assert float((before * other).mean()) > 0.8 * float(before.square().mean())  # it was no noise


def test_the_mean_stays_and_so_does_what_no_pattern_reaches(network: FastDenoiser) -> None:
    counts = np.random.default_rng(2).poisson(40, (256, 256)).astype(np.float32)
    scaling = noise_units(float(counts.mean()))
    units, noise = torch.from_numpy(scaling.to_units(counts))[None, None], torch.full((1, 1, 1, 1), scaling.level)
    with torch.no_grad():
        change = (network(units, noise) - patterned()(units, noise))[0, 0].double()
    assert abs(float(change.mean())) < 1e-5
    assert torch.allclose(change[64:128, 64:128], change[72:136, 80:144], atol=2e-4)  # a shift by whole cells
    assert float(change.std()) > 1e-3


def test_a_network_without_a_place_for_it_is_refused() -> None:
    with pytest.raises(ValueError, match="levelled=True"):
        level(patterned(levelled=False))


def test_weights_trained_without_it_are_exported_with_it_and_again(tmp_path: Path) -> None:
    """A run of today, and a fine-tuning of fast-3, whose state holds the pattern of before, with fewer knots."""
    patterns = []
    for name, arguments in (("fresh", ARGUMENTS), ("tuned", ARGUMENTS | {"levelled": True})):
        run = tmp_path / name
        run.mkdir()
        state = patterned("levelled" in arguments, COARSE_KNOTS).state_dict()
        if name == "tuned":
            state["pattern"] = torch.full_like(state["pattern"], 0.25)
        save_file(state, run / "model.safetensors")
        (run / "record.json").write_text(json.dumps({"recipe": {"arguments": arguments}}))
        made = export(run, name, tmp_path / f"{name}-weights", flats=1)
        assert made.arguments == ARGUMENTS | {"levelled": True, "knots": list(KNOTS)}
        patterns.append(load_file(tmp_path / f"{name}-weights" / made.safetensors)["pattern"])
    assert torch.equal(*patterns)
    assert float(patterns[0].abs().max()) > 1e-3
