"""The report: complete in one file, honest about what is not reached, and readable from what the evaluation wrote."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.errors import ConfigError
from training.evaluation import metrics, rows, tables
from training.evaluation.report import html, page, plots
from training.evaluation.rows import Row

METHODS = {
    "unfiltered": ("Unfiltered", "nine", 22.0, 1e-5),
    "gaussian": ("Gaussian", "nine", 28.0, 0.01),
    "bm3d": ("BM3D, Anscombe", "bm3d", 30.4, 24.0),
    "fast": ("fast (fast)", "weights", 30.8, 0.3),
}
GUARD = {"name": "no spot", "ok": False, "worst": 86.1, "sense": "<=", "limit": 4.2, "statistic": "peak <over> trend",
         "numbers": {"seeds": 2}}  # fmt: skip


def measured() -> list[Row]:
    rng = np.random.default_rng(0)
    found = []
    for regime, better in (("low", 0.0), ("ordinary", 6.0), ("contrast_0.2", 1.0), ("contrast_0.05", 2.0)):
        for number in range(8):
            simulated = number % 4 == 0
            for name, (_, _, psnr, seconds) in METHODS.items():
                level = psnr + better + number / 10 + rng.normal(0, 0.1)
                error = 10 ** (-level / 10)
                found.append(
                    Row(
                        key=f"{regime}/x/m{number}/0", regime=regime, stratum="simulated" if simulated else "real",
                        micrograph=f"m{number}", source=f"s{number % 3}", modality="", repetition=0, binned=1,
                        shape=(64, 64), pair="p", contrast=0.2 if regime == "contrast_0.2" else 1.0, dose=100.0,
                        mean=20.0 + number, truth_noise=0.0, scale=100.0, method=name, identity="1", seconds=seconds,
                        mse=error, ssim=1 - 20 * error, psnr=level, frc=tuple(np.linspace(1, 0.1, metrics.RINGS)),
                    )
                )  # fmt: skip
    return found


def evaluated() -> dict[str, Any]:
    found = measured()
    return {
        "protocol": {"seed": 7, "side": 64, "quick": False, "versions": {"numpy": "2.0"}, "skipped": []},
        "methods": {
            name: {"label": label, "identity": "1", "family": family, "load_seconds": 0.5, "seconds": seconds}
            for name, (label, family, _, seconds) in METHODS.items()
        },
        "tables": tables.table(found),
        "comparisons": tables.comparisons(found),
        "frc": tables.correlations(found),
        "acceptance": tables.acceptance(found, "fast", ["unfiltered", "gaussian"], 64),
        "guards": {"fast": [GUARD, {**GUARD, "name": "all kept", "ok": True, "worst": 1.5}]},
        "examples": [
            {"file": "examples/6-0.npz", "key": "low/x/m1/0", "figure": 6, "modality": "TEM", "methods": ["fast"]}
        ],
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluated()))
    rows.append(tmp_path / "instances.jsonl", measured())
    rng = np.random.default_rng(0)
    image = rng.random((64, 64)).astype(np.float32)
    for folder in ("errors", "examples"):
        (tmp_path / folder).mkdir()
    np.savez(tmp_path / "errors" / "low.fast.npz", mean=image, count=8, keys=np.array(["a"]), identity="1")
    half = image.astype(np.float16)
    np.savez(tmp_path / "examples" / "6-0.npz", noisy=half, truth=half, fast=half)
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds; what is written does not depend on it."""
    for name in ("densities", "error_maps", "examples", "ring_curves", "gains", "gain_by_dose", "cost_against_quality"):
        monkeypatch.setattr(plots, name, lambda *arguments: b"drawn")


class Balance(HTMLParser):
    """Every tag that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: object) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(path: Path) -> str:
    parser = Balance()
    parser.feed(path.read_text(encoding="utf-8"))
    assert not parser.open
    return " ".join(" ".join(parser.text).split())


def test_one_file_with_everything_in_it(out: Path) -> None:
    page_text = page.write(out).read_text(encoding="utf-8")
    assert set(re.findall(r'src="([^,]{0,30})', page_text)) == {"data:image/png;base64"}
    assert not re.findall(r"https?://|<script|<link|url\(", page_text)
    assert page_text.count("<img") == 7, "figures 4, 5 and 6, rings, two of gains, cost: all the data allow"
    assert not list(out.glob("*.part"))


@pytest.mark.usefixtures("undrawn")
def test_the_verdict_comes_first_and_names_what_is_missed(out: Path) -> None:
    text = read(page.write(out))
    verdict = text[: text.index("Table 1")]
    entries = evaluated()["acceptance"]
    reached = sum(bool(entry["ok"]) for entry in entries) + 1
    assert 0 < reached < len(entries) + 2
    assert f"{reached} of {len(entries) + 2} figures reached" in verdict
    assert "no spot: 86.1 was reached; it must be ≤ 4.2 (peak <over> trend)." in verdict
    for entry in entries:
        if not entry["ok"]:
            assert f"it must be {html.limit(entry['sense'], entry['must'])}." in verdict
    assert "Reached, but not what was aimed at" in verdict
    assert "quick run" not in text


@pytest.mark.usefixtures("undrawn")
def test_the_papers_table_stands_beside_ours(out: Path) -> None:
    text = read(page.write(out))
    assert "Gaussian 0.816 0.452 0.685 0.159" in text
    assert "The paper's network 0.562 0.449 0.752 0.147 0.201 0.169 0.926 0.057" in text
    wanted = {"regime": "low", "stratum": "all", "instances": "shared", "method": "gaussian"}
    (ours,) = (entry for entry in evaluated()["tables"] if wanted.items() <= entry.items())
    assert f"{1e3 * ours['mse']:.3f} {1e3 * ours['mse_std']:.3f} {ours['ssim']:.3f}" in text


@pytest.mark.usefixtures("undrawn")
def test_the_report_states_how_it_was_measured(out: Path) -> None:
    text = read(page.write(out))
    assert "seed 7" in text
    assert "numpy 2.0" in text
    assert "fast (fast) 0.3 80 0.50" in text, "seconds, times faster than BM3D, seconds to load"


@pytest.mark.usefixtures("undrawn")
def test_the_report_states_when_all_goals_are_reached(out: Path) -> None:
    evaluation = evaluated()
    for entry in evaluation["acceptance"]:
        entry.update(ok=True, aim_ok=True)
    evaluation["guards"] = {}
    (out / "evaluation.json").write_text(json.dumps(evaluation))
    assert "Everything that must be reached is reached." in read(page.write(out))


@pytest.mark.usefixtures("undrawn")
def test_what_was_not_measured_counts_as_missed(out: Path) -> None:
    evaluation = evaluated()
    evaluation["acceptance"][0].update(reached=None, ok=False, aim_ok=False)
    (out / "evaluation.json").write_text(json.dumps(evaluation))
    assert "not measured; a method that it is compared with" in read(page.write(out))


@pytest.mark.usefixtures("undrawn")
def test_remarks_and_names_cannot_break_the_page(out: Path) -> None:
    evaluation = evaluated()
    evaluation["methods"]["fast"]["label"] = "<b>fast & new"
    (out / "evaluation.json").write_text(json.dumps(evaluation))
    (out / page.REMARKS).write_text("Why: too few steps, <i>p</i> & q", encoding="utf-8")
    text = read(page.write(out))
    assert "<b>fast & new" in text
    assert "Why: too few steps, <i>p</i> & q" in text


@pytest.mark.usefixtures("undrawn")
def test_simulation_alone_without_rows_figures_or_weights(tmp_path: Path) -> None:
    evaluation = evaluated()
    evaluation["tables"] = [entry for entry in evaluation["tables"] if entry["stratum"] == "simulated"]
    evaluation["methods"]["fast"]["seconds"] = None
    evaluation.update(acceptance=[], guards={}, comparisons=[], frc=[], protocol={"quick": True})
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    text = read(page.write(tmp_path))
    assert "No weights were evaluated" in text
    assert "A quick run" in text
    assert "simulated, held out" in text


def test_rows_of_other_weights_are_not_drawn(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Row] = []
    monkeypatch.setattr(page, "render", lambda evaluation, measured, folder: seen.extend(measured) or "page")
    evaluation = evaluated()
    evaluation["methods"]["fast"]["identity"] = "2"
    (out / "evaluation.json").write_text(json.dumps(evaluation))
    page.write(out)
    assert {row.method for row in seen} == {"unfiltered", "gaussian", "bm3d"}


def test_two_weights_of_one_name_are_distinguished() -> None:
    assert html.labels({"a": {"label": "fast"}, "b": {"label": "fast"}, "c": {"label": "BM3D"}}) == {
        "a": "fast [a]", "b": "fast [b]", "c": "BM3D",
    }  # fmt: skip


@pytest.mark.parametrize("content", [None, "", "[]", '{"methods": {"fast": {}}}'])
def test_no_evaluation_no_report(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(ConfigError, match=r"evaluation\.json: is no evaluation.*evaluate"):
        page.write(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.30001, "0.300"), (-0.0123, "−0.0123"), (86.12, "86.1"), (123456.0, "123456")]
)
def test_numbers_have_three_figures(value: float, text: str) -> None:
    assert html.number(value) == text
