"""The GPU pipeline on a fake CUDA that runs the real kernels: every order of events, and every wait that matters."""

import gc
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda, FakeNetwork
from numpy.typing import NDArray

from daemon.backends import manifest, tiling
from daemon.backends.gpu import buffers, pipeline
from daemon.backends.gpu.buffers import LENT
from daemon.backends.gpu.device import Network, OutOfMemoryError
from daemon.backends.gpu.pipeline import Pipeline
from daemon.backends.manifest import Manifest
from daemon.backends.protocol import SLOTS
from daemon.counts import spikes
from daemon.counts.plane import Denoised, Plane, Prepared
from daemon.counts.prepare import plane
from daemon.counts.profiles import Choice
from daemon.counts.scaling import MINMAX_CROP, minmax_crop
from daemon.errors import MicrographError
from daemon.micrograph import Image
from daemon.settings.profile import Profile

SCHEDULES = 300
TILE, HALO, ALIGN = 48, 8, 8
WEIGHTS = manifest.load(manifest.locate("fast")).model_copy(update={"tile": TILE, "halo": HALO, "align": ALIGN})
PAPER = WEIGHTS.model_copy(update={"scaling": MINMAX_CROP})
COUNTED = Choice(Profile(name="test"), "", 1.0, 0.0)


def asked(pixels: NDArray[Any], choice: Choice = COUNTED) -> Plane:
    return plane(pixels, choice, WEIGHTS.dose_range)


def images(number: int = 7, seed: int = 0) -> list[NDArray[Any]]:
    """Of several sizes, types and doses, some with spikes, the largest in the middle."""
    rng = np.random.default_rng(seed)
    shapes = [(40, 56), (64, 33), (50, 50), (90, 70), (33, 90), (90, 70), (60, 60)]
    dtypes = ["u2", "f4", "u1", "u2", "f8", "i4", "i2"]
    made = []
    for index in range(number):
        image = rng.poisson(10 * (1 + index), shapes[index % 7]).astype(dtypes[index % 7])
        if index % 2:
            image[5, 7], image[30, 2] = image.max() * 6 + 50, image.max() * 6 + 60
        made.append(image)
    return made


def expected(prepared: Prepared, weights: Manifest = WEIGHTS, blend: int = 0) -> Image:
    """What the pipeline is to compute, tile by tile in NumPy."""
    plan = tiling.plan(prepared.pixels.shape, TILE, HALO, ALIGN, blend)
    out = plan.canvas()
    whole = spikes.infill(prepared.pixels, prepared.spikes)
    for tile in plan:
        scaling = prepared.scaling
        if weights.scaling == MINMAX_CROP:
            scaling = minmax_crop(whole[tile.window])
        units = scaling.to_units(tiling.cut(tile, whole))[None, None]
        level = np.full((1, 1, 1, 1), prepared.scaling.level, np.float32)
        tiling.place(tile, scaling.to_pixels(FakeNetwork.compute(units, level)[0, 0]), out)
    return out


def made(driver: FakeCuda, weights: Manifest = WEIGHTS, batch: int = 2, blend: int = 0, **options: Any) -> Pipeline:
    return Pipeline(driver, FakeNetwork(driver, TILE, batch), weights, halo=HALO, blend=blend, **options)


def session(driver: FakeCuda) -> list[Image]:
    """Streams of every kind: with pauses, left in the middle, with micrographs that grow; results kept and dropped."""
    one = made(driver)
    given = images()
    kept: list[Image] = []

    def paused() -> Iterator[Plane | None]:
        for index, image in enumerate(given):
            yield asked(image)
            if index in (1, 4):
                yield None

    kept += [result.image for result in one.denoise(paused())]
    for number in (1, 2):
        left = one.denoise(asked(image) for image in images(4, seed=number))
        kept.append(next(left).image)
        left.close()
        # The next is larger than all before it: buffers are freed and made anew at once.
        large = np.random.default_rng(number).poisson(9, (100 + 8 * number, 90)).astype(np.uint16)
        kept += [result.image for result in one.denoise([asked(large)])]
    for result in one.denoise(asked(image) for image in given + given):
        kept.append(result.image if len(kept) % 3 else result.image.copy())
    copies = [image.copy() for image in kept]
    one.close()
    gc.collect()
    assert not driver.live, "memory was left behind"
    for image, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(image, copy, "an image changed after it was given out")
    return copies


@pytest.fixture(scope="module")
def truth() -> list[Image]:
    return session(FakeCuda())


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


def test_where_more_is_found_than_can_be_listed_the_processor_looks_itself(monkeypatch: pytest.MonkeyPatch) -> None:
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


class Careless(FakeCuda):
    """Forgets one of the pipeline's calls, told by its name and line; lists all it sees."""

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
        assert any(goes_wrong(site, seed, truth) for seed in range(SCHEDULES)), f"nobody misses {site}"


def goes_wrong(site: tuple[str, int], seed: int, truth: Sequence[Image]) -> bool:
    try:
        results = session(Careless(seed, site))
    except (AssertionError, MicrographError, IndexError, ValueError, OverflowError):
        return True
    return not all(map(np.array_equal, results, truth))


def test_nothing_is_allocated_for_a_micrograph_unless_it_is_the_largest_so_far() -> None:
    driver = FakeCuda(3)
    one = made(driver)
    list(one.denoise(map(asked, images())))
    before = driver.allocations
    for _ in range(5):
        list(one.denoise(map(asked, images())))
    assert driver.allocations == before
    list(one.denoise([asked(np.ones((200, 200), np.uint16) * 9)]))
    assert driver.allocations > before


def test_it_reads_as_far_ahead_as_it_has_slots_and_no_further() -> None:
    taken = 0

    def source() -> Iterator[Plane]:
        nonlocal taken
        for image in images(7):
            taken += 1
            yield asked(np.zeros((96, 96), image.dtype) + 5)

    for done, _ in enumerate(made(FakeCuda(1)).denoise(source())):
        assert taken - done <= SLOTS + 1


def test_results_are_lent_without_a_copy_while_few_are_held_and_never_used_twice() -> None:
    driver = FakeCuda(0)
    one = made(driver)
    same = [np.random.default_rng(seed).poisson(20, (64, 64)).astype(np.uint16) for seed in range(12)]

    def own(image: Image) -> bool:
        return image.base is None or isinstance(image.base, np.ndarray)

    held = [result.image[1:] for result in one.denoise(map(asked, same))]  # a view keeps the memory as well
    assert sum(not own(view.base) for view in held) == LENT
    for view, result in zip(held, made(FakeCuda()).denoise(map(asked, same)), strict=True):
        np.testing.assert_array_equal(view, result.image[1:])
    del held, view, result
    gc.collect()
    lent = [not own(result.image) for result in one.denoise(map(asked, same))]
    assert lent.count(True) >= len(same) - 2  # given back as soon as they were dropped


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


class Full(FakeCuda):
    """Out of memory from the n-th allocation on the device until somebody frees the network."""

    def __init__(self, first: int) -> None:
        super().__init__(2)
        self.first, self.freed_network, self.asked = first, False, 0

    def device(self, nbytes: int) -> Any:
        self.asked += 1
        if self.asked >= self.first and not self.freed_network:
            raise OutOfMemoryError("full")
        return super().device(nbytes)


@pytest.mark.parametrize("first", range(3, 19))
def test_when_memory_runs_out_the_batch_is_lowered_and_the_work_goes_on(first: int) -> None:
    driver = Full(first)

    def lower() -> Network:
        driver.freed_network = True
        return FakeNetwork(driver, TILE, 1)

    one = made(driver, batch=4, lower=lower)
    given = images()
    for image, result in zip(given, one.denoise(map(asked, given)), strict=True):
        assert result.prepared.pixels is image
        np.testing.assert_allclose(result.image, expected(result.prepared), rtol=1e-5, atol=1e-3)
    del result
    one.close()
    assert not driver.live


def test_a_micrograph_too_large_for_the_card_costs_that_one_only() -> None:
    driver = FakeCuda(6)
    one = made(driver)
    small = images()[0]
    assert len(list(one.denoise([asked(small)]))) == 1
    driver.room = 1e6  # bytes
    with pytest.raises(MicrographError, match=r"400 x 500 pixels does not fit into the GPU's memory"):
        list(one.denoise([asked(np.ones((500, 400)) * 9)]))
    driver.room = float("inf")
    (result,) = one.denoise([asked(small)])
    np.testing.assert_allclose(result.image, expected(result.prepared), rtol=1e-5, atol=1e-3)


def test_many_spikes_get_more_room_and_where_there_is_none_it_costs_that_micrograph() -> None:
    driver = FakeCuda(8)
    one = made(driver)
    holed = np.random.default_rng(0).poisson(20, (120, 120)).astype(np.float32)
    holed[::2] = np.nan  # 7200 places and values: more than there is room for at first
    few = np.random.default_rng(1).poisson(20, (120, 120)).astype(np.float32)
    list(one.denoise([asked(few)]))
    driver.room = 1000  # bytes
    with pytest.raises(MicrographError, match="does not fit into the GPU's memory"):
        list(one.denoise([asked(holed)]))
    driver.room = float("inf")
    for image, result in zip([holed, few] * 3, one.denoise(map(asked, [holed, few] * 3)), strict=True):
        assert len(result.prepared.spikes) >= 7200 or image is few
        np.testing.assert_allclose(result.image, expected(result.prepared), rtol=1e-5, atol=1e-3)
    del result
    one.close()
    assert not driver.live


def test_the_host_does_little_per_tile() -> None:
    driver = FakeCuda()
    list(made(driver, batch=1).denoise([asked(np.ones((500, 500), np.uint16) * 9)]))
    tiles = len(tiling.plan((500, 500), TILE, HALO, ALIGN))
    assert len(driver.launched) == 2 * tiles + 2
