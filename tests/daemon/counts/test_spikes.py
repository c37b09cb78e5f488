"""Spikes: nothing real is flagged, nothing impossible is missed, the raw array is never touched."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.counts import spikes, stand_ins
from daemon.counts.plane import Spikes
from daemon.errors import MicrographError
from daemon.micrograph import Pixels


def flagged(image: Pixels, gain: float = 1.0, offset: float = 0.0) -> set[tuple[int, int]]:
    found = spikes.find(image, gain, offset)
    return set(zip(found.rows.tolist(), found.columns.tolist(), strict=True))


def columns_of_atoms(centres: Pixels, side: int, sigma: float, peak: float, background: float) -> Pixels:
    axis = np.arange(side)
    y = np.exp(-((axis - centres[:, :1]) ** 2) / (2 * sigma**2))
    x = np.exp(-((axis - centres[:, 1:]) ** 2) / (2 * sigma**2))
    return np.asarray(background + peak * (y.T @ x))


@pytest.mark.parametrize("dose", [0.1, 1, 20, 1000])
def test_at_most_one_false_alarm_in_a_whole_frame_of_poisson_noise(dose: float) -> None:
    image = np.random.default_rng(0).poisson(dose, (4096, 4096)).astype(np.uint16)
    assert len(spikes.find(image, 1, 0)) <= 1


@pytest.mark.parametrize("dose", [0.3, 5, 100, 3000])
def test_structure_is_left_alone(dose: float) -> None:
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:512, :512]
    waves = 1 + np.cos(x / 3) * np.cos(y / 2.2 + x / 7)
    edges = np.where((x // 40 + y // 23) % 2, 50.0, 1.0)
    fine_lattice = columns_of_atoms(
        np.stack(np.meshgrid(np.arange(2, 510, 4.3), np.arange(2, 510, 3.7)), -1).reshape(-1, 2), 512, 0.85, 30, 0.2
    )
    holes = fine_lattice.max() + 0.1 - fine_lattice
    for name, truth in {"waves": waves, "edges": edges, "lattice": fine_lattice, "holes": holes}.items():
        truth = truth * (dose / truth.mean())
        assert not flagged(rng.poisson(truth)), name
        assert not flagged(truth), name + " without noise"


@pytest.mark.parametrize(("peak", "background"), [(30, 0), (200, 1), (200, 0), (3000, 20), (30_000, 1), (5000, 1000)])
@pytest.mark.parametrize("sigma", [0.85, 1.3])
def test_single_columns_survive_wherever_they_lie(peak: float, background: float, sigma: float) -> None:
    rng = np.random.default_rng(2)
    grid = np.stack(np.meshgrid(np.arange(0, 511, 16), np.arange(0, 511, 16)), -1).reshape(-1, 2)
    truth = columns_of_atoms(grid + rng.uniform(-0.5, 0.5, grid.shape), 512, sigma, peak, background)
    assert not flagged(rng.poisson(truth))
    assert not flagged(truth)


def test_columns_survive_at_the_image_edge() -> None:
    for at in np.arange(-3, 3, 0.25):
        truth = columns_of_atoms(np.array([[at, 20.3], [40, at], [at, at]]), 64, 0.85, 5000, 1)
        assert not flagged(truth), at


def test_a_hit_on_a_column_does_not_take_the_column_with_it() -> None:
    truth = columns_of_atoms(np.array([[32.3, 32.4]]), 64, 1.0, 400, 1)
    image = np.random.default_rng(3).poisson(truth)
    image[32, 33] = 30_000
    assert flagged(image) == {(32, 33)}


@pytest.mark.parametrize("place", [(0, 0), (0, 63), (63, 0), (63, 63), (0, 30), (30, 63), (1, 1), (31, 40)])
@pytest.mark.parametrize("dose", [0.1, 20, 1000])
def test_a_hit_is_found_everywhere(place: tuple[int, int], dose: float) -> None:
    image = np.random.default_rng(4).poisson(dose, (64, 64)).astype(np.int32)
    image[place] = 30_000
    assert flagged(image) == {place}


@pytest.mark.parametrize("dose", [5, 20, 100, 1000])
def test_a_hot_pixel_of_twenty_times_the_mean_is_found(dose: float) -> None:
    image = np.random.default_rng(5).poisson(dose, (64, 64)).astype(np.float32)
    image[40, 13] = 20 * dose
    assert flagged(image) == {(40, 13)}


SHAPES = {
    "pair": [(0, 0), (0, 1)],
    "diagonal": [(0, 0), (1, 1)],
    "line": [(0, 0), (1, 0), (2, 0)],
    "line of four": [(0, 0), (0, 1), (0, 2), (0, 3)],
    "square": [(0, 0), (0, 1), (1, 0), (1, 1)],
    "corner": [(0, 0), (1, 0), (1, 1)],
    "step": [(0, 0), (1, 0), (1, 1), (2, 1)],
    "tee": [(0, 0), (0, 1), (0, 2), (1, 1)],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("even", [True, False])
def test_hits_of_several_pixels_are_found_whole(shape: str, even: bool) -> None:
    rng = np.random.default_rng(6)
    for _ in range(5):
        image = rng.poisson(20, (64, 64))
        charge = np.full(4, 6000) if even else rng.integers(2000, 20_000, 4)
        hit = {(30 + y, 30 + x) for y, x in SHAPES[shape]}
        for (y, x), counts in zip(sorted(hit), charge, strict=False):
            image[y, x] = counts
        assert flagged(image) == hit


def test_many_hits_in_one_frame_are_all_found_with_no_others() -> None:
    rng = np.random.default_rng(7)
    image = rng.poisson(20, (1024, 1024))
    hits = {(int(y), int(x)) for y, x in rng.integers(0, 1024, (300, 2))}
    for y, x in hits:
        image[y, x] = 30_000
    assert flagged(image) == hits


def test_noise_that_is_not_poissons_is_not_taken_for_spikes() -> None:
    rng, shape = np.random.default_rng(8), (1024, 1024)
    images = {
        "normal": rng.normal(0, 100, shape),
        "laplace": rng.laplace(500, 100, shape),
        "scaled counts": 300.0 * rng.poisson(1, shape),
        "scaled sparse counts": 300.0 * rng.poisson(0.05, shape),
        "electron pulse heights": rng.poisson(0.3, shape) * rng.exponential(300, shape),
    }
    for name, image in images.items():
        assert len(flagged(image)) < 1e-4 * image.size, name


@given(gain=st.floats(0.01, 1000), offset=st.floats(-1000, 1000))
@settings(max_examples=20, deadline=None)
def test_gain_and_offset_change_nothing(gain: float, offset: float) -> None:
    image = np.random.default_rng(9).poisson(20, (64, 64)).astype(np.float64)
    image[5, 6] = image[50, 51] = image[50, 52] = 4000
    plain, declared = spikes.find(image, 1, 0), spikes.find(image * gain + offset, gain, offset)
    np.testing.assert_array_equal(declared.rows, plain.rows)
    np.testing.assert_array_equal(declared.columns, plain.columns)
    np.testing.assert_allclose(declared.values, plain.values * gain + offset, rtol=1e-5, atol=1e-4 * gain)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int16, np.uint32, np.float16, np.float32, np.float64])
def test_every_real_dtype_is_read_and_never_written(dtype: type) -> None:
    image: Pixels = np.random.default_rng(10).poisson(2, (40, 50)).astype(dtype)
    before = image.copy()
    image.flags.writeable = False
    found = spikes.find(image, 1, 0)
    filled = spikes.infill(image, found)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(filled, before)
    assert filled.dtype in (np.float32, np.float64)


def test_nan_and_inf_are_always_spikes_and_the_stand_ins_look_like_their_surroundings() -> None:
    image = np.random.default_rng(11).poisson(20, (256, 256)).astype(np.float32)
    image[10, 10], image[20, 20], image[30, 30] = np.nan, np.inf, -np.inf
    image.flags.writeable = False
    found = spikes.find(image, 1, 0)
    assert list(zip(found.rows, found.columns, strict=True)) == [(10, 10), (20, 20), (30, 30)]
    assert np.isfinite(found.values).all()
    assert np.abs(found.values - 20).max() < 5 * np.sqrt(20 / 24)
    assert np.isnan(image[10, 10])


def test_a_value_too_large_for_float32_is_a_spike() -> None:
    image = np.ones((40, 40))
    image[3, 3] = 1e300
    assert flagged(image) == {(3, 3)}


@pytest.mark.parametrize("dose", [0.1, 20])
def test_stand_ins_keep_the_mean(dose: float) -> None:
    rng = np.random.default_rng(12)
    image = rng.poisson(dose, (512, 512)).astype(np.float32)
    image[rng.random(image.shape) < 0.02] = np.nan
    found = spikes.find(image, 1, 0)
    assert abs(found.values.mean() - dose) < 4 * np.sqrt(dose / len(found))
    assert np.isfinite(spikes.infill(image, found)).all()


def test_a_void_takes_its_values_from_the_nearest_good_pixels() -> None:
    image = np.random.default_rng(13).poisson(20, (1024, 1024)).astype(np.float32)
    image[:, 512:] *= 3
    image[:400] = np.nan
    found = spikes.find(image, 1, 0)
    assert len(found) == 400 * 1024
    filled = spikes.infill(image, found)
    assert np.isfinite(filled).all()
    assert abs(filled[380:400, :480].mean() - 20) < 1
    assert abs(filled[380:400, 544:].mean() - 60) < 2


def test_a_hit_beside_a_void_is_found() -> None:
    image = np.random.default_rng(14).poisson(20, (64, 64)).astype(np.float32)
    image[:32] = np.nan
    image[32, 32] = 30_000
    found = spikes.find(image, 1, 0)
    assert len(found) == 32 * 64 + 1
    assert found.values[-1] < 40


def test_an_image_without_a_finite_pixel_is_refused() -> None:
    with pytest.raises(MicrographError, match="no pixel of the image is a finite number"):
        spikes.find(np.full((40, 40), np.nan), 1, 0)


@pytest.mark.parametrize(("gain", "offset"), [(0, 0), (-1, 0), (np.nan, 0), (1, np.inf)])
def test_an_unusable_gain_is_refused(gain: float, offset: float) -> None:
    with pytest.raises(MicrographError, match="gain"):
        spikes.find(np.ones((40, 40)), gain, offset)


@pytest.mark.parametrize("noisy", [False, True])
def test_the_result_does_not_depend_on_the_bands(monkeypatch: pytest.MonkeyPatch, noisy: bool) -> None:
    rng = np.random.default_rng(15)
    image = rng.normal(50, 60, (300, 280)) if noisy else rng.poisson(20, (300, 280)).astype(np.float64)
    for row in (0, 63, 64, 127, 128, 129, 255, 256, 299):
        image[row, (row + 90) % 278] = image[row, (row + 90) % 278 + 1] = 30_000
    image[100:180, 100:180] = np.nan
    usual = spikes.find(image, 1, 0)
    monkeypatch.setattr(spikes, "BAND", spikes.SPREAD_BLOCK)
    monkeypatch.setattr(spikes, "CHUNK", 7)
    monkeypatch.setattr(stand_ins, "BAND", stand_ins.COARSE)
    monkeypatch.setattr(stand_ins, "CHUNK", 7)
    narrow = spikes.find(image, 1, 0)
    for one, other in ((usual.rows, narrow.rows), (usual.columns, narrow.columns), (usual.values, narrow.values)):
        np.testing.assert_array_equal(one, other)
    assert len(usual) == 80 * 80 + 18


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_within_is_what_lies_in_the_window(data: st.DataObject) -> None:
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random((40, 50)) < 0.05
    rows, columns = np.nonzero(mask)
    every = Spikes(rows, columns, np.arange(len(rows), dtype=np.float32))
    top, left = data.draw(st.integers(0, 39)), data.draw(st.integers(0, 49))
    bottom, right = data.draw(st.integers(top + 1, 40)), data.draw(st.integers(left + 1, 50))
    part = spikes.within(every, slice(top, bottom), slice(left, right))
    expected = np.nonzero(mask[top:bottom, left:right])
    np.testing.assert_array_equal((part.rows, part.columns), expected)
    numbers = np.full(mask.shape, -1.0)
    numbers[rows, columns] = every.values
    np.testing.assert_array_equal(part.values, numbers[top:bottom, left:right][expected])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_pixels_excluded_by_two_neighbours_are_no_spikes_by_all_of_them(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(11)
    image = rng.poisson(6, (190, 230))
    rows, columns = rng.integers(1, 189, 120), rng.integers(1, 229, 120)
    image[rows, columns] += rng.integers(10, 200, 120)
    image[rows, columns + rng.integers(-1, 1, 120)] += rng.integers(5, 40, 120)
    pixels = image.clip(0, 255).astype(dtype)
    found = []
    for few in (0, pixels.size):
        monkeypatch.setattr(spikes, "FEW", few)
        found.append(spikes.find(pixels, 1.0, 0.0))
    assert len(found[0]) > 50
    assert np.array_equal(found[0].rows, found[1].rows)
    assert np.array_equal(found[0].columns, found[1].columns)
