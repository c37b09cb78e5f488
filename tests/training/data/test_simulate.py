"""Simulated scenes: in range, reproducible, of several kinds, and what is held out stays unseen by training."""

import ast
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import training
from daemon.demo import specimen
from training.data.simulate import HELD_OUT, MARKED, SHARES, TRAINING, bank, marked_bank, turns

FAMILIES = {**TRAINING, **HELD_OUT}

MEASURING = {"simulate", "pairs", "guards", "command", "page", "plots"}
"""Modules that may know the held-out families."""


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("side", [64, 129])
def test_a_scene_fills_0_to_1_and_comes_again_from_the_same_seed(name: str, side: int) -> None:
    for seed in range(6):
        scene = FAMILIES[name](np.random.default_rng(seed), side)
        assert scene.shape == (side, side)
        assert scene.dtype == np.float32
        assert np.isfinite(scene).all()
        assert scene.min() == 0
        assert scene.max() == 1
        assert np.array_equal(scene, FAMILIES[name](np.random.default_rng(seed), side))


@pytest.mark.parametrize("families", [TRAINING, HELD_OUT])
def test_a_bank_takes_the_kinds_in_turn(families: dict[str, training.data.simulate.Generator]) -> None:
    scenes = bank(7, 6, 64, families)
    rng = np.random.default_rng(7)
    assert len(scenes) == 6
    for name, scene in zip(turns(families), scenes, strict=False):
        assert np.array_equal(scene, families[name](rng, 64))
    assert not np.array_equal(scenes[0], scenes[4])


def test_families_are_drawn_in_their_shares_and_those_without_one_alike() -> None:
    assert set(SHARES) == set(TRAINING)
    total = sum(SHARES.values())
    drawn = list(islice(turns(TRAINING), 3 * total))
    for end in range(1, len(drawn) + 1):
        for name, share in SHARES.items():
            assert abs(drawn[:end].count(name) - end * share / total) < 1
    lattices = SHARES["atomic_columns"] + SHARES["lattice_fringes"]
    assert 1 / 3 < lattices / total < 0.4
    assert list(islice(turns(HELD_OUT), 8)) == [*HELD_OUT, *HELD_OUT]


def test_held_out_families_are_not_drawn_by_default() -> None:
    assert all(np.array_equal(a, b) for a, b in zip(bank(3, 4, 64), bank(3, 4, 64, TRAINING), strict=True))
    assert set(TRAINING.values()).isdisjoint(HELD_OUT.values())
    assert specimen.scene in HELD_OUT.values()
    assert specimen.scene not in TRAINING.values()


@pytest.mark.parametrize("name", HELD_OUT)
def test_held_out_scenes_have_no_noise_of_their_own(name: str) -> None:
    """Finer detail than two pixels could not be distinguished from noise, and no optics pass it."""
    shares = []
    for seed in range(4):
        spectrum = np.abs(np.fft.rfft2(HELD_OUT[name](np.random.default_rng(seed), 256) - 0.5)) ** 2
        frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None, :])
        spectrum[0, 0] = 0
        shares.append(spectrum[frequency > 0.45].sum() / spectrum.sum())
    assert np.mean(shares) < 0.02


def imported(source: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            names |= {f"{module}.{alias.name}".lstrip(".") for alias in node.names}
    return names


def test_held_out_families_are_never_trained_on() -> None:
    """What is measured on these families, the demo's camera among them, is honest only while no training saw them."""
    sources = sorted(Path(training.__file__).parent.rglob("*.py"))
    assert len(sources) > 10
    for source in sources:
        names = imported(source)
        demo = {name for name in names if "daemon.demo" in name}
        assert demo <= ({"daemon.demo.specimen"} if source.stem == "simulate" else set()), source
        if source.stem not in MEASURING:
            assert "HELD_OUT" not in source.read_text(), source


def test_a_marked_bank_is_the_bank_with_the_places_of_defects_and_atoms() -> None:
    names = list(islice(turns(TRAINING), 28))
    for name, scene, marked in zip(names, bank(8, 28, 128), marked_bank(8, 28, 128), strict=True):
        assert marked.shape == (128, 128, 2)
        np.testing.assert_allclose(marked[..., 0], scene, atol=5e-4)  # float16
        assert name in MARKED or not marked[..., 1].any()
    marks = [marked[..., 1] for name, marked in zip(names, marked_bank(8, 28, 128), strict=True) if name in MARKED]
    assert any(one.any() for one in marks) and all(0 <= one.min() <= one.max() <= 1 for one in marks)
