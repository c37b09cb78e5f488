"""Writes HyperSpy's files as RosettaSciIO does, without HyperSpy."""

from pathlib import Path
from typing import Any

import numpy as np
from rsciio.hspy import file_writer


def write_hyperspy(path: Path, data: np.ndarray[Any, Any], **options: Any) -> None:
    """An image (H, W) or a stack of them (N, H, W) with pixels of 0.5 nm."""
    names = ("frame", "y", "x")[-data.ndim :]
    axes = [
        {
            "_type": "UniformDataAxis",
            "name": name,
            "size": size,
            "scale": 1.0 if name == "frame" else 0.5,
            "offset": 0.0,
            "units": "" if name == "frame" else "nm",
            "navigate": name == "frame",
            "is_binned": False,
            "index_in_array": at,
        }
        for at, (name, size) in enumerate(zip(names, data.shape, strict=True))
    ]
    signal = {
        "data": data,
        "axes": axes,
        "metadata": {"General": {"title": "a"}, "Signal": {"signal_type": ""}},
        "original_metadata": {},
        "attributes": {"_lazy": False, "ragged": False},
        "learning_results": {},
        "tmp_parameters": {},
        "models": {},
        "package_info": {"name": "hyperspy", "version": "2"},
    }
    file_writer(str(path), signal, **options)
