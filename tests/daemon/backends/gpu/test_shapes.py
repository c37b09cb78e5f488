"""Which tiles frames get: as little computed twice as the card allows, and no engine for a frame that comes once."""

import pytest

from daemon.backends import tiling
from daemon.backends.gpu.shapes import FRAMES_FIRST, WORTH, Serving, Shapes, computed, fitting

SERVING = Serving(halo=96, blend=0, align=16)
BASE = 1024, 1024
A_PIXEL = 88.0
H200, A4000 = 139 << 30, 16 << 30


def shapes(memory: int = A4000, **options: bool) -> Shapes:
    return Shapes(BASE, SERVING, memory, A_PIXEL, **{"fixed": False, **options})


@pytest.mark.parametrize(
    ("shape", "memory", "tile", "share"),
    [
        ((4096, 4096), H200, (4096, 4096), 1.0),
        ((4096, 4096), A4000, (4096, 4096), 1.0),
        ((4096, 4096), 4 << 30, (2176, 4096), 1.07),
        ((4092, 5760), A4000, (4096, 5760), 1.002),
        ((3710, 3838), A4000, (3712, 3840), 1.002),
        ((8192, 8192), H200, (8192, 8192), 1.0),
        ((8192, 8192), A4000, (4224, 8192), 1.04),
        ((2048, 2048), A4000, (2048, 2048), 1.0),
        ((1023, 5001), A4000, (1024, 5120), 1.03),
        ((512, 512), A4000, BASE, 4.0),
    ],
)
def test_the_best_tiles_of_a_frame(shape: tuple[int, int], memory: int, tile: tuple[int, int], share: float) -> None:
    assert shapes(memory).best(shape) == tile
    assert computed(shape, tile, SERVING) / (shape[0] * shape[1]) == pytest.approx(share, abs=0.02)
    assert tile == BASE or tile[0] * tile[1] * A_PIXEL <= memory / 4


def test_a_frame_in_tiles_of_1024_computes_half_as_much_again() -> None:
    assert computed((4096, 4096), BASE, SERVING) / 4096**2 == 1.5625
    assert fitting((4096, 4096), SERVING, 1000) is None


def test_every_shape_is_covered_by_what_is_chosen_for_it() -> None:
    for height in (33, 700, 1025, 1200, 2049, 3333, 6001):
        for width in (64, 1024, 1500, 4097):
            tile = shapes().best((height, width))
            assert len(tiling.plan((height, width), tile, 96, 16)) >= 1
            assert computed((height, width), tile, SERVING) <= computed((height, width), BASE, SERVING)


def test_an_engine_is_built_for_frames_that_keep_coming_and_not_for_one_that_comes_once() -> None:
    one = shapes()
    for side in range(3000, 3900, 100):
        assert one.choose((side, 4096), []) == BASE
    for _ in range(FRAMES_FIRST):
        assert one.choose((4096, 4096), []) == BASE
    assert one.choose((4096, 4096), []) == (4096, 4096)
    # What exists serves shapes that nearly agree, whatever their number.
    for _ in range(9):
        assert one.choose((4000, 4000), [(4096, 4096)]) == (4096, 4096)
    assert computed((4000, 4000), (4096, 4096), SERVING) <= WORTH * 4000**2


def test_tiles_that_were_asked_for_or_that_make_the_result_are_kept_and_a_full_card_goes_back_to_them() -> None:
    assert shapes(fixed=True).best((4096, 4096)) == BASE
    one = shapes()
    one.refuse((4096, 4096))
    assert one.choose((4096, 4096), [(4096, 4096)]) == BASE
    other = shapes()
    other.lower()
    assert other.best((2048, 2048)) == BASE


def test_the_plan_is_put_into_words() -> None:
    assert shapes().described((4092, 5760), (4096, 5760)) == (
        "frames of 5760 x 4092 pixels: 1 tile of 5760 x 4096, 1.00 times the frame computed"
    )
