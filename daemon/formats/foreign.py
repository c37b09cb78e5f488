"""Vendors' formats, read by RosettaSciIO: DM3/DM4, SER, Velox and other EMD, HyperSpy's HDF5.

RosettaSciIO is optional and under the GPL: it is loaded by name, and only in the process that `daemon.reader` keeps for
decoding. What is here without it: telling these files, and whether they are whole.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from daemon.errors import EmdenoisedError, MicrographError
from daemon.formats.container import (
    CodecNeededError,
    DamagedError,
    Extent,
    check_pixels,
    check_plane,
    pick_section,
    sum_frames,
    sum_remark,
    tail_remark,
)
from daemon.formats.units import pixel_size, reciprocal
from daemon.micrograph import Acquisition, Micrograph, Pixels

SUFFIXES = (".dm3", ".dm4", ".ser", ".emd", ".hspy")
_HDF5 = b"\x89HDF\r\n\x1a\n"
_TAG = 8
_TAIL = 1 << 12
"""Bytes: the last ones of a whole file are not all zero."""


@dataclass(frozen=True, slots=True)
class Format:
    """A vendor's format: what people call it, and which of RosettaSciIO's readers reads it."""

    name: str
    reader: str
    kind: str
    """For the JSON."""


_DM3 = Format("a DigitalMicrograph DM3 file", "digitalmicrograph", "dm3")
_DM4 = Format("a DigitalMicrograph DM4 file", "digitalmicrograph", "dm4")
_SER = Format("a TIA SER file", "tia", "ser")
_EMD = Format("an EMD file (Velox, NCEM)", "emd", "emd")
_HSPY = Format("a HyperSpy file", "hspy", "hspy")


def recognised(head: bytes, suffix: str) -> Format | None:
    """Which of these formats the first bytes of a file show; HDF5 files are told apart by their name."""
    if head.startswith(b"\0\0\0\x03") and head[8:12] in (b"\0\0\0\x01", b"\0\0\0\0"):
        return _DM3
    if head.startswith(b"\0\0\0\x04") and head[12:16] in (b"\0\0\0\x01", b"\0\0\0\0"):
        return _DM4
    if head.startswith(b"II\x97\x01"):
        return _SER
    if head.startswith(_HDF5):
        return {".emd": _EMD, ".hspy": _HSPY}.get(suffix.lower())
    return None


def extent(head: bytes, form: Format, size: int) -> Extent:
    """How long the header says the file is. Raises DamagedError where it makes no sense yet."""
    match form.kind:
        case "dm3":
            end = int.from_bytes(head[4:8], "big") + 16
        case "dm4":
            end = int.from_bytes(head[4:12], "big") + 24
        case "ser":
            end = _end_of_series(head, size)
        case _:
            end = _end_of_hdf5(head, size)
    if not 0 < end < 1 << 62:
        raise DamagedError(f"the header of {form.name} makes no sense (yet)")
    return Extent(0, end, _TAIL)


def read(
    stream: BinaryIO,
    path: Path,
    form: Format,
    max_pixels: int,
    section: int | None = None,
    *,
    decode: bool = True,
) -> Micrograph:
    """Read the one image in an open file, frames summed. `decode`, `section` and what it raises: as `tiff.read`."""
    if not decode:
        raise CodecNeededError
    try:
        reader = import_module(f"rsciio.{form.reader}")
    except ImportError as error:
        raise MicrographError(
            f"{path}: is {form.name}, which needs RosettaSciIO: pip install 'emdenoised[formats]' into the service's "
            "environment, or export it as TIFF or MRC"
        ) from error
    options = {"select_type": "images"} if form.reader == "emd" else {}
    with tempfile.TemporaryDirectory() as folder:
        # By a name of ours for the file that is open: it cannot be swapped, and a hostile name is not parsed.
        alias = Path(folder, f"image.{form.kind}")
        alias.symlink_to(f"/proc/self/fd/{stream.fileno()}")
        try:
            signals = reader.file_reader(str(alias), lazy=True, **options)
            chosen, left_out = _choose(path, form, signals)
            return _micrograph(path, form, chosen, left_out, max_pixels, section)
        except (EmdenoisedError, MemoryError, OSError):
            raise
        except ImportError as error:  # what reads spectrum images is not installed, for they are no use here
            raise MicrographError(
                f"{path}: is {form.name} that holds spectra; save its image as a file of its own"
            ) from error
        except Exception as error:  # RosettaSciIO has errors of its own for each format
            raise DamagedError(f"RosettaSciIO cannot make sense of it ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def _choose(path: Path, form: Format, signals: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """The image of a file and what else there is in words. Raises MicrographError where there is no or no one image."""
    images, others = [], []
    for signal in signals:
        what = _no_image(signal)
        if what is None:
            images.append(signal)
        else:
            others.append(what)
    if not images:
        raise MicrographError(f"{path}: {form.name} that holds {' and '.join(sorted(set(others))) or 'no image'}, "
                              "not a micrograph; it was left alone")  # fmt: skip
    if len(images) > 1:
        titles = ", ".join(_title(image) for image in images[:9])
        raise MicrographError(f"{path}: holds {len(images)} images ({titles}); save each one as a file of its own")
    return images[0], others


def _no_image(signal: Mapping[str, Any]) -> str | None:
    data, axes = signal["data"], signal["axes"]
    across = [axis for axis in axes if not axis.get("navigate", False)]
    if data.dtype.kind == "c":
        return "complex numbers (a Fourier transform or a wave)"
    if data.dtype.kind not in "iuf":
        return "colour" if data.dtype.names else "something other than numbers"
    if len(across) == 1 or (across and any("eV" in str(axis.get("units")) for axis in across)):
        return "a spectrum"
    if len(across) != 2 or data.ndim > 3:
        return f"{data.ndim}-dimensional data"
    return None


def _micrograph(
    path: Path, form: Format, signal: Mapping[str, Any], left_out: list[str], max_pixels: int, section: int | None
) -> Micrograph:
    data = signal["data"]
    y, x = (axis for axis in signal["axes"] if not axis.get("navigate", False))
    unit = str(x.get("units") or "")
    if reciprocal(unit):
        raise MicrographError(
            f"{path}: is a diffraction pattern (its pixels are measured in {unit}); it was left alone, because this "
            "denoiser is for images: move it to another folder"
        )
    *_, height, width = data.shape
    stored = 1 if data.ndim == 2 else int(data.shape[0])
    check_plane(path, height, width)
    check_pixels(path, height, width, stored, max_pixels)
    chosen = range(stored) if section is None else pick_section(path, section, stored)
    pixels = sum_frames(_planes(data, chosen), len(chosen), data.dtype)
    pixels = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))
    metadata: dict[str, Any] = {"frames": len(chosen), "dtype": data.dtype.newbyteorder("=").name}
    if section is not None:
        metadata |= {"section": section + 1, "sections": stored}
    size = None if x.get("scale") is None else pixel_size(float(y["scale"]), float(x["scale"]), unit)
    if size is not None:
        metadata["pixel_size_from"] = f"{form.kind.upper()} header"
    warnings = [sum_remark(len(chosen))] if len(chosen) > 1 else []
    if left_out:
        warnings.append(f"left out of the file: {', '.join(sorted(set(left_out)))}")
    warnings += [text for text in [tail_remark(pixels)] if text]
    return Micrograph(pixels, path, form.kind, size, metadata, tuple(warnings), _acquisition(form, signal))


def _planes(data: Any, chosen: range) -> Iterator[Pixels]:
    """One frame at a time: a long movie is never in memory as a whole."""
    for index in chosen:
        yield np.asarray(data if data.ndim == 2 else data[index])


_WANTED = {
    "voltage_kv": ("beam_energy",),
    "magnification": ("magnification",),
    "exposure_seconds": ("exposure", "dwell_time"),
    "microscope": ("microscope",),
}


def _acquisition(form: Format, signal: Mapping[str, Any]) -> Acquisition:
    """What the file says of how it was taken, by RosettaSciIO's own table of where each vendor says what."""
    found: dict[str, Any] = {}
    original = signal.get("original_metadata", {})
    for place, (target, convert) in signal.get("mapping", {}).items():
        value = _at(original, place)
        if value is None:
            continue
        try:
            found[target.rpartition(".")[2]] = convert(value) if convert else value
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            continue  # the vendor wrote something else there: unknown
    values = {key: next((found[name] for name in names if name in found), None) for key, names in _WANTED.items()}
    detector = found.get("Name") or (_title(signal) if form.kind == "emd" else None)  # Velox: the title
    image = _at(original, "ImageList.TagGroup0.ImageTags") or {}
    exposure = _at(image, "DataBar.Exposure Time (s)") or _at(image, "Acquisition.Parameters.High Level.Exposure (s)")
    if exposure is not None:
        values["exposure_seconds"] = exposure
    name = _at(image, "Acquisition.Device.Name")
    if name:
        detector = name
    brightness = _at(original, "ImageList.TagGroup0.ImageData.Calibrations.Brightness") or {}
    if str(brightness.get("Units", "")).strip().lower() in ("e-", "e", "electrons", "e⁻"):
        values["electrons_per_unit"] = brightness.get("Scale")
    general = signal.get("metadata", {}).get("General", {})
    recorded = " ".join(str(general[key]) for key in ("date", "time") if general.get(key)) or None
    return Acquisition.stated(**values, detector=detector, recorded=recorded)


def _title(signal: Mapping[str, Any]) -> str:
    return str(signal.get("metadata", {}).get("General", {}).get("title", "") or "")[:200]


def _at(tree: Any, place: str) -> Any:
    """A value in a tree of mappings; no key that is looked for has a dot in its name."""
    for key in place.split("."):
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def _end_of_hdf5(head: bytes, size: int) -> int:
    """The end-of-file address in an HDF5 superblock (versions 0 to 3)."""
    version = head[8]
    wide = head[13] if version < 2 else head[9]
    at = {0: 24, 1: 28}.get(version, 12) + (2 * wide)
    if wide not in (4, 8) or version > 3:
        return size  # a version to come: not ours to judge
    return int.from_bytes(head[at : at + wide], "little")


def _end_of_series(head: bytes, size: int) -> int:
    """Where the last data set's time stamp ends, the last thing in a SER file, if the table of them starts it."""
    version = int.from_bytes(head[4:6], "little")
    wide = 8 if version >= 0x0220 else 4
    total, valid = (int.from_bytes(head[at : at + 4], "little") for at in (14, 18))
    offsets = int.from_bytes(head[22 : 22 + wide], "little")
    if not 0 < valid <= total:
        raise DamagedError("the SER file holds no image yet")
    last = offsets + (total + valid - 1) * wide
    if last + wide > len(head):
        return min(offsets + 2 * wide * total, size)
    return int.from_bytes(head[last : last + wide], "little") + _TAG
