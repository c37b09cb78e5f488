"""Tables and verdict on rows whose figures are known, and the identity function, which must fail."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from training.evaluation import tables
from training.evaluation.methods import NINE
from training.evaluation.rows import Row

ROW = Row(
    key="low/real/a/0", regime="low", stratum="real", micrograph="a", source="lab", modality="TEM", repetition=0,
    binned=1, shape=(512, 512), pair="0", contrast=1.0, dose=100.0, mean=50.0, truth_noise=0.0, scale=120.0,
    method="bm3d", identity="bm3d 1", seconds=20.0, mse=6e-4, ssim=0.9, psnr=30.0, frc=(1.0, 0.5),
)  # fmt: skip
REGIMES = ("low", "ordinary", "contrast_0.05", "contrast_0.2")


def rows_of(figures: dict[str, dict[str, float]], number: int = 12) -> list[Row]:
    """The same figures in every regime and stratum, with a little spread that is the same for all methods."""
    rows = []
    for regime in REGIMES:
        for stratum in ("real", "simulated"):
            for index in range(number):
                wobble = np.random.default_rng(index).normal(0, 1)
                for method, figure in figures.items():
                    key = f"{regime}/{stratum}/m{index}/0"
                    row = replace(ROW, key=key, regime=regime, stratum=stratum, source=f"lab{index % 3}", method=method)
                    mse = figure["mse"] * (1 + figure.get("spread", 0.1) * wobble)
                    rows.append(replace(row, mse=mse, ssim=figure["ssim"], psnr=figure["psnr"] + wobble,
                                        seconds=figure.get("seconds", 0.1)))  # fmt: skip
    return rows


NINE_FIGURES: dict[str, dict[str, float]] = {name: {"mse": 9e-4, "ssim": 0.8, "psnr": 28.0} for name in NINE}
BM3D = {"bm3d": {"mse": 6e-4, "ssim": 0.89, "psnr": 30.0, "seconds": 20.0}}
GOOD = {"ours": {"mse": 3e-4, "ssim": 0.95, "psnr": 31.2, "seconds": 0.2}}
IDENTITY = {"identity": NINE_FIGURES["unfiltered"]}


def judged(figures: dict[str, dict[str, float]], candidate: str) -> list[dict[str, Any]]:
    return tables.acceptance(rows_of({**NINE_FIGURES, **BM3D, **figures}), candidate, list(NINE), 512)


def test_a_good_network_reaches_every_figure_and_aim() -> None:
    verdict = judged(GOOD, "ours")
    assert len(verdict) == 2 * (4 + 3 * 2) + 1
    assert all(entry["ok"] for entry in verdict)
    assert all(entry["aim_ok"] is not False for entry in verdict)
    first = verdict[0]
    assert first["reached"] == pytest.approx(1.2)
    assert first["low"] == pytest.approx(1.2)  # the pairs' own spread is paired away
    under = next(entry for entry in verdict if entry["figure"].startswith("MSE"))
    assert under["reached"] == pytest.approx(2 / 3, abs=1e-3)
    assert under["aim"] == pytest.approx(1 / 3 + 0.15, abs=1e-3)
    assert under["n"] == 12


def test_the_identity_fails_every_figure_but_speed() -> None:
    verdict = judged(IDENTITY, "identity")
    for entry in verdict:
        assert entry["ok"] == entry["figure"].startswith("time"), entry


@pytest.mark.parametrize(
    ("change", "figure"),
    [
        ({"psnr": 30.2}, "PSNR"),
        ({"mse": 8e-4, "spread": 0.01}, "MSE under"),
        ({"ssim": 0.84}, "1 - SSIM"),
        ({"spread": 0.3}, "standard deviation"),
        ({"seconds": 1.0}, "time"),
    ],
)
def test_each_shortfall_is_found(change: dict[str, float], figure: str) -> None:
    verdict = judged({"ours": {**GOOD["ours"], **change}}, "ours")
    missed = {entry["figure"] for entry in verdict if not entry["ok"]}
    assert len(missed) == 1
    assert missed.pop().startswith(figure)


def test_what_no_rival_was_measured_for_is_not_reached() -> None:
    verdict = tables.acceptance(rows_of({**NINE_FIGURES, **GOOD}), "ours", list(NINE), 512)
    for entry in verdict:
        needs_bm3d = not entry["figure"].startswith(("MSE", "1 - SSIM"))
        assert (entry["reached"] is None) == needs_bm3d, entry
        assert entry["ok"] == (not needs_bm3d)


def test_best_of_the_nine_is_by_their_means() -> None:
    figures = {**NINE_FIGURES, "median": {"mse": 5e-4, "ssim": 0.93, "psnr": 30.0}}
    verdict = tables.acceptance(rows_of({**figures, **BM3D, **GOOD}), "ours", list(NINE), 512)
    under = next(entry for entry in verdict if entry["figure"].startswith("MSE"))
    assert under["reached"] == pytest.approx(0.4, abs=1e-3)


@pytest.mark.parametrize(
    ("decibels", "stays"), [(5.9, False), (6.1, True)], ids=["5.9 dB under the error", "6.1 dB under the error"]
)
def test_clean_is_six_decibels_under_the_best_methods_error(decibels: float, stays: bool) -> None:
    better = replace(ROW, method="ours", psnr=32.0)
    noise = (better.noise / 10 ** (decibels / 10)) ** 0.5
    rows = [replace(row, truth_noise=noise) for row in (ROW, better)]
    assert (len(tables.stratum(rows, "low", "clean")) == 2) == stays
    assert len(tables.stratum(rows, "low", "all")) == 2
    assert not tables.stratum(rows, "low", "simulated")


def test_noise_in_counts_is_psnrs() -> None:
    assert replace(ROW, dose=200.0, psnr=20.0).noise == pytest.approx(200**2 / 100)


def test_means_are_per_source_and_then_over_sources() -> None:
    def row(index: int, source: str, mse: float) -> Row:
        return replace(ROW, key=f"low/real/{index}/0", source=source, mse=mse)

    rows = [row(0, "big", 1.0), row(1, "big", 1.0), row(2, "big", 1.0), row(3, "small", 3.0)]
    (entry,) = [e for e in tables.table(rows) if e["stratum"] == "all" and e["instances"] == "shared"]
    assert entry["mse"] == 2.0
    assert entry["mse_std"] == pytest.approx(np.std([1, 1, 1, 3]))
    assert (entry["n"], entry["sources"]) == (4, 2)


def test_shared_pairs_are_those_of_all_methods() -> None:
    rows = rows_of({**BM3D, **GOOD}, number=4)
    rows = [row for row in rows if not (row.method == "bm3d" and "m3" in row.key)]
    low = [entry for entry in tables.table(rows) if entry["regime"] == "low" and entry["stratum"] == "simulated"]
    assert {(e["instances"], e["method"]): e["n"] for e in low} == {
        ("shared", "bm3d"): 3, ("shared", "ours"): 3, ("every", "bm3d"): 3, ("every", "ours"): 4,
    }  # fmt: skip


def test_correlations_compare_with_the_noisy_image_pair_by_pair() -> None:
    rows = [
        replace(ROW, key=f"low/real/{i}/0", method=method, frc=(0.9, 0.1 * i + gain))
        for i in range(4)
        for method, gain in (("unfiltered", 0.0), ("ours", 0.25))
    ]
    (entry,) = [e for e in tables.correlations(rows) if e["method"] == "ours" and e["stratum"] == "all"]
    assert entry["change"] == pytest.approx([0, 0.25])
    assert entry["change_spread"] == pytest.approx([0, 0], abs=1e-4)
    assert entry["frc"] == pytest.approx([0.9, 0.4])


def test_comparison_with_a_rival_that_shares_no_pair_is_left_out() -> None:
    rows = [replace(ROW, key="low/real/x/0", method="ours"), ROW]
    assert tables.comparisons(rows) == []
    make: Callable[[str], Row] = lambda method: replace(ROW, method=method, psnr=31.0)  # noqa: E731
    (entry, *_) = tables.comparisons([ROW, make("ours")])
    assert (entry["method"], entry["rival"], entry["psnr"]) == ("ours", "bm3d", 1.0)


def test_seconds_are_of_whole_images_only() -> None:
    rows = [replace(ROW, seconds=s) for s in (1.0, 2.0, 9.0)] + [replace(ROW, shape=(400, 512), seconds=0.1)]
    assert tables.seconds(rows, 512) == {"bm3d": 2.0}
