"""TIA's .emi files: how the images of the .ser files beside it were taken. Their pixels are in the .ser files."""

import html
import re
from dataclasses import dataclass
from pathlib import Path

from daemon.formats import safe_open
from daemon.micrograph import Acquisition

_LABELLED = re.compile(r"<Label>([^<]*)</Label>\s*<Value>([^<]*)</Value>\s*<Unit>([^<]*)</Unit>")
_VALUE = re.compile(r"<(AcquireDate|CameraNamePath|DwellTimePath)>([^<]*)</")


@dataclass(frozen=True, slots=True)
class Told:
    """What an .emi file says of one .ser file."""

    taken: Acquisition
    diffraction: bool
    """Whether the microscope showed its detector a diffraction pattern."""


def beside(path: Path, below: Path | None = None) -> Told | None:
    """What the .emi file of a .ser file says (`name_1.ser`: `name.emi`), None without one. `below`: see `opened`."""
    match = re.fullmatch(r"(.*)_(\d+)\.ser", path.name, re.IGNORECASE)
    data = safe_open.beside(path.with_name(f"{match[1]}.emi"), below) if match else None
    return None if match is None or data is None else parse(data, int(match[2]))


def parse(data: bytes, number: int) -> Told | None:
    """The record of the .ser file of this number, from 1; None if there is none."""
    records = data.split(b"<ObjectInfo>")
    if not 0 < number < len(records):
        return None
    record = html.unescape(records[number].partition(b"</ObjectInfo>")[0].decode("utf-8", "replace"))
    labels = labelled(record)
    values = dict(_VALUE.findall(record))
    camera = values.get("CameraNamePath", "")
    mode = labels.get("Mode", "")
    taken = Acquisition.stated(
        voltage_kv=labels.get("High tension kV"),
        magnification=labels.get("Magnification x"),
        exposure_seconds=values.get("DwellTimePath"),
        microscope=labels.get("Microscope", "").removeprefix("Microscope "),
        detector=camera,
        recorded=values.get("AcquireDate"),
    )
    # In STEM the scanned image is one of the specimen, and what a camera sees meanwhile is not.
    return Told(taken, bool(camera) if "STEM" in mode else "Diffraction" in mode)


def labelled(text: str) -> dict[str, str]:
    """Thermo Fisher's list of labels, values and units, as "label unit" → value."""
    return {f"{label} {unit}".strip(): value.strip() for label, value, unit in _LABELLED.findall(text)}
