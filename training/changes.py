"""Changes to a recipe from the command line (`--set NAME=VALUE`), and checks of recipes."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from daemon.errors import ConfigError
from training.data.exposure import Detector
from training.losses import GRID, LOSSES
from training.network import NetworkName, build
from training.presets import Course, Doses, Optimiser, Protocol, Recipe

_CHOICES = {"optimiser": Optimiser, "network": NetworkName, "protocol": Protocol, "doses": Doses, "course": Course}
_AT_LEAST_ONE = ("batch", "crop", "scenes", "validate_every", "validation_crops", "warm_up_batches")


def changed(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """The recipe with "name=value" changes, values in JSON. Raises ConfigError for invalid names and values."""
    for change in changes:
        recipe = _with(recipe, change)
    _check_fields(recipe)
    _check_network(recipe)
    return recipe


def _with(recipe: Recipe, change: str) -> Recipe:
    """The recipe with one change. Raises ConfigError for an unknown name and for a value of another type."""
    known = sorted(field.name for field in dataclasses.fields(Recipe))
    name, _, text = change.partition("=")
    if name not in known or name == "stages":
        raise ConfigError(f"--set {change}: a recipe has no {name}; it has {', '.join(known)}")
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--set {change}: the value must be JSON (a text in double quotes): {error}") from error
    wanted = type(getattr(recipe, name))
    if not isinstance(value, (int, float) if wanted is float else wanted) or (
        isinstance(value, bool) and wanted is not bool
    ):
        raise ConfigError(f"--set {change}: {name} must be of type {wanted.__name__}")
    change_of: dict[str, Any] = {name: value}
    return replace(recipe, **change_of)


def _check_fields(recipe: Recipe) -> None:
    """Raises ConfigError for a field outside its own range."""
    for name, choices in _CHOICES.items():
        if getattr(recipe, name) not in get_args(choices):
            raise ConfigError(f"{name} must be one of {', '.join(get_args(choices))}, not {getattr(recipe, name)}")
    try:
        Detector(**recipe.detector)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"detector: {error}; see training.data.exposure.Detector") from error
    for name in _AT_LEAST_ONE:
        if getattr(recipe, name) < 1:
            raise ConfigError(f"{name} must be at least 1, not {getattr(recipe, name)}")
    if not (recipe.rate > 0 and 0 <= recipe.averaging < 1 and 0 <= recipe.simulated <= 1 and recipe.seed >= 0):
        raise ConfigError("rate must be above 0, averaging in [0, 1), simulated in [0, 1], seed not negative")


def _check_network(recipe: Recipe) -> None:
    """Raises ConfigError if network or loss do not exist, or the crops do not fit them."""
    try:
        network = build(recipe.network, recipe.arguments)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ConfigError(f"arguments {json.dumps(recipe.arguments)}: no such network ({error})") from error
    if recipe.crop % network.stride:
        raise ConfigError(f"crop must be a multiple of {network.stride}, the network's stride, not {recipe.crop}")
    if recipe.grid and (recipe.crop % GRID or not recipe.flat):
        raise ConfigError(f"grid needs flat crops (flat above 0) whose side, crop, is a multiple of {GRID}")
    if recipe.loss not in LOSSES:
        raise ConfigError(f"no loss is called {recipe.loss}; there are {', '.join(sorted(LOSSES))}")
