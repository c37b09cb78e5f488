"""Which micrograph is next."""

from daemon.service.lanes import Lanes


def test_lanes_give_every_nth_turn_to_the_backlog() -> None:
    lanes = Lanes(4)
    assert [lanes.live_next() for _ in range(8)] == [True, True, True, False] * 2
    assert not any(Lanes(1).live_next() for _ in range(3))
