"""A recipe is changed by name, and a change that no training could carry out is refused in words."""

from dataclasses import replace

import pytest

from daemon.errors import ConfigError
from training.changes import changed
from training.presets import FAST


def test_a_recipe_is_changed_by_name() -> None:
    recipe = changed(FAST, ["rate=1e-4", 'loss="mse"', 'arguments={"widths": [8, 8, 8, 8]}', "batch=3"])
    assert recipe == replace(FAST, rate=1e-4, loss="mse", arguments={"widths": [8, 8, 8, 8]}, batch=3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("speed=1", "has no speed"),
        ("stages=[]", "has no stages"),
        ("loss=mse", "double quotes"),
        ('loss="best"', "no loss is called best"),
        ('batch="many"', "of type int"),
        ("rate", "must be JSON"),
        ("grid=1.0", "grid needs flat crops"),
        ('course="up"', "course must be one of cosine, plateau, decay, not up"),
        ("warm_up_batches=0", "warm_up_batches must be at least 1"),
        ('arguments={"widths": [8]}', "no such network"),
        ("crop=100", "multiple of 32"),
        ("batch=0", "batch must be at least 1"),
        ("rate=-1", "rate must be above 0"),
        ("averaging=true", "of type float"),
        ('optimiser="sgd"', "optimiser must be one of adam, adamw, muon, rmsprop, nesterov, not sgd"),
        ('detector={"colour": 1}', "detector: .*colour"),
        ('detector={"psf": -1}', "psf of a detector must lie in"),
    ],
)
def test_a_wrong_change_is_explained(change: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        changed(FAST, [change])
