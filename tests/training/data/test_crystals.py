"""Crystals to learn from: regular where they are perfect, and rich in defects that change what the scene shows."""

from dataclasses import replace

import numpy as np
import pytest

from training.data import crystals, defects
from training.data.crystal_scenes import MARGIN, draw, image_of, places
from training.data.crystals import Crystal

SIDE, WIDTH = 96, 1.5


def perfect(seed: int = 1, spacing: float = 9.0, reach: float = 92.0) -> Crystal:
    rng = np.random.default_rng(seed)
    return crystals.grow(crystals.draw_cell(rng), spacing, rng.uniform(0, 6), np.zeros(2), reach)


def nearest(position: crystals.Real) -> crystals.Real:
    """Distance of each column from the next one."""
    apart = np.hypot(*(position[:, None] - position[None]).transpose(2, 0, 1))
    np.fill_diagonal(apart, np.inf)
    return np.asarray(apart.min(1))


def shown(crystal: Crystal) -> crystals.Real:
    return image_of(crystal, SIDE, lambda f2: np.exp(-2 * (np.pi * WIDTH) ** 2 * f2))


def at(image: crystals.Real, position: crystals.Real) -> float:
    row, column = (position + SIDE / 2).round().astype(int)
    return float(image[row, column])


@pytest.mark.parametrize("seed", range(24))
def test_the_nearest_columns_of_any_cell_are_one_spacing_apart_and_fill_the_scene(seed: int) -> None:
    crystal = perfect(seed, reach=200)
    inner = crystal.position[(np.abs(crystal.position) < 80).all(1)]
    assert nearest(inner).min() == pytest.approx(9)
    columns = len(crystal.cell.sites) * 400**2 / abs(np.linalg.det(crystal.edges))
    assert len(crystal.position) == pytest.approx(columns, rel=0.06)
    assert crystal.brightness.max() <= 1


def test_every_kind_of_cell_is_drawn() -> None:
    rng = np.random.default_rng(0)
    found = {len(crystals.draw_cell(rng).sites) for _ in range(100)}
    assert found == {len(sites) for _, _, sites in crystals.CELLS.values()}


def test_a_scene_is_rendered_where_its_columns_are() -> None:
    crystal = perfect()
    image = shown(replace(crystal, position=np.array([[7.0, -20.0]]), brightness=np.array([1.0])))
    assert np.unravel_index(image.argmax(), image.shape) == (7 + SIDE // 2, SIDE // 2 - 20)
    assert image.sum() == pytest.approx(1, abs=1e-3)
    jittered = image_of(
        replace(crystal, position=np.array([[0.0, 0.0]]), brightness=np.array([1.0])),
        SIDE,
        lambda f2: np.exp(-2 * (np.pi * WIDTH) ** 2 * f2),
        np.full(SIDE + 2 * MARGIN, 3.0),
    )
    assert np.unravel_index(jittered.argmax(), image.shape) == (SIDE // 2, SIDE // 2 + 3)


def test_a_missing_column_is_dark_in_the_scene_and_a_substituted_one_is_as_bright_as_it_should_be() -> None:
    crystal = perfect()
    inner = np.flatnonzero((np.abs(crystal.position) < 30).all(1))
    column = inner[np.argmax(crystal.brightness[inner])]
    before = at(shown(crystal), crystal.position[column])
    for factor in (0.0, 0.5, 3.0):
        brightness = crystal.brightness.copy()
        brightness[column] *= factor
        after = at(shown(replace(crystal, brightness=brightness)), crystal.position[column])
        assert after == pytest.approx(before * factor, abs=0.05 * before)


@pytest.mark.parametrize("name", defects.POINT)
@pytest.mark.parametrize("share", [0.005, 0.1])
def test_point_defects_change_the_share_of_columns_that_is_asked_for(name: str, share: float) -> None:
    crystal = perfect(seed=3, reach=200)
    count = len(crystal.position)
    changed = []
    for seed in range(8):
        other = defects.POINT[name](np.random.default_rng(seed), crystal, share)
        kept = (other.position[:count] == crystal.position).all(1) & (other.brightness[:count] == crystal.brightness)
        changed.append((np.count_nonzero(~kept) if name != "added" else len(other.position) - count) / count)
    assert 0.4 * share < np.mean(changed) < 1.3 * share + 25 / count, "clusters overlap, and are whole"


def test_substitutes_are_brighter_and_darker_and_added_atoms_stand_beside_columns() -> None:
    crystal = perfect(seed=4)
    rng = np.random.default_rng(2)
    ratio = np.concatenate([
        defects.substituted(rng, crystal, 0.1).brightness / crystal.brightness for _ in range(20)
    ])  # fmt: skip
    assert 0.3 <= ratio.min() < 0.5
    assert 2.5 < ratio.max() <= 4
    more = defects.added(rng, crystal, 0.05)
    new = more.position[len(crystal.position) :]
    away = np.hypot(*(new[:, None] - crystal.position[None]).transpose(2, 0, 1)).min(1)
    assert (away > 0.2 * crystal.spacing).mean() > 0.9


def test_a_dislocation_disturbs_its_core_and_closes_up_with_the_perfect_crystal_far_away() -> None:
    crystal = crystals.grow(
        crystals.Cell(np.eye(2), np.zeros((1, 2)), np.ones(1)), 8.0, 0.0, np.zeros(2), 300.0
    )  # a square lattice
    bent = defects.dislocations(np.random.default_rng(1), crystal)
    inner = (np.abs(crystal.position) < 280).all(1)
    distance = nearest(bent.position)[inner]
    assert np.median(distance) == pytest.approx(8, rel=0.05), "the cut through the crystal has closed"
    assert distance.min() < 7
    assert np.mean(distance < 6.5) < 0.02


@pytest.mark.parametrize("name", defects.EXTENDED)
def test_extended_defects_leave_a_crystal_of_the_same_spacing(name: str) -> None:
    for seed in range(6):
        crystal = perfect(seed, reach=150)
        other = defects.EXTENDED[name](np.random.default_rng(seed), crystal)
        assert other.position.shape == (len(other.brightness), 2)
        assert not np.array_equal(other.position, crystal.position) or not np.array_equal(
            other.brightness, crystal.brightness
        )
        assert np.isfinite(other.position).all()
        assert 0.2 * len(crystal.position) < np.count_nonzero(other.brightness) < 2.2 * len(crystal.position)
        assert np.median(nearest(other.position)) == pytest.approx(9, rel=0.15)


def test_half_of_all_crystals_have_point_defects_in_half_to_ten_percent_of_their_columns() -> None:
    drawn = [draw(np.random.default_rng(seed), 128) for seed in range(400)]
    point = np.array([bool(set(crystal.defects) & set(defects.POINT)) for crystal in drawn])
    extended = np.array([bool(set(crystal.defects) & set(defects.EXTENDED)) for crystal in drawn])
    assert point.mean() == pytest.approx(defects.POINT_SHARE, abs=0.08)
    assert extended.mean() == pytest.approx(defects.EXTENDED_SHARE, abs=0.08)
    assert {name for crystal in drawn for name in crystal.defects} == {*defects.POINT, *defects.EXTENDED}
    others = {"voids", "inclusion", "missing in clusters"}
    gone = [
        np.mean(crystal.brightness == 0)
        for crystal in drawn
        if "missing" in crystal.defects and not others & set(crystal.defects)
    ]
    assert len(gone) > 20
    assert 0.002 < np.mean(gone)
    assert max(gone) < 0.1


def test_the_places_of_point_defects_are_marked_and_no_others() -> None:
    found = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        perfect = crystals.draw_perfect(rng, 80)
        crystal = defects.with_defects(np.random.default_rng(seed), perfect)
        marks = places(crystal, 100)
        if crystal.odd is None:
            assert not marks.any()
            continue
        found += 1
        assert len(crystal.odd) == len(crystal.position)
        for position in crystal.position[crystal.odd] + 50:
            row, column = np.rint(position).astype(int)
            if 0 <= row < 100 and 0 <= column < 100:
                assert marks[row, column] > 0.5
        away = np.hypot(*(np.argwhere(marks < 0.01)[:, None] - crystal.position[crystal.odd] - 50).transpose(2, 0, 1))
        assert away.min() > 0.5 * crystal.spacing
    assert found >= 3
