"""One file with the input of a training on another machine: prepared micrographs, recipe, first weights.

A lent machine lacks this project's readers, and uploads are limited. So micrographs are prepared here and stored at the
precision of their own noise: in grey levels of a fraction of that noise, with a dither that `unpack` subtracts, so that
rounding adds white noise and no steps. Of scenes only the number is stored.
"""

import io
import json
import logging
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from daemon.errors import ConfigError
from daemon.files import save
from training.data.exposure import Image
from training.data.truths import Truth, bin2, own_noise
from training.presets import Recipe

log = logging.getLogger(__name__)

_STEPS = (0.25, 0.5, 1.0)
"""Grey levels over an image's own noise, tried in turn until the file is small enough."""
FINEST, COARSEST = 1 / 4095, 1 / 64
"""Limits of a grey level, as a share of the grey range."""


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """Data for training and validation, with `provenance` and `start` (weights in safetensors)."""

    recipe: Recipe
    truths: Sequence[Truth]
    unseen: Sequence[Truth]
    provenance: dict[str, Any]
    start: bytes = b""


def pack(content: Pack, path: Path, limit: int) -> int:
    """Write a pack of at most `limit` bytes; returns its size. Raises ConfigError if it would be larger."""
    size = 0
    for share in _STEPS:
        written = _npz(content, share)
        size = len(written)
        if size <= limit:
            save(path, written)
            log.info("%s: %.1f MiB, grey levels of %g of the micrographs' own noise", path, size / 2**20, share)
            return size
    raise ConfigError(
        f"{path}: {len(content.truths)} micrographs need {size / 2**20:.1f} MiB, more than the {limit / 2**20:.1f} "
        "allowed; leave some out, cut them with --largest, or raise --limit"
    )


def unpack(path: Path) -> Pack:
    """Read a pack. Raises ConfigError if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as held:
            notes = json.loads(held["notes"].tobytes())
            recipe = Recipe(**{**notes["recipe"], "stages": ()})
            truths, unseen = (
                [_truth(entry, held[entry["image"]]) for entry in notes[part]] for part in ("truths", "unseen")
            )
            return Pack(recipe, truths, unseen, notes["provenance"], held["start"].tobytes())
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path}: no pack, or damaged ({error}); make one with `training.lease pack`") from error


def cut(truth: Truth, largest: int) -> Truth:
    """A micrograph of at most (largest, largest) pixels: the middle of its first version, and others binned from it."""
    image = np.asarray(truth.versions[0])
    top, left = ((extent - largest) // 2 if extent > largest else 0 for extent in image.shape)
    return Truth(
        truth.name, truth.source, _versions(image[top:, left:][:largest, :largest], truth.binned), truth.binned
    )


def _npz(content: Pack, share: float) -> bytes:
    arrays: dict[str, Any] = {"start": np.frombuffer(content.start, np.uint8)}
    notes: dict[str, Any] = {"recipe": asdict(content.recipe), "provenance": content.provenance}
    for part, truths in (("truths", content.truths), ("unseen", content.unseen)):
        notes[part] = []
        for number, truth in enumerate(truths):
            key = f"{part}-{number}"
            image = np.asarray(truth.versions[0])
            step = min(max(share * own_noise(image), FINEST), COARSEST)
            arrays[key] = _coded(image, step)
            notes[part].append(
                {"image": key, "name": truth.name, "source": truth.source, "binned": truth.binned, "step": step}
            )
    arrays["notes"] = np.frombuffer(json.dumps(notes).encode(), np.uint8)
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def _coded(image: Image, step: float) -> NDArray[np.uint8]:
    """Levels as differences along the rows, high and low bytes apart (2, H, W), which deflates best."""
    levels = np.floor(image / np.float32(step) + _dither(image.shape)).astype(np.uint16)
    change = np.diff(levels, axis=1, prepend=np.uint16(0))
    return np.stack([change >> 8, change & 0xFF]).astype(np.uint8)


def _truth(entry: dict[str, Any], coded: NDArray[np.uint8]) -> Truth:
    change = (coded[0].astype(np.uint16) << 8) + coded[1]
    levels = np.cumsum(change, axis=1, dtype=np.uint16).astype(np.float32)
    image = ((levels + np.float32(0.5) - _dither(levels.shape)) * np.float32(entry["step"])).clip(0, 1)
    return Truth(entry["name"], entry["source"], _versions(image, entry["binned"]), tuple(entry["binned"]))


def _versions(image: Image, binned: Sequence[int]) -> list[Image]:
    """All versions of a micrograph, binned from the first."""
    versions = [image]
    for before, after in pairwise(binned):
        for _ in range((after // before).bit_length() - 1):
            image = bin2(image)
        versions.append(image)
    return versions


def _dither(shape: tuple[int, ...]) -> Image:
    """Uniform in [0, 1), the same for the same shape."""
    return np.random.default_rng(0).random(shape, np.float32)
