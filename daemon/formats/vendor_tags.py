"""Acquisition and calibration of intensity by the tags of vendors' files, as RosettaSciIO parses them."""

from collections.abc import Mapping
from typing import Any

from daemon.formats import section_headers
from daemon.formats.section_headers import SectionHeader
from daemon.formats.stack import Stack
from daemon.micrograph import Acquisition

_WANTED = {
    "voltage_kv": ("beam_energy",),
    "magnification": ("magnification",),
    "exposure_seconds": ("exposure", "dwell_time"),
    "microscope": ("microscope",),
    "detector": ("Name",),
}
_ELECTRONS = ("e-", "e", "electrons", "e⁻")


def acquisition(signal: Mapping[str, Any]) -> Acquisition:
    """The acquisition of one image, by RosettaSciIO's table of vendors' tags and by our own."""
    original = signal.get("original_metadata", {})
    found: dict[str, Any] = {}
    for place, (target, convert) in signal.get("mapping", {}).items():
        value = at(original, place)
        if value is None:
            continue
        try:
            found[target.rpartition(".")[2]] = convert(value) if convert else value
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            continue  # of another type than expected: unknown
    values = {key: next((found[name] for name in names if name in found), None) for key, names in _WANTED.items()}
    general = signal.get("metadata", {}).get("General", {})
    values["recorded"] = " ".join(str(general[key]) for key in ("date", "time") if general.get(key))
    return Acquisition.stated(**{**values, **_gatan(original), **_velox(original)})


def of_elements(signal: Mapping[str, Any]) -> Stack | None:
    """The kind of a stack that HyperSpy made of single signals, whose metadata it keeps; None without them."""
    elements = at(signal, "original_metadata.stack_elements") or {}
    found = []
    for number in range(len(elements)):
        one = elements.get(f"element{number}")
        if not isinstance(one, Mapping):
            return None
        title = at(one, "metadata.General.title")
        found.append(SectionHeader(number, acquisition(one), name=title if isinstance(title, str) else ""))
    return section_headers.nature(found, "HyperSpy's metadata of its sections")


def at(tree: Any, *places: str) -> Any:
    """The first existing value at these dotted places in a tree of mappings."""
    for place in places:
        found = tree
        for key in place.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None:
            return found
    return None


def velox_size(signal: Mapping[str, Any]) -> tuple[float, float, str, str] | None:
    """Pixel size y, x and units of x, y of Velox, where the units differ; RosettaSciIO takes that of x for both."""
    result = at(signal.get("original_metadata", {}), "BinaryResult") or {}
    across, down = (str(at(result, key) or "") for key in ("PixelUnitX", "PixelUnitY"))
    if not down or across == down:
        return None
    try:
        return float(at(result, "PixelSize.height")), float(at(result, "PixelSize.width")), across, down
    except (TypeError, ValueError):
        return None


def brightness(signal: Mapping[str, Any]) -> tuple[float, float, str]:
    """DigitalMicrograph's calibration of intensity: origin, scale and unit; 0, 1 and "" without one."""
    stated = at(signal.get("original_metadata", {}), "ImageList.TagGroup0.ImageData.Calibrations.Brightness") or {}
    try:
        return float(at(stated, "Origin") or 0.0), float(at(stated, "Scale") or 1.0), str(at(stated, "Units") or "")
    except (TypeError, ValueError):
        return 0.0, 1.0, ""


def _gatan(original: Mapping[str, Any]) -> dict[str, Any]:
    image = at(original, "ImageList.TagGroup0") or {}
    brightness = at(image, "ImageData.Calibrations.Brightness") or {}
    exposure = at(
        image, "ImageTags.DataBar.Exposure Time (s)", "ImageTags.Acquisition.Parameters.High Level.Exposure (s)"
    )
    in_electrons = str(at(brightness, "Units") or "").strip().lower() in _ELECTRONS
    return _known(
        exposure_seconds=exposure,
        detector=at(image, "ImageTags.Acquisition.Device.Name"),
        electrons_per_unit=at(brightness, "Scale") if in_electrons else None,
    )


def _velox(original: Mapping[str, Any]) -> dict[str, Any]:
    result = at(original, "BinaryResult") or {}
    name, index = (at(result, key) for key in ("Detector", "DetectorIndex"))
    properties = at(original, "CustomProperties") or {}
    dwell = at(original, "Scan.DwellTime")  # only where a beam was scanned
    return _known(
        detector=name,
        magnification=at(
            original, "Optics.NominalMagnification" if dwell is None else "CustomProperties.StemMagnification.value"
        ),
        exposure_seconds=at(original, f"Detectors.Detector-{index}.ExposureTime") or dwell,
        electrons_per_unit=at(properties.get(f"Detectors[{name}].CountsToElectrons"), "value"),
    )


def _known(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
