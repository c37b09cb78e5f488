"""What RosettaSciIO does not report of Berkeley's EMD files: uneven axes, and whether it has turned the image.

It takes the mean step of an uneven axis for the pixel size.
"""

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

_LEAST, _MOST = 3, 1 << 20
"""Positions of an axis: two are always even; no image is wider than the most."""
_EVEN = 0.02
"""Largest distance of a position from its even place, in steps."""


class UnevenAxis(NamedTuple):
    """Identifies an axis in RosettaSciIO's list."""

    name: str
    size: int
    first: float


def uneven_axes(path: str) -> set[UnevenAxis]:
    """The unevenly spaced axes (dim1, dim2, ...) of a file. Raises OSError and RuntimeError."""
    found: set[UnevenAxis] = set()
    h5py = import_module("h5py")

    def visit(name: str, item: Any) -> None:
        if not re.fullmatch(r"dim\d+", name.rpartition("/")[2]) or not isinstance(item, h5py.Dataset):
            return
        if item.ndim == 1 and _LEAST <= item.size <= _MOST and item.dtype.kind in "iuf":
            places = item[...]
            if not _even(places):
                found.add(UnevenAxis(_text(item.attrs.get("name")), item.size, float(places[0])))

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def transposed(path: str) -> bool:
    """Whether RosettaSciIO has the last dimension of an image first: where its axes are numbered from 1 (dim1, dim2).

    In EMD 1.0, which py4DSTEM writes, they are numbered from 0. Groups without an image, such as a line profile, do not
    count. Raises OSError and RuntimeError.
    """
    h5py = import_module("h5py")

    def from_0(_: str, item: Any) -> bool | None:
        data = item.get("data") if isinstance(item, h5py.Group) else None
        return True if isinstance(data, h5py.Dataset) and data.ndim > 1 and "dim0" in item else None

    with h5py.File(path, "r") as file:
        return file.visititems(from_0) is None


def without_steps(signal: dict[str, Any], uneven: set[UnevenAxis]) -> dict[str, Any]:
    """A signal of RosettaSciIO of which the image's uneven axes have no scale; across sections the mean is right."""
    across = [_known(axis, uneven) and not axis.get("navigate", False) for axis in signal["axes"]]
    axes = zip(signal["axes"], across, strict=True)
    return {**signal, "axes": [{**axis, "scale": None} if gone else axis for axis, gone in axes]}


def _known(axis: Mapping[str, Any], uneven: set[UnevenAxis]) -> bool:
    return UnevenAxis(_text(axis.get("name")), int(axis["size"]), float(axis.get("offset") or 0.0)) in uneven


def _even(places: Any) -> bool:
    """Whether positions (n,) follow a straight line, as far as their type can hold it."""
    exact = places.astype(np.float64)
    if not np.isfinite(exact).all():
        return False
    off = np.abs(exact - np.linspace(exact[0], exact[-1], len(exact))).max()
    step = abs(exact[-1] - exact[0]) / (len(exact) - 1)
    rounding = np.finfo(places.dtype).eps * np.abs(exact).max() if places.dtype.kind == "f" else 0.0
    return bool(off <= max(_EVEN * step, 2 * rounding))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
