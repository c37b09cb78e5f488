"""What the GPU pipeline allocates, lends and gives back."""

import gc
from collections.abc import Iterator

import numpy as np
import pytest
from fake_cuda import FakeCuda
from staged_pipeline import (
    asked,
    expected,
    images,
    made,
)

from daemon.backends.gpu import buffers, pipeline
from daemon.backends.gpu.buffers import LENT
from daemon.backends.gpu.device import OutOfMemoryError
from daemon.backends.protocol import SLOTS
from daemon.counts.plane import Plane
from daemon.errors import MicrographError
from daemon.micrograph import Image


@pytest.fixture(scope="module", autouse=True)
def only_what_is_made_here_is_collected() -> Iterator[None]:
    """Each session ends with a collection, which would go through all that pytest and ONNX Runtime have loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


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
