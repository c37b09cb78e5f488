"""The JSON beside a result: what is in it, and whether one is ours.

Every program of ours that writes or reads one goes through `Record`. A record that an older version wrote lacks what
came later, which then has its default; what a newer one added, or somebody by hand, is kept as it is. In a stored
record a value of the wrong type costs itself and not the rest: it has its default, too.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from daemon import formats
from daemon.errors import MicrographError
from daemon.formats import turned
from daemon.micrograph import Pixels
from daemon.output.paths import beside

REASONS_KEPT = 3
"""So many reasons of a verdict are in the ledger; the JSON has them all."""
WRITER = "emdenoised"
_RECORD_LIMIT = 16 << 20
_STORED = "stored"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def _or_default(cls, value: object, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        try:
            if info.context == _STORED and isinstance(value, float) and not math.isfinite(value):
                raise ValueError("we write null for these")
            return validate(value)
        except ValueError:
            if info.context != _STORED or info.field_name is None:
                raise
            return cls.model_fields[info.field_name].get_default(call_default_factory=True)


class Size(_Part):
    """Of a pixel."""

    y: float
    x: float
    unit: str


class Raw(_Part):
    """What a result was made from."""

    path: str = ""
    sha256: str = ""
    """Hexadecimal; of a section of a stack: of its pixels."""
    sha256_of: str | None = None
    """What was hashed, where it is not the whole file."""
    section: int | None = None
    """From 1, of a stack whose sections are taken one by one."""
    size: int | None = None
    """Bytes of the file."""
    mtime_ns: int | None = None
    relative: str | None = None
    """The path below the drop folder."""
    kind: str | None = None
    shape: tuple[int, int] | None = None
    """Height and width, pixels."""
    dtype: str | None = None
    metadata: Mapping[str, Any] = {}
    acquisition: Mapping[str, Any] | None = None
    pixel_size: Size | None = None


class ProfileUsed(_Part):
    """How the micrograph was taken to be recorded; offsets in its own units, `gain` in these per count."""

    name: str | None = None
    why: str | None = None
    gain: float | None = None
    offset: float | None = None
    readout: float | None = None
    psf: float | None = None
    effective_gain: float | None = None
    effective_offset: float | None = None


class Spike(_Part):
    """A pixel that was filled in for the network, and its values in the file's units."""

    row: int | None = None
    column: int | None = None
    raw: int | float | None = None
    filled_with: float | None = None


class Spikes(_Part):
    """X-ray hits and hot pixels; of very many only the first are `listed`."""

    count: int | None = None
    listed: tuple[Spike, ...] = ()


class WeightsUsed(_Part):
    """Which network."""

    asked: str | None = None
    """What the profile calls it: a name, an alias of one, or a folder."""
    name: str | None = None
    network: str | None = None
    sha256: Mapping[str, str] | None = None
    """Hexadecimal, by file."""


class Remark(_Part):
    """What a microscopist should know of a result though it is no doubt about it."""

    code: str = ""
    text: str = ""


class VerdictFound(_Part):
    """`judge.Verdict` as it stood; its figures are kept as they are."""

    word: str | None = None
    """good, check or reject."""
    headline: str | None = None
    """The first of the reasons."""
    reasons: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    """Of the reasons, one each."""
    remarks: tuple[Remark, ...] = ()


class Output(_Part):
    """The image that the record lies beside."""

    name: str | None = None
    sha256: str | None = None
    shape: tuple[int, int] | None = None
    """Height and width, pixels."""
    turned: tuple[int, ...] = ()
    """TIFF's orientations, one after the other, that its rows were written with (`formats.turned`)."""
    dtype: str | None = None
    kind: str | None = None
    revision: int | None = None
    preview: str | None = None


class Record(_Part):
    """Everything needed to know, years later, how an image was made."""

    writer: str | None = None
    raw: Raw = Raw()
    dose: float | None = None
    """Mean counts per pixel; None if it is not known."""
    profile: ProfileUsed | None = None
    dose_evidence: Mapping[str, Any] | None = None
    scaling: Mapping[str, Any] | None = None
    spikes: Spikes | None = None
    lines: Mapping[str, Any] | None = None
    """Hot and dead columns and rows."""
    void: Mapping[str, Any] | None = None
    weights: WeightsUsed | None = None
    config_sha256: str | None = None
    """Of the settings that influence pixels."""
    backend: str | None = None
    passes: int = 1
    """Orientations that the result is the average of."""
    verdict: VerdictFound | None = None
    warnings: tuple[str, ...] = ()
    """The verdict's reasons among them."""
    seconds: Mapping[str, float] = {}
    """By step."""
    versions: Mapping[str, str] = {}
    finished: str | None = None
    """When, ISO 8601, UTC."""
    output: Output = Output()

    @property
    def made_with(self) -> tuple[object, ...]:
        """What a result depends on besides the raw bytes."""
        return (
            None if self.profile is None else self.profile.name,
            None if self.weights is None else self.weights.sha256,
            self.config_sha256,
        )

    @property
    def summary(self) -> dict[str, Any]:
        """What the ledger keeps of it, as `Ledger.finish` takes it."""
        verdict, spikes, size = self.verdict or VerdictFound(), self.spikes or Spikes(), self.raw.pixel_size
        weights = self.weights or WeightsUsed()
        hashes = weights.sha256 or {}
        facts = {
            "dose": self.dose,
            "shape": self.raw.shape,
            "pixel_size": None if size is None else size.model_dump(),
            "spikes": spikes.count or 0,
            "reasons": verdict.reasons[:REASONS_KEPT],
            "backend": self.backend,
            "weights": {
                "asked": weights.asked,
                "name": weights.name,
                "sha256": next((one for name, one in hashes.items() if name.endswith(".onnx")), None),
            },
        }
        return {"verdict": verdict.word, "facts": plain(facts)}

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types, of what was stated."""
        stated: dict[str, Any] = plain(self.model_dump(exclude_unset=True))
        return stated


def own_record(image: Path) -> Record | None:
    """The record of an image that exists and is a result of ours, or None."""
    if image.is_symlink() or not image.is_file():
        return None
    found = read_record(beside(image, ".json"))
    return found if found is not None and found.output.name == image.name else None


def read_record(path: Path) -> Record | None:
    """One of our JSON files, or None if it does not exist, is not ours or damaged."""
    try:
        with formats.open_raw(path) as stream:  # a pipe of that name would hold the writer for ever
            content = json.loads(stream.read(_RECORD_LIMIT))  # what is longer is cut, and then no JSON
    except (FileNotFoundError, MicrographError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("writer") != WRITER:
        return None
    return Record.model_validate(content, context=_STORED)


def sha256_of_pixels(pixels: Pixels) -> str:
    """By which a section of a stack (H, W) is known, hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def as_it_was_made(image: Path, stored: Pixels, record: Record) -> Pixels:
    """The pixels of a result's file, turned back to (H, W) of its raw image. Raises MicrographError."""
    pixels: Pixels = turned.undone(stored, record.output.turned)
    if pixels.shape != record.output.shape:
        raise MicrographError(f"{image}: is not the result that its record describes: its size is another")
    return pixels


def plain(value: Any) -> Any:
    """Plain JSON types; what is not finite becomes null, because JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
