"""What Velox states of each frame of an EMD file; RosettaSciIO reads the metadata of one frame only."""

import json
from collections.abc import Mapping
from importlib import import_module
from math import degrees, nan
from typing import Any

from daemon.formats import section_headers, vendor_tags
from daemon.formats.reading import number
from daemon.formats.section_headers import SectionHeader
from daemon.formats.stack import Stack
from daemon.micrograph import Acquisition

_COMPARED = 32
_LONGEST = 1 << 20
"""Bytes of one frame's metadata."""


def nature(path: str, shape: tuple[int, ...]) -> Stack | None:
    """The kind of an image stack of this shape (N, H, W); None if its frames' metadata are alike, or in other files.

    Raises OSError and RuntimeError.
    """
    h5py = import_module("h5py")
    with h5py.File(path, "r") as file:
        images = file.get("Data/Image")
        groups = images.values() if isinstance(images, h5py.Group) else ()
        for group in groups:
            if not isinstance(group, h5py.Group):
                continue
            data, metadata = group.get("Data"), group.get("Metadata")
            if not (isinstance(data, h5py.Dataset) and isinstance(metadata, h5py.Dataset)):
                continue
            if data.shape == (*shape[1:], shape[0]) and metadata.ndim == 2 and metadata.shape[1] == shape[0]:
                return section_headers.nature(_headers(metadata), "Velox metadata of its frames")
    return None


def _headers(metadata: Any) -> list[SectionHeader]:
    """Of the first, the last and some frames between."""
    length, frames = metadata.shape
    if length > _LONGEST:
        return []
    found = []
    for frame in sorted({*range(0, frames, -(-frames // _COMPARED)), frames - 1}):
        text = metadata[:, frame].tobytes().split(b"\0", 1)[0]
        try:
            stated = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(stated, Mapping):
            found.append(_header(frame, stated))
    return found


def _header(frame: int, stated: Mapping[str, Any]) -> SectionHeader:
    def known(*places: str) -> str:
        return str(vendor_tags.at(stated, *places) or "")

    x, y, tilt = (_number(known(f"Stage.{place}")) for place in ("Position.x", "Position.y", "AlphaTilt"))
    taken = Acquisition.stated(
        detector=known("BinaryResult.Detector"),
        voltage_kv=known("Optics.AccelerationVoltage"),
        magnification=known("Optics.NominalMagnification"),
        recorded=known("Acquisition.AcquisitionDatetime.DateTime", "Acquisition.AcquisitionStartDatetime.DateTime"),
    )
    return SectionHeader(frame, taken, stage=(x, y), tilt=degrees(tilt))


def _number(text: str) -> float:
    found = number(text)
    return nan if found is None else found
