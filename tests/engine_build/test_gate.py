"""The gate: good half precision passes in units of the noise; overflow, NaN and lost digits do not."""

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from daemon.backends import manifest
from daemon.counts.scaling import MINMAX_CROP, NOISE_UNITS
from daemon.errors import WeightsError
from engine_build import gate

Array = NDArray[np.float32]
SIDE = 128


@pytest.fixture(scope="module")
def model() -> ModelProto:
    return onnx.load(manifest.locate("fast") / "model.onnx")


@pytest.fixture(scope="module")
def reference(model: ModelProto) -> gate.Network:
    return gate.on_processor(model)


@pytest.fixture(scope="module")
def tiles() -> list[gate.Case]:
    return gate.cases((SIDE, SIDE), NOISE_UNITS)


def with_weight(model: ModelProto, name: str, change: float) -> ModelProto:
    """The same network with one weight tensor multiplied."""
    changed = ModelProto.FromString(model.SerializeToString())
    (tensor,) = (t for t in changed.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        tensor.CopyFrom(numpy_helper.from_array((values * change).astype(values.dtype), name))
    return changed


def test_the_tiles_are_usual_and_extreme(tiles: list[gate.Case]) -> None:
    names = " ".join(case.name for case in tiles)
    assert len(tiles) >= 8
    for kind in ("black", "saturated", "hot pixel", "pure noise", "2500 counts, contrast 0.05", "single atoms"):
        assert kind in names
    assert all(case.units.shape == (1, 1, SIDE, SIDE) and np.isfinite(case.units).all() for case in tiles)
    for case in tiles:
        if case.truth is not None:
            noise = float(np.std(case.units - case.truth))
            assert noise == pytest.approx(case.sigma, rel=0.35), case.name  # a bright half is noisier than the mean


def test_the_shipped_network_passes_rounded_to_half(
    model: ModelProto, reference: gate.Network, tiles: list[gate.Case]
) -> None:
    verdict = gate.judge(reference, gate.on_processor(gate.rounded(model)), tiles, "cpu", on_gpu=False)
    assert 0 < verdict.rms <= gate.RMS
    assert 0 < verdict.largest <= gate.LARGEST
    assert not verdict.on_gpu


def test_rounding_is_really_done(model: ModelProto, reference: gate.Network, tiles: list[gate.Case]) -> None:
    case = tiles[1]
    difference = gate.on_processor(gate.rounded(model))(case.units, case.level) - reference(case.units, case.level)
    assert 1e-6 < float(difference.std()) < 0.01


def test_overflow_in_half_precision_is_refused(
    model: ModelProto, reference: gate.Network, tiles: list[gate.Case]
) -> None:
    """Two layers that cancel: nothing to see in float32, infinite in between for float16."""
    blown = with_weight(model, "body.encoder.0.0.first.weight.half", 3e5)
    with np.errstate(all="ignore"):
        candidate = gate.on_processor(gate.rounded(blown))
    with pytest.raises(WeightsError, match=r"refused: on the test tile .* NaN or infinite"):
        gate.judge(reference, candidate, tiles, "cpu", on_gpu=False)


def test_unscaled_counts_lose_their_digits_in_half_and_are_refused(tiles: list[gate.Case]) -> None:
    """A network that is fed counts and not noise units: 2500 counts in float16 are even numbers only."""

    def half_in_counts(units: Array, level: Array) -> Array:
        sigma = 0.5 / level
        dose = sigma**2 - 0.375
        return ((units * sigma + dose).astype(np.float16).astype(np.float32) - dose) / sigma

    with pytest.raises(WeightsError, match="from float32; at most"):
        gate.judge(lambda units, level: units, half_in_counts, tiles, "cpu", on_gpu=False)


def test_the_papers_scaling_is_judged_in_its_own_noise() -> None:
    tiles = gate.cases((SIDE, SIDE), MINMAX_CROP)
    assert all(case.units.min() >= 0 and case.units.max() <= 1 for case in tiles)
    ordinary = next(case for case in tiles if case.name.startswith("2500"))
    assert 0 < ordinary.sigma < 1


def no_better(units: Array, level: Array) -> Array:
    return units


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda u: np.where(np.arange(u.size).reshape(u.shape) == 7, np.nan, u), "1 of its .* are NaN or infinite"),
        (lambda u: np.full_like(u, np.inf), "NaN or infinite"),
        (lambda u: u + 0.02, r"differs by 0\.02 σ \(RMS\)"),
        (lambda u: u + 0.15 * (np.arange(u.size).reshape(u.shape) == 7), r"a pixel differs by 0\.15 σ"),
    ],
)
def test_every_figure_can_fail_by_itself(tiles: list[gate.Case], fault: object, reason: str) -> None:
    assert callable(fault)
    gate.judge(no_better, no_better, tiles, "cpu", on_gpu=False)
    pure = [case for case in tiles if case.name == "pure noise"]
    with pytest.raises(WeightsError, match=reason):
        gate.judge(no_better, lambda u, _: fault(u).astype(np.float32), pure, "cpu", on_gpu=False)


def test_a_loss_of_psnr_alone_is_refused(tiles: list[gate.Case]) -> None:
    (case,) = (case for case in tiles if case.name == "pure noise")
    assert case.truth is not None
    truth = case.truth
    near = truth + 0.01 * np.sign(case.units - truth)

    def reference(units: Array, level: Array) -> Array:
        return near.astype(np.float32)

    with pytest.raises(WeightsError, match=r"PSNR is .* dB below"):
        gate.judge(
            reference, lambda u, _: (truth + (near - truth) * 1.2).astype(np.float32), [case], "cpu", on_gpu=False
        )


def test_of_a_large_tile_the_processor_computes_corners_and_middle_and_finds_what_is_wrong_there(
    reference: gate.Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "LARGEST_CASE", 192)
    monkeypatch.setattr(gate, "COMPARED", 64)
    sides, halo = (512, 384), 96
    tiles = gate.cases(sides, NOISE_UNITS)[:2]
    assert all(case.units.shape == (1, 1, *sides) for case in tiles)
    windows = gate.windows(sides, halo, 8)
    assert [one.inner for one in windows] == [
        (slice(0, 64), slice(0, 64)), (slice(224, 288), slice(160, 224)), (slice(448, 512), slice(320, 384))
    ]  # fmt: skip
    asked: list[tuple[int, ...]] = []

    def on_processor(units: Array, level: Array) -> Array:
        asked.append(units.shape)
        return reference(units, level)

    verdict = gate.judge(on_processor, reference, tiles, "cpu", on_gpu=True, windows=windows)
    assert verdict.rms < 2e-3, "context beyond the halo changes next to nothing"
    assert max(shape[2] * shape[3] for shape in asked) <= 256 * 256
    for window in windows:

        def wrong(units: Array, level: Array, window: gate.Window = window) -> Array:
            result = reference(units, level)
            result[0, 0][window.inner] += 1
            return result

        with pytest.raises(WeightsError, match="differs by"):
            gate.judge(reference, wrong, tiles, "cpu", on_gpu=True, windows=windows)
    (whole,) = gate.windows((192, 128), halo, 8)
    assert whole.inner == whole.outer == (slice(None), slice(None))
