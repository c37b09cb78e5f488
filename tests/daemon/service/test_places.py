"""How many micrographs are in memory at once."""

from daemon.service.places import SHARE, WEIGHT, Places

FRAME = 2 * 4096**2


def taken(places: Places, size: int = FRAME) -> int:
    number = 0
    while number < 99 and places.take():
        places.sized(size)
        number += 1
    return number


def test_small_ones_are_as_many_as_memory_allows_and_never_more_than_are_of_use() -> None:
    assert taken(Places(6, 16, 100 << 30)) == 16
    assert taken(Places(6, 16, int(9.5 * WEIGHT * FRAME / SHARE))) == 9


def test_giants_and_a_computer_that_does_not_tell_leave_the_usual_few() -> None:
    assert taken(Places(6, 16, 100 << 30), 20 << 30) == 6
    assert taken(Places(6, 16, None)) == 6
    assert taken(Places(4, 0, 100 << 30)) == 4, "the processor computes one at a time"


def test_a_place_that_was_left_is_free_again() -> None:
    places = Places(2, 2, 1 << 30)
    assert taken(places) == 2
    places.leave()
    assert places.take() and not places.take()


def test_a_giant_counts_until_it_is_long_past() -> None:
    places = Places(1, 16, 100 << 30)
    assert places.take()
    places.sized(20 << 30)
    assert not places.take()
    for _ in range(32):
        places.sized(FRAME)
    assert places.take()
