"""Figures in README and documents are those of the committed results."""

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from daemon.backends.manifest import aliases

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text("utf-8")
QUALITY = (ROOT / "docs" / "quality.md").read_text("utf-8")
FAST = aliases()["fast"]
"""The weights that are recommended."""
FIELD = (ROOT / "docs" / "field.md").read_text("utf-8")


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_verdicts_tables() -> None:
    rows = script("verdict").table(result("verdict.json")).splitlines()
    document = (ROOT / "docs" / "verdict.md").read_text("utf-8")
    assert all(row in document for row in rows)
    for row in rows[2:]:
        _, label, *_, reported, _ = row.split("|")
        assert f"|{label}|{reported}|" in QUALITY


def test_the_share_of_healthy_micrographs_that_are_good() -> None:
    document = " ".join((ROOT / "docs" / "verdict.md").read_text("utf-8").split())
    before, now = result("healthy-before.json"), result("healthy.json")
    good, of = now["good"]["number"], now["good"]["of"]
    listed = (ROOT / "benchmarks" / "healthy.txt").read_text("utf-8").splitlines()
    assert of == sum(not line.startswith("#") for line in listed) == len(now["micrographs"])
    assert (
        f"{before['good']['number']} of {of} were good before, {good} of {of} ({good / of:.0%}".replace("%", " %")
        in document
    )
    caught = now["faults caught"]
    assert f"Of {caught['of']} broken results of the same images {caught['number']} are not good" in document
    assert f"({before['faults caught']['number']} before" in document


def test_every_look_at_the_public_set_is_told() -> None:
    document = " ".join((ROOT / "docs" / "verdict.md").read_text("utf-8").split())
    for run in ("1", "2", "3", "4"):
        told = result(f"verdict-earlier/{run}.json")["report, test_public (real truths)"]
        caught, alarms = (told[f"rejected of those {kind} than the raw image"] for kind in ("worse", "better"))
        assert f"{told['cases']} cases: {caught['number']} of {caught['of']}" in document
        assert f"{alarms['number']} of {alarms['of']}" in document


def test_the_shares_of_gain_and_noise() -> None:
    simulated = result("dose.json")["simulation"]
    told = " ".join(QUALITY.split())
    everything = simulated["all"]["noise_variance"]
    assert f"in {everything['within_10_percent']:.0%} of {everything['images']} images".replace("%", " %") in told
    cameras = simulated["camera"]
    for camera in ("counts", "scaled"):
        assert cameras[camera]["gain"]["within_10_percent"] >= 0.99
    assert f"({cameras['pedestal']['gain']['within_10_percent']:.0%} of them".replace("%", " %") in told


def test_what_was_counted_in_the_field() -> None:
    field, fuzz = result("field.json"), result("fuzz.json")
    assert f"{fuzz['inputs']:,} inputs" in FIELD
    assert fuzz["inputs"] == sum(target["inputs"] for target in fuzz["targets"].values())
    kills = field["kills"]
    assert kills["micrographs"] == kills["whole_results"]
    assert f"{kills['kills']:,} kills, {kills['micrographs']:,} micrographs" in FIELD
    assert f"{field['failpoints']['kills']} such places" in FIELD
    soak = field["soak"]
    warm, end = (round(soak[name] / 1024) for name in ("rss_kb_once_warm", "rss_kb_at_the_end"))
    assert f"{soak['micrographs']:,} micrographs: {warm} MiB once warm, {end} MiB at the end" in FIELD


def test_the_host_paths_figures() -> None:
    host = result("host_path.json")
    share = host["throughput"]["daemon_share_of_bare_speed"]
    rounds = len(host["throughput"]["rounds"])
    assert f"{share['median']:.0%} (least of {rounds} rounds {share['least']:.0%})" in FIELD
    step = host["throughput"]["mean_seconds_by_step"]
    own = ", ".join(f"{name} {step[name]:.3f}" for name in ("prepare", "read", "judge", "write"))
    assert f"beside {step['network']:.2f} for the network: {own}" in FIELD
    wait = host["last_byte_to_start_of_work"]["seconds"]
    assert f"{wait['median']:.2f} s, longest {wait['longest']:.2f} s" in FIELD
    cost = host["seconds_per_megapixel"].values()
    assert f"{min(cost):.2f} to {max(cost):.2f} s: within {host['dearest_over_cheapest'] - 1:.0%}" in FIELD
    peak = {side: f"{mib / 1024:.1f}" for side, mib in host["peak_rss_mib"].items()}
    assert f"{peak['1024']} GiB at 1024², {peak['4096']} at 4096², {peak['16384']} at 16384²" in FIELD


def test_the_figures_on_the_front_page() -> None:
    front = " ".join(README.split())
    evaluation = result("test_public/evaluation.json")
    means = {
        (row["regime"], row["method"]): f"{row['psnr']:.1f}".replace("-", "−")
        for row in evaluation["tables"]
        if row["stratum"] == "all" and row["instances"] == "shared"
    }
    rows = {
        "low": "low dose (peak 25 + Exp(75) counts)",
        "ordinary": "ordinary dose (peak 200 to 2500)",
        "contrast_0.2": "low dose, 20 % contrast",
        "contrast_0.05": "low dose, 5 % contrast",
    }
    for regime, label in rows.items():
        raw, rival, ours = (means[regime, method] for method in ("unfiltered", "bm3d", FAST))
        assert f"| {label} | {raw} | {rival} | {ours} |" in front.replace("**", "")
        for figure in (raw, rival, ours):
            assert figure in QUALITY
    protocol, methods = evaluation["protocol"], evaluation["methods"]
    assert f"on {protocol['micrographs']} real micrographs of {len(protocol['sources'])} sources" in front
    assert f"{methods[FAST]['seconds']:.2f} s for 512², BM3D {methods['bm3d']['seconds']:.1f} s" in front
    guards = [guard["ok"] for guard in evaluation["guards"][FAST]]
    goals = [figure["ok"] for figure in evaluation["acceptance"] if figure["method"] == FAST] + guards
    assert f"{sum(goals)} of the {len(goals)} goals" in front
    assert f"{guards.count(False)} of {len(guards)} tests for lost and invented detail fail" in front
    verdict = result("verdict.json")["report, test_public (real truths)"]
    caught, alarms = (verdict[f"rejected of those {kind} than the raw image"] for kind in ("worse", "better"))
    assert f"rejected {caught['number']} of {caught['of']} results" in front
    assert f"{alarms['number']} of {alarms['of']} that were better" in front
    kills = result("field.json")["kills"]
    assert f"{kills['kills']:,} times while a simulated camera wrote {kills['micrographs']:,} micrographs" in front
    assert f"{kills['whole_results']:,} complete results" in front


def test_the_queue_model() -> None:
    model, stored = script("queue_model"), result("queue.json")
    document = (ROOT / "docs" / "scale.md").read_text("utf-8")
    for index, (service, busy, p50, p99) in enumerate(((0.030, 0.20, 0.031, 0.072), (0.120, 0.81, 0.23, 0.72))):
        found = model.load(service)
        assert asdict(found) == stored["loads"][2 * index], "benchmarks/results/queue.json is of another model"
        figures = zip((found.busy, found.p50, found.p99), (busy, p50, p99), strict=True)
        assert all(abs(is_now / planned - 1) < 0.05 for is_now, planned in figures), "figures of the plan"
    for one in stored["loads"]:
        p50, p99 = (f"{round(one[name] * 1000)} ms" for name in ("p50", "p99"))
        most = stored["most microscopes for 1 s"][str(one["service"])]
        burst = stored["burst of all at once"][str(one["service"])]
        assert f"| {one['service'] * 1000:.0f} ms | {one['busy']:.0%}".replace("%", " %") in document
        assert f"| {p50} | {p99} | {burst} s | {most} |" in document
    assert model.network() == stored["network"] == {"megabytes": 104.9, "gigabits": 5.59}
    assert f"would give {stored['poisson'][-1]['p99']:.1f} s in place of {stored['loads'][-1]['p99']:.2f} s" in document


def test_what_a_batch_costs() -> None:
    costs, document = result("batch_costs.json"), (ROOT / "docs" / "scale.md").read_text("utf-8")
    assert f"| {costs['list and freeze, s for a million']:.0f} s for a million files, once |" in document
    assert f"| {costs['read one shard of 16 from it, s for a million']:.1f} s for a million files |" in document
    assert f"| {costs['skip, ms for each file']:.2f} ms: " in document
