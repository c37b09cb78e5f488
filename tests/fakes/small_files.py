"""Small micrograph files, sound ones, in the usual ways to write them."""

import struct
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import tifffile

COUNTS = np.random.default_rng(0).poisson(60, (48, 64)).astype(np.uint16)
PLAIN: dict[str, Any] = {"photometric": "minisblack", "metadata": None}
"""Options of tifffile for a page without a description."""


def image(height: int = 48, width: int = 40, dtype: Any = np.uint16) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(7)
    values = rng.poisson(60, (height, width)) + 1
    return values.astype(dtype)


def write_mrc(path: Path, data: np.ndarray[Any, Any], voxel: float | None = None, ispg: int | None = None) -> Path:
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(data)
        if voxel is not None:
            mrc.voxel_size = voxel
        if ispg is not None:
            mrc.header.ispg = ispg
    return path


def plain_tiff(path: Path, data: np.ndarray[Any, Any], **options: Any) -> Path:
    tifffile.imwrite(path, data, **{**PLAIN, **options})
    return path


def tiff_file(path: Path) -> Path:
    tifffile.imwrite(path, image(200, 160), rowsperstrip=16)
    return path


def compressed_file(path: Path) -> Path:
    tifffile.imwrite(path, image(200, 160), rowsperstrip=16, compression="zlib")
    return path


def tail_directory_file(path: Path) -> Path:
    """A TIFF as libtiff writes it: pixels first, the directory at the end."""
    data = image(200, 160)
    tags = [
        (256, 3, 160),
        (257, 3, 200),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, 200),
        (279, 4, data.nbytes),
    ]
    directory = (
        struct.pack("<H", len(tags))
        + b"".join(
            struct.pack("<HHI", code, kind, 1)
            + (struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value))
            for code, kind, value in tags
        )
        + struct.pack("<I", 0)
    )
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + data.nbytes) + data.astype("<u2").tobytes() + directory)
    return path


def mrc_file(path: Path) -> Path:
    return write_mrc(path, image(200, 160, np.int16))


MAKERS = pytest.mark.parametrize("make", [tiff_file, compressed_file, tail_directory_file, mrc_file])
