"""Figures in README and documents are those of the committed results."""

import importlib.util
import json
import re
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from daemon.backends import manifest
from daemon.backends.manifest import aliases

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text("utf-8")
QUALITY = (ROOT / "docs" / "quality.md").read_text("utf-8")
FAST = aliases()["fast"]
"""The weights that are recommended."""
FIELD = " ".join((ROOT / "docs" / "field.md").read_text("utf-8").split())


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


def test_what_judging_costs() -> None:
    document = " ".join((ROOT / "docs" / "verdict.md").read_text("utf-8").split())
    shares = {row["side"]: row["share"] for row in result("verdict.json")["processor seconds, side by side"]}
    small = [share * 100 for side, share in shares.items() if side <= 1024]
    assert f"takes {min(small):.0f} % to {max(small):.0f} % of the network's processor time up to 1024²" in document
    assert max(share for side, share in shares.items() if side > 1024) <= 0.02
    assert "and 2 % or less from 2048² on" in document


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


def test_every_evaluation_of_the_public_set_is_reported() -> None:
    document = " ".join((ROOT / "docs" / "verdict.md").read_text("utf-8").split())
    earlier = sorted((RESULTS / "verdict-earlier").glob("*.json"))
    times = ("once", "twice", "three", "four", "five", "six", "seven", "eight")[len(earlier)]
    assert f"`test_public` was evaluated {times} times:" in document and f"evaluated {times} times" in QUALITY
    for run in earlier:
        reported = result(f"verdict-earlier/{run.name}")["report, test_public (real truths)"]
        caught, alarms = (reported[f"rejected of those {kind} than the raw image"] for kind in ("worse", "better"))
        assert (
            f"{reported['cases']} cases: {caught['number']} of {caught['of']}, {alarms['number']} of {alarms['of']}"
            in (document.replace(" rejected,", ",").replace(" false alarms", ""))
        )


def test_the_shares_of_gain_and_noise() -> None:
    simulated = result("dose.json")["simulation"]
    told = " ".join(QUALITY.split())
    everything = simulated["all"]["noise_variance"]
    assert f"in {everything['within_10_percent']:.0%} of {everything['images']} images".replace("%", " %") in told
    cameras = simulated["camera"]
    for camera in ("counts", "scaled"):
        assert cameras[camera]["gain"]["within_10_percent"] >= 0.99
    assert f"({cameras['pedestal']['gain']['within_10_percent']:.0%} of them".replace("%", " %") in told


def test_the_specimens_drawn_again() -> None:
    document = " ".join((ROOT / "docs" / "dose.md").read_text("utf-8").split())
    redrawn = result("dose-redrawn.json")["simulation"]
    everything = redrawn["all"]["noise_variance"]
    share, images = f"{everything['within_10_percent'] * 100:.0f} %", everything["images"]
    assert f"{share} of {images} images of 512² within 10 %" in document
    assert f"(Of {images} images of other scenes {share}:" in " ".join(QUALITY.split())
    assert f"{everything['worst_error']:.0f} times its variance" in document
    outside = {
        kind: 100 - 100 * group["noise_variance"]["within_10_percent"] for kind, group in redrawn["kind"].items()
    }
    assert f"{outside['grains']:.0f} % of the grains and {outside['phase_contrast']:.0f} % of the images of" in document
    assert all(redrawn["dose"][few]["noise_variance"]["within_10_percent"] == 1 for few in ("1.0", "5.0", "30.0"))
    determined = redrawn["all"]["gain_where_told"]
    assert determined["within_10_percent"] == 1 and f"all {determined['images']} images are within 10 %" in document


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


def test_what_the_host_does_beside_a_card() -> None:
    host, document = result("gpu_host.json"), " ".join((ROOT / "docs" / "gpu.md").read_text("utf-8").split())
    threads, step = host["network_thread_by_hits"], host["other_steps"]
    by_hits = ", ".join(f"{threads[hits]['all']:.0f}" for hits in ("0", "100", "1000"))
    assert f"| network | without X-ray hits, with 100, with 1,000 | {by_hits} |" in document
    copy = threads["100"]["of_it_copy_to_pinned_memory"]
    assert f"| | of it: copy into page-locked memory | {copy:.0f} |" in document
    reader = ", ".join(f"{step[name]:.0f}" for name in ("hash_raw", "read", "choose_profile"))
    writer = (f"{step[name]:.0f}" for name in ("judge", "write", "hash_result", "draw_preview", "save_preview"))
    assert f"| reader | hash, read, choose the profile | {reader} |" in document
    assert f"| writer | judge, write, hash, draw the preview, save it | {', '.join(writer)} |" in document
    hashes, alone = step["hash_raw"] + step["hash_result"], host["sha256_alone_of_raw_and_result"]
    assert f"take {hashes:.0f} ms, of which {alone:.0f} are SHA-256 alone" in document
    lock = host["pythons_lock"]
    assert f"{lock['holding it'] / lock['samples']:.0%} of the readers' and writers' time" in document
    model = host["model_frames_a_second"]
    assert f"{model['2']:.0f}, {model['4']:.0f} and {model['16']:.0f} frames a second" in document


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
        row = next(line for line in QUALITY.splitlines() if line.startswith(f"| {label} |"))
        assert all(figure in row for figure in (raw, rival, ours))
    exact = {
        (row["regime"], row["method"]): row["psnr"]
        for row in evaluation["tables"]
        if row["stratum"] == "all" and row["instances"] == "shared"
    }
    gains = [f"{exact[regime, FAST] - exact[regime, 'bm3d']:+.1f} dB" for regime in rows]
    fainter = f"{gains[2].removesuffix(' dB')} and {gains[3]} at low dose with"
    assert f"by {gains[0]} at low dose, {gains[1]} at ordinary dose, and {fainter}" in front
    protocol, methods = evaluation["protocol"], evaluation["methods"]
    assert f"On {protocol['micrographs']} real micrographs of {len(protocol['sources'])} sources" in front
    assert f"{methods[FAST]['seconds']:.2f} s for 512², BM3D {methods['bm3d']['seconds']:.1f} s" in front
    guards = [guard["ok"] for guard in evaluation["guards"][FAST]]
    goals = [figure["ok"] for figure in evaluation["acceptance"] if figure["method"] == FAST] + guards
    assert f"{sum(goals)} of the {len(goals)} goals" in front
    assert f"{guards.count(False)} of {len(guards)} tests for lost and invented detail fail" in front


def test_what_smeared_cameras_cost() -> None:
    for stratum in ("real", "simulated"):
        for regime in ("low", "ordinary"):
            found = result("camera_noise.json")["over_bm3d"][f"{stratum} {regime}"]
            cells = [
                f"{found[how]['over_bm3d']:+.2f} ± {found[how]['error']:.2f}".replace("-", "−")
                for how in ("calibrated", "measured")
            ]
            assert f"| {stratum}, {regime} dose | {found['pairs']} | {' | '.join(cells)} |" in QUALITY


def test_the_specimen_that_was_never_seen() -> None:
    for row in result("simulated.json")["rows"]:
        raw, fixed, best, ours = (
            f"{row[f'psnr_{how}']:.1f}" for how in ("raw", "gaussian_2px", "gaussian", "denoised")
        )
        assert f"| {row['dose']:.0f} | {row['contrast']:.0%} | {raw} | {fixed} | {best} | **{ours}** |" in QUALITY


def test_the_papers_table_and_ours() -> None:
    found, evaluated = result("ede2018/paper.json"), result("test_public/evaluation.json")["tables"]
    document = (ROOT / "docs" / "paper.md").read_text("utf-8").replace("*", "")
    labels = {name: one["label"] for name, one in found["methods"].items()}
    least = dict[str, float]()
    for entry in found["tables"]:
        (row,) = (line for line in document.splitlines() if line.startswith(f"| {labels[entry['method']]} |"))
        assert f" {1e3 * entry['mse']:.3f} |" in row and f" {entry['ssim']:.3f} |" in row
        if not entry["method"].startswith("network"):
            least[entry["regime"]] = min(entry["mse"], least.get(entry["regime"], 1.0))
    for regime in found["networks"]:
        under = found["under_best"][regime]
        (ours,) = (
            one
            for one in evaluated
            if (one["method"], one["regime"], one["stratum"], one["instances"]) == (FAST, regime, "all", "shared")
        )
        assert f" {1e3 * ours['mse']:.3f} |" in document and f" {ours['ssim']:.3f} |" in document
        shares = [
            f"{100 * share:+.1f} %".replace("-", "−") for share in (-under["mse"], ours["mse"] / least[regime] - 1)
        ]
        assert f"| {shares[0]} ({labels[under['filter']]}) | {shares[1]} |" in document
        assert f"{found['error_maps'][regime]['mean']:.4f}" in document
        assert re.search(
            rf"\b{100 * (1 - ours['mse'] / least[regime]):.0f} % (below that of the best|at ordinary dose)", QUALITY
        )
        assert f"{100 * under['paper']['mse']:.0f} %" in QUALITY
    low = found["networks"]["low"]
    plain = " ".join(document.split())
    first, second = (
        (one["training"]["steps"], f"({one['training']['minutes']:.0f} minutes)") for one in found["networks"].values()
    )
    assert f"{first[0]} batches at low doses {first[1]} and {second[0]} at ordinary ones {second[1]}" in plain
    assert f"({low['parameters'] / 1e6:.2f} million parameters)" in plain
    assert f"| {1e3 * low['seconds']:.0f} ms (one core) |" in plain and f"| {low['load_seconds']:.2f} s |" in plain
    assert found["protocol"]["trained_on"] == []
    pairwise = [f"{100 * found['under_best'][regime]['mse_pairs']:.1f} %" for regime in ("low", "ordinary")]
    assert f"by plain means over pairs, as the paper has them, {' and '.join(pairwise)}" in plain
    before = result("ede2018/paper-adam.json")
    shares = [f"{-100 * before['under_best'][regime]['mse']:.1f} % above" for regime in ("low", "ordinary")]
    assert f"{before['networks']['low']['training']['steps']} batches" in plain
    assert f"{before['networks']['ordinary']['training']['steps']} batches later" in plain
    assert all(share in plain for share in shares)


@pytest.mark.parametrize("regime", ["low", "ordinary"])
def test_the_cards_of_the_papers_networks(regime: str) -> None:
    found = result("ede2018/paper.json")
    network, under = found["networks"][regime], found["under_best"][regime]
    card = " ".join((ROOT / "weights" / network["name"] / "README.md").read_text("utf-8").split())
    assert f"{abs(100 * under['mse']):.1f} %" in card and f"{network['training']['steps']} batches" in card
    assert manifest.load(manifest.locate(network["name"])).sha256 == network["sha256"]


def test_the_queue_model() -> None:
    model, stored = script("queue_model"), result("queue.json")
    document = (ROOT / "docs" / "scale.md").read_text("utf-8")
    for one in stored["loads"]:
        assert asdict(model.load(one["service"])) == one, "benchmarks/results/queue.json is of another model"
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
    verify = costs["verify beside reading (128 kB raw, 256 kB result), ms for each file"]
    assert f"| {verify:.2f} ms a file, and reading" in document and f"with {costs['files']:,} files" in " ".join(
        document.split()
    )


def test_what_the_guards_find_lost() -> None:
    evaluation = result("test_public/evaluation.json")
    worst = {guard["name"]: guard["worst"] * 100 for guard in evaluation["guards"][FAST]}
    card = " ".join((ROOT / "weights" / FAST / "README.md").read_text("utf-8").split())
    quality = " ".join(QUALITY.split())
    vacancy, added, foreign = (
        f"{worst[name]:.0f} %"
        for name in ("a vacancy stays a vacancy", "an added atom stays", "a foreign atom stays foreign")
    )
    missed = f"{worst['few missed objects']:.0f} %"
    assert f"a vacancy keeps {vacancy}, a single atom {added} and a foreign atom {foreign}" in card
    assert f"{missed} of barely visible defects are missed" in card
    assert f"keeps {vacancy} of its contrast" in quality
    assert f"a single atom {added} and a foreign atom {foreign}" in quality
    assert f"visibility {missed} are missed" in quality
    flat = worst["noise of a camera's flat field removed"]
    assert f"keeps at most {flat:.1f} % of its noise" in quality


def test_what_the_plateau_of_fast_3_gained() -> None:
    begin, end = (
        json.loads((RESULTS / weights / "plateau.jsonl").read_text().splitlines()[-1])
        for weights in ("fast-2", "fast-3")
    )
    low, ordinary, faint, camera = (
        f"{end[name] - begin[name]:.2f} dB"
        for name in (f"validation_gain_{kind}" for kind in ("low", "ordinary", "faint", "camera"))
    )
    decision = " ".join((ROOT / "docs" / "decisions" / "0012-fast-3.md").read_text("utf-8").split())
    assert f"gained {low} at low dose, {ordinary} at ordinary dose, {faint} on faint crops and {camera} on" in decision


def test_the_live_pages_figures() -> None:
    page, document = result("live_page.json"), (ROOT / "docs" / "live-page.md").read_text("utf-8")
    wait = page["seconds_from_result_to_picture"]
    assert f"median {wait['median']:.2f} s, longest {wait['longest']:.2f} s of {wait['n']}" in document
    for followed, alone in (
        ("seconds_followed_in_chromium", "seconds_nobody_looking"),
        ("daemon_processor_seconds_followed", "daemon_processor_seconds_nobody_looking"),
    ):
        assert f"{sum(page[followed]):.1f} s against {sum(page[alone]):.1f} s" in document


def test_the_camera_beside_the_service() -> None:
    found = result("coexistence.json")
    assert found["lost"] == {"alone": 0, "beside": 0}
    frames = sum(len(pair["beside"]["milliseconds"]) for pair in found["pairs"])
    assert f"{frames} frames alone, {frames} beside, in {len(found['pairs'])} pairs: none lost" in FIELD
    median, p95 = (f"{found['ratio'][name]:.2f}" for name in ("median", "p95"))
    low, high = (f"{one:.2f}" for one in found["ratio p95, 95 % interval over pairs"])
    assert f"× {median} at the median, × {p95} at the 95th percentile (goal 1.2; 95 % interval {low} to {high}" in FIELD
    weight = found["weight"]["service"]
    assert f"\nCPUWeight={weight}\n" in (ROOT / "systemd/emdenoised.slice").read_text()


def test_the_page_of_dose_and_gain_has_the_words_of_its_template() -> None:
    """`benchmarks/dose_calibration.py` writes the page anew: what was written by hand would be lost."""
    page = (ROOT / "docs" / "dose.md").read_text("utf-8")
    for part in re.split(r"\{\w+\}|\n\n", (ROOT / "benchmarks" / "dose_page.md").read_text("utf-8")):
        assert part.strip() in page


@pytest.mark.parametrize(
    ("folder", "decision", "label"),
    [("deeper", "0013-deeper", "1-3-3-4"), ("faint", "0014-faint-defects", "fast-4")],
)
def test_networks_that_were_not_shipped(folder: str, decision: str, label: str) -> None:
    deeper, shipped = result(f"{folder}/evaluation.json"), result("test_public/evaluation.json")
    text = " ".join((ROOT / f"docs/decisions/{decision}.md").read_text("utf-8").replace("*", "").split())

    def gain(tables: list[dict[str, Any]], method: str, stratum: str, regime: str) -> str:
        found = {
            row["method"]: row["psnr"]
            for row in tables
            if (row["stratum"], row["regime"], row["instances"]) == (stratum, regime, "shared")
        }
        return f"{found[method] - found['bm3d']:+.2f}".replace("-", "−")

    for stratum, first, second in (
        ("all", "low", "ordinary"), ("all", "contrast_0.2", "contrast_0.05"), ("simulated", "low", "ordinary")
    ):  # fmt: skip
        ours = " / ".join(gain(shipped["tables"], "fast-3", stratum, regime) for regime in (first, second))
        theirs = " / ".join(gain(deeper["tables"], label, stratum, regime) for regime in (first, second))
        assert f"| {ours} | {theirs} |" in text
    guards = [{guard["name"]: guard["worst"] for guard in of} for of in (shipped["guards"]["fast-3"], deeper["guards"])]
    for name in (
        "a vacancy stays a vacancy",
        "an added atom stays",
        "a foreign atom stays foreign",
        "few missed objects",
    ):
        assert f"| {guards[0][name]:.0%} | {guards[1][name]:.0%} |".replace("%", " %") in text
    camera, spot = "noise of a camera's flat field removed", "no spot in the spectrum of a flat field"
    assert f"| {guards[0][camera]:.1%} | {guards[1][camera]:.1%} |".replace("%", " %") in text
    assert f"| {guards[0][spot]:.1f} | {guards[1][spot]:.1f} |" in text
    rings = "detail kept in every ring"
    (before,) = (one["numbers"]["rings_worse"] for one in shipped["guards"]["fast-3"] if one["name"] == rings)
    (after,) = (one.get("numbers", one)["rings_worse"] for one in deeper["guards"] if one["name"] == rings)
    assert f"| {before['nanoparticles']} | {after['nanoparticles']} |" in text


def test_what_the_network_with_faint_crops_costs() -> None:
    seconds = result("faint/evaluation.json")["seconds, one run"]
    text = (ROOT / "docs/decisions/0014-faint-defects.md").read_text("utf-8")
    assert f"{seconds['fast-4'] / seconds['fast-3']:.1f} times the time of `fast-3`" in text
    assert round(seconds["bm3d"] / seconds["fast-3"]) == 38 and "it took a thirty-eighth, both in one run" in QUALITY
