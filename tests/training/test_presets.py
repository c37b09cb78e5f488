"""The paper's policy is the paper's, whatever the budget; every option of its section 5 trains."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training.losses import huberised
from training.network import build
from training.presets import EDE2018_LOW, EDE2018_ORDINARY, FAST, PRESETS, Recipe


def test_the_papers_numbers_of_batches() -> None:
    assert [stage.batches for stage in EDE2018_LOW.stages] == [134_108, 17_713, 46_690]
    assert [stage.batches for stage in EDE2018_ORDINARY.stages] == [16_773, 17_562]
    assert EDE2018_LOW.batches + EDE2018_ORDINARY.batches == 232_846
    assert list(PRESETS["ede2018"].values()) == [EDE2018_LOW, EDE2018_ORDINARY]


@pytest.mark.parametrize("doses", ["low", "ordinary"])
def test_the_quarters_recipe_is_that_of_the_released_weights(doses: str) -> None:
    released = Path(__file__).parents[2] / "weights" / f"ede2018-{doses}" / "manifest.json"
    recorded = json.loads(released.read_text("utf-8"))["training"]["recipe"]
    ours = json.loads(json.dumps(asdict(PRESETS["ede2018-quarter"][doses])))
    rates = [pytest.approx(stage.pop("rate"), rel=0.05) for stage in ours["stages"]]  # rounded there
    assert [stage.pop("rate") for stage in recorded["stages"]] == rates
    assert {name: recorded[name] for name in ours} == ours


@pytest.mark.parametrize(
    ("batch", "rate", "freeze"),
    [
        (0, 1e-3, False), (134_107, 1e-3, False), (134_108, 2.5e-4, True), (151_820, 2.5e-4, True),
        (151_821, 1e-4, True), (198_510, 1e-4, True), (198_511, 1e-4, True),
    ],
)  # fmt: skip
def test_the_papers_learning_rates(batch: int, rate: float, freeze: bool) -> None:
    # half a batch on, so that rounding does not decide
    found, stage = EDE2018_LOW.schedule((batch + 0.5) / EDE2018_LOW.batches, batch)
    assert found == rate
    assert stage is not None
    assert stage.freeze is freeze


def test_the_cosine_rises_then_falls_without_a_jump() -> None:
    recipe = replace(FAST, course="cosine")
    rates = np.array([recipe.schedule(progress, 0)[0] for progress in np.linspace(0, 1, 1001)])
    assert rates.max() == pytest.approx(recipe.rate, rel=1e-3)
    assert 0 < rates[0] < 0.1 * recipe.rate
    assert rates[-1] == pytest.approx(recipe.rate * recipe.final_rate)
    peak = int(rates.argmax())
    assert peak == pytest.approx(1000 * recipe.warm_up, abs=1)
    assert np.all(np.diff(rates[:peak]) >= 0)
    assert np.all(np.diff(rates[peak:]) <= 0)


def test_a_plateau_depends_on_no_budget_and_its_finish_begins_where_it_is() -> None:
    recipe = replace(FAST, rate=2e-3, warm_up_batches=100, halving=1000)
    at = {step: recipe.schedule(0.5, step)[0] for step in (0, 49, 1000, 5000)}
    assert at[0] == pytest.approx(2e-5)
    assert at[49] == pytest.approx(1e-3, rel=0.1)
    assert at[1000] == pytest.approx(1e-3)
    assert at[5000] == pytest.approx(2e-3 / 4)
    assert recipe.schedule(0.1, 5000) == recipe.schedule(0.9, 5000)
    assert replace(recipe, halving=0).schedule(0.5, 10**6)[0] == 2e-3
    last = recipe.finishing(5000)
    assert [last.schedule(progress, 0)[0] for progress in (0.0, 0.5, 1.0)] == pytest.approx([5e-4, 2.5e-4, 0.0])
    assert (last.crop, last.finish) == (FAST.finish["crop"], {})


def trained(recipe: Recipe, steps: int = 10) -> tuple[float, float]:
    """Loss of a tiny network of the paper's kind before and after a few steps on one pair."""
    from training.data.samples import Batch
    from training.optimisers import optimisers

    torch.manual_seed(0)
    network = build("ede2018", {"width": 0.05, **recipe.arguments})
    truth = np.random.default_rng(0).random((2, 1, 32, 32), np.float32)
    one = np.ones((2, 1, 1, 1), np.float32)
    pair = Batch(truth, truth, one, one)
    loss = huberised(recipe.clip_in_loss, recipe.ssim)
    (optimise,) = optimisers(recipe, network)
    values = []
    for _ in range(steps):
        value = loss(network(torch.from_numpy(truth)), pair)
        optimise.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimise.step()
        values.append(value.item())
    return values[0], float(np.mean(values[-3:]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beta1": 0.2},
        {"arguments": {"activation": "relu"}},
        {"arguments": {"renormalise": True}},
        {"arguments": {"bilinear": True}},
        {"ssim": 5.0},
        {"clip_in_loss": True},
        {"optimiser": "rmsprop"},
        {"optimiser": "nesterov"},
    ],
    ids=str,
)
def test_every_option_of_section_5_learns(changes: dict[str, object]) -> None:
    before, after = trained(replace(EDE2018_LOW, **{"arguments": {}, "rate": 1e-3, **changes}))  # type: ignore[arg-type]
    assert after < before


def test_the_options_change_what_they_say() -> None:
    usual, relu, bilinear = (
        build("ede2018", {"width": 0.05, **arguments}) for arguments in ({}, {"activation": "relu"}, {"bilinear": True})
    )
    kinds = [{type(module).__name__ for module in network.modules()} for network in (usual, relu, bilinear)]
    assert "ReLU6" in kinds[0] and "ReLU6" not in kinds[1]
    assert "ConvTranspose2d" in kinds[0] and "ConvTranspose2d" not in kinds[2]
    assert "BatchRenorm2d" in {
        type(m).__name__ for m in build("ede2018", {"renormalise": True, "width": 0.05}).modules()
    }
