"""`evaluate --paper`: the paper's table and figures on one page, its numbers beside ours, and what differs."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from safetensors.torch import save_file

from daemon.backends import manifest
from daemon.errors import ConfigError
from training.evaluation import command as evaluate
from training.evaluation import methods, paper, rows
from training.evaluation.report.tables import PAPER
from training.network import build

SIDE, PAIRS = 64, 2


def parse(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with micrographs, a training (curves, random weights), two networks, and OUT with their evaluation."""
    place = tmp_path_factory.mktemp("paper")
    (place / "images").mkdir()
    for name, seed in (("a_1.tif", 0), ("b_1.tif", 1)):
        rng = np.random.default_rng(seed)
        y, x = np.arange(90) / rng.uniform(5, 9), np.arange(120) / rng.uniform(5, 9)
        image = 1000 * (1 + np.sin(y)[:, None] * np.sin(x))
        tifffile.imwrite(place / "images" / name, image.astype(np.uint16))
    for regime in paper.REGIMES:
        curve = place / "run" / regime / "curve.jsonl"
        curve.parent.mkdir(parents=True)
        save_file(build("ede2018", {"width": 1 / 32}).state_dict(), curve.with_name("model.safetensors"))
        recipe = {"network": "ede2018", "arguments": {"width": 1 / 32}, "protocol": "paper"}
        curve.with_name("record.json").write_text(json.dumps({"recipe": recipe}))
        row = {"minutes": 0.1, "rate": 1e-3, "loss": 3.0, "validation_mse": 0.01}
        curve.write_text("".join(json.dumps({"step": step, **row}) + "\n" for step in (5, 10)))
        folder = Path(shutil.copytree(manifest.locate("fast"), place / f"net-{regime}"))
        described = manifest.load(folder).model_copy(update={"name": folder.name})
        (folder / manifest.MANIFEST).write_text(described.model_dump_json())
    first = place / "run" / "first"
    shutil.copytree(curve.parent, first)
    recipe |= {"optimiser": "adam", "stages": [{"batches": 7, "rate": 1e-3, "freeze": False}, {"freeze": True}]}
    (first / "record.json").write_text(json.dumps({"steps": 12, "minutes": 3.4, "recipe": recipe, "micrographs": []}))
    assert evaluate.run(options(place, "--no-examples")) == 0
    return place


def options(place: Path, *more: object) -> argparse.Namespace:
    networks = [word for regime in paper.REGIMES for word in ("--weights", place / f"net-{regime}")]
    return parse(place / "images", "--out", place / "out", "--paper", place / "run", *networks,
                 "--instances", PAIRS, "--side", SIDE, *more)  # fmt: skip


@pytest.fixture(scope="module")
def result(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "out" / "paper.json").read_text())
    return found


def test_each_network_and_all_filters_get_the_pairs_of_its_dose(place: Path, result: dict[str, Any]) -> None:
    measured = rows.read(place / "out" / "instances.jsonl")
    assert {row.regime for row in measured} == set(paper.REGIMES)
    assert {row.stratum for row in measured} == {"real"}
    for regime in paper.REGIMES:
        mine = [row for row in measured if row.regime == regime]
        names = {*methods.NINE, f"net-{regime}", regime}
        assert {row.method for row in mine} == names
        assert len(mine) == PAIRS * len(names)
        pairs = result["pairs"][regime]
        assert len(pairs["keys"]) == PAIRS and set(pairs) == {"keys", paper.NETWORK, paper.PLAIN, *methods.NINE}
        own = [row.mse for row in mine if row.method == f"net-{regime}"]
        assert pairs[paper.NETWORK]["mse"] == own
        assert result["error_maps"][regime]["pairs"] == PAIRS
        assert result["error_maps"][regime]["lowest"] <= result["error_maps"][regime]["mean"]


def test_the_best_filter_and_the_papers_own_margins(result: dict[str, Any]) -> None:
    for regime, margins in (("low", (0.2466, 0.0962)), ("ordinary", (0.4157, 0.0547))):
        found = result["under_best"][regime]
        mine = {e["method"]: e["mse"] for e in result["tables"] if e["regime"] == regime}
        ours, plain = mine.pop(paper.NETWORK), mine.pop(paper.PLAIN)
        assert found["filter"] == min(mine, key=lambda name: mine[name])
        assert found["mse"] == pytest.approx(1 - ours / min(mine.values()), abs=1e-4)
        assert found["mse_mean_not_carried"] == pytest.approx(1 - plain / min(mine.values()), abs=1e-4)
        assert (found["paper"]["mse"], found["paper"]["similarity"]) == margins
    assert set(PAPER) == {*methods.NINE, "paper"}


def test_the_page_is_one_file_that_states_what_it_is(place: Path, result: dict[str, Any]) -> None:
    page = (place / "out" / "paper.html").read_text()
    assert page.index("not the paper's result".replace("'", "&#x27;")) < page.index("<h2>")
    assert all(f"Figure {number}" in page for number in range(3, 9))
    assert page.count("data:image/png") == 3 + 1 + 1 + 3
    assert ">12 (3 minutes; adam), " in page and "with the first fall batch normalisation is frozen" in page
    assert "77.0 ms" in page and "a few seconds" in page and "0.0169 to 0.0320" in page
    assert ">0.562<" in page and ">0.201<" in page
    assert result["machine"] in page
    assert "simulated specimens" in page and "a_1.tif" not in page.split("How it was measured")[0]
    assert "src=" not in page.replace('src="data:', "")
    assert {example["figure"] for example in result["examples"]} == {6, 7, 8}
    assert all("/simulated/" in example["key"] for example in result["examples"])


def test_everything_measured_is_taken_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(rows, "measure", never)
    monkeypatch.setattr(paper, "examples", lambda *_: [])
    monkeypatch.setattr(paper.paper_page, "write", lambda *_: "paper.html")
    before = json.loads((place / "out" / "paper.json").read_text())
    for regime in paper.REGIMES:  # only its curves are left
        (place / "run" / regime / "model.safetensors").unlink()
    assert evaluate.run(options(place, "--no-examples")) == 0
    after = json.loads((place / "out" / "paper.json").read_text())
    assert after["tables"] == [entry for entry in before["tables"] if entry["method"] != paper.PLAIN]
    assert {found["mse_mean_not_carried"] for found in after["under_best"].values()} == {None}


def test_orders_that_cannot_be_carried_out(place: Path) -> None:
    with pytest.raises(ConfigError, match="the network for low doses, then that for ordinary doses"):
        evaluate.run(parse(place / "images", "--out", place / "o", "--paper", place / "run", "--weights", "fast"))
    networks = [word for regime in paper.REGIMES for word in ("--weights", place / f"net-{regime}")]
    same = shutil.copytree(place / "net-low", place / "elsewhere" / "net-ordinary")
    with pytest.raises(ConfigError, match="two networks are called the same"):
        evaluate.run(parse(place / "images", "--out", place / "o", "--paper", place / "run", "--weights", same,
                           "--weights", place / "net-ordinary"))  # fmt: skip
    with pytest.raises(ConfigError, match=r"typo: neither low/curve.jsonl nor .*name the folder that `fit"):
        evaluate.run(parse(place / "images", "--out", place / "o", "--paper", place / "typo", *networks))
    with pytest.raises(ConfigError, match="needs a folder of micrographs"):
        evaluate.run(parse("--out", place / "o", "--paper", place / "run", *networks))
