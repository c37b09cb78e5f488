"""The JSON beside a result: what is in it, and whether one is ours."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from daemon import formats
from daemon.errors import MicrographError
from daemon.output.paths import beside

REASONS_KEPT = 3
"""So many reasons of a verdict are in the ledger; the JSON has them all."""
WRITER = "emdenoised"
_RECORD_LIMIT = 16 << 20


def summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the ledger keeps of a result's JSON, as `Ledger.finish` takes it; older records say less."""
    verdict = record.get("verdict") or {}
    raw, spikes = record.get("raw") or {}, record.get("spikes") or {}
    hashes = entry(record, "weights", "sha256")
    facts = {
        "dose": record.get("dose"),
        "shape": raw.get("shape"),
        "pixel_size": raw.get("pixel_size"),
        "spikes": spikes.get("count", 0),
        "reasons": verdict.get("reasons", [])[:REASONS_KEPT],
        "backend": record.get("backend"),
        "weights": {
            "asked": entry(record, "weights", "asked"),
            "name": entry(record, "weights", "name"),
            "sha256": next((one for name, one in hashes.items() if name.endswith(".onnx")), None)
            if isinstance(hashes, dict)
            else None,
        },
    }
    return {"verdict": verdict.get("word"), "facts": facts}


def own_record(image: Path) -> dict[str, Any] | None:
    """The JSON of an image that is there and is a result of ours, or None."""
    if image.is_symlink() or not image.is_file():
        return None
    content = read_record(beside(image, ".json"))
    return content if content is not None and entry(content, "output", "name") == image.name else None


def settings_of(content: Mapping[str, Any]) -> tuple[object, ...]:
    """What a result depends on besides the raw bytes."""
    return entry(content, "profile", "name"), entry(content, "weights", "sha256"), content.get("config_sha256")


def read_record(record: Path) -> dict[str, Any] | None:
    """One of our JSON files, or None if it is not there, not ours or damaged."""
    try:
        with formats.open_raw(record) as stream:  # a pipe of that name would hold the writer for ever
            content = json.loads(stream.read(_RECORD_LIMIT))  # what is longer is cut, and then no JSON
    except (FileNotFoundError, MicrographError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and content.get("writer") == WRITER else None


def entry(content: Mapping[str, Any], section: str, key: str) -> object:
    inner = content.get(section)
    return inner.get(key) if isinstance(inner, dict) else None


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
