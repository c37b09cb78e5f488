"""A defect that a denoiser repairs is found, whatever the defect; so are objects that are not there."""

import json

import cv2
import numpy as np
import pytest

from daemon.micrograph import Image
from training.evaluation import defect_guards, defect_specimens, object_guards
from training.evaluation.defect_specimens import Draw
from training.evaluation.guard import Denoise, Guard

SPECIMENS: dict[str, Draw] = {**defect_guards.ADDED, **defect_guards.FOREIGN, **defect_guards.EDGES}


def identity(counts: Image) -> Image:
    return counts


def constant(counts: Image) -> Image:
    return np.full_like(counts, counts.mean())


def blurred(sigma: float) -> Denoise:
    return lambda counts: np.asarray(cv2.GaussianBlur(counts, (0, 0), sigma), np.float32)


# Vacancy


def test_a_lattice_has_one_atom_missing_and_knows_where() -> None:
    sheet = defect_specimens.lattice(np.random.default_rng(3), 96)
    assert sheet.scene.min() >= 0
    assert sheet.scene.max() == pytest.approx(1)
    brightness = sheet.profiles @ sheet.scene.ravel()
    assert brightness[0] < 0.5 * brightness[1:].min()
    assert np.ptp(brightness[1:]) < 0.1 * brightness[1:].mean()
    assert sheet.contrast(2 * sheet.scene + 7) == pytest.approx(2 * sheet.contrast(sheet.scene), rel=1e-4)


def test_a_filled_vacancy_is_found() -> None:
    kept = defect_guards.vacancy(identity, seeds=4, exposures=[(100, 1.0)])
    assert kept.ok
    assert kept.worst == pytest.approx(1, abs=0.1)
    filled = defect_guards.vacancy(blurred(4), seeds=4, exposures=[(100, 1.0)])
    assert not filled.ok
    assert filled.worst < 0.4


def test_only_exposures_at_which_the_rival_keeps_the_vacancy_count() -> None:
    exposures = [(100, 1.0), (30, 0.2)]
    assert defect_guards.vacancy(identity, 3, exposures=exposures, rival=identity).ok
    nothing = defect_guards.vacancy(identity, 3, exposures=exposures, rival=constant)
    assert not nothing.ok, "a test that tests nothing is not passed"
    assert not any(row["required"] for row in nothing.numbers["exposures"])


def test_without_a_rival_an_invisible_vacancy_does_not_count() -> None:
    found = defect_guards.vacancy(constant, 2, exposures=[(100, 1.0), (3, 0.05)]).numbers["exposures"]
    assert [row["required"] for row in found] == [True, False]


def test_a_constant_keeps_no_vacancy() -> None:
    lost = defect_guards.vacancy(constant, seeds=2)
    assert not lost.ok
    assert lost.worst == pytest.approx(0, abs=1e-4)


# Other defects


@pytest.mark.parametrize("name", SPECIMENS)
def test_a_defect_stands_out_from_the_places_that_it_is_compared_with(name: str) -> None:
    for seed in range(6):
        specimen = SPECIMENS[name](np.random.default_rng(seed), 96)
        assert specimen.scene.shape == (96, 96)
        assert 0 <= specimen.scene.min() and specimen.scene.max() <= 1
        brightness = specimen.profiles @ specimen.scene.ravel()
        defect, others = brightness[: specimen.marked], brightness[specimen.marked :]
        assert len(defect) >= 1 and len(others) >= 3
        assert np.abs(defect.mean() - others.mean()) > 3 * others.std()
        darker = name == "0.6 times as bright"
        assert (defect.mean() < others.mean()) == darker
        assert specimen.contrast(2 * specimen.scene + 7) == pytest.approx(
            2 * specimen.contrast(specimen.scene), rel=1e-4
        )


def test_a_foreign_atom_is_as_bright_as_it_should_be() -> None:
    for factor in (1.5, 0.6):
        specimen = defect_specimens.substituted(factor)(np.random.default_rng(0), 96)
        brightness = specimen.profiles @ (specimen.scene.ravel() - 0.1)
        assert brightness[0] / brightness[1:].mean() == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize("step", [False, True])
def test_beyond_the_last_row_of_a_crystal_there_is_none(step: bool) -> None:
    for seed in range(6):
        specimen = defect_specimens.edge(step)(np.random.default_rng(seed), 96)
        assert specimen.marked == 2 if step else specimen.marked > 4
        brightness = specimen.profiles @ specimen.scene.ravel()
        assert brightness[: specimen.marked].min() > 2 * brightness[specimen.marked :].max()


def test_a_denoiser_that_keeps_everything_passes_and_one_that_repairs_fails() -> None:
    for test in (defect_guards.added_atoms, defect_guards.foreign_atoms):
        kept, lost = test(identity, seeds=2), test(constant, seeds=1)
        assert kept.ok
        assert kept.worst == pytest.approx(1, abs=0.3)
        assert not lost.ok
        assert lost.worst == pytest.approx(0, abs=1e-3)
        assert not test(blurred(4), seeds=1).ok


def test_an_edge_that_is_washed_out_or_moves_is_found() -> None:
    kept, in_place = defect_guards.edges(identity, seeds=4)
    assert kept.ok and in_place.ok
    washed_out, _ = defect_guards.edges(blurred(4), seeds=2)
    assert not washed_out.ok
    lost, nowhere = defect_guards.edges(constant, seeds=2)
    assert not lost.ok and not nowhere.ok


@pytest.mark.parametrize("shift", [-0.3, 0.0, 0.3])
def test_a_row_that_moves_across_the_edge_is_measured(shift: float) -> None:
    specimen = defect_specimens.edge(step=False)(np.random.default_rng(5), 96)
    assert specimen.normal is not None
    down, right = specimen.normal * shift
    frequency = np.fft.fftfreq(96)
    turned = np.exp(-2j * np.pi * (frequency[:, None] * down + frequency[None, :] * right))
    moved = np.fft.ifft2(np.fft.fft2(specimen.scene) * turned).real.astype(np.float32)
    assert defect_guards.displaced(specimen, moved, specimen.scene) == pytest.approx(shift, abs=0.05)
    assert defect_guards.displaced(specimen, 3 * moved + 5, specimen.scene) == pytest.approx(shift, abs=0.05)


def test_a_defect_must_be_kept_where_it_is_visible_or_the_rival_keeps_it() -> None:
    alone = defect_guards.foreign_atoms(constant, 2).numbers["exposures"]["1.5 times as bright"]
    beside = defect_guards.foreign_atoms(constant, 2, rival=identity).numbers["exposures"]["1.5 times as bright"]
    assert [row["required"] for row in alone] == [row["visible"] >= 6.5 for row in alone]
    assert {row["required"] for row in alone} == {True, False}
    assert sum(row["required"] for row in beside) > sum(row["required"] for row in alone)


# False and missed objects


def test_a_sheet_is_perfect_but_for_what_is_missing_and_what_is_twice_as_bright() -> None:
    sheet = defect_specimens.sheet(np.random.default_rng(1), 96)
    difference = sheet.brightness(sheet.scene - sheet.perfect) / sheet.atom
    assert difference == pytest.approx(sheet.defect, abs=0.05)
    assert sorted(sheet.defect[sheet.defect != 0]) == [-1, -1, 1, 1]


def test_sites_are_counted_by_half_an_atom() -> None:
    score = np.array([0.0, 0.4, -0.6, 0.7, -0.9, -0.4, 0.3, 2.0, -1.0])
    defect = np.array([0.0, 0.0, 0.0, 0.0, -1.0, -1.0, 1.0, 1.0, 1.0])
    found = object_guards.count(score, defect)
    assert found == object_guards.DefectCounts(perfect=4, defects=5, false=2, missed=3)
    assert object_guards.rates([found, found]) == {"false": 0.5, "missed": 0.6}


def test_noise_that_is_left_is_measured_without_what_is_lost() -> None:
    """Half of the noise, half of the contrast: the first counts here, the second is a missed object."""
    halved = object_guards.noise_left(lambda counts: 0.5 * counts + 7, 64, 20.0, 1.0)
    assert halved.share == pytest.approx(0.5)
    assert halved.raw_share(0.5) == pytest.approx(0, abs=1e-6)
    assert halved.raw_share(0.75) == pytest.approx(0.5)
    assert halved.raw_share(1.0) == pytest.approx(1)
    smoothed = object_guards.noise_left(blurred(1.5), 64, 20.0, 1.0)
    share = smoothed.raw_share(0.6)
    again = object_guards.noise_left(lambda counts: (1 - share) * blurred(1.5)(counts) + share * counts, 64, 20.0, 1.0)
    assert again.share == pytest.approx(0.6, rel=1e-3)
    assert object_guards.noise_left(identity, 64, 20.0, 1.0).raw_share(0.5) == 0


SEEDS, SIDE, EXPOSURES = 12, 64, [(20.0, 1.0)]


def objects(denoise: Denoise, rival: Denoise | None = None) -> tuple[Guard, Guard]:
    return object_guards.objects(denoise, SEEDS, SIDE, EXPOSURES, rival)


def knowing(defects: float) -> Denoise:
    """A denoiser that knows the truth, and shows that share of every defect."""
    known = {}
    for dose, contrast in EXPOSURES:
        keys = [(seed, 8, 0) for seed in range(SEEDS)]
        keys += [(seed, 9, exposure) for seed in range(object_guards.CALIBRATIONS) for exposure in range(2)]
        for seed, family, exposure in keys:
            sheet, counts, scale = object_guards._exposed(seed, family, SIDE, dose, contrast, exposure)
            shown = sheet.perfect + defects * (sheet.scene - sheet.perfect)
            known[counts.tobytes()] = (dose + scale * (shown - sheet.scene.mean())).astype(np.float32)
    return lambda counts: known[counts.tobytes()]


def test_a_denoiser_that_repairs_crystals_misses_every_defect_and_one_that_knows_them_none() -> None:
    false, missed = objects(knowing(0.0))
    assert false.ok
    assert not missed.ok
    assert missed.worst == 1
    assert all(guard.ok for guard in objects(knowing(1.0)))
    false, missed = objects(knowing(0.0), rival=blurred(1.0))
    assert false.ok
    assert not missed.ok, "blended with the raw image to the rival's noise, they are still missed"
    assert missed.worst == pytest.approx(SEEDS**0.5, rel=1e-3)


@pytest.mark.parametrize("rival", [None, knowing(1.0)])
def test_invented_objects_are_false_ones(rival: Denoise | None) -> None:
    truth = knowing(1.0)
    blobs = np.random.default_rng(0).random((SIDE, SIDE)) < 0.01
    invented = cv2.GaussianBlur(1500 * blobs.astype(np.float32), (0, 0), 2.0)
    false, _ = objects(lambda counts: truth(counts) + invented, rival)
    assert not false.ok


def test_the_same_denoiser_has_no_excess_over_itself() -> None:
    for guard in objects(blurred(1.0), rival=blurred(1.0)):
        assert guard.ok
        assert guard.worst == 0
        json.dumps(guard.as_json(), allow_nan=False)


@pytest.mark.parametrize("rival", [None, blurred(1.0)])
def test_what_removes_no_noise_or_everything_does_not_pass(rival: Denoise | None) -> None:
    assert not any(guard.ok for guard in objects(identity, rival))
    _, missed = objects(constant, rival)
    assert not missed.ok


def test_an_excess_is_counted_in_paired_standard_errors() -> None:
    assert object_guards.excess(np.array([0, 0, 0])) == 0
    assert object_guards.excess(np.array([1, 0, 0])) == pytest.approx(1)
    assert object_guards.excess(np.array([1] * 9)) == pytest.approx(3)
    assert object_guards.excess(np.array([1, -1] * 50)) == 0
    assert object_guards.excess(np.array([-2] * 4)) == pytest.approx(-2)
