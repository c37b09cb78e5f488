"""An engine and its manifest: what it was built from and for, and whether it still fits.

A GPU engine is a cache: it belongs to weights, tile and batch, to one version of TensorRT and, but for RTX engines, to
one GPU and driver. An engine that does not fit fails to load or crashes, so all this is compared first.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daemon.backends.gpu.nvidia import Flavour, Gpu
from daemon.backends.manifest import Manifest, sha256
from daemon.counts.scaling import NOISE_UNITS
from daemon.errors import WeightsError

_LARGEST_MANIFEST = 1 << 20
WORKSPACE = 4 << 30
"""Most scratch memory a layer may ask for, bytes."""
OPTIONS: dict[str, str | int | bool] = {"workspace": WORKSPACE, "tf32": False, "half_body": 1, "static": True}
"""What else decides an engine; one built with others is stale. `half_body` counts up with `engine_build.half`."""
TILE = 1024
"""Side of the tiles of the engine that is always built, in pixels, unless stated; for frames that keep coming larger
ones that fit them are built (`shapes`)."""
_PAPER_BATCH = 4
"""Least number of the paper's small tiles at once: 10 800 launches for a frame of 4096² would be too many."""

Sides = tuple[int, int]
"""Of a tile: rows and columns, pixels."""


class Gate(BaseModel):
    """The comparison with float32 that an engine must pass before it touches a micrograph; errors in noise σ."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ran_on: str
    """The GPU and its driver (`str(Gpu)`), or "cpu: ..." where no GPU has run this engine yet."""
    on_gpu: bool
    rms: float = Field(ge=0)
    largest: float = Field(ge=0)
    psnr_loss: float
    cases: int = Field(gt=0)


class EngineManifest(BaseModel):
    """Written beside every engine, and last: an engine without one does not count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    weights: str
    network: str
    onnx_sha256: str
    """Of the weights' own ONNX file."""
    engine_sha256: str
    precision: str
    flavour: Flavour
    version: str
    """Of TensorRT."""
    targets: tuple[str, ...]
    """Compute capabilities it runs on, as "sm86"; "current" for RTX engines of the card they were built on."""
    gpu: str | None
    """Name of the card it was built on; None if without one."""
    driver: str | None
    tile: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
    """Rows and columns."""
    batch: int = Field(gt=0)
    options: dict[str, str | int | bool]
    layers: int
    scratch: int | None
    """Bytes of memory it needs on the card besides its weights, if the builder reported it."""
    seconds: float
    said: tuple[str, ...]
    """Warnings of TensorRT while it built this."""
    gate: Gate


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an engine must be for, here and now."""

    onnx_sha256: str
    flavour: Flavour
    version: str
    gpu: Gpu
    tile: Sides
    batch: int
    options: Mapping[str, str | int | bool]


def tile_of(weights: Manifest, asked: int = 0) -> Sides:
    """The tiles of the engine that is always built: what was asked for, made to fit the network; 0 for the default.

    The paper's scaling makes the result depend on the tile, so there it is the weights' own.
    """
    side = weights.tile_of(asked or (TILE if weights.scaling == NOISE_UNITS else 0))
    return side, side


def batch_of(weights: Manifest, asked: int) -> int:
    """Tiles at once: what was asked for, and for the paper's network at least _PAPER_BATCH."""
    return asked if weights.scaling == NOISE_UNITS else max(asked, _PAPER_BATCH)


def engine_path(folder: Path, weights: Manifest, flavour: Flavour, tile: Sides, batch: int) -> Path:
    """The file of an engine; the folder may hold engines of other weights, tiles and batches."""
    name = re.sub(r"[^\w-]", "_", weights.name)[:40]
    return folder / f"{name}-{weights.sha256[weights.onnx][:8]}.{flavour}.{tile[0]}x{tile[1]}x{batch}.engine"


def default_folder() -> Path:
    """The default folder of engines: the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if cache.startswith("/") else Path.home() / ".cache") / "emdenoised" / "engines"


def manifest_of(engine: Path) -> Path:
    """The file of an engine's manifest."""
    return engine.with_name(engine.name + ".json")


def load_manifest(engine: Path) -> EngineManifest:
    """Read an engine's manifest and check that the engine is the file it describes. Raises WeightsError."""
    path = manifest_of(engine)
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_MANIFEST)
        manifest = EngineManifest.model_validate_json(content)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); build the engine again") from error
    except ValidationError as error:
        raise WeightsError(f"{path}: not a manifest this version understands; build the engine again") from error
    if not engine.is_file():
        raise WeightsError(f"{engine}: is missing, though its manifest exists; build it again")
    if sha256(engine) != manifest.engine_sha256:
        raise WeightsError(f"{engine}: damaged, or not the engine its manifest describes; build it again")
    return manifest


def stale(manifest: EngineManifest, wanted: Wanted) -> tuple[str, ...]:
    """Why an engine cannot be used for what is wanted, in words; nothing if it can."""
    reasons = []

    def compare(what: str, built: object, needed: object) -> None:
        if built != needed:
            reasons.append(f"it was built for {what} {built}, and this is {needed}")

    if manifest.onnx_sha256 != wanted.onnx_sha256:
        reasons.append("it was built from other weights")
    compare("TensorRT flavour", manifest.flavour, wanted.flavour)
    compare("TensorRT", manifest.version, wanted.version)
    compare("tiles of", "{} x {}".format(*manifest.tile), "{} x {}".format(*wanted.tile))
    compare("batch", manifest.batch, wanted.batch)
    compare("options", manifest.options, dict(wanted.options))
    if manifest.flavour == "rtx" and manifest.targets != ("current",):
        if wanted.gpu.capability not in manifest.targets:
            cards = ", ".join(manifest.targets)
            reasons.append(f"it was built for cards of {cards}, and {wanted.gpu.name} is {wanted.gpu.capability}")
    else:
        compare("GPU", manifest.gpu, wanted.gpu.name)
        compare("driver", manifest.driver, wanted.gpu.driver)
    return tuple(reasons)
