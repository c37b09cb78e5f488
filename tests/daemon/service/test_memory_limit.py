"""How many micrographs are in memory at once."""

from daemon.service.memory_limit import SHARE, WEIGHT, MemoryLimit

FRAME = 2 * 4096**2


def taken(limit: MemoryLimit, size: int = FRAME) -> int:
    number = 0
    while number < 99 and limit.take():
        limit.sized(size)
        number += 1
    return number


def test_small_ones_are_as_many_as_memory_allows_and_never_more_than_are_of_use() -> None:
    assert taken(MemoryLimit(6, 16, 100 << 30)) == 16
    assert taken(MemoryLimit(6, 16, int(9.5 * WEIGHT * FRAME / SHARE))) == 9


def test_giants_and_a_computer_that_does_not_tell_leave_the_usual_few() -> None:
    assert taken(MemoryLimit(6, 16, 100 << 30), 20 << 30) == 6
    assert taken(MemoryLimit(6, 16, None)) == 6
    assert taken(MemoryLimit(4, 0, 100 << 30)) == 4, "the processor computes one at a time"


def test_a_place_that_was_left_is_free_again() -> None:
    limit = MemoryLimit(2, 2, 1 << 30)
    assert taken(limit) == 2
    limit.leave()
    assert limit.take() and not limit.take()


def test_a_giant_counts_until_it_is_long_past() -> None:
    limit = MemoryLimit(1, 16, 100 << 30)
    assert limit.take()
    limit.sized(20 << 30)
    assert not limit.take()
    for _ in range(32):
        limit.sized(FRAME)
    assert limit.take()
