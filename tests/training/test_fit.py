"""`python -m training fit`: from a folder to weights; over kill −9, over processes, and over files that are no use."""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from safetensors.torch import load_file

from daemon.errors import ConfigError
from training import curve
from training.changes import changed
from training.data import simulate
from training.data.samples import Batch
from training.data.truths import load_truths
from training.fit import SPLIT, FitOrder, add_arguments, begin_from, drawer, fit, fit_and_finish
from training.loop import CHECKPOINT, RECORD, WEIGHTS, Budget
from training.network import build
from training.presets import EDE2018_LOW, EDE2018_ORDINARY, FAST, Recipe
from training.state import read
from training.validation import gain, validator

TINY = replace(
    FAST,
    arguments={"widths": [8, 16], "blocks": [1, 1]},
    batch=4,
    crop=64,
    rate=2e-3,
    validate_every=2,
    simulated=0.0,
    flat=0.0,
    grid=0.0,
    scenes=8,
    finish={"crop": 96, "batch": 2},
    validation_crops=32,
)
OPTIONS = [
    "--set", "arguments={\"widths\": [8, 16], \"blocks\": [1, 1]}", "--set", "batch=4", "--set", "crop=64",
    "--set", "simulated=0", "--set", "validate_every=2", "--set", "validation_crops=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for index, scene in enumerate(simulate.bank(40, 3, 200)):
        tifffile.imwrite(folder / f"{'abc'[index]}_1.tif", (5000 * scene).astype(np.uint16))
    return folder


def command(data: Path, out: Path, *more: str, processes: int = 1) -> list[str]:
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *several, "-m", "training", "fit", str(data), "--out", str(out), *OPTIONS, *more]


def launch(arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, capture_output=True, text=True, timeout=290, env=environment)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / WEIGHTS)


def test_a_folder_becomes_weights_a_record_and_a_split(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").mkdir()
    for file in data.iterdir():
        (tmp_path / "data" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "data" / "notes.txt").write_text("not a micrograph")
    (tmp_path / "data" / "d_broken.tif").write_bytes(b"II*\0 and then nothing")
    with caplog.at_level(logging.WARNING):
        run = fit(FitOrder(tmp_path / "data", tmp_path / "run"), TINY, Budget(steps=4))
    assert "d_broken.tif" in caplog.text
    record = json.loads((run / RECORD).read_text())
    split = json.loads((run / SPLIT).read_text())
    assert len(record["micrographs"]) == 2
    assert len(record["held_out"]) == 1
    assert sorted(record["micrographs"] + record["held_out"]) == ["a_1.tif", "b_1.tif", "c_1.tif"]
    assert [name for source in split["held_out"].values() for name in source] == record["held_out"]
    build("fast", record["recipe"]["arguments"]).load_state_dict(weights(run))
    assert {"validation_gain_low", "loss", "rate"} <= curve.read(run)[-1].keys()


def test_it_learns(data: Path, tmp_path: Path) -> None:
    run = fit(FitOrder(data, tmp_path / "run", validation=data), TINY, Budget(steps=150))
    torch.manual_seed(TINY.seed)
    untrained, trained = build("fast", TINY.arguments).eval(), build("fast", TINY.arguments).eval()
    trained.load_state_dict(weights(run))
    shown = drawer(TINY, load_truths(data), ())
    checks = [shown(10**6 + step, range(16)) for step in range(4)]
    assert gain(trained, checks) > gain(untrained, checks) + 0.1


def test_a_plateau_is_prolonged_and_each_time_a_copy_of_it_is_finished(data: Path, tmp_path: Path) -> None:
    order = FitOrder(data, tmp_path / "run", validation=data)
    first = fit_and_finish(order, TINY, Budget(steps=8), 0.25)
    assert first == tmp_path / "run" / "finished-6"
    plateau = (order.out / CHECKPOINT).read_bytes()
    assert fit_and_finish(order, TINY, Budget(steps=2), 1.0) == first, "only what is missing is done"
    second = fit_and_finish(order, TINY, Budget(steps=16), 0.25)
    assert second == tmp_path / "run" / "finished-12"
    assert (order.out / CHECKPOINT).read_bytes() != plateau
    assert (read(order.out / CHECKPOINT)["step"], read(second / CHECKPOINT)["step"]) == (12, 16)
    ends = [curve.read(run)[-1] for run in (first, second)]
    assert [end["step"] for end in ends] == [8, 16], "the count goes on, so no sample is drawn again"
    assert all(end["rate"] < 0.6 * curve.read(order.out)[-1]["rate"] for end in ends)
    recipe = json.loads((second / RECORD).read_text())["recipe"]
    assert (recipe["course"], recipe["crop"], recipe["batch"]) == ("decay", 96, 2)
    assert fit_and_finish(order, TINY, Budget(steps=12), 0.0) == order.out


def test_a_plateau_that_was_prolonged_is_one_that_was_not_stopped(data: Path, tmp_path: Path) -> None:
    parts, whole = (FitOrder(data, tmp_path / name, validation=data) for name in ("parts", "whole"))
    for steps in (3, 5):
        fit(parts, TINY, Budget(steps=steps))
    fit(whole, TINY, Budget(steps=5))
    one, two = weights(parts.out), weights(whole.out)
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_crops_drawn_on_the_device_train_too_and_a_resumed_training_sees_the_same(data: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, simulated=0.4)
    parts, whole = (FitOrder(data, tmp_path / name, validation=data, draw="card") for name in ("parts", "whole"))
    for steps in (2, 4):
        fit(parts, recipe, Budget(steps=steps))
    fit(whole, recipe, Budget(steps=4))
    one, two = weights(parts.out), weights(whole.out)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert json.loads((whole.out / RECORD).read_text())["samples"] == "drawn on the device"
    with pytest.raises(ConfigError, match="belongs to another training"):
        fit(replace(whole, draw="host"), recipe, Budget(steps=5))
    with pytest.raises(ConfigError, match="drawn on the host only"):
        fit(FitOrder(data, tmp_path / "paper", draw="card"), replace(EDE2018_LOW, crop=64), Budget(steps=1))


def test_the_papers_preset_trains_low_doses_then_ordinary_ones(data: Path, tmp_path: Path) -> None:
    more = ["--preset", "ede2018", "--steps", "7", "--set", 'arguments={"width": 0.05}']
    done = launch([*command(data, tmp_path / "run"), *more])
    assert done.returncode == 0, done.stderr
    low, ordinary = (json.loads((tmp_path / "run" / phase / RECORD).read_text()) for phase in ("low", "ordinary"))
    assert (low["steps"], ordinary["steps"]) == (6, 1)
    assert low["recipe"]["doses"] == "low"
    assert low["recipe"]["protocol"] == "paper"
    assert ordinary["started_from"] == "low"
    assert "validation_mse" in curve.read(tmp_path / "run" / "ordinary")[-1]
    assert "engine_build.export" in done.stdout


@pytest.mark.slow
def test_kill_9_costs_nothing_but_time(data: Path, tmp_path: Path) -> None:
    whole = launch(command(data, tmp_path / "whole", "--steps", "12"))
    assert whole.returncode == 0, whole.stderr
    run = tmp_path / "killed"
    process = subprocess.Popen(
        command(data, run, "--steps", "12", "--save-every", "0"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not (run / CHECKPOINT).exists():
        assert process.poll() is None and time.monotonic() < deadline
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = launch(command(data, run, "--steps", "12"))
    assert "resumed at step" in again.stderr
    first, second = weights(tmp_path / "whole"), weights(run)
    assert all(torch.allclose(value, second[name], rtol=1e-4, atol=1e-6) for name, value in first.items())
    rows = [[(row["step"], round(row["validation_gain_low"], 3)) for row in curve.read(tmp_path / name)]
            for name in ("whole", "killed")]  # fmt: skip
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_two_processes_are_one_with_the_whole_batch(data: Path, tmp_path: Path) -> None:
    one = launch(command(data, tmp_path / "one", "--steps", "4"))
    two = launch(command(data, tmp_path / "two", "--steps", "4", processes=2))
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(value, second[name], rtol=1e-3, atol=1e-6) for name, value in first.items())
    assert json.loads((tmp_path / "two" / RECORD).read_text())["hardware"].startswith("2 ×")


def test_a_batch_that_cannot_be_shared_evenly_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.distributed import Place

    three = Place(0, 3, torch.device("cpu"))
    monkeypatch.setattr(Place, "join", staticmethod(lambda: three))
    with pytest.raises(ConfigError, match="batch of 4 cannot be shared evenly by 3"):
        fit(FitOrder(data, tmp_path / "run"), TINY, Budget(steps=1))


def test_weights_of_an_earlier_run_are_the_start(data: Path, tmp_path: Path) -> None:
    first = fit(FitOrder(data, tmp_path / "first"), TINY, Budget(steps=3))
    second = fit(FitOrder(data, tmp_path / "second", start=first), replace(TINY, rate=1e-12), Budget(steps=1))
    before, after = weights(first), weights(second)
    assert all(torch.allclose(value, after[name], atol=1e-6) for name, value in before.items())
    with pytest.raises(ConfigError, match=r"nothing: holds no model.safetensors"):
        fit(FitOrder(data, tmp_path / "third", start=tmp_path / "nothing"), TINY, Budget(steps=1))


def test_a_deeper_network_starts_with_the_result_of_a_shallower_one(data: Path, tmp_path: Path) -> None:
    first = fit(FitOrder(data, tmp_path / "first"), TINY, Budget(steps=3))
    shallow = build("fast", TINY.arguments)
    begin_from(shallow, first)
    deep = build("fast", {"widths": [8, 16], "blocks": [3, 2]})
    begin_from(deep, first)
    units, level = torch.randn(1, 1, 64, 64), torch.full((1, 1, 1, 1), 0.1)
    assert torch.equal(deep(units, level), shallow(units, level))
    deep(units, level).square().mean().backward()
    gradient = deep.get_parameter("body.encoder.0.2.second.weight").grad
    assert gradient is not None
    assert gradient.abs().max() > 0  # the new blocks learn
    with pytest.raises(ConfigError, match="weights of another network"):
        begin_from(build("fast", {"widths": [16, 16], "blocks": [1, 1]}), first)


@pytest.mark.parametrize("recipe", [EDE2018_LOW, EDE2018_ORDINARY], ids=["low", "ordinary"])
def test_the_papers_drawer_draws_its_doses_in_its_units(data: Path, recipe: Recipe) -> None:
    drawn = drawer(replace(recipe, crop=128), load_truths(data, rule="paper"), ())(5, range(6))
    assert drawn.noisy.min() == 0
    assert drawn.noisy.max() == 1
    noise = np.sqrt(np.square(drawn.noisy - drawn.truth).mean())
    assert (noise > 0.06) == (recipe.doses == "low")


def test_the_papers_validation_sees_one_new_example_after_another_and_clips(data: Path) -> None:
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(()))

        def forward(self, units: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
            seen.append(units)
            return self.one * 7.0 * torch.ones_like(units)

    validate = validator(replace(EDE2018_LOW, crop=64), load_truths(data, rule="paper"))
    first, again, second = validate(Spy(), 5), validate(Spy(), 5), validate(Spy(), 10)
    assert first == again != second
    assert [len(units) for units in seen] == [1, 1, 1]
    assert all(0 < figures["validation_mse"] <= 1 for figures in (first, second))


def test_crops_without_a_single_count_do_not_stop_the_validation() -> None:
    black = np.zeros((2, 1, 64, 64), np.float32)
    one = np.ones((2, 1, 1, 1), np.float32)
    noisy = black.copy()
    noisy[1] = np.random.default_rng(0).normal(0, 1, (1, 64, 64))
    assert np.isfinite(gain(build("fast", TINY.arguments).eval(), [Batch(noisy, black, one, one)]))


def test_another_folder_of_data_in_the_same_out_is_refused(data: Path, tmp_path: Path) -> None:
    fit(FitOrder(data, tmp_path / "run", validation=data), TINY, Budget(steps=1))
    other = tmp_path / "other"
    other.mkdir()
    (other / "z_1.tif").write_bytes((data / "a_1.tif").read_bytes())
    with pytest.raises(ConfigError, match="belongs to another training"):
        fit(FitOrder(other, tmp_path / "run", validation=data), TINY, Budget(steps=2))
    assert json.loads((tmp_path / "run" / RECORD).read_text())["micrographs"] == ["a_1.tif", "b_1.tif", "c_1.tif"]


def test_a_source_on_both_sides_is_reported(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fit(FitOrder(data, tmp_path / "run", validation=data), TINY, Budget(steps=1))
    assert "is in training and validation" in caplog.text


def test_detector_terms_reach_the_crops(data: Path) -> None:
    truths = load_truths(data)
    recipe = changed(TINY, ["real_detector=1.0", 'detector={"hot_pixels": 0.05}'])
    plain, hot = (drawer(r, truths, ())(0, range(8)).noisy.max((1, 2, 3)) for r in (TINY, recipe))
    assert np.median(hot / plain) > 3


def test_a_training_with_flat_crops_and_the_grid_loss_runs_and_is_validated_on_specimens(
    data: Path, tmp_path: Path
) -> None:
    runs = {"without": TINY, "with": replace(TINY, flat=0.5, grid=1e3)}
    ends = [
        curve.read(fit(FitOrder(data, tmp_path / name, validation=data), recipe, Budget(steps=2)))[-1]
        for name, recipe in runs.items()
    ]
    low = [end["validation_gain_low"] for end in ends]
    assert low[0] == pytest.approx(low[1], abs=0.5)
    assert ends[0]["loss"] != ends[1]["loss"]


@pytest.mark.parametrize("missing", [True, False], ids=["no folder", "empty folder"])
def test_an_empty_training_set_is_reported(tmp_path: Path, missing: bool) -> None:
    folder = tmp_path / "data"
    if not missing:
        folder.mkdir()
    with pytest.raises(ConfigError, match=r"data: .*micrograph"):
        fit(FitOrder(folder, tmp_path / "run"), TINY, Budget(steps=1))


def test_the_command_reports_errors_without_a_traceback(tmp_path: Path) -> None:
    done = launch(command(tmp_path / "nowhere", tmp_path / "run"))
    assert done.returncode == 1
    assert "nowhere: no such folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "missing", "extra"), [("fit", "torch", "train"), ("evaluate", "cv2", "train,evaluate")]
)
def test_a_library_that_is_not_installed_is_named_with_its_remedy(command: str, missing: str, extra: str) -> None:
    program = (
        f"import runpy, sys\nsys.modules[{missing!r}] = None\n"
        "runpy.run_module('training', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", program, command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert missing in done.stderr and f"pip install 'emdenoised[{extra}]'" in done.stderr


def test_torchrun_hands_every_option_on() -> None:
    """It takes what begins like one of its own options, such as `--start` of `--start-method`, for itself."""
    from torch.distributed.run import get_args_parser

    own = argparse.ArgumentParser()
    add_arguments(own)
    options = [option for action in own._actions for option in action.option_strings if option.startswith("--")]
    assert "--start-from" in options
    for option in set(options) - {"--help"}:
        words = ["-m", "training", "fit", "data", option, "x"]
        assert get_args_parser().parse_args(words).training_script_args == words[2:]


def test_the_help_and_the_training_need_no_library_of_the_evaluation() -> None:
    """Whoever installed the extra `train` alone has neither OpenCV, SciPy nor scikit-image."""
    program = (
        "import runpy, sys\n"
        "for name in ('cv2', 'scipy', 'skimage', 'bm3d'): sys.modules[name] = None\n"
        "runpy.run_module('training', run_name='__main__', alter_sys=True)"
    )
    for words, said in ((["--help"], "evaluate"), (["fit", "--help"], "--budget-minutes")):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and said in done.stdout, done.stderr
