"""Pairs that are the same for everybody, rows that survive being killed, and the whole command on small images."""

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from daemon.errors import ConfigError
from training.data.exposure import Pair
from training.evaluation import command as evaluate
from training.evaluation import methods, metrics, pairs, rows, runner
from training.evaluation.methods import Method


@pytest.fixture
def micrographs(tmp_path: Path) -> Path:
    """Three smooth micrographs of two sources, and two files that are none."""
    folder = tmp_path / "micrographs"
    for name, seed, shape in (("a_1.tif", 0, (90, 120)), ("a_2.tif", 1, (80, 80)), ("b_1.tif", 2, (100, 60))):
        rng = np.random.default_rng(seed)
        y, x = np.arange(shape[0]) / rng.uniform(5, 9), np.arange(shape[1]) / rng.uniform(5, 9)
        image = 1000 * (1 + np.sin(y)[:, None] * np.sin(x))
        folder.mkdir(exist_ok=True)
        tifffile.imwrite(folder / name, image.astype(np.uint16))
    (folder / "notes.tif").write_text("not an image")
    tifffile.imwrite(folder / "flat.tif", np.full((70, 70), 7, np.uint16))
    return folder


def subjects_of(folder: Path) -> list[pairs.Subject]:
    return pairs.real_subjects(folder, None, None)


# Pairs


@pytest.mark.parametrize("regime", pairs.REGIMES)
def test_a_pair_depends_on_its_key_alone(micrographs: Path, regime: str) -> None:
    keys = pairs.plan(subjects_of(micrographs), regime, 5, 1, 64)
    again = pairs.plan(subjects_of(micrographs), regime, 5, 1, 64)
    assert [str(key) for key in keys] == [str(key) for key in again]
    assert [key.fingerprint for key in keys] == [key.fingerprint for key in again]
    for key in reversed(again):
        first = pairs.make(next(k for k in keys if str(k) == str(key)))
        assert (first.pair.counts == pairs.make(key).pair.counts).all()
    assert len({key.fingerprint for key in keys}) == 5


def test_other_seeds_files_and_sides_give_other_fingerprints(micrographs: Path) -> None:
    (key, *_) = pairs.plan(subjects_of(micrographs), "low", 1, 1, 64)
    prints = {key.fingerprint}
    prints.add(pairs.plan([key.subject], "low", 1, 2, 64)[0].fingerprint)
    prints.add(pairs.plan([key.subject], "low", 1, 1, 65)[0].fingerprint)
    prints.add(pairs.plan([key.subject], "ordinary", 1, 1, 64)[0].fingerprint)
    path = micrographs / key.subject.name
    tifffile.imwrite(path, tifffile.imread(path)[::-1])
    changed = next(s for s in subjects_of(micrographs) if s.name == key.subject.name)
    prints.add(pairs.plan([changed], "low", 1, 1, 64)[0].fingerprint)
    assert len(prints) == 5


def test_every_micrograph_once_source_by_source_then_again(micrographs: Path) -> None:
    subjects = subjects_of(micrographs)
    assert [(s.name, s.source) for s in subjects] == [("a_1.tif", "a"), ("a_2.tif", "a"), ("b_1.tif", "b")]
    keys = pairs.plan(subjects, "low", 7, 1, 64)
    assert {key.subject.source for key in keys[:2]} == {"a", "b"}
    assert {key.subject.name for key in keys[:3]} == {"a_1.tif", "a_2.tif", "b_1.tif"}
    assert [key.repetition for key in keys] == [0, 0, 0, 1, 1, 1, 2]
    assert pairs.plan(subjects, "low", 4, 1, 64) == keys[:4]


def test_pairs_are_the_papers(micrographs: Path) -> None:
    for key in pairs.plan(subjects_of(micrographs), "low", 12, 3, 64):
        instance = pairs.make(key)
        pair = instance.pair
        assert pair.noisy.min() == 0
        assert pair.noisy.max() == pytest.approx(1)
        assert pair.truth.mean() == pytest.approx(pair.noisy.mean(), rel=1e-5)
        assert pair.true_counts.max() == pytest.approx(instance.dose, rel=1e-6)
        assert instance.dose > 25
        z = (pair.counts - pair.true_counts).sum() / np.sqrt(pair.true_counts.sum())
        assert abs(z) < 5
        assert instance.truth_noise < 0.1 * instance.dose


@pytest.mark.parametrize("contrast", [0.05, 0.2])
def test_contrast_spends_the_same_electrons_on_the_same_crop(micrographs: Path, contrast: float) -> None:
    subjects = subjects_of(micrographs)
    (low,) = pairs.plan(subjects, "low", 1, 3, 64)
    (faint,) = pairs.plan(subjects, f"contrast_{contrast:g}", 1, 3, 64)
    full, diluted = pairs.make(low), pairs.make(faint)
    a, b = full.pair.true_counts.astype(float), diluted.pair.true_counts.astype(float)
    assert b.mean() == pytest.approx(a.mean(), rel=1e-4)
    assert b - b.mean() == pytest.approx(contrast * (a - a.mean()), abs=1e-3 * a.mean())
    assert diluted.dose == pytest.approx(np.ptp(b), rel=1e-5)
    assert diluted.pair.scaling.to_units(diluted.pair.true_counts) == pytest.approx(diluted.pair.truth)


def test_small_micrographs_are_taken_whole(micrographs: Path) -> None:
    (key,) = pairs.plan([s for s in subjects_of(micrographs) if s.name == "b_1.tif"], "low", 1, 1, 512)
    assert sorted(pairs.make(key).pair.counts.shape) == [60, 100]


def test_simulation_is_held_out_and_noiseless() -> None:
    from training.data.simulate import HELD_OUT, TRAINING

    subjects = pairs.simulated_subjects()
    assert {subject.name for subject in subjects} == set(HELD_OUT)
    assert not set(HELD_OUT) & set(TRAINING)
    for key in pairs.plan(subjects, "ordinary", len(subjects), 1, 96):
        instance = pairs.make(key)
        assert instance.truth_noise == 0
        assert instance.pair.counts.shape == (96, 96)


def test_sources_and_modalities_from_a_table(micrographs: Path, tmp_path: Path) -> None:
    table = tmp_path / "sources.csv"
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows([["name", "source", "modality"], ["a_1", "X", "TEM"], ["a_2", "Y", "STEM-ADF"]])
    subjects = pairs.real_subjects(micrographs, None, table)
    assert [(s.source, s.modality) for s in subjects] == [("X", "TEM"), ("Y", "STEM-ADF"), ("b", "")]


def test_a_folder_without_micrographs_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        pairs.real_subjects(tmp_path / "nowhere", None, None)


# Rows, and resuming


class Counting:
    """A method that counts its runs, and stops the process (so to say) on request."""

    def __init__(self, name: str = "m", version: str = "1", stop_after: int = 10**9) -> None:
        self.calls, self.stop_after = 0, stop_after
        self.method = Method(name, name, "nine", False, f"{name} {version}", self.run)

    def run(self, pair: Pair) -> NDArray[np.float32]:
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        return pair.scaling.to_pixels(methods.gaussian(pair.noisy))


@pytest.fixture
def work(micrographs: Path) -> Callable[..., list[tuple[pairs.Key, list[Method]]]]:
    subjects = {"real": subjects_of(micrographs), "simulated": pairs.simulated_subjects()}

    def make(*counting: Counting, seed: int = 5) -> list[tuple[pairs.Key, list[Method]]]:
        keys = runner.Plan(3, 1, 1, 1).keys(subjects, seed, 64)
        return [(key, [one.method for one in counting]) for key in keys]

    return make


def mean_map(out: Path) -> tuple[Any, int]:
    with np.load(out / "errors" / "low.m.npz") as saved:
        return saved["mean"], int(saved["count"])


def test_a_rerun_measures_nothing_again(tmp_path: Path, work: Any) -> None:
    first, second = Counting(), Counting()
    measured = runner.measure_all(tmp_path, work(first), 64)
    assert len(measured) == first.calls == 12
    text = (tmp_path / "instances.jsonl").read_text()
    assert runner.measure_all(tmp_path, work(second), 64) == measured
    assert second.calls == 0
    assert (tmp_path / "instances.jsonl").read_text() == text


@pytest.mark.parametrize("stop", [1, 5, 11])
def test_stopped_anywhere_it_ends_up_the_same(tmp_path: Path, work: Any, stop: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(runner, "FLUSH_SECONDS", 0)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected = runner.measure_all(whole, work(Counting()), 64)
    with pytest.raises(KeyboardInterrupt):
        runner.measure_all(parts, work(Counting(stop_after=stop)), 64)
    rest = Counting()
    resumed = runner.measure_all(parts, work(rest), 64)
    assert rest.calls == len(expected) - stop

    def figures(row: rows.Row) -> tuple[Any, ...]:
        return row.key, row.method, row.mse, row.ssim, row.psnr, row.frc

    assert list(map(figures, resumed)) == list(map(figures, expected))
    (a, number), (b, other) = mean_map(whole), mean_map(parts)
    assert number == other == sum(row.regime == "low" and row.shape == (64, 64) for row in expected)
    assert a == pytest.approx(b, abs=1e-6)


def test_rows_lost_after_their_map_was_written_are_not_counted_twice(tmp_path: Path, work: Any) -> None:
    expected = runner.measure_all(tmp_path, work(Counting()), 64)
    before = mean_map(tmp_path)
    path = tmp_path / "instances.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:40])  # killed in the middle of a line
    again = Counting()
    runner.measure_all(tmp_path, work(again), 64)
    assert again.calls == len(expected) - 3
    after = mean_map(tmp_path)
    assert after[1] == before[1]
    assert after[0] == pytest.approx(before[0], abs=1e-6)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_other_versions_and_other_pairs_are_measured_again(tmp_path: Path, work: Any) -> None:
    runner.measure_all(tmp_path, work(Counting()), 64)
    newer, reseeded = Counting(version="2"), Counting(version="2")
    runner.measure_all(tmp_path, work(newer), 64)
    assert newer.calls == 12
    runner.measure_all(tmp_path, work(reseeded, seed=6), 64)
    assert reseeded.calls == 12
    latest = rows.current(tmp_path / "instances.jsonl", {"m": "m 2"})
    assert {row.identity for row in latest} == {"m 2"}
    assert len({(row.key, row.method) for row in latest}) == len(latest)


def test_damaged_lines_are_left_out_and_reported(tmp_path: Path, work: Any, caplog: Any) -> None:
    runner.measure_all(tmp_path, work(Counting()), 64)
    path = tmp_path / "instances.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace('"mse": ', '"mse": "x')
    lines[4] = json.dumps({"key": "of another version"})
    path.write_text("\n".join(lines) + "\n")
    assert len(rows.read(path)) == 10
    assert "line 3" in caplog.text
    assert "line 5" in caplog.text


def test_all_methods_are_clipped_alike(micrographs: Path) -> None:
    instance = pairs.make(pairs.plan(subjects_of(micrographs), "low", 1, 1, 64)[0])

    def wild(pair: Pair) -> NDArray[np.float32]:
        return pair.counts * 3 - 40

    row, error = rows.measure(Method("w", "w", "nine", False, "w", wild), instance)
    clipped = np.clip(wild(instance.pair), instance.pair.counts.min(), instance.pair.counts.max())
    assert row.psnr == pytest.approx(metrics.psnr(clipped, instance.pair.true_counts, instance.dose), abs=1e-3)
    assert row.mse == pytest.approx(float(np.square(error, dtype=float).mean()), rel=1e-5)


def test_a_method_that_gives_nonsense_is_an_error(micrographs: Path) -> None:
    instance = pairs.make(pairs.plan(subjects_of(micrographs), "low", 1, 1, 64)[0])
    broken = Method("broken", "b", "weights", False, "b", lambda pair: pair.counts * np.float32("nan"))
    with pytest.raises(ConfigError, match=r"broken on low/real"):
        rows.measure(broken, instance)


# The command


def parse(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.page, "write", lambda out: out / "report.html")


@pytest.mark.usefixtures("no_report")
def test_quick_on_real_and_simulated_micrographs(micrographs: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    names = ("unfiltered", "gaussian", "median", "identity")
    assert evaluate.run(parse(micrographs, "--out", out, "--quick", "--methods", *names)) == 0
    result = json.loads((out / "evaluation.json").read_text())
    assert set(result["methods"]) == set(names)
    strata = {(entry["regime"], entry["stratum"]) for entry in result["tables"]}
    assert {(regime, stratum) for regime in pairs.REGIMES for stratum in ("all", "simulated")} <= strata
    assert {entry["method"] for entry in result["acceptance"]} == {"identity"}
    assert not any(entry["ok"] for entry in result["acceptance"])
    for example in result["examples"]:
        with np.load(out / example["file"]) as images:
            assert set(images) == {"noisy", "truth", "gaussian"}
            assert images["gaussian"].max() <= 1
    assert (out / "errors" / "ordinary.median.npz").is_file()
    said = capsys.readouterr().out
    assert "MISSED" in said
    assert "gaussian" in said


@pytest.mark.usefixtures("no_report")
def test_the_identity_fails_against_every_rival(tmp_path: Path) -> None:
    """With the nine and BM3D really measured, so that nothing is missed only because it is missing."""
    names = [*methods.NINE, "bm3d", "identity"]
    evaluate.run(parse("--out", tmp_path, "--quick", "--methods", *names))
    result = json.loads((tmp_path / "evaluation.json").read_text())
    judged = [entry for entry in result["acceptance"] if entry["stratum"] == "simulated"]
    assert len(judged) == 10
    assert all(entry["reached"] is not None for entry in judged)
    missed = [entry["figure"] for entry in judged if not entry["ok"]]
    assert missed.count("PSNR over BM3D, dB") == 4
    assert missed.count("MSE under the best of the nine, share") == 2
    assert missed.count("1 - SSIM under the best of the nine, share") == 2


def test_files_the_weights_were_trained_on_are_known(tmp_path: Path) -> None:
    assert "tkrem_sgl_exp_hrstem.tif" in methods.learnt_from("fast-3")
    (tmp_path / "record.json").write_text('{"micrographs": ["grid/a.tif"]}')
    assert methods.learnt_from(str(tmp_path)) == {"a.tif"}
    (tmp_path / "record.json").write_text("[]")
    assert methods.learnt_from(str(tmp_path)) == set()


@pytest.mark.usefixtures("no_report")
def test_without_micrographs_all_is_simulated(tmp_path: Path) -> None:
    evaluate.run(parse("--out", tmp_path, "--quick", "--no-examples", "--methods", "unfiltered", "gaussian"))
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert {entry["stratum"] for entry in result["tables"]} == {"simulated"}
    assert result["examples"] == []
    assert not (tmp_path / "examples").exists()
    assert result["protocol"]["data"] is None


def test_slow_methods_see_the_first_of_the_same_pairs(micrographs: Path) -> None:
    subjects = {"real": subjects_of(micrographs), "simulated": pairs.simulated_subjects()}
    made = list(methods.methods(["gaussian", "nl_means"]).values())
    work = evaluate._work(made, subjects, evaluate._Size((), 64, instances=40, slow=8), 1)
    per_regime = {regime: [(k, m) for k, m in work if k.regime == regime] for regime in pairs.REGIMES}
    for regime, number, slow in (("low", 40, 8), ("ordinary", 40, 8), ("contrast_0.2", 20, 4)):
        assert len(per_regime[regime]) == number
        assert sum(len(m) == 2 for _, m in per_regime[regime]) == slow
        assert all(len(m) == 2 for _, m in per_regime[regime][:slow])
        assert sum(key.subject.stratum == "simulated" for key, _ in per_regime[regime]) == number // 4
    assert len({str(key) for key, _ in work}) == len(work)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--instances", "0"), "at least 1"),
        (("--side", "32"), "at least 64"),
        (("--methods", "magic"), "magic"),
    ],
)
def test_an_impossible_order_is_reported(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate.run(parse("--out", tmp_path / "out", *arguments))


def test_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        evaluate.run(parse("--out", tmp_path / "out", "--quick", "--methods", "gaussian"))


def test_methods_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = Method("gaussian", "g", "weights", False, "g", lambda pair: pair.counts)
    monkeypatch.setattr(methods, "weights", lambda name, threads: twin)
    with pytest.raises(ConfigError, match="two methods are called gaussian"):
        evaluate.run(parse("--out", tmp_path, "--methods", "gaussian", "--weights", "gaussian"))


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(("options", "rivalled"), [((), True), (("--no-rival",), False)])
def test_bm3d_is_the_rival_in_the_guards_unless_that_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], rivalled: bool
) -> None:
    net = Method("net", "net", "weights", False, "net 1", lambda pair: pair.scaling.to_pixels(pair.noisy * 0.9))
    monkeypatch.setattr(methods, "weights", lambda name, threads: net)
    rivals = []
    monkeypatch.setattr(evaluate.guards, "run_all", lambda denoise, quick, rival: rivals.append(rival) or ())
    asked = parse("--out", tmp_path, "--side", 64, "--instances", 1, "--slow-instances", 1, "--methods", "bm3d",
                  "--weights", "net", "--no-examples", *options)  # fmt: skip
    assert evaluate.run(asked) == 0
    assert [rival is not None for rival in rivals] == [rivalled]
    assert json.loads((tmp_path / "evaluation.json").read_text())["protocol"]["guards_rival"] is rivalled


@pytest.mark.usefixtures("no_report")
def test_weights_are_guarded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    net = Method("net", "net", "weights", False, "net 1", lambda pair: pair.scaling.to_pixels(pair.noisy * 0.9))
    monkeypatch.setattr(methods, "weights", lambda name, threads: net)

    def run_all(denoise: Any, quick: bool, rival: Any) -> tuple[()]:
        calls.append(denoise(np.ones((64, 64), np.float32)).shape)
        return ()

    monkeypatch.setattr(evaluate.guards, "run_all", run_all)
    for _ in range(2):
        options = parse("--out", tmp_path, "--quick", "--methods", "unfiltered", "--weights", "net")
        assert evaluate.run(options) == 0
    assert calls == [(64, 64)]
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["guards"] == {"net": []}
    assert result["methods"]["net"]["family"] == "weights"
