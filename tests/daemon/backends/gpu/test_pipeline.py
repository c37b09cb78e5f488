"""The GPU pipeline on a fake CUDA that runs the real kernels: every order of events, and every wait that matters."""

import gc
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda, FakeNetwork
from numpy.typing import NDArray
from staged_pipeline import (
    ALIGN,
    HALO,
    PAPER,
    TILE,
    WEIGHTS,
    asked,
    expected,
    images,
    made,
    session,
)

from daemon.backends import tiling
from daemon.backends.gpu import buffers, pipeline
from daemon.backends.gpu.device import Single
from daemon.backends.gpu.pipeline import Pipeline
from daemon.backends.manifest import Manifest
from daemon.counts import spikes
from daemon.counts.plane import Denoised, Plane
from daemon.counts.profiles import Choice
from daemon.errors import MicrographError
from daemon.micrograph import Image
from daemon.settings.profile import Profile

SCHEDULES = 300


@pytest.fixture(scope="module", autouse=True)
def only_what_is_made_here_is_collected() -> Iterator[None]:
    """Each session ends with a collection, which would go through all that pytest and ONNX Runtime have loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def truth() -> list[Image]:
    return session(FakeCuda())


@pytest.fixture(scope="module")
def truth_of_plans() -> list[Image]:
    return session(FakeCuda(), networks=True)


@pytest.mark.parametrize("blend", [0, 6])
@pytest.mark.parametrize("weights", [WEIGHTS, PAPER], ids=["noise units", "the paper's scaling"])
def test_pixels_are_those_of_the_same_tiles_in_numpy(weights: Manifest, blend: int) -> None:
    given = images()
    results = list(made(FakeCuda(), weights, blend=blend).denoise(map(asked, given)))
    assert len(results) == len(given)
    for image, result in zip(given, results, strict=True):
        assert result.prepared.pixels is image
        want = expected(result.prepared, weights, blend)
        np.testing.assert_allclose(result.image, want, rtol=1e-5, atol=1e-4 * result.prepared.scaling.unit)
        assert result.image.dtype == np.float32


def test_spikes_and_dose_are_those_that_the_processor_finds() -> None:
    rng = np.random.default_rng(5)
    given: list[NDArray[Any]] = [*images()]
    for dtype in (np.float32, np.float64):
        holed = rng.poisson(30, (70, 64)).astype(dtype)
        holed[3, 4], holed[20:23, 30], holed[-1, -1] = np.nan, np.inf, -np.inf
        given.append(holed)
    noisy = rng.normal(1e6, 400, (128, 200)).astype(np.float32)  # no counts at all: full of suspects
    given += [noisy, rng.poisson(3, (64, 64)) > 3, rng.poisson(9, (64, 64)).astype(">u2"),
              rng.poisson(9, (64, 64)).astype(np.int64), rng.poisson(9, (64, 64)).astype(np.float16)]  # fmt: skip
    for image, result in zip(given, made(FakeCuda()).denoise(map(asked, given)), strict=True):
        wanted = asked(image).prepare(spikes.survey(image, 1.0, 0.0))
        np.testing.assert_array_equal(result.prepared.spikes.rows, wanted.spikes.rows)
        np.testing.assert_array_equal(result.prepared.spikes.columns, wanted.spikes.columns)
        np.testing.assert_array_equal(result.prepared.spikes.values, wanted.spikes.values)
        assert result.prepared.dose == pytest.approx(wanted.dose, rel=1e-12)


def test_a_full_list_of_finds_makes_the_processor_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "LEAST_FINDS", 4)
    image = np.random.default_rng(0).normal(1e6, 400, (96, 96)).astype(np.float32)
    looked: list[Any] = []
    real = spikes.survey
    monkeypatch.setattr(spikes, "survey", lambda *given: looked.append(given) or real(*given))
    (result,) = made(FakeCuda()).denoise([asked(image)])
    assert len(looked) == 1
    np.testing.assert_allclose(result.image, expected(result.prepared), rtol=1e-6)


def test_whatever_the_order_of_events_the_pixels_are_the_same(truth: list[Image]) -> None:
    for seed in range(SCHEDULES):
        for index, (image, wanted) in enumerate(zip(session(FakeCuda(seed)), truth, strict=True)):
            np.testing.assert_array_equal(image, wanted, f"schedule {seed}, image {index}")


def test_the_order_of_events_does_not_matter_with_fitted_tiles(truth_of_plans: list[Image]) -> None:
    for seed in range(SCHEDULES):
        for index, (image, wanted) in enumerate(zip(session(FakeCuda(seed), True), truth_of_plans, strict=True)):
            np.testing.assert_array_equal(image, wanted, f"schedule {seed}, image {index}")


@pytest.mark.parametrize("shape", [(101, 203), (203, 101), (33, 320), (256, 256)])
def test_odd_shapes_in_tiles_of_one_row_one_column_or_one_alone(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(3).poisson(12, shape).astype(np.uint16)
    whole = -(-shape[0] // ALIGN) * ALIGN, -(-shape[1] // ALIGN) * ALIGN
    for tile in (whole, (whole[0], TILE), (TILE, whole[1]), (TILE, 2 * TILE)):
        driver = FakeCuda(5)
        (result,) = Pipeline(driver, Single(FakeNetwork(driver, tile, 2)), WEIGHTS, halo=HALO).denoise([asked(image)])
        want = expected(result.prepared, tile=tile)
        np.testing.assert_allclose(result.image, want, rtol=1e-5, atol=1e-4 * result.prepared.scaling.unit)


class Careless(FakeCuda):
    """Forgets one of the pipeline's calls, identified by its name and line; lists all it sees."""

    def __init__(self, seed: int | None, forgotten: tuple[str, int] | None = None) -> None:
        super().__init__(seed)
        self.forgotten, self.seen = forgotten, set[tuple[str, int]]()

    def _remembered(self, name: str) -> bool:
        caller = sys._getframe(2)
        site = name, caller.f_lineno
        assert caller.f_code.co_filename == pipeline.__file__
        self.seen.add(site)
        return site != self.forgotten

    def record(self, *given: Any) -> None:
        if self._remembered("record"):
            super().record(*given)

    def wait(self, *given: Any) -> None:
        if self._remembered("wait"):
            super().wait(*given)

    def synchronise(self, *given: Any) -> None:
        if self._remembered("synchronise"):
            super().synchronise(*given)


def calls() -> list[tuple[str, int]]:
    driver = Careless(None)
    session(driver)
    return sorted(driver.seen)


def test_every_wait_every_event_and_every_synchronisation_is_needed(truth: list[Image]) -> None:
    sites = calls()
    assert sorted(name for name, _ in sites) == ["record"] * 4 + ["synchronise"] * 3 + ["wait"] * 2
    for site in sites:
        assert any(goes_wrong(site, seed, truth) for seed in range(SCHEDULES)), f"no schedule fails without {site}"


def goes_wrong(site: tuple[str, int], seed: int, truth: Sequence[Image]) -> bool:
    try:
        results = session(Careless(seed, site))
    except (AssertionError, MicrographError, IndexError, ValueError, OverflowError):
        return True
    return not all(map(np.array_equal, results, truth))


def test_the_one_that_cannot_be_denoised_fails_after_those_before_it() -> None:
    given = images(5)
    bad = Choice(Profile(name="test"), "", 1.0, 1e6)  # no counts are left above this offset

    def source() -> Iterator[Plane]:
        yield from map(asked, given[:2])
        yield asked(given[2], bad)
        raise AssertionError("it reads on after a failure")

    one = made(FakeCuda(4))
    results: list[Denoised] = []
    with pytest.raises(MicrographError, match="counts must be positive"):
        for result in one.denoise(source()):
            results.append(result)  # noqa: PERF402
    assert [result.prepared.pixels is image for result, image in zip(results, given[:2], strict=True)] == [True, True]
    assert len(list(one.denoise(map(asked, given)))) == 5


def test_the_host_does_little_per_tile() -> None:
    driver = FakeCuda()
    list(made(driver, batch=1).denoise([asked(np.ones((500, 500), np.uint16) * 9)]))
    tiles = len(tiling.plan((500, 500), TILE, HALO, ALIGN))
    assert len(driver.launched) == 2 * tiles + 2
