"""The record of a result: the JSON file beside it.

All code that writes or reads one uses `Record`. Fields that an older version did not write have their defaults;
fields that a newer version, or somebody by hand, has added are kept. In a stored record a value of the wrong type is
replaced by its default, and the others are kept.
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

_REASONS_KEPT = 3
"""At most this many reasons of a verdict are in the ledger; the JSON has them all."""
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
                raise ValueError("a record holds null instead")
            return validate(value)
        except ValueError:
            if info.context != _STORED or info.field_name is None:
                raise
            if (field := cls.model_fields[info.field_name]).is_required():  # the whole part gets its default
                raise
            return field.get_default(call_default_factory=True)


class PixelSizeStated(_Part):
    """Physical size of a pixel, as the raw file states it."""

    y: float
    x: float
    unit: str


class Raw(_Part):
    """The raw image of a result."""

    path: str = ""
    sha256: str = ""
    """Hexadecimal, of the file; for a section of a stack, of its pixels."""
    sha256_of: str | None = None
    """The part of the file that was hashed; None: all of it."""
    section: int | None = None
    """From 1, where a stack is processed section by section."""
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
    pixel_size: PixelSizeStated | None = None


class ProfileUsed(_Part):
    """The profile and the scale of the camera; offsets in the micrograph's units, gains in these per count."""

    name: str | None = None
    why: str | None = None
    gain: float | None = None
    offset: float | None = None
    readout: float | None = None
    psf: float | None = None
    effective_gain: float | None = None
    effective_offset: float | None = None


class Spike(_Part):
    """A pixel that was filled in for the network; values in the file's units."""

    row: int | None = None
    column: int | None = None
    raw: int | float | None = None
    filled_with: float | None = None


class SpikesFound(_Part):
    """X-ray hits and hot pixels; of very many only the first are `listed`."""

    count: int | None = None
    listed: tuple[Spike, ...] = ()


class WeightsUsed(_Part):
    """The network that ran."""

    asked: str | None = None
    """The weights that the profile states: a name, an alias of one, or a folder."""
    name: str | None = None
    network: str | None = None
    sha256: Mapping[str, str] | None = None
    """Hexadecimal, by file."""


class Remark(_Part):
    """A notice about a result that casts no doubt on it."""

    code: str = ""
    text: str = ""


class VerdictFound(_Part):
    """`judge.Verdict` as it was written; its figures are kept as they are."""

    word: str | None = None
    """good, check or reject."""
    headline: str | None = None
    """The first of the reasons."""
    reasons: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    """Of the reasons, one for each."""
    remarks: tuple[Remark, ...] = ()
    removed_noise: float | None = None
    """As `judge.Verdict` has it."""


class Output(_Part):
    """The image that the record describes."""

    name: str | None = None
    sha256: str | None = None
    shape: tuple[int, int] | None = None
    """Height and width, pixels."""
    turned: tuple[int, ...] = ()
    """TIFF's orientations with which it was written, in order (`formats.turned`)."""
    dtype: str | None = None
    kind: str | None = None
    revision: int | None = None
    preview: str | None = None


class Record(_Part):
    """How a result was made, in full."""

    writer: str | None = None
    raw: Raw = Raw()
    dose: float | None = None
    """Mean counts per pixel; None if it is not known."""
    profile: ProfileUsed | None = None
    dose_evidence: Mapping[str, Any] | None = None
    scaling: Mapping[str, Any] | None = None
    spikes: SpikesFound | None = None
    lines: Mapping[str, Any] | None = None
    """Hot and dead columns and rows."""
    void: Mapping[str, Any] | None = None
    weights: WeightsUsed | None = None
    config_sha256: str | None = None
    """Of the settings that influence pixels (`Config.fingerprint`)."""
    backend: str | None = None
    passes: int = 1
    """Orientations over which the result is averaged."""
    verdict: VerdictFound | None = None
    warnings: tuple[str, ...] = ()
    """Includes the verdict's reasons."""
    seconds: Mapping[str, float] = {}
    """By step."""
    versions: Mapping[str, str] = {}
    finished: str | None = None
    """Time, ISO 8601, UTC."""
    output: Output = Output()

    @property
    def made_with(self) -> tuple[object, ...]:
        """Profile, weights and settings: all that a result depends on besides the raw bytes."""
        return (
            None if self.profile is None else self.profile.name,
            None if self.weights is None else self.weights.sha256,
            self.config_sha256,
        )

    @property
    def summary(self) -> dict[str, Any]:
        """The figures that the ledger keeps: arguments of `Ledger.finish`."""
        verdict, spikes, size = self.verdict or VerdictFound(), self.spikes or SpikesFound(), self.raw.pixel_size
        weights = self.weights or WeightsUsed()
        hashes = weights.sha256 or {}
        facts = {
            "dose": self.dose,
            "shape": self.raw.shape,
            "pixel_size": None if size is None else size.model_dump(),
            "spikes": spikes.count or 0,
            "reasons": verdict.reasons[:_REASONS_KEPT],
            "codes": verdict.codes[:_REASONS_KEPT],
            "removed_noise": verdict.removed_noise,
            "backend": self.backend,
            "weights": {
                "asked": weights.asked,
                "name": weights.name,
                "sha256": next((one for name, one in hashes.items() if name.endswith(".onnx")), None),
            },
        }
        return {"verdict": verdict.word, "facts": plain(facts)}

    def as_json(self) -> dict[str, Any]:
        """The fields that were set, as plain JSON types."""
        stated: dict[str, Any] = plain(self.model_dump(exclude_unset=True))
        return stated


def own_record(image: Path) -> Record | None:
    """The record of an image; None if the image does not exist or is not a result of this program."""
    if image.is_symlink() or not image.is_file():
        return None
    found = read_record(beside(image, ".json"))
    return found if found is not None and found.output.name == image.name else None


def read_record(path: Path) -> Record | None:
    """The record in a JSON file; None if it does not exist, is damaged or was written by another program."""
    try:
        with formats.RawFile(path).open() as stream:  # opening a pipe of that name would block the writer
            content = json.loads(stream.read(_RECORD_LIMIT))  # what is longer is cut, and then no JSON
    except (FileNotFoundError, MicrographError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("writer") != WRITER:
        return None
    return Record.model_validate(content, context=_STORED)


def sha256_of_pixels(pixels: Pixels) -> str:
    """SHA-256 (hexadecimal) of an image (H, W), which identifies a section of a stack."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def as_it_was_made(image: Path, stored: Pixels, record: Record) -> Pixels:
    """The pixels `stored` in a result's file, turned back to (H, W) of its raw image. Raises MicrographError."""
    pixels: Pixels = turned.undone(stored, record.output.turned)
    if pixels.shape != record.output.shape:
        raise MicrographError(f"{image}: is not the result that its record describes: its size differs")
    return pixels


def plain(value: Any) -> Any:
    """`value` in plain JSON types; numbers that are not finite become null, because JSON has no NaN."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
