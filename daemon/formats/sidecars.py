"""Reads companion files that state how an image was taken.

TIA's .emi (beside .ser files), SerialEM's .mdoc, and IMOD's lists of tilt angles (.rawtlt, .tlt) and pieces (.pl).
"""

import html
import re
from dataclasses import dataclass, replace

from daemon.formats import stack
from daemon.formats.raw_file import RawFile
from daemon.formats.reading import number
from daemon.formats.stack import Stack
from daemon.formats.units import contradiction, convert, pixel_size
from daemon.micrograph import Acquisition, Micrograph

_LABELLED = re.compile(r"<Label>([^<]*)</Label>\s*<Value>([^<]*)</Value>\s*<Unit>([^<]*)</Unit>")
_VALUE = re.compile(r"<(AcquireDate|CameraNamePath|DwellTimePath)>([^<]*)</")
_SECTION = re.compile(r"\[\s*(\w+)\s*=\s*(\d{1,9})\s*\]")
_OTHER = re.compile(r"\[\s*(?!T\s*=)")
"""Begins a section without a number; [T = ...] is a title, which begins none."""
_MONTAGE = re.compile(r"^\s*Montage\s*=\s*1\s*$", re.MULTILINE)
_PAIR = re.compile(r"(\w+)\s*=\s*(.*)")


@dataclass(frozen=True, slots=True)
class EmiRecord:
    """The record of one .ser file in an .emi file."""

    taken: Acquisition
    diffraction: bool
    """Whether the detector recorded a diffraction pattern."""

    def exposure(self, pixels: int) -> float | None:
        """Seconds of an image of so many pixels; what is stated of a scanned beam is the time on each pixel."""
        stated = self.taken.exposure_seconds
        return stated if stated is None or self.taken.detector else stated * pixels


def emi_beside(raw: RawFile) -> EmiRecord | None:
    """The record of a .ser file in its .emi file (`name_1.ser`: `name.emi`), or None."""
    match = re.fullmatch(r"(.*)_(\d+)\.ser", raw.path.name, re.IGNORECASE)
    data = raw.beside(f"{match[1]}.emi") if match else None
    return None if match is None or data is None else parse_emi(data, int(match[2]))


def parse_emi(data: bytes, number: int) -> EmiRecord | None:
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
    # In STEM the scanned image shows the specimen, and a camera's image does not.
    return EmiRecord(taken, bool(camera) if "STEM" in mode else "Diffraction" in mode)


def labelled(text: str) -> dict[str, str]:
    """Thermo Fisher's list of labels, values and units, as "label unit" → value."""
    return {f"{label} {unit}".strip(): value.strip() for label, value, unit in _LABELLED.findall(text)}


def decoded(data: bytes, otherwise: str = "utf-8") -> str:
    """The text of a file beside an image, decoded by its byte order mark, or else by the encoding `otherwise`."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig" if data.startswith(b"\xef\xbb\xbf") else otherwise, "replace")


def with_mdoc(micrograph: Micrograph, raw: RawFile) -> Micrograph:
    """The micrograph with facts of its .mdoc that its own header lacks."""
    path = raw.path
    names = (f"{path.name}.mdoc", path.with_suffix(".mdoc").name)
    data = next((found for name in names if (found := raw.beside(name))), None)
    if data is None:
        return micrograph
    section = int(micrograph.metadata.get("section", 1)) - 1
    text = decoded(data)
    values = parse_mdoc(text, section)
    if micrograph.metadata["frames"] > 1 and "[ZValue" in text:
        values.pop("ExposureDose", None)  # that of the first section; a FrameSet's is of all its frames
    spacing = Acquisition.stated(electrons_per_unit=values.get("PixelSpacing")).electrons_per_unit  # a number above 0
    stated = micrograph.pixel_size
    spaced = None if spacing is None else pixel_size(spacing, spacing, "angstrom")
    size = spaced if stated is None else stated
    remark = "" if stated is None else contradiction(stated, "the image file", spaced, "the .mdoc")
    in_angstrom = None if size is None else convert(size, "angstrom")
    dose = Acquisition.stated(electrons_per_pixel=values.get("ExposureDose")).electrons_per_pixel
    per_electron = Acquisition.stated(electrons_per_unit=values.get("CountsPerElectron")).electrons_per_unit
    taken = Acquisition.stated(
        voltage_kv=values.get("Voltage"),
        magnification=values.get("Magnification"),
        exposure_seconds=values.get("ExposureTime"),
        recorded=values.get("DateTime"),
        electrons_per_unit=None if per_electron is None else 1 / per_electron,
        electrons_per_pixel=None if dose is None or in_angstrom is None else dose * in_angstrom.x * in_angstrom.y,
    )
    own = micrograph.acquisition
    known = {name: getattr(own, name) for name in Acquisition.__dataclass_fields__ if getattr(own, name) is not None}
    stored = _stored(micrograph)
    metadata = dict(micrograph.metadata) if stored < 2 else stack.merged(micrograph.metadata, nature(text, stored))
    if stated is None and size is not None:
        metadata["pixel_size_from"] = "SerialEM .mdoc"
    warnings = (*micrograph.warnings, remark) if remark else micrograph.warnings
    known_by = replace(taken, **known)
    return replace(micrograph, acquisition=known_by, pixel_size=size, metadata=metadata, warnings=warnings)


def _stored(micrograph: Micrograph) -> int:
    """Number of sections in the file."""
    return int(micrograph.metadata.get("sections", micrograph.metadata["frames"]))


def with_lists(micrograph: Micrograph, raw: RawFile) -> Micrograph:
    """The micrograph, with the kind of its sections by IMOD's lists beside it, which have a line for each section."""
    stored = _stored(micrograph)
    if stored < 2:
        return micrograph
    found = [_listed(raw, ending, stored) for ending in (".rawtlt", ".tlt", ".pl")]
    return replace(micrograph, metadata=stack.merged(micrograph.metadata, stack.weighed(found)))


def _listed(raw: RawFile, ending: str, stored: int) -> Stack | None:
    data = raw.beside(raw.path.with_suffix(ending).name)
    lines = [line for line in decoded(data or b"").splitlines() if line.strip()]
    if len(lines) != stored:
        return None
    rows = [tuple(value for word in line.split() if (value := number(word)) is not None) for line in lines]
    if any(len(row) < (3 if ending == ".pl" else 1) for row in rows):
        return None
    by = f"the {ending} file beside it"
    if ending == ".pl":
        return stack.of_places((row[:2] for row in rows), "pieces", by)
    return stack.of_tilts((row[0] for row in rows), by)


def nature(text: str, stored: int) -> Stack | None:
    """The kind of the `stored` sections of the stack; None if the text does not state it.

    Several [ZValue] or [FrameSet] are as many exposures, of which angles or places state the kind; a single [FrameSet]
    is one exposure in frames.
    """
    found = {(match[1], int(match[2])) for match in _SECTION.finditer(text)}
    numbers, sets = (sorted(number for name, number in found if name == kind) for kind in ("ZValue", "FrameSet"))
    by = "SerialEM .mdoc"
    if _MONTAGE.search(text):
        return Stack("pieces", by)
    if len(numbers) < 2 and len(sets) < 2:
        one = parse_mdoc(text, numbers[0] if numbers else 0)
        of_one = "[FrameSet" in text or one.get("NumSubFrames") == str(stored)
        return Stack("frames", by) if of_one else None
    tilts = re.findall(r"^\s*TiltAngle\s*=\s*([-+.\deE]{1,24})\s*$", text, re.MULTILINE)
    places = re.findall(r"^\s*PieceCoordinates\s*=\s*(\S+)\s+(\S+)", text, re.MULTILINE)
    stages = re.findall(r"^\s*StagePosition\s*=\s*(\S+)\s+(\S+)", text, re.MULTILINE)
    angles = [angle for tilt in tilts if (angle := number(tilt)) is not None]
    return stack.weighed(
        (
            stack.of_places(places, "pieces", by),
            stack.of_tilts(angles, by),
            stack.of_places(stages, "places", by),
            Stack("exposures", by),
        )
    )


def parse_mdoc(text: str, section: int) -> dict[str, str]:
    """Keys of one section (counted from 0): those of the file, then those of its [ZValue] or [FrameSet]."""
    found: dict[str, str] = {}
    here = True
    for line in text.splitlines():
        line = line.strip()
        if match := _SECTION.match(line):
            here = match[1] in ("ZValue", "FrameSet") and int(match[2]) == section
        elif _OTHER.match(line):
            here = False
        elif here and (match := _PAIR.fullmatch(line)):
            found[match[1]] = match[2].strip()
    return found
