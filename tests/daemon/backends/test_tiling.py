"""Tiling: what is cut and put back is the image, whatever its size, the tile, the halo and the blend."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from daemon.backends.tiling import Span, TilePlan, cut, place, plan
from daemon.errors import MicrographError

sides = st.integers(32, 300)


@st.composite
def plans(draw: st.DrawFn) -> tuple[TilePlan, int, int, int, int]:
    align = draw(st.sampled_from([1, 2, 4, 8, 16]))
    tile = align * draw(st.integers(-(-16 // align), 160 // align))
    halo, blend = draw(st.integers(0, tile // 3)), draw(st.integers(0, 12))
    shape = draw(sides), draw(sides)
    try:
        return plan(shape, tile, halo, align, blend), tile, halo, align, blend
    except ValueError:
        assume(False)
        raise


def _valid(span: Span, size: int, side: int, halo: int) -> tuple[int, int]:
    """The part of a tile whose context is whole: all but the halo, and up to the image's own edges."""
    return (
        0 if span.origin == 0 else halo,
        size - span.origin if span.origin + side >= size else side - halo,
    )


@given(plans())
@settings(max_examples=150, deadline=None)
def test_cut_and_place_give_the_image_back(case: tuple[TilePlan, int, int, int, int]) -> None:
    tiles, side, halo, _, _ = case
    image = np.random.default_rng(0).normal(100, 10, tiles.shape).astype(np.float32)
    out = tiles.canvas()
    for tile in tiles:
        piece = cut(tile, image)
        assert piece.shape == (side, side)
        # What lies in the halo towards another tile must not reach the output.
        result = np.full((side, side), np.nan, dtype=np.float32)
        inner = tuple(slice(*_valid(span, size, side, halo)) for span, size in
                      zip((tile.rows, tile.columns), tiles.shape, strict=True))  # fmt: skip
        result[inner] = piece[inner]
        place(tile, result, out)
    # A pixel is the sum of as many float32 products as tiles overlap there; each rounds its weight and its sum.
    terms = len(tiles.rows) + len(tiles.columns)
    np.testing.assert_allclose(out, image, rtol=terms * np.finfo(np.float32).eps)


@given(plans())
@settings(max_examples=100, deadline=None)
def test_weights_sum_to_one_and_origins_are_aligned(case: tuple[TilePlan, int, int, int, int]) -> None:
    tiles, side, halo, align, blend = case
    for size, spans in zip(tiles.shape, (tiles.rows, tiles.columns), strict=True):
        total = np.zeros(size)
        for span in spans:
            assert span.origin % align == 0
            first, end = _valid(span, size, side, halo)
            assert span.core.start - span.origin == span.inner.start >= first
            assert span.core.stop - span.origin == span.inner.stop <= end
            total[span.core] += 1 if span.weight is None else span.weight
        np.testing.assert_allclose(total, 1, atol=1e-6)
        # No more tiles than the part that counts makes necessary.
        useful = (side - 2 * halo - blend) // align * align
        assert len(spans) <= -(-max(size - side + align, 0) // useful) + 1
        assert len({span.origin for span in spans}) == len(spans)


@given(plans())
@settings(max_examples=100, deadline=None)
def test_tiles_are_those_of_the_reflected_image(case: tuple[TilePlan, int, int, int, int]) -> None:
    tiles, side, _, _, _ = case
    image = np.arange(tiles.shape[0] * tiles.shape[1]).reshape(tiles.shape)
    margin = 2 * side
    padded = np.pad(image, margin, mode="reflect")
    for tile in tiles:
        top, left = tile.rows.origin + margin, tile.columns.origin + margin
        np.testing.assert_array_equal(cut(tile, image), padded[top : top + side, left : left + side])


def test_without_blend_every_pixel_is_written_once() -> None:
    tiles = plan((301, 97), tile=64, halo=9, align=4)
    times = np.zeros(tiles.shape, dtype=int)
    for tile in tiles:
        times[tile.rows.core, tile.columns.core] += 1
    assert (times == 1).all()


def test_the_number_of_tiles_is_the_least() -> None:
    assert len(plan((512, 512), tile=512, halo=32, align=8)) == 1
    assert len(plan((513, 512), tile=512, halo=32, align=8)) == 2
    assert len(plan((4096, 4096), tile=512, halo=32, align=8)) == 9 * 9
    assert len(plan((32, 32), tile=512, halo=100, align=16)) == 1


def test_an_image_that_fits_a_tile_is_the_tile() -> None:
    tiles = plan((200, 100), tile=(200, 100), halo=32, align=4)
    image = np.arange(20_000).reshape(200, 100)
    (tile,) = tiles
    np.testing.assert_array_equal(cut(tile, image), image)


def test_blending_fades_from_one_tile_to_the_next() -> None:
    tiles = plan((32, 100), tile=64, halo=0, align=1, blend=10)
    out = tiles.canvas()
    for number, tile in enumerate(tiles):
        place(tile, np.full((64, 64), number, dtype=np.float32), out)
    steps = np.diff(out[0])
    assert out[0, 0] == 0 and out[0, -1] == 1
    assert np.count_nonzero(steps) == 11
    assert steps.max() <= 0.1 + 1e-6


def test_memory_mapped_images_are_read_in_their_own_dtype(tmp_path: Path) -> None:
    path = tmp_path / "frame.npy"
    image = np.random.default_rng(1).integers(0, 60_000, (130, 170)).astype(np.uint16)
    np.save(path, image)
    mapped = np.load(path, mmap_mode="r")
    tiles = plan(mapped.shape, tile=64, halo=8, align=8)
    out = tiles.canvas()
    for tile in tiles:
        piece = cut(tile, mapped)
        assert piece.dtype == np.uint16
        place(tile, piece.astype(np.float32), out)
    np.testing.assert_array_equal(out, image)


def test_the_window_is_all_a_tile_needs() -> None:
    image = np.random.default_rng(2).normal(size=(90, 75))
    for tile in plan(image.shape, tile=48, halo=10, align=4):
        np.testing.assert_array_equal(tile.expand(image[tile.window].copy()), cut(tile, image))


@pytest.mark.parametrize("shape", [(31, 100), (100, 31), (1, 1)])
def test_too_small_an_image_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(MicrographError, match="at least 32 x 32"):
        plan(shape, tile=64, halo=8, align=8)


@pytest.mark.parametrize(
    ("tile", "halo", "align", "blend"),
    [
        (0, 0, 1, 0),
        (64, 32, 1, 0),
        (60, 4, 8, 0),
        (64, 20, 8, 24),
        (64, -1, 1, 0),
        (64, 0, 0, 0),
        (64, 30, 8, 0),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(tile: int, halo: int, align: int, blend: int) -> None:
    with pytest.raises(ValueError, match="tile"):
        plan((1000, 1000), tile, halo, align, blend)
