"""Fine-tuning in one command: a run that can be exported, held-out files that were not trained on, an honest end."""

import argparse
import errno
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from daemon.backends import manifest
from daemon.backends.manifest import Manifest
from daemon.errors import ConfigError, StorageError, WeightsError
from training.data import cache as store
from training.data import simulate
from training.data.truths import Truth
from training.finetuning import command as finetune
from training.finetuning.before_after_report import NUMBERS, PICTURE, REPORT
from training.finetuning.command import (
    NOT_RECOMMENDED,
    FineTuningOrder,
    add_arguments,
    fine_tune,
    recipe_of,
    run,
    split,
)
from training.finetuning.fields import PARTNERS
from training.fit import PLAN
from training.loop import RECORD, WEIGHTS, Budget
from training.network import NetworkName, build

ARGUMENTS = {"widths": [8, 16], "blocks": [1, 1]}
SIDE = 128


@cache
def scene(seed: int) -> simulate.Scene:
    families = list(simulate.TRAINING.values())
    return families[seed % len(families)](np.random.default_rng(seed), SIDE)


def counts(rng: np.random.Generator, seed: int, dose: float = 10.0) -> NDArray[np.uint16]:
    return rng.poisson(dose * (1 + 0.7 * (scene(seed) / scene(seed).mean() - 1))).astype(np.uint16)


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "SCENES", 4)


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A weights folder with a network that was never trained, and adds patterns of its own."""
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.manual_seed(3)
    weights = {name: value.half() for name, value in build("fast", ARGUMENTS).state_dict().items()}
    weights["body.tail.weight"] *= 10
    save_file(weights, folder / "model.safetensors")
    digest = manifest.sha256(folder / "model.safetensors")
    described = Manifest(
        name="tiny", network="fast", arguments=ARGUMENTS, scaling="noise_units", tile=256, halo=32, align=32,
        dose_range=(0.5, 5000), contrast_range=(0.02, 1), sha256={"model.safetensors": digest}, training={},
    )  # fmt: skip
    (folder / "manifest.json").write_text(described.model_dump_json())
    return folder


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """Single images of counts, one of another kind, and a file that is none."""
    folder = tmp_path / "single"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for seed in range(5):
        tifffile.imwrite(folder / f"m{seed}.tif", counts(rng, seed))
    tifffile.imwrite(folder / "scaled.tif", (0.37 * counts(rng, 1)).astype(np.float32))
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "pairs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for seed in (0, 1, 4, 5):
        for end in "ab":
            tifffile.imwrite(folder / f"m{seed}_{end}.tif", counts(rng, seed))
    return folder


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    folder = tmp_path / "clean"
    folder.mkdir()
    for seed in range(5):
        tifffile.imwrite(folder / f"s{seed}.tif", (60_000 * scene(seed)).astype(np.uint16))
    return folder


@pytest.fixture
def order(tmp_path: Path, parent: Path) -> Callable[..., FineTuningOrder]:
    def make(data: Path, how: finetune.How, **changes: Any) -> FineTuningOrder:
        plain = FineTuningOrder(
            data, tmp_path / "run", how, Budget(steps=3), str(parent), held_out=0.4, crop=64, batch=2, workers=0
        )
        return replace(plain, **changes)

    return make


def test_fine_tuning_by_thinning_helps_says_so_and_leaves_a_run(
    order: Callable[..., FineTuningOrder], single: Path, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "RATE", 3e-3)
    rng = np.random.default_rng(1)
    for number in range(5):  # a session: one kind of specimen
        tifffile.imwrite(single / f"m{number}.tif", counts(rng, 4 * number + 2))
    asked = order(single, "thinning", budget=Budget(steps=40), batch=4)
    outcome = fine_tune(asked)
    assert outcome.verdict == "better"
    record = json.loads((asked.out / RECORD).read_text())
    assert record["steps"] == 40
    assert record["parent"]["sha256"] == manifest.sha256(parent / "model.safetensors")
    assert record["recipe"]["arguments"] == ARGUMENTS
    assert record["recipe"]["loss"] == "mse"
    assert len(record["held_out"]) == 2
    assert sorted(record["micrographs"] + record["held_out"]) == [f"m{i}.tif" for i in range(5)]
    skipped = {one["file"]: one["reason"] for one in record["skipped"]}
    assert set(skipped) == {"notes.txt", "scaled.tif"}
    assert "not whole numbers" in skipped["scaled.tif"]
    assert record["before_after"]["verdict"] == "better"
    assert {row.file for row in outcome.rows} == set(record["held_out"])
    report = (asked.out / REPORT).read_text()
    assert "better on the 2 held-out file(s), but 4 are needed" in report
    assert skipped["scaled.tif"] in report
    assert json.loads((asked.out / NUMBERS).read_text())["recommended"] is False
    assert (asked.out / PICTURE).exists()
    build("fast", ARGUMENTS).load_state_dict(load_file(asked.out / WEIGHTS))


@pytest.mark.parametrize("loss", ["mse", "poisson"])
def test_fine_tuning_from_pairs(order: Callable[..., FineTuningOrder], pairs: Path, loss: finetune.LossName) -> None:
    asked = order(pairs, "pairs", loss=loss)
    outcome = fine_tune(asked)
    record = json.loads((asked.out / RECORD).read_text())
    assert record["recipe"]["loss"] == loss
    assert len(record["micrographs"]) + len(record["held_out"]) == 8
    # A pair is never torn apart.
    assert {name[:2] for name in record["micrographs"]}.isdisjoint(name[:2] for name in record["held_out"])
    assert outcome.regimes[0].psnr_before is None


def test_fine_tuning_from_clean_micrographs_reports_psnr_by_dose(
    order: Callable[..., FineTuningOrder], clean: Path
) -> None:
    asked = order(clean, "clean")
    outcome = fine_tune(asked)
    record = json.loads((asked.out / RECORD).read_text())
    assert record["recipe"]["loss"] == "root"
    assert len(outcome.regimes) == 5
    assert all(regime.psnr_before is not None and regime.psnr_before > 0 for regime in outcome.regimes)
    assert "PSNR before / after" in (asked.out / REPORT).read_text()


def test_it_starts_from_the_parent_and_a_wild_training_is_not_recommended(
    order: Callable[..., FineTuningOrder], single: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "RATE", 1e-9)
    still = fine_tune(order(single, "thinning"))
    assert still.verdict == "no measurable difference"
    assert not still.recommended
    monkeypatch.setattr(finetune, "RATE", 3.0)
    asked = order(single, "thinning", out=single.parent / "wild")
    assert fine_tune(asked).verdict == "worse"
    assert "do not use them" in (asked.out / REPORT).read_text()


def test_the_same_command_resumes_and_another_one_is_refused(
    order: Callable[..., FineTuningOrder], single: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = order(single, "thinning")
    first = fine_tune(asked)
    weights = (asked.out / WEIGHTS).read_bytes()
    with caplog.at_level(logging.INFO):
        again = fine_tune(asked)
    assert "resumed at step 3" in caplog.text
    assert (asked.out / WEIGHTS).read_bytes() == weights
    assert again.rows == first.rows
    with pytest.raises(ConfigError, match="belongs to another training"):
        fine_tune(replace(asked, seed=7))
    (single / "m0.tif").unlink()
    with pytest.raises(ConfigError, match=rf"{PLAN}.*belongs to another training"):
        fine_tune(asked)


@pytest.mark.parametrize(("network", "arguments"), [("fast", ARGUMENTS), ("ede2018", {"width": 0.1})])
def test_the_recipe_is_a_gentle_one_of_the_parents_kind(
    order: Callable[..., FineTuningOrder], parent: Path, network: NetworkName, arguments: dict[str, Any]
) -> None:
    described = manifest.load(parent).model_copy(update={"network": network, "arguments": arguments})
    recipe = recipe_of(order(Path("data"), "pairs", loss="poisson"), described)
    assert (recipe.network, recipe.arguments, recipe.loss, recipe.protocol) == (network, arguments, "poisson", "counts")
    rates = [recipe.schedule(progress, 0)[0] for progress in (0.05, 0.2, 0.6, 1.0)]
    assert 0 < max(rates) <= finetune.RATE
    stage = recipe.schedule(0.5, 0)[1]
    assert (stage is not None and stage.freeze) == (network == "ede2018")  # batch statistics stay the parent's


def test_sources_are_held_out_whole_and_single_files_where_there_is_one_source(
    order: Callable[..., FineTuningOrder],
) -> None:
    asked = order(Path("data"), "pairs", held_out=0.3)
    images = [np.zeros((2, 2), np.float32)]
    many = [Truth(f"{source}{i}", source, images, (1,)) for source in "abcde" for i in range(3)]
    training, held_out = split(many, asked)
    assert {item.source for item in training}.isdisjoint(item.source for item in held_out)
    assert len(training) + len(held_out) == 15
    one = [Truth(f"a{i}", "a", images, (1,)) for i in range(10)]
    training, held_out = split(one, asked)
    assert (len(training), len(held_out)) == (7, 3)
    assert split(one, asked) == (training, held_out)
    assert split(one, replace(asked, seed=4)) != (training, held_out)


def test_too_little_data_is_said_in_words(order: Callable[..., FineTuningOrder], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        fine_tune(order(tmp_path / "nowhere", "thinning"))
    folder = tmp_path / "one"
    folder.mkdir()
    with pytest.raises(ConfigError, match="no usable fields of view; at least 2"):
        fine_tune(order(folder, "pairs"))
    with pytest.raises(ConfigError, match="no micrograph"):
        fine_tune(order(folder, "clean"))
    tifffile.imwrite(folder / "m.tif", counts(np.random.default_rng(0), 1))
    for how in ("thinning", "clean"):
        with pytest.raises(ConfigError, match="1 usable field of view; at least 2"):
            fine_tune(order(folder, how))


def test_a_full_disk_is_said_in_words(
    order: Callable[..., FineTuningOrder], single: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_atomically", full)
    with pytest.raises(StorageError, match=r"No space left on device.*make room"):
        fine_tune(order(single, "thinning"))


def test_weights_that_cannot_be_fine_tuned(order: Callable[..., FineTuningOrder], single: Path, parent: Path) -> None:
    path = parent / "manifest.json"
    plain = path.read_text()
    path.write_text(plain.replace('"noise_units"', '"minmax_crop"'))
    with pytest.raises(WeightsError, match="noise units"):
        fine_tune(order(single, "thinning"))
    path.write_text(plain.replace('"model.safetensors",', "null,", 1))
    with pytest.raises(WeightsError, match="can only be served, not trained"):
        fine_tune(order(single, "thinning"))
    path.write_text(plain.replace("[8,16]", "[8,24]"))
    with pytest.raises(WeightsError, match="does not fit"):
        fine_tune(order(single, "thinning"))
    with pytest.raises(WeightsError, match="cannot be read"):
        fine_tune(order(single, "thinning", parent=str(parent / "none")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"held_out": 1.0}, "--held-out"), ({"crop": 70}, "--crop"), ({"crop": 32}, "--crop"), ({"gain": 0.0}, "gain 0")],
)
def test_options_that_cannot_be(
    order: Callable[..., FineTuningOrder], single: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fine_tune(order(single, "thinning", **changes))


def test_the_command(
    single: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    asked = ["--from", str(parent), "--how", "thinning", "--out", str(tmp_path / "run"), "--crop", "64"]
    options = parser.parse_args([str(single), *asked, "--steps", "2", "--workers", "0"])
    monkeypatch.setattr(finetune, "RATE", 1e-9)
    assert run(options) == NOT_RECOMMENDED
    assert "keep the weights you have" in capsys.readouterr().out
    orders: list[FineTuningOrder] = []

    def take(order: FineTuningOrder) -> Any:
        orders.append(order)
        raise ConfigError("enough")

    monkeypatch.setattr(finetune, "fine_tune", take)
    for extra in (["--gain", "auto", "--endings", "_A", "_B", "--loss", "poisson"], ["--budget-minutes", "5"]):
        with pytest.raises(ConfigError, match="enough"):
            run(parser.parse_args([str(single), *asked, *extra]))
    assert orders[0].budget == Budget(minutes=30)
    assert (orders[0].gain, orders[0].loss, orders[0].partners) == ("auto", "poisson", (("a", "b"),))
    assert (orders[1].gain, orders[1].loss, orders[1].partners) == (1.0, None, PARTNERS)
    assert orders[1].budget == Budget(minutes=5)
