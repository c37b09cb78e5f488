"""Pixel size and acquisition by the tags of vendors' TIFF files."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from daemon.errors import MicrographError
from daemon.formats import ome, sidecars, tiff_description
from daemon.formats.reading import number
from daemon.formats.tiff_description import Axis
from daemon.formats.units import contradiction, convert, pixel_size, reciprocal
from daemon.micrograph import UNKNOWN, Acquisition, PixelSize

_MAX_TAG_BYTES = 1 << 24
_FINEST_PRINT = 1e-6
"""No printer has pixels below 1 um; a finer resolution (metres) is that of a microscope."""
_METRES = {2: 0.0254, 3: 0.01}
"""Length of TIFF's units of resolution: inch and centimetre."""
FEI = (34682, 34680)
"""The newer tag, of Helios, first."""
ZEISS, _SIS, TVIPS = 34118, 33560, 37706
_DIFFRACTION = 3
"""TVIPS's number for the microscope's mode."""
_FEI_XML, _TESCAN, _EER, _MAKE = 34683, 50431, 65001, 271


def acquisition(tags: Mapping[int, Any], description: str = "") -> Acquisition:
    """The acquisition by the first vendor's header; all unknown without one."""
    for vendor, found in (
        (_of_fei_xml, fei_xml(tags)),
        (_of_tescan, tescan(tags)),
        (_of_eer, eer(tags)),
        (_of_jeol, jeol(tags, description)),
        (_of_fei, header(tags, *FEI)),
        (_of_sis, header(tags, _SIS)),
        (_of_zeiss, header(tags, ZEISS)),
        (_of_tvips, header(tags, TVIPS)),
    ):
        if found:
            return vendor(found)
    return UNKNOWN


def of_page(page: Any) -> dict[int, Any]:
    """The tags of a page as tifffile parses them, without huge ones."""
    return {tag.code: tag.value for tag in page.tags if tag.valuebytecount <= _MAX_TAG_BYTES}


def header(tags: Mapping[int, Any], *codes: int) -> Mapping[str, Any]:
    """A vendor's header, as tifffile parses it, in the first of these tags; empty without one."""
    return next((tags[code] for code in codes if isinstance(tags.get(code), Mapping)), {})


def origin(tags: Mapping[int, Any]) -> dict[str, str]:
    """For a micrograph's metadata: the program that wrote the file, and date and time."""
    words = {"software": tags.get(305), "datetime": tags.get(306)}
    return {key: text.strip()[:200] for key, text in words.items() if isinstance(text, str) and text.strip()}


def _of_fei(header: Mapping[str, Any]) -> Acquisition:
    system, beam, scan = (_part(header, name) for name in ("System", "Beam", "Scan"))
    user, detectors = _part(header, "User"), _part(header, "Detectors")
    return Acquisition.stated(
        voltage_kv=_scaled(beam.get("HV"), 1e-3),
        exposure_seconds=scan.get("Dwelltime"),
        microscope=system.get("SystemType"),
        detector=detectors.get("Name"),
        recorded=" ".join(str(user[key]) for key in ("Date", "Time") if user.get(key)),
    )


def _of_sis(header: Mapping[str, Any]) -> Acquisition:
    return Acquisition.stated(
        magnification=header.get("magnification"),
        detector=header.get("cameraname"),
        recorded=str(header.get("datetime") or ""),
    )


def _of_zeiss(header: Mapping[str, Any]) -> Acquisition:
    def value(key: str) -> Any:
        entry = header.get(key)
        return entry[1] if isinstance(entry, tuple) and len(entry) > 1 else None

    return Acquisition.stated(
        voltage_kv=value("ap_actualkv"),
        magnification=_times(value("ap_mag")),
        detector=value("dp_detector_channel"),
        recorded=" ".join(str(part) for part in (value("ap_date"), value("ap_time")) if part),
    )


def _of_tvips(header: Mapping[str, Any]) -> Acquisition:
    return Acquisition.stated(
        voltage_kv=_scaled(header.get("TemHighTension"), 1e-3),
        magnification=header.get("TemMagnification"),
        exposure_seconds=_scaled(header.get("ExposureTime"), 1e-3),
        microscope=header.get("TemType"),
        detector=header.get("CameraType"),
    )


def _of_fei_xml(stated: Mapping[str, str]) -> Acquisition:
    return Acquisition.stated(
        voltage_kv=stated.get("High tension kV") or _scaled(number(stated.get("AccelerationVoltage")), 1e-3),
        magnification=stated.get("Magnification x"),
        exposure_seconds=stated.get("DwellTime"),
        microscope=stated.get("InstrumentClass") or stated.get("Microscope", "").removeprefix("Microscope "),
        detector=stated.get("DetectorName"),
        recorded=stated.get("AcquisitionDatetime"),
    )


def _of_tescan(stated: Mapping[str, str]) -> Acquisition:
    return Acquisition.stated(
        voltage_kv=_scaled(number(stated.get("HV")), 1e-3),
        magnification=stated.get("Magnification"),
        exposure_seconds=stated.get("DwellTime"),
        microscope=stated.get("Device"),
        detector=stated.get("Detector"),
        recorded=" ".join(stated[key] for key in ("Date", "Time") if stated.get(key)),
    )


def _of_eer(stated: Mapping[str, str]) -> Acquisition:
    return Acquisition.stated(
        exposure_seconds=stated.get("exposureTime"),
        detector=stated.get("commercialName") or stated.get("cameraName"),
        recorded=stated.get("timestamp"),
        electrons_per_pixel=stated.get("totalDose"),
    )


def _of_jeol(stated: Mapping[str, str]) -> Acquisition:
    return Acquisition.stated(
        voltage_kv=_scaled(number(stated.get("AccelerationVoltage")), 1e-3),
        magnification=stated.get("SelectorValue") if stated.get("ModeString") == "MAG" else None,
        microscope=stated.get("Instruments"),
    )


def fei_xml(tags: Mapping[int, Any]) -> dict[str, str]:
    """The XML of Thermo Fisher's newer software: single values, or a list of labels."""
    text = _text(tags.get(_FEI_XML))
    return {**_elements(text), **sidecars.labelled(text)}


def tescan(tags: Mapping[int, Any]) -> dict[str, str]:
    """Tescan's lines of key=value, which stand among other blocks, a thumbnail first; lengths in metres, volts."""
    found = re.findall(r"^(\w+)\s*=([^\r\n]*)", _text(tags.get(_TESCAN)), re.MULTILINE)
    return {key: value.strip() for key, value in found}


def eer(tags: Mapping[int, Any]) -> dict[str, str]:
    """The items of an EER movie's metadata."""
    return dict(re.findall(r'<item name="([^"<]+)"[^<>]*>([^<]*)<', _text(tags.get(_EER))))


def jeol(tags: Mapping[int, Any], description: str) -> dict[str, str]:
    """JEOL's (SightX) report on the microscope's state, XML in the description."""
    return _elements(description) if _text(tags.get(_MAKE)).startswith("JEOL") else {}


def _elements(text: str) -> dict[str, str]:
    """The innermost elements of an XML, without their attributes; the first of each name."""
    found = re.findall(r"<(\w+)(?:\s[^<>]*)?>([^<>]*)</\1>", text)
    return {name: value.strip() for name, value in reversed(found)}


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def _part(header: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = header.get(name)
    return part if isinstance(part, Mapping) else {}


def _scaled(value: Any, factor: float) -> float | None:
    return value * factor if isinstance(value, int | float) else None


def _times(text: Any) -> Any:
    """50.00 K X → 50000, as Zeiss writes a magnification."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([KM]?)\s*X\s*", text) if isinstance(text, str) else None
    return float(match[1]) * {"": 1.0, "K": 1e3, "M": 1e6}[match[2]] if match else text


def pixel_size_of(
    path: Path, tags: Mapping[int, Any], description: str, shape: tuple[int, int]
) -> tuple[PixelSize, str, str] | None:
    """The pixel size that the file states for an image of `shape` (H, W), the source, and a remark if another
    is stated.

    Raises MicrographError for reciprocal units.
    """
    found: tuple[PixelSize, str] | None = None
    for source, stated in (
        ("Gatan tags", _gatan(tags)),
        ("FEI tags", _fei(tags)),
        ("Olympus SIS tags", _sis(tags)),
        ("Zeiss tags", _zeiss(tags)),
        ("TVIPS tags", _tvips(tags)),
        ("Thermo Fisher XML", _fei_binary(tags)),
        ("Tescan tags", _stated_text(tescan(tags), "PixelSizeY", "PixelSizeX")),
        ("EER metadata", _stated_text(eer(tags), "sensorPixelSize.height", "sensorPixelSize.width")),
        ("JEOL description", _jeol(tags, description)),
        ("OME", _ome(description, shape)),
        ("ImageJ", _imagej(tags, description)),
        ("SCIFIO", _scifio(description)),
        ("TIFF resolution", _resolution(tags)),
    ):
        if stated is None:
            continue
        if found is None and (units := [unit for unit in stated[2:] if reciprocal(unit)]):
            raise MicrographError(
                f"{path}: is a diffraction pattern (its pixels are measured in {units[0]}); "
                "it was left alone, because this denoiser is for images: move it to another folder"
            )
        size = pixel_size(*stated)
        if found is None:
            found = None if size is None else (size, source)
        elif remark := contradiction(*found, size, source):
            return *found, remark
    return None if found is None else (*found, "")


class _Stated(NamedTuple):
    """Pixel size y, x and their units as the file spells them."""

    y: float
    x: float
    unit: str
    unit_y: str = ""
    """Empty for the same."""


def _gatan(tags: Mapping[int, Any]) -> _Stated | None:
    across, down = tags.get(65003), tags.get(65004)
    stated = _stated(tags, 65010, 65009, across) if isinstance(across, str) else None
    if stated is None or not isinstance(down, str):
        return stated
    calibrated = down.strip("\0 ") or stated.y == stated.x
    return stated._replace(unit_y=down) if calibrated else None


def _fei(tags: Mapping[int, Any]) -> _Stated | None:
    return _stated(header(tags, *FEI).get("Scan"), "PixelHeight", "PixelWidth", "m")


def _sis(tags: Mapping[int, Any]) -> _Stated | None:
    return _stated(header(tags, _SIS), "pixelsizey", "pixelsizex", "m")


def _tvips(tags: Mapping[int, Any]) -> _Stated | None:
    stated = _stated(header(tags, TVIPS), "PixelSizeY", "PixelSizeX", "nm")
    return stated._replace(unit="1/nm") if stated and header(tags, TVIPS).get("TemMode") == _DIFFRACTION else stated


def _stated(header: Any, y: int | str, x: int | str, unit: str) -> _Stated | None:
    """Two numbers from a vendor's header; None where it has none. One number is that of both axes."""
    if not isinstance(header, Mapping):
        return None
    match header.get(x), header.get(y, header.get(x)):
        case ((float(across) | int(across)), (float(down) | int(down))):
            return _Stated(float(down), float(across), unit)
    return None


def _stated_text(stated: Mapping[str, str], y: str, x: str) -> _Stated | None:
    """As `_stated`, of numbers as text, in metres."""
    across, down = number(stated.get(x)), number(stated.get(y, stated.get(x)))
    return None if across is None or down is None else _Stated(down, across, "m")


def _fei_binary(tags: Mapping[int, Any]) -> _Stated | None:
    match = re.search(
        r'<PixelSize>\s*<X unit="m" unitPrefixPower="1">([^<]+)</X>\s*<Y unit="m" unitPrefixPower="1">([^<]+)</Y>',
        _text(tags.get(_FEI_XML)),
    )
    return _stated_text({"x": match[1], "y": match[2]}, "y", "x") if match else None


def _jeol(tags: Mapping[int, Any], description: str) -> _Stated | None:
    """JEOL states the pixel size on the camera, which the magnification converts to that on the specimen."""
    stated = jeol(tags, description)
    if stated.get("EosMode") != "eosTEM":
        return None
    if stated.get("ModeString") == "DIFF":
        return _Stated(1.0, 1.0, "1/m")
    sides, metres = _sides(tags), _METRES.get(int(tags.get(296, 2)))
    magnification = number(stated.get("SelectorValue"))
    if stated.get("ModeString") != "MAG" or sides is None or metres is None or not magnification:
        return None
    return _Stated(sides[0] * metres / magnification, sides[1] * metres / magnification, "m")


def _zeiss(tags: Mapping[int, Any]) -> _Stated | None:
    zeiss = header(tags, ZEISS)
    # "Image Pixel Size" is the stored image's; the older "Pixel Size" is that of an image 1024 pixels wide.
    for key, factor in (("ap_image_pixel_size", 1.0), ("ap_pixel_size", 1024 / int(tags[256]))):
        match zeiss.get(key):
            case (_, float(side) | int(side), str(unit)):
                return _Stated(side * factor, side * factor, unit)
    return None


def _ome(description: str, shape: tuple[int, int]) -> _Stated | None:
    """The size that OME states for the first image of this height and width, pixels."""
    found = next(iter(ome.images(description, shape)), {})
    across, unit = found.get("PhysicalSizeX", ""), found.get("PhysicalSizeXUnit", "um")
    down = found.get("PhysicalSizeY", across)
    # The schema's unit is the micron where none is stated; the same number twice is of the same unit.
    unit_y = found.get("PhysicalSizeYUnit", unit if down == across else "um")
    x, y = number(across), number(down)
    return None if x is None or y is None else _Stated(y, x, unit, unit_y)


def _imagej(tags: Mapping[int, Any], description: str) -> _Stated | None:
    match = re.search(r"^unit=(.*)$", description, re.MULTILINE) if description.startswith("ImageJ=") else None
    sides = _sides(tags)
    if match is None or sides is None or match[1].strip() in ("inch", "cm"):
        return None  # ImageJ writes inch and cm for a print resolution, see _resolution
    down = re.search(r"^yunit=(.*)$", description, re.MULTILINE)
    return _Stated(*sides, match[1], down[1].strip() if down else "")


def _scifio(description: str) -> _Stated | None:
    axes = {axis.name: axis for axis in tiff_description.scifio(description)}
    match axes.get("X"), axes.get("Y"):
        case Axis(step=float(x), unit=unit), Axis(step=float(y), unit=unit_y):
            return _Stated(y, x, unit, unit_y)
    return None


def _resolution(tags: Mapping[int, Any]) -> _Stated | None:
    """The plain TIFF resolution, if it is too fine for a printer."""
    sides, metres = _sides(tags), _METRES.get(int(tags.get(296, 2)))
    if sides is None or metres is None or max(sides) * metres >= _FINEST_PRINT:
        return None
    size = convert(PixelSize(sides[0] * metres, sides[1] * metres, "m"), "nm")
    return _Stated(size.y, size.x, "nm") if size else None


def _sides(tags: Mapping[int, Any]) -> tuple[float, float] | None:
    """Height and width of a pixel in the file's unit, from the two resolution tags (pixels per unit, a fraction)."""
    match tags.get(282), tags.get(283, tags.get(282)):
        case (int(across), int(per_x)), (int(down), int(per_y)) if across > 0 and down > 0:
            return per_y / down, per_x / across
    return None
