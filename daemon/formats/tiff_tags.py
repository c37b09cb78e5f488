"""What the tags of vendors' TIFF files say of pixel size and of how a micrograph was taken."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daemon.errors import MicrographError
from daemon.formats.units import convert, pixel_size, reciprocal
from daemon.micrograph import Acquisition, PixelSize

_FINEST_PRINT = 1e-6
"""No printer has pixels below 1 um; a resolution finer than that (metres) is a microscope's."""
_FEI, _FEI_HELIOS, _SIS, _ZEISS, _TVIPS = 34680, 34682, 33560, 34118, 37706


def acquisition(tags: Mapping[int, Any]) -> Acquisition:
    """How it was taken, by the first vendor's header there is; all unknown without one."""
    for vendor, code in (
        (_of_fei, _FEI_HELIOS),
        (_of_fei, _FEI),
        (_of_sis, _SIS),
        (_of_zeiss, _ZEISS),
        (_of_tvips, _TVIPS),
    ):
        header = tags.get(code)
        if isinstance(header, Mapping):
            return vendor(header)
    return Acquisition()


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
        recorded=str(header.get("datetime")),
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


def _part(header: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = header.get(name)
    return part if isinstance(part, Mapping) else {}


def _scaled(value: Any, factor: float) -> float | None:
    return value * factor if isinstance(value, int | float) else None


def _times(text: Any) -> Any:
    """50.00 K X → 50000, as Zeiss writes a magnification."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([KM]?)\s*X\s*", text) if isinstance(text, str) else None
    return float(match[1]) * {"": 1.0, "K": 1e3, "M": 1e6}[match[2]] if match else text


def pixel_size_of(path: Path, tags: Mapping[int, Any], description: str) -> tuple[PixelSize, str] | None:
    """What the file says its pixel size is, and who says so. Raises MicrographError for reciprocal units."""
    for source, stated in (
        ("Gatan tags", _gatan(tags)),
        ("FEI tags", _fei(tags)),
        ("Olympus SIS tags", _sis(tags)),
        ("Zeiss tags", _zeiss(tags)),
        ("TVIPS tags", _tvips(tags)),
        ("OME", _ome(description)),
        ("ImageJ", _imagej(tags, description)),
        ("TIFF resolution", _resolution(tags)),
    ):
        if stated is None:
            continue
        if reciprocal(stated[2]):
            raise MicrographError(
                f"{path}: is a diffraction pattern (its pixels are measured in {stated[2]}); "
                "it was left alone, because this denoiser is for images: move it to another folder"
            )
        size = pixel_size(*stated)
        if size is not None:
            return size, source
    return None


_Stated = tuple[float, float, str]
"""Pixel size y, x and the unit as the file spells it."""


def _gatan(tags: Mapping[int, Any]) -> _Stated | None:
    return _stated(tags, 65010, 65009, tags[65003]) if isinstance(tags.get(65003), str) else None


def _fei(tags: Mapping[int, Any]) -> _Stated | None:
    header = tags.get(34682, tags.get(34680))
    return _stated(header.get("Scan"), "PixelHeight", "PixelWidth", "m") if isinstance(header, dict) else None


def _sis(tags: Mapping[int, Any]) -> _Stated | None:
    return _stated(tags.get(33560), "pixelsizey", "pixelsizex", "m")


def _tvips(tags: Mapping[int, Any]) -> _Stated | None:
    return _stated(tags.get(37706), "PixelSizeY", "PixelSizeX", "nm")


def _stated(header: Any, y: int | str, x: int | str, unit: str) -> _Stated | None:
    """Two numbers from a vendor's header; None where it has none."""
    if not (isinstance(header, Mapping) and isinstance(header.get(x), int | float)):
        return None
    return float(header[y] if y in header else header[x]), float(header[x]), unit


def _zeiss(tags: Mapping[int, Any]) -> _Stated | None:
    header = tags.get(34118)
    if not isinstance(header, dict):
        return None
    # "Image Pixel Size" is the stored image's; the older "Pixel Size" is that of an image 1024 pixels wide.
    for key, factor in (("ap_image_pixel_size", 1.0), ("ap_pixel_size", 1024 / int(tags[256]))):
        match header.get(key):
            case (_, float(side) | int(side), str(unit)):
                return side * factor, side * factor, unit
    return None


def _ome(description: str) -> _Stated | None:
    if "<OME" not in description[:2000]:
        return None
    found = {
        name: match[1]
        for name in ("SizeX", "SizeY", "SizeXUnit", "SizeYUnit")
        if (match := re.search(rf'\bPhysical{name}="([^"]*)"', description))
    }
    if "SizeX" not in found:
        return None
    across, unit = float(found["SizeX"]), found.get("SizeXUnit", "um")
    return float(found["SizeY"]) if "SizeY" in found else across, across, unit


def _imagej(tags: Mapping[int, Any], description: str) -> _Stated | None:
    match = re.search(r"^unit=(.*)$", description, re.MULTILINE) if description.startswith("ImageJ=") else None
    sides = _sides(tags)
    if match is None or sides is None or match[1].strip() in ("inch", "cm"):
        return None  # inch and cm are what ImageJ says of a print resolution; _resolution judges those
    return *sides, match[1]


def _resolution(tags: Mapping[int, Any]) -> _Stated | None:
    """The plain TIFF resolution, where it is too fine to be a printer's."""
    sides, metres = _sides(tags), {2: 0.0254, 3: 0.01}.get(int(tags.get(296, 2)))
    if sides is None or metres is None or max(sides) * metres >= _FINEST_PRINT:
        return None
    size = convert(PixelSize(sides[0] * metres, sides[1] * metres, "m"), "nm")
    return (size.y, size.x, "nm") if size else None


def _sides(tags: Mapping[int, Any]) -> tuple[float, float] | None:
    """Height and width of a pixel in the file's unit, from the two resolution tags (pixels per unit, a fraction)."""
    match tags.get(282), tags.get(283, tags.get(282)):
        case (int(across), int(per_x)), (int(down), int(per_y)) if across > 0 and down > 0:
            return per_y / down, per_x / across
    return None
