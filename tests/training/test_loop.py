"""The loop: killed at any moment it ends as if it had not been, on one process or several, and says what it did."""

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from daemon.errors import ConfigError
from daemon.files import save
from training import curve, loop
from training.data import simulate
from training.data.samples import Batch, Draw, batch
from training.distributed import alone
from training.loop import CHECKPOINT, RECORD, Budget, Drawer, train
from training.losses import LOSSES, Loss
from training.network import build
from training.presets import Recipe, Stage
from training.state import fast_half, set_norms

TINY = Recipe(
    arguments={"widths": [8, 16], "blocks": [1, 1]}, batch=4, crop=64, rate=2e-3, validate_every=2, validation_crops=4
)
PAPER = replace(
    TINY,
    network="ede2018",
    arguments={"width": 0.05},
    loss="huberised",
    optimiser="adam",
    stages=(Stage(2, 1e-3), Stage(2, 1e-4, freeze=True)),
    averaging=0.0,
)


@pytest.fixture(scope="module")
def drawn() -> Drawer:
    scenes = simulate.bank(1, 4, 96)

    def draw(step: int, indices: Sequence[int]) -> Batch:
        return batch(Draw(64), [], scenes, 3, step, indices)

    return draw


def parameters_seen(network: nn.Module, step: int) -> dict[str, float]:
    """A figure that is the same only if the weights are."""
    return {"validation_norm": float(sum(p.detach().abs().sum() for p in network.parameters()))}


def run(
    out: Path,
    drawn: Drawer,
    recipe: Recipe = TINY,
    budget: Budget = Budget(steps=6),  # noqa: B008  (frozen)
    validate: Callable[[nn.Module, int], dict[str, float]] = parameters_seen,
    loss: Loss | None = None,
    save_every: float = 120,
) -> Path:
    out.mkdir(exist_ok=True)
    torch.manual_seed(recipe.seed)
    network = build(recipe.network, recipe.arguments)
    loss = loss or LOSSES[recipe.loss]
    return train(network, drawn, loss, recipe, out, budget, validate, {"a": 1}, save_every=save_every)


@pytest.mark.parametrize("recipe", [TINY, PAPER], ids=["fast", "paper"])
def test_a_training_that_was_killed_ends_as_if_it_had_not_been(tmp_path: Path, drawn: Drawer, recipe: Recipe) -> None:
    whole = run(tmp_path / "whole", drawn, recipe)

    def killed(network: nn.Module, step: int) -> dict[str, float]:
        if step == 4:
            raise KeyboardInterrupt
        return parameters_seen(network, step)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", drawn, recipe, validate=killed, save_every=-1)
    assert not (tmp_path / "killed" / loop.WEIGHTS).exists()
    resumed = run(tmp_path / "killed", drawn, recipe)
    one, two = ([{**row, "minutes": 0} for row in curve.read(out)] for out in (whole, resumed))
    assert [row["step"] for row in one] == [2, 4, 6]
    assert one == two
    weights = [load_file(out / loop.WEIGHTS) for out in (whole, resumed)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_finished_training_leaves_a_record_and_is_not_done_again(tmp_path: Path, drawn: Drawer) -> None:
    out = run(tmp_path / "run", drawn)
    record = json.loads((out / RECORD).read_text())
    assert record["steps"] == 6
    assert record["recipe"]["arguments"] == TINY.arguments
    assert record["recipe"]["seed"] == TINY.seed
    assert record["a"] == 1
    assert "threads of" in record["hardware"] or "GPU" in record["hardware"]
    before = (out / loop.WEIGHTS).read_bytes()
    run(out, drawn)
    assert (out / loop.WEIGHTS).read_bytes() == before
    assert len(curve.read(out)) == 3


def test_a_budget_of_minutes_counts_what_was_spent_before(
    tmp_path: Path, drawn: Drawer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(range(10**6))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 20.0 * next(looks)))
    run(tmp_path / "run", drawn, budget=Budget(minutes=1))
    assert curve.read(tmp_path / "run")[-1]["step"] == 3
    run(tmp_path / "run", drawn, budget=Budget(minutes=2))
    assert [row["step"] for row in curve.read(tmp_path / "run")] == [2, 3, 4, 6]
    assert curve.read(tmp_path / "run")[-1]["minutes"] == 2


def test_without_a_terminal_a_line_a_minute_reports_progress(
    tmp_path: Path, drawn: Drawer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = iter(range(10**6))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 30.0 * next(looks)))
    with caplog.at_level(logging.INFO):
        run(tmp_path / "run", drawn, replace(TINY, validate_every=100), Budget(steps=9))
    lines = [line for line in caplog.messages if " of the budget, step " in line]
    assert len(lines) >= 3
    assert re.fullmatch(r"\d+ % of the budget, step \d, loss [\d.e+-]+, about \d+ min left", lines[1])


def test_the_learning_rate_follows_the_budget(tmp_path: Path, drawn: Drawer) -> None:
    recipe = replace(TINY, validate_every=1, stages=(Stage(30, 1e-3), Stage(10, 1e-4), Stage(20, 1e-5)))
    rates = [row["rate"] for row in curve.read(run(tmp_path / "run", drawn, recipe))]
    assert rates == [1e-3, 1e-3, 1e-3, 1e-4, 1e-5, 1e-5]


def test_another_recipe_does_not_go_on_from_this_one(tmp_path: Path, drawn: Drawer) -> None:
    run(tmp_path / "run", drawn, budget=Budget(steps=1))
    with pytest.raises(ConfigError, match=r"another recipe.*--out"):
        run(tmp_path / "run", drawn, replace(TINY, rate=1e-5))


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\3\4 and then nothing"])
def test_a_damaged_checkpoint_is_reported_and_kept(tmp_path: Path, drawn: Drawer, content: bytes) -> None:
    out = run(tmp_path / "run", drawn, budget=Budget(steps=1))
    (out / CHECKPOINT).write_bytes(content)
    with pytest.raises(ConfigError, match=r"checkpoint\.pt: damaged .*delete it"):
        run(out, drawn)
    assert (out / CHECKPOINT).read_bytes() == content


def test_a_folder_is_one_trainings_at_a_time_and_remains_are_cleared(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.pt.abc.part").write_bytes(b"half")
    with alone(tmp_path):
        assert not list(tmp_path.glob(".*.part"))
        with pytest.raises(ConfigError, match="another training is at work"), alone(tmp_path):
            pass
    with alone(tmp_path):
        pass


def test_rows_that_are_none_are_left_out(tmp_path: Path) -> None:
    (tmp_path / curve.CURVE).write_bytes(b'{"step": 1}\n{"loss": 3}\n\xff\xfe\n[1]\n{"step": 2}\n')
    assert [row["step"] for row in curve.read(tmp_path)] == [1, 2]


def test_a_loss_that_is_no_number_stops_the_training_and_keeps_the_checkpoint(tmp_path: Path, drawn: Drawer) -> None:
    out = run(tmp_path / "run", drawn, budget=Budget(steps=2))
    before = (out / CHECKPOINT).read_bytes()
    with pytest.raises(ConfigError, match=r"step 4.*diverged"):
        run(out, drawn, budget=Budget(steps=6), loss=lambda output, _: output.sum() * float("nan"))
    assert (out / CHECKPOINT).read_bytes() == before


def test_frozen_batch_normalisation_no_longer_changes(tmp_path: Path, drawn: Drawer) -> None:
    states = []

    def note(network: nn.Module, step: int) -> dict[str, float]:
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        states.append(torch.cat([torch.stack([m.weight.sum(), m.running_mean.sum()]) for m in norms]))  # type: ignore[union-attr]
        return {"validation": 0.0}

    out = run(tmp_path / "run", drawn, replace(PAPER, validate_every=2), Budget(steps=8), note)  # frozen from step 4 on
    assert not torch.equal(states[0], states[1])
    assert torch.equal(states[1], states[2])
    assert torch.equal(states[2], states[3])
    last = load_file(out / loop.WEIGHTS)["last.weight"]
    torch.manual_seed(PAPER.seed)
    assert not torch.equal(last, build("ede2018", PAPER.arguments).state_dict()["last.weight"])  # the rest learns


def test_running_statistics_are_plain_averages_until_the_papers_decay_takes_over() -> None:
    norm = nn.BatchNorm2d(1)
    momenta = []
    for step in (0, 1, 9, 999, 50_000):
        set_norms(norm, step, frozen=False)
        momenta.append(norm.momentum)
    assert momenta == pytest.approx([1, 1 / 2, 1 / 10, 0.001, 0.001])


@pytest.mark.parametrize(
    ("flags", "fast"), [("fpu avx2 avx512f", False), ("fpu avx512_bf16 sse", True), ("amx_tile amx_bf16", True)]
)
def test_half_precision_is_used_where_the_processor_is_fast_at_it(tmp_path: Path, flags: str, fast: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    assert fast_half(torch.device("cpu"), tmp_path / "cpuinfo") is fast
    assert fast_half(torch.device("cpu"), tmp_path / "missing") is False


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / CHECKPOINT
    save(path, b"the first")

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(ConfigError, match=r"No space left on device.*run the same command again"):
        save(path, b"the second")
    assert path.read_bytes() == b"the first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("minutes", "steps"), [(None, None), (1, 1), (0, None), (None, -1), (float("nan"), None), (float("inf"), None)]
)
def test_a_budget_is_either_minutes_or_steps(minutes: float | None, steps: int | None) -> None:
    with pytest.raises(ConfigError, match="budget"):
        Budget(minutes, steps)


def test_the_picture_of_the_curve_is_a_picture(tmp_path: Path, drawn: Drawer) -> None:
    out = run(tmp_path / "run", drawn)
    assert (out / curve.PICTURE).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no learning curve"):
        curve.draw(tmp_path, "nothing")


def test_tensorboard_reads_the_curve(tmp_path: Path, drawn: Drawer) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = run(tmp_path / "run", drawn)
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    rows = curve.read(out)
    assert [event.step for event in board.Scalars("loss")] == [2, 4, 6]
    assert [event.value for event in board.Scalars("loss")] == pytest.approx([row["loss"] for row in rows], rel=1e-5)


def test_a_last_row_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    (tmp_path / curve.CURVE).write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    assert curve.read(tmp_path) == [{"step": 1, "loss": 2}]


def test_smoothing_keeps_a_constant_to_its_ends() -> None:
    assert np.allclose(curve.smooth(np.full(20, 3.0), 7), 3)
