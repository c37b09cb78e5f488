"""Simulated scenes: in range, reproducible, of several kinds, and never the demo's own camera."""

import ast
from pathlib import Path

import numpy as np
import pytest

import training
from training.simulate import GENERATORS, bank


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("side", [64, 129])
def test_a_scene_fills_0_to_1_and_comes_again_from_the_same_seed(name: str, side: int) -> None:
    for seed in range(12):
        scene = GENERATORS[name](np.random.default_rng(seed), side)
        assert scene.shape == (side, side)
        assert scene.dtype == np.float32
        assert np.isfinite(scene).all()
        assert scene.min() == 0
        assert scene.max() == 1
        assert np.array_equal(scene, GENERATORS[name](np.random.default_rng(seed), side))


def test_a_bank_takes_the_kinds_in_turn() -> None:
    scenes = bank(7, 6, 64)
    rng = np.random.default_rng(7)
    kinds = list(GENERATORS.values())
    assert len(scenes) == 6
    for index, scene in enumerate(scenes):
        assert np.array_equal(scene, kinds[index % len(kinds)](rng, 64))
    assert not np.array_equal(scenes[0], scenes[4])


def test_training_never_sees_the_simulated_camera() -> None:
    """What the demo measures is honest only while its specimens are unknown to the network."""
    sources = sorted(Path(training.__file__).parent.rglob("*.py"))
    assert len(sources) > 3
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = getattr(node, "module", None) or ""
                imported = {f"{module}.{alias.name}".lstrip(".") for alias in node.names} | {module}
                assert not any("daemon.camera" in name or "daemon.demo" in name for name in imported), source
