"""Training: killed at any moment it goes on from its checkpoint, to the same weights, and says what it did."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from safetensors.torch import load_file

from daemon.errors import ConfigError
from training import fit as fitting
from training import simulate
from training.data import Batch, draw_batch
from training.fit import CHECKPOINT, CURVE, Recipe, fit, progress_rate, save, validate
from training.network import build

TINY = Recipe(arguments={"widths": [8, 16], "blocks": [1, 1]}, batch=4, crop=64, rate=2e-3)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for index, scene in enumerate(simulate.bank(40, 3, 200)):
        tifffile.imwrite(folder / f"m{index}.tif", (5000 * scene).astype(np.uint16))
    return folder


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`clock(step, dies_at)`: every look at the time is `step` seconds after the last; the nth kills the training."""
    scenes = simulate.bank(1, 4, 160)
    monkeypatch.setattr(simulate, "bank", lambda seed, count, side: scenes)

    def start(step: float, dies_at: int | None = None) -> None:
        looks = iter(range(1, 10**6))

        def monotonic() -> float:
            look = next(looks)
            if look == dies_at:
                raise KeyboardInterrupt
            return look * step

        monkeypatch.setattr(fitting, "time", SimpleNamespace(monotonic=monotonic))

    return start


def curve(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / CURVE).read_text().splitlines()]


def test_a_training_that_was_killed_ends_as_if_it_had_not_been(
    data: Path, tmp_path: Path, clock: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    clock(31)
    whole = fit(data, tmp_path / "whole", TINY, 6)
    clock(31, dies_at=9)
    with pytest.raises(KeyboardInterrupt):
        fit(data, tmp_path / "killed", TINY, 6)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    clock(31)
    with caplog.at_level(logging.INFO):
        killed = fit(data, tmp_path / "killed", TINY, 6)
    # One look at the clock a step: the checkpoint is of the fourth, and the eighth was never finished.
    assert "resumed at step 4" in caplog.text
    assert curve(killed)[-1]["step"] == curve(whole)[-1]["step"] == 12
    one, two = (load_file(run / "model.safetensors") for run in (whole, killed))
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-6), name
    assert curve(killed)[-1]["low"] == pytest.approx(curve(whole)[-1]["low"], abs=1e-3)


def test_a_finished_training_leaves_weights_and_a_record_and_is_not_done_again(
    data: Path, tmp_path: Path, clock: Callable[..., None]
) -> None:
    clock(100)
    run = fit(data, tmp_path / "run", TINY, 5, validation=data)
    record = json.loads((run / "record.json").read_text())
    assert record["steps"] == 3
    assert record["minutes"] == 5
    assert record["recipe"]["arguments"] == TINY.arguments
    assert record["recipe"]["seed"] == TINY.seed
    assert record["micrographs"] == ["m0.tif", "m1.tif", "m2.tif"]
    assert record["simulated_families"] == sorted(simulate.GENERATORS)
    weights = load_file(run / "model.safetensors")
    build("fast", record["recipe"]["arguments"]).load_state_dict(weights)
    fit(data, run, TINY, 5)
    again = load_file(run / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert len(curve(run)) == 1


def test_after_resuming_the_loss_that_is_reported_is_the_loss(
    data: Path, tmp_path: Path, clock: Callable[..., None]
) -> None:
    clock(61)
    fit(data, tmp_path / "run", TINY, 3)
    clock(61)
    fit(data, tmp_path / "run", TINY, 6)
    before, after = curve(tmp_path / "run")
    assert after["step"] > before["step"]
    assert after["loss"] == pytest.approx(before["loss"], rel=0.5)


def test_it_learns(data: Path, tmp_path: Path, clock: Callable[..., None]) -> None:
    clock(10)
    run = fit(data, tmp_path / "run", TINY, 12)  # 72 steps
    rng = np.random.default_rng(2)
    scenes = [[scene] for scene in simulate.bank(2, 8, 160)]
    batches = [draw_batch(rng, [(1.0, scenes)], 16, 128) for _ in range(2)]
    torch.manual_seed(TINY.seed)
    untrained = build("fast", TINY.arguments)
    trained = build("fast", TINY.arguments)
    trained.load_state_dict(load_file(run / "model.safetensors"))
    before, after = validate(untrained, batches), validate(trained, batches)
    assert after["low"] > before["low"] + 0.5
    assert after["low"] > 3
    assert after["ordinary"] > before["ordinary"]


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / CHECKPOINT
    save(path, {"step": 1})

    def disk_full(state: object, target: Path) -> None:
        target.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space"):
        save(path, {"step": 2})
    assert torch.load(path)["step"] == 1


def test_the_learning_rate_rises_then_falls_without_a_jump() -> None:
    rates = np.array([progress_rate(TINY, progress) for progress in np.linspace(0, 1, 1001)])
    assert rates.max() == pytest.approx(TINY.rate, rel=1e-3)
    assert 0 < rates[0] < 0.1 * TINY.rate
    assert rates[-1] == pytest.approx(TINY.rate * TINY.final_rate)
    peak = int(rates.argmax())
    assert peak == pytest.approx(1000 * TINY.warm_up, abs=1)
    assert np.all(np.diff(rates[:peak]) >= 0)
    assert np.all(np.diff(rates[peak:]) <= 0)
    assert progress_rate(TINY, 1.5) == pytest.approx(TINY.rate * TINY.final_rate)


def test_crops_without_a_single_count_do_not_stop_the_validation() -> None:
    black = np.zeros((2, 1, 64, 64), np.float32)
    one = np.ones((2, 1, 1, 1), np.float32)
    noisy = black.copy()
    noisy[1] = np.random.default_rng(0).normal(0, 1, (1, 64, 64))
    gains = validate(build("fast", TINY.arguments), [Batch(noisy, black, one, one)])
    assert list(gains) == ["low"]
    assert np.isfinite(gains["low"])


@pytest.mark.parametrize("missing", [True, False], ids=["no folder", "empty folder"])
def test_nothing_to_learn_from_is_said_in_words(tmp_path: Path, missing: bool) -> None:
    folder = tmp_path / "data"
    if not missing:
        folder.mkdir()
    with pytest.raises(ConfigError, match=r"data: .*micrograph"):
        fit(folder, tmp_path / "run", TINY, 1)
    assert not (tmp_path / "run").exists()


def test_the_command_says_so_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "fit", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert "nowhere: no such folder" in done.stderr
    assert "Traceback" not in done.stderr
