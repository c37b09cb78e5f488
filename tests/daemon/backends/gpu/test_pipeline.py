"""The GPU pipeline on a fake CUDA that runs the real kernels: every order of events, and every wait that matters."""

import gc
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda, FakeNetwork
from numpy.typing import NDArray

from daemon.backends import manifest, tiling
from daemon.backends.gpu import buffers, pipeline
from daemon.backends.gpu.buffers import LENT
from daemon.backends.gpu.device import OutOfMemoryError, Single
from daemon.backends.gpu.pipeline import Pipeline
from daemon.backends.manifest import Manifest
from daemon.backends.protocol import SLOTS
from daemon.counts import spikes
from daemon.counts.plane import Denoised, Plane, Prepared, Survey
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


JUDGED: dict[tuple[Any, ...], Prepared] = {}


def remembered(pixels: NDArray[Any]) -> Plane:
    """As `asked`; the host's judgement of the same pixels and the same survey is made once for all schedules."""
    one = asked(pixels)

    def prepare(survey: Survey) -> Prepared:
        key = (pixels.tobytes(), pixels.shape, pixels.dtype.str, survey.total, survey.missing.tobytes(),
               survey.suspects.tobytes())  # fmt: skip
        if key not in JUDGED:
            JUDGED[key] = one.prepare(survey)
        return replace(JUDGED[key], pixels=pixels)

    return replace(one, prepare=prepare)


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


def expected(
    prepared: Prepared, weights: Manifest = WEIGHTS, blend: int = 0, tile: tuple[int, int] = (TILE, TILE)
) -> Image:
    """What the pipeline is to compute, tile by tile in NumPy."""
    plan = tiling.plan(prepared.pixels.shape, tile, HALO, ALIGN, blend)
    out = plan.canvas()
    whole = spikes.infill(prepared.pixels, prepared.spikes)
    for one in plan:
        scaling = prepared.scaling
        if weights.scaling == MINMAX_CROP:
            scaling = minmax_crop(whole[one.window])
        units = scaling.to_units(tiling.cut(one, whole))[None, None]
        level = np.full((1, 1, 1, 1), prepared.scaling.level, np.float32)
        tiling.place(one, scaling.to_pixels(FakeNetwork.compute(units, level)[0, 0]), out)
    return out


def made(driver: FakeCuda, weights: Manifest = WEIGHTS, batch: int = 2, blend: int = 0, **options: Any) -> Pipeline:
    network = FakeNetwork(driver, TILE, batch)
    return Pipeline(driver, Single(network), weights, halo=HALO, blend=blend, **options)


class ByShape:
    """`Networks` that serves small frames with small tiles, and large ones with tiles that fit each shape."""

    def __init__(self, driver: FakeCuda) -> None:
        self._driver, self._open = driver, dict[tuple[int, int], FakeNetwork]()

    def _tile(self, shape: tuple[int, int]) -> tuple[int, int]:
        rows, halves = -(-shape[0] // ALIGN) * ALIGN, -(-shape[1] // 2 // ALIGN) * ALIGN + 16
        return (TILE, TILE) if shape[0] < 60 else (rows, halves)

    def ready(self, shape: tuple[int, int]) -> bool:
        return self._tile(shape) in self._open

    def of(self, shape: tuple[int, int]) -> FakeNetwork:
        tile = self._tile(shape)
        if tile not in self._open:
            self._open = {tile: FakeNetwork(self._driver, tile, 1 + tile[0] % 3)}
        return self._open[tile]


def session(driver: FakeCuda, networks: bool = False) -> list[Image]:
    """Streams of every kind: with pauses, left in the middle, with micrographs that grow; results kept and dropped."""
    one = Pipeline(driver, ByShape(driver) if networks else Single(FakeNetwork(driver, TILE, 2)), WEIGHTS, halo=HALO)
    given = images()
    kept: list[Image] = []

    def paused() -> Iterator[Plane | None]:
        for index, image in enumerate(given):
            yield remembered(image)
            if index in (1, 4):
                yield None

    kept += [result.image for result in one.denoise(paused())]
    for number in (1, 2):
        left = one.denoise(remembered(image) for image in images(4, seed=number))
        kept.append(next(left).image)
        left.close()
        # The next is larger than all before it: buffers are freed and made anew at once.
        large = np.random.default_rng(number).poisson(9, (100 + 8 * number, 90)).astype(np.uint16)
        kept += [result.image for result in one.denoise([remembered(large)])]
    for result in one.denoise(remembered(image) for image in given + given):
        kept.append(result.image if len(kept) % 3 else result.image.copy())
    copies = [image.copy() for image in kept]
    one.close()
    gc.collect()
    assert not driver.live, "memory was left behind"
    for image, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(image, copy, "an image changed after it was given out")
    return copies


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


def test_nor_does_it_matter_with_tiles_that_fit_each_shape(truth_of_plans: list[Image]) -> None:
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


def test_a_micrograph_too_large_for_the_card_costs_that_one_only() -> None:
    driver = FakeCuda(6)
    one = made(driver)
    small = images()[0]
    assert len(list(one.denoise([asked(small)]))) == 1
    driver.room = 1e6  # bytes
    with pytest.raises(OutOfMemoryError, match="the fake device is full"):
        list(one.denoise([asked(np.ones((500, 400)) * 9)]))
    driver.room = float("inf")
    (result,) = one.denoise([asked(small)])
    np.testing.assert_allclose(result.image, expected(result.prepared), rtol=1e-5, atol=1e-3)


def test_memory_is_given_back_when_a_giant_was_followed_by_many_of_the_usual_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "SMALL", 1000)
    driver = FakeCuda(9)
    one = made(driver)
    usual, giant = np.ones((64, 64), np.uint16) * 9, np.ones((400, 400), np.uint16) * 9
    list(one.denoise([asked(usual)] * 3))
    before = sum(len(memory.array) for memory in driver.live)
    list(one.denoise(map(asked, [giant, *[usual] * (pipeline.RECENT - 1)])))
    assert sum(len(memory.array) for memory in driver.live) > 2 * before, "another one may follow"
    results = list(one.denoise(map(asked, [usual] * 3)))
    assert sum(len(memory.array) for memory in driver.live) == before
    np.testing.assert_allclose(results[-1].image, expected(results[-1].prepared), rtol=1e-5, atol=1e-3)
    del results
    one.close()
    assert not driver.live


def test_only_half_of_what_the_computer_has_left_is_page_locked() -> None:
    size = 500 * 400
    least = buffers.results_within(10**9, SLOTS, size, 2 * size)
    assert least == SLOTS + LENT
    fixed = SLOTS * (2 * size + buffers.HEADER + 8 * buffers.finds_of(size) + buffers.LEAST_DETAILS)
    for left in range(LENT + 1):
        available = 2 * (fixed + 4 * size * (SLOTS + left))
        assert buffers.results_within(available, SLOTS, size, 2 * size) == SLOTS + left
        driver = FakeCuda(3)
        one = made(driver, available=lambda available=available: available)
        image = np.random.default_rng(1).poisson(9, (500, 400)).astype(np.uint16)
        held = [result.image for result in one.denoise([asked(image)] * 9)]
        assert all(np.array_equal(held[0], other) for other in held)
        one.close()
    poor = made(FakeCuda(3), available=lambda: 2 * (fixed + 4 * size * SLOTS) - 1)
    with pytest.raises(OutOfMemoryError, match="MiB of memory would have to be page-locked, and the computer has"):
        list(poor.denoise([asked(image)]))


def test_what_the_computer_has_left_is_read_from_the_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(buffers, "MEMINFO", tmp_path / "meminfo")
    assert buffers.memory_available() is None
    (tmp_path / "meminfo").write_text("MemTotal:  100 kB\nMemAvailable:     42 kB\n")
    assert buffers.memory_available() == 42 << 10


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
