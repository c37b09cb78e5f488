"""Writes TIFF files of which every tag can be set, right or wrong."""

import struct
from pathlib import Path
from typing import Any

import numpy as np

_FORMS = {1: "B", 2: "s", 3: "H", 4: "I", 12: "d"}


def write_tiff(path: Path, data: np.ndarray[Any, Any], tags: dict[int, tuple[int, Any]], order: str = "<") -> Path:
    """(H, W) in one strip. `tags`: type and value or values, by code, which replace the usual ones."""
    height, width = data.shape
    kind = {"u": 1, "i": 2, "f": 3}[data.dtype.kind]
    usual = {256: width, 257: height, 258: 8 * data.itemsize, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 339: kind}
    entries = {**{code: (4, value) for code, value in usual.items()}, 279: (4, data.nbytes), **tags}
    values = {code: _packed(kind, value, order) for code, (kind, value) in sorted(entries.items())}
    end = 8 + 2 + 12 * len(values) + 4
    places, blobs = {}, b""
    for code, (_, _, raw) in values.items():
        if len(raw) > 4:
            places[code] = end + len(blobs)
            blobs += raw + b"\0" * (len(raw) % 2)
    directory = b""
    for code, (form, count, raw) in values.items():
        inline = struct.pack(order + "I", places[code]) if code in places else raw.ljust(4, b"\0")
        if code == 273:
            inline = struct.pack(order + "I", end + len(blobs))
        directory += struct.pack(order + "HHI", code, form, count) + inline
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(values))
    path.write_bytes(head + directory + b"\0" * 4 + blobs + data.astype(data.dtype.newbyteorder(order)).tobytes())  # type: ignore[arg-type]
    return path


def raw_tiff(
    path: Path, data: np.ndarray[Any, Any], bits: int = 16, lengths: Any = None, rows: int | None = None
) -> Path:
    """One strip or, with `rows` and several `lengths`, more; without any tag that is not needed."""
    height, width = data.shape
    lengths = [data.nbytes] if lengths is None else lengths
    strips = len(lengths)
    values = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 0, 277: 1, 278: rows or height, 279: 0}
    start = 8 + 2 + 12 * len(values) + 4
    pixels = start + (0 if strips == 1 else 8 * strips)
    offsets = [pixels + number * (rows or height) * width * data.itemsize for number in range(strips)]
    values[273], values[279] = (offsets[0], lengths[0]) if strips == 1 else (start, start + 4 * strips)
    tables = b"" if strips == 1 else struct.pack(f"<{2 * strips}I", *offsets, *lengths)
    entries = b"".join(
        struct.pack("<HHII", code, 4, strips if code in (273, 279) else 1, value) for code, value in values.items()
    )
    head = struct.pack("<2sHIH", b"II", 42, 8, len(values)) + entries + struct.pack("<I", 0)
    path.write_bytes(head + tables + data.tobytes())
    return path


def _packed(form: int, value: Any, order: str) -> tuple[int, int, bytes]:
    """Type, count and bytes of a tag's value: text, a number or several."""
    if form == 2:
        return form, len(value), value
    numbers = value if isinstance(value, list) else [value]
    return form, len(numbers), b"".join(struct.pack(order + _FORMS[form], number) for number in numbers)
