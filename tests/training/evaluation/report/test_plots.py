"""Every figure is a PNG that opens, the same from the same data, also where there is little to draw."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image as Pillow

from training.evaluation import metrics
from training.evaluation.report import plots
from training.evaluation.report.plots import Cost, Errors, Gain, RingCurve

STYLE = plots.styles({"Unfiltered": "nine", "Gaussian": "nine", "BM3D": "bm3d", "fast": "weights"})


def opened(png: bytes) -> Pillow.Image:
    picture = Pillow.open(io.BytesIO(png))
    picture.load()
    assert picture.format == "PNG"
    assert len(set(picture.convert("L").tobytes())) > 8, "blank"
    return picture


def errors(seed: int) -> Errors:
    rng = np.random.default_rng(seed)
    return Errors(rng.gamma(4, 1e-4, 40).tolist(), rng.beta(8, 2, 40).tolist())


def test_every_method_looks_different() -> None:
    nine = {f"m{number}": "nine" for number in range(9)}
    style = plots.styles({**nine, "BM3D": "bm3d", "a": "weights", "b": "weights"})
    assert len({(look.colour, look.dashes) for look in style.values()}) == 12
    assert style["a"].above > style["BM3D"].above > style["m0"].above


def test_densities_scale_the_highest_of_each_panel_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    png = plots._png
    monkeypatch.setattr(plots, "_png", lambda figure, **more: drawn.append(figure) or png(figure, **more))
    opened(plots.densities({"low dose": {"BM3D": errors(0), "fast": errors(1)}}, STYLE))
    for axes, (low, high) in zip(drawn[0].axes, ((0, 1.2), (0, 1)), strict=True):
        lines = [np.asarray(line.get_ydata()) for line in axes.get_lines()]
        assert max(line.max() for line in lines) == pytest.approx(1)
        assert min(line.max() for line in lines) < 1
        assert all(len(line) == metrics.KDE_BINS for line in lines)
        assert axes.get_xlim() == (low, high)


def test_densities_of_one_pair_or_of_equal_values_can_be_drawn() -> None:
    opened(plots.densities({"low": {"fast": Errors([1e-4], [0.9])}, "high": {"fast": Errors([5, 5], [1, 1])}}, STYLE))


def test_the_same_data_give_the_same_picture() -> None:
    first, second, other = (plots.densities({"low": {"fast": errors(seed)}}, STYLE) for seed in (0, 0, 1))
    assert first == second
    assert first != other


@pytest.mark.parametrize("number", [1, 3])
def test_error_maps_of_any_number_of_networks(number: int) -> None:
    rng = np.random.default_rng(0)
    maps = {f"map {k}": rng.gamma(3, 0.01, (96, 96)).astype(np.float32) for k in range(number)}
    assert opened(plots.error_maps(maps)).height > 400 * number


def test_a_flat_error_map_can_be_drawn() -> None:
    opened(plots.error_maps({"flat": np.full((64, 64), 0.01, np.float32)}))


def test_a_faint_grid_shows_although_the_edges_are_far_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[np.ndarray] = []
    equalize = plots.equalize_adapthist
    monkeypatch.setattr(
        plots, "equalize_adapthist", lambda image, **more: shown.append(equalize(image, **more)) or shown[-1]
    )
    error = np.random.default_rng(0).normal(0.02, 1e-4, (256, 256)).astype(np.float32)
    error[::8] += 2e-4
    error[0] = error[:, 0] = 0.2
    plots.error_maps({"grid": error})
    inner = shown[0][8:-8, 8:-8]
    assert inner[::8].mean() - inner.mean() > 0.15


def test_examples_are_grey_and_share_the_scale_of_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((80, 80)).astype(np.float32)
    row = {"noisy": truth + 0.1, "fast": truth, "truth": truth}
    one = opened(plots.examples([("gold\n20 counts per pixel", row)]))
    two = opened(plots.examples([("gold", row), ("a flat field", {**row, "truth": np.zeros_like(truth)})]))
    assert one.mode == "L"
    assert two.height > 1.8 * one.height


def test_ring_curves_draw_the_noise_line_and_every_method() -> None:
    frequency = metrics.frequencies()
    curve = RingCurve(np.exp(-4 * frequency), np.full(metrics.RINGS, 0.02))
    noise = metrics.frc_noise((256, 256))
    three = plots.ring_curves({f"panel {k}": ({"BM3D": curve, "fast": curve}, noise) for k in range(3)}, STYLE)
    assert opened(three).height > 1.5 * opened(plots.ring_curves({"alone": ({}, noise)}, STYLE)).height


def test_names_of_points_lie_beside_their_points_and_not_on_one_another() -> None:
    figures_of = {"Gaussian": (0.01, 28.0), "BM3D": (25.0, 30.4), "fast": (0.3, 30.9), "Unfiltered": (1e-5, 22.0)}
    methods = [Cost(name, *values) for name, values in figures_of.items()]
    figure = Figure(figsize=(4.7, 4.2))
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set(xlim=(1e-3, 100), ylim=(21, 32))
    plots._name_points(axes, methods[:3], STYLE)
    places = {text.get_text(): text.get_position() for text in axes.texts}
    assert set(places) == {"Gaussian", "BM3D", "fast"}
    for cost in methods[:3]:
        x, y = places[cost.label]
        assert abs(x - (np.log10(cost.seconds) + 3) / 5) < 0.03
        assert abs(y - (cost.psnr - 21) / 11) < 0.07
    opened(plots.cost_against_quality({"low": methods, "ordinary": [*methods, Cost("poor", 1, 9)]},
                                        STYLE | {"poor": STYLE["Gaussian"]}, "512 × 512 px"))  # fmt: skip


def test_gains_by_condition_and_by_dose() -> None:
    series = {
        "fast": [Gain("low", 0.5, 0.2, 0.8), Gain("ordinary", 0.1, -0.2, 0.3)],
        "Gaussian": [Gain("low", -2, -3, -1)],
    }
    opened(plots.gains({"real": series, "simulated": {"fast": series["fast"]}}, STYLE, "BM3D"))
    rng = np.random.default_rng(0)
    cloud = (rng.uniform(1, 1000, 50).tolist(), rng.normal(0.5, 0.2, 50).tolist())
    opened(plots.gain_by_dose({"contrast 1": {"fast": cloud}, "contrast 0.2": {"fast": ([5.0], [0.1])}}, STYLE, "BM3D"))
