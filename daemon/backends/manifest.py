"""The manifest of a weights folder: the network, its training, and the parameters for serving it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daemon import files
from daemon.counts.scaling import ScalingKind
from daemon.errors import ConfigError, WeightsError
from daemon.settings import yaml_file
from daemon.settings.config import Config

MANIFEST = "manifest.json"
ALIASES = "aliases.yaml"


class Manifest(BaseModel):
    """The daemon's description of a network, whose code it cannot import. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    name: str
    network: Literal["fast", "ede2018"]
    arguments: dict[str, Any]
    """Arguments of the network's constructor, by which training rebuilds it."""
    scaling: ScalingKind
    tile: int = Field(gt=0)
    """Side of the square tiles in service, pixels."""
    halo: int = Field(ge=0)
    """Pixels at each tile edge whose result is discarded because their context is missing; measured."""
    align: int = Field(gt=0)
    """Tile sides and origins are multiples of this, pixels (the network's total stride)."""
    dose_range: tuple[float, float]
    """Mean counts per pixel it was trained for."""
    contrast_range: tuple[float, float]
    """Contrast it was trained for; 1: blacks have zero counts."""
    onnx: str = "model.onnx"
    safetensors: str | None = "model.safetensors"
    """The weights for training to start from; None: they are only served."""
    sha256: dict[str, str]
    """File name → SHA-256 of the file, hexadecimal."""
    training: dict[str, Any]
    """Training record: data, steps, hours, hardware, software."""

    def tile_of(self, wanted: int) -> int:
        """The side of tiles for a setting, pixels: 0 for the recommended one, else rounded up to `align`."""
        return -(-(wanted or self.tile) // self.align) * self.align

    def __str__(self) -> str:
        """For people: the name and the beginning of the network's hash, such as "fast-3 (05d99326e924)"."""
        return f"{self.name} ({self.sha256[self.onnx][:12]})"


def shipped_weights() -> Path:
    """The folder of weights installed with the package."""
    return Path(str(resources.files("weights")))


def load(folder: Path) -> Manifest:
    """Read and verify a weights folder. Raises WeightsError naming the file, the cause and the remedy."""
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be read ({error.strerror}); name a folder with "
            f"a {MANIFEST}, or one of: {', '.join([*aliases(), *names()])}"
        ) from error
    except ValidationError as error:
        raise WeightsError(f"{path}: not a manifest this version understands: {error}") from error
    for name, expected in manifest.sha256.items():
        actual = sha256(folder / name)
        if actual != expected:
            raise WeightsError(
                f"{folder / name}: SHA-256 is {actual[:12]}…, the manifest states {expected[:12]}…; "
                "the file is damaged or was replaced: reinstall the weights"
            )
    return manifest


def names() -> list[str]:
    """Names of the weights shipped with the package."""
    return sorted(path.parent.name for path in shipped_weights().glob(f"*/{MANIFEST}"))


@cache
def aliases() -> Mapping[str, str]:
    """Aliases of shipped weights → names of these. Read once, so that they do not change while a program runs.

    Raises WeightsError if the file is damaged, or names weights that are not shipped.
    """
    path = shipped_weights() / ALIASES
    try:
        document = yaml_file.read(path)
    except ConfigError as error:
        raise WeightsError(f"{error}; reinstall emdenoised") from error
    for key, problem in document.problems:
        raise WeightsError(f"{path}: {key[0]}: {problem}; correct the line, or reinstall emdenoised")
    for alias, name in document.values.items():
        if name not in names() or alias in names():
            raise WeightsError(
                f"{path}: {alias}: {name}: must be a new name for one of {', '.join(names())}; correct it, or "
                "reinstall emdenoised"
            )
    return document.values


def locate(weights: str) -> Path:
    """A profile's `weights` (a shipped name, an alias of one, or a folder) → the folder."""
    shipped = shipped_weights() / aliases().get(weights, weights)
    return shipped if (shipped / MANIFEST).is_file() else Path(weights).expanduser()


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal. Raises WeightsError if it cannot be read."""
    try:
        return files.sha256(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); reinstall the weights") from error


@dataclass(frozen=True, slots=True)
class Weights:
    """A weights folder and its verified manifest."""

    folder: Path
    manifest: Manifest


def verified(weights: str | Path) -> Weights:
    """A profile's `weights`, or a folder, whose files match the manifest's hashes. Raises WeightsError."""
    folder = locate(str(weights))
    return Weights(folder, load(folder))


def load_weights(config: Config) -> dict[str, Weights]:
    """Profile's `weights` → folder and verified manifest, for all profiles. Raises WeightsError."""
    wanted = {profile.weights for profile in config.profiles.values()}
    return {name: verified(name) for name in sorted(wanted)}
