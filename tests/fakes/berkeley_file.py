"""Writes Berkeley's EMD files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def write_berkeley(path: Path, data: np.ndarray[Any, Any], *axes: tuple[str, str, float | Sequence[float]]) -> Path:
    """`axes`: name, unit, and one step or all positions, of each axis of `data`."""
    with h5py.File(path, "w") as file:
        file.attrs.update(version_major=0, version_minor=2)
        group = file.create_group("data/image")
        group.attrs["emd_group_type"] = 1
        group["data"] = data
        for number, ((name, unit, places), size) in enumerate(zip(axes, data.shape, strict=True), 1):
            if isinstance(places, float):
                places = np.arange(size) * places
            dim = group.create_dataset(f"dim{number}", data=places)
            dim.attrs["name"], dim.attrs["units"] = np.bytes_(name), np.bytes_(unit)
        for part in ("user", "microscope", "sample", "comments"):
            file.create_group(part)
    return path
