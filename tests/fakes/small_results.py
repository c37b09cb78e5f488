"""A micrograph in memory, what stands for its result, and its files as the service writes them."""

from pathlib import Path, PurePath
from typing import Any

import numpy as np

from daemon import formats
from daemon.micrograph import Micrograph, PixelSize
from daemon.output import writing
from daemon.output.record import Record

RAW_SHA = "ab" * 32


def micrograph(height: int = 96, width: int = 128) -> Micrograph:
    pixels = np.random.default_rng(3).poisson(20, (height, width)).astype(np.uint16)
    return Micrograph(pixels, Path("raw.tif"), "tiff", PixelSize(0.2, 0.2, "nm"))


def denoised(height: int = 96, width: int = 128) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (20 + 5 * np.sin(np.arange(height * width).reshape(height, width) / 9)).astype(np.float32)


def save(
    root: Path,
    relative: str = "sub/a.tif",
    revision: int = 1,
    kind: formats.FileKind = "tiff",
    sha256: str = RAW_SHA,
    **more: Any,
) -> writing.Written:
    raw = {"name": relative, "sha256": sha256, "section": more.pop("section", None)}
    provenance = {"raw": raw, "dose": 20.0, **more.pop("extra", {})}
    return writing.write_outputs(
        root,
        PurePath(relative),
        revision,
        micrograph(),
        denoised(),
        Record.model_validate(provenance),
        kind=kind,
        preview_pixels=more.pop("preview_pixels", 64),
        caption="20 counts/px · low",
        same_settings=more.pop("same_settings", False),
    )


def listing(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
