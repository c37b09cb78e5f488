"""Vendors' formats, read by RosettaSciIO: DM3/DM4, SER, Velox and other EMD, HyperSpy's HDF5.

RosettaSciIO is optional and under the GPL: it is loaded by name, and only in `decoder`'s child process. Without it
this module only recognises these files and whether they are complete.
"""

import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from daemon.errors import EmdenoisedError, MicrographError, ReaderMissingError
from daemon.formats import berkeley, ser, sidecars, stack, tiff_values, velox, vendor_tags
from daemon.formats.raw_file import RawFile
from daemon.formats.reading import (
    CodecNeededError,
    DamagedError,
    Extent,
    check_pixels,
    check_plane,
    first_line,
    frame_facts,
    may_pass,
    pick_section,
    sum_frames,
    tail_remarks,
)
from daemon.formats.units import METRES, pixel_size, reciprocal
from daemon.micrograph import Micrograph, Pixels, PixelSize

INSTALL = f"{shlex.quote(sys.executable)} -m pip install 'rosettasciio[hdf5]>=0.7'"
"""The command that installs the reader into the running environment."""
SUFFIXES = (".dm3", ".dm4", ".ser", ".emd", ".hspy")
_HDF5 = b"\x89HDF\r\n\x1a\n"
_OTHER_HDF5 = re.compile(r"not a (valid HyperSpy|supported EMD)")
"""What RosettaSciIO says of one that another program wrote."""
_TAIL = 1 << 12
"""Bytes at the end of a complete file, which are not all zero."""
_ROWS = ("y", "ry", "row", "rows", "height")
_COLUMNS = ("x", "rx", "col", "cols", "column", "columns", "width")
"""Names of the axis along which rows, or columns, follow one another."""
_SCANNED = re.compile(r"R[ _]?[xy]", re.IGNORECASE)
"""Names of the axes of an image that a scanned beam makes of diffraction patterns."""
_FREQUENCY = re.compile(r"[kq][ _]?[xy12]", re.IGNORECASE)
"""Names of the axes of a diffraction pattern."""
_MODE = "original_metadata.ImageList.TagGroup0.ImageTags.Microscope Info.Operation Mode"
"""In DigitalMicrograph's tags."""
_TYPE = "metadata.Signal.signal_type"
"""HyperSpy's type of a signal."""
_TURNED = "turned"
"""Added to RosettaSciIO's signals: whether the last dimension of the file is the first."""
_SERIES = "original_metadata.ser_header_parameters"
"""TIA's header of a series, and the tags of its images."""
_SPECTRA = ("EELS", "EDS", "CL")
"""Beginnings of its types of spectra."""
_WIDEST = 8
"""Bytes of the widest pixel."""


@dataclass(frozen=True, slots=True)
class Format:
    """A vendor's format: its name for people, and RosettaSciIO's reader."""

    name: str
    reader: str
    kind: str
    """For the record."""


_DM3 = Format("a DigitalMicrograph DM3 file", "digitalmicrograph", "dm3")
_DM4 = Format("a DigitalMicrograph DM4 file", "digitalmicrograph", "dm4")
_SER = Format("a TIA SER file", "tia", "ser")
_EMD = Format("an EMD file (Velox, NCEM)", "emd", "emd")
_HSPY = Format("a HyperSpy file", "hspy", "hspy")


def recognised(head: bytes, suffix: str) -> Format | None:
    """The format by the first bytes of a file; for HDF5 by its suffix, too."""
    if head.startswith(b"\0\0\0\x03") and head[8:12] in (b"\0\0\0\x01", b"\0\0\0\0"):
        return _DM3
    if head.startswith(b"\0\0\0\x04") and head[12:16] in (b"\0\0\0\x01", b"\0\0\0\0"):
        return _DM4
    if head.startswith(b"II\x97\x01"):
        return _SER
    if head.startswith(_HDF5):
        return {".emd": _EMD, ".hspy": _HSPY}.get(suffix.lower())
    return None


def installed() -> bool:
    """Whether RosettaSciIO is installed; does not load it."""
    return find_spec("rsciio") is not None


def missing(extensions: Iterable[str]) -> str | None:
    """If files with one of `extensions` need a reader that is not installed, one line with the way to install it."""
    named = [suffix for suffix in extensions if suffix in SUFFIXES]
    if not named or installed():
        return None
    return (
        f"{', '.join(named)} files will wait: their reader, RosettaSciIO, is not installed; to install it: {INSTALL}, "
        "then start the service again"
    )


def extent(head: bytes, form: Format, size: int) -> Extent:
    """The extent of a file by its header. Raises DamagedError if that is invalid (yet)."""
    match form.kind:
        case "dm3":
            end = int.from_bytes(head[4:8], "big") + 16
        case "dm4":
            end = int.from_bytes(head[4:12], "big") + 24
        case "ser":
            end = ser.end(head, size)
        case _:
            end = _end_of_hdf5(head, size)
    if not 0 < end < 1 << 62:
        raise DamagedError(f"the header of {form.name} makes no sense (yet)")
    return Extent(0, end, _TAIL)


def read(
    stream: BinaryIO,
    raw: RawFile,
    form: Format,
    max_pixels: int,
    section: int | None = None,
    *,
    decode: bool = True,
) -> Micrograph:
    """Read the one image in an open file, frames summed; `stream` is that of `raw`.

    Arguments and errors: as `tiff.read`.

    Raises ReaderMissingError where RosettaSciIO is not installed.
    """
    path = raw.path
    if not decode and installed():
        raise CodecNeededError
    try:
        reader = import_module(f"rsciio.{form.reader}") if decode else None
    except ImportError:
        reader = None
    if reader is None:
        raise ReaderMissingError(
            f"{path}: is {form.name} and waits for its reader, RosettaSciIO, which is not installed: {INSTALL}; then "
            "start the service again. Or export the file as TIFF or MRC"
        )
    size = os.fstat(stream.fileno()).st_size
    if form is _SER:
        ser.check(stream, size)
    options = {"select_type": "images"} if form is _EMD else {}
    # Read lazily, a SER file is read again for each frame, and a DM file that claims a billion pixels takes a minute to
    # divide into chunks before it can be refused.
    lazy = form in (_EMD, _HSPY) or (form is not _SER and size > _WIDEST * max_pixels)
    with tempfile.TemporaryDirectory() as folder:
        # A link to the open file: it cannot be replaced meanwhile, and a hostile name is not parsed.
        alias = Path(folder, f"image.{form.kind}")
        alias.symlink_to(f"/proc/self/fd/{stream.fileno()}")
        try:
            signals = reader.file_reader(str(alias), lazy=lazy, **options)
            if form is _EMD:
                uneven = berkeley.uneven_axes(str(alias))
                turned = berkeley.transposed(str(alias))
                signals = [
                    {**berkeley.without_steps(_sectioned(signal), uneven), _TURNED: turned} for signal in signals
                ]
            chosen, left_out = _choose(path, form, signals)
            emi = sidecars.emi_beside(raw) if form is _SER else None
            of_frames = velox.nature(str(alias), chosen["data"].shape) if form is _EMD else None
            return _micrograph(path, form, chosen, left_out, max_pixels, section, emi, of_frames)
        except (EmdenoisedError, MemoryError, DamagedError):
            raise
        except ImportError as error:  # the reader of spectrum images is not installed
            raise MicrographError(
                f"{path}: is {form.name} that holds spectra; save its image as a separate file"
            ) from error
        except Exception as error:  # RosettaSciIO raises various errors, OSError among them
            if isinstance(error, OSError) and may_pass(error):
                raise
            if _OTHER_HDF5.search(str(error)):
                raise MicrographError(
                    f"{path}: is an HDF5 file, but not {form.name}; give it the ending of its program's files (.emd, "
                    ".hspy), or export it as TIFF or MRC"
                ) from error
            raise DamagedError(f"RosettaSciIO cannot read it ({first_line(error)})") from error


def _choose(path: Path, form: Format, signals: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """The image of a file, and its other contents in words. Raises MicrographError unless there is one image."""
    images, others = [], []
    for signal in signals:
        what = _no_image(form, signal)
        if what is None:
            images.append(signal)
        else:
            others.append(what)
    if not images:
        raise MicrographError(f"{path}: {form.name} that holds {' and '.join(sorted(set(others))) or 'no image'}, "
                              "not a micrograph; it was left alone")  # fmt: skip
    if len(images) > 1:
        titles = ", ".join(_title(image) for image in images[:9])
        raise MicrographError(f"{path}: holds {len(images)} images ({titles}); save each one as a separate file")
    return images[0], others


def _no_image(form: Format, signal: Mapping[str, Any]) -> str | None:
    """What a signal is instead of an image or a stack of images, in words; None if it is one."""
    data, axes = signal["data"], signal["axes"]
    across = [axis for axis in axes if not axis.get("navigate", False)]
    if data.dtype.kind == "c" or vendor_tags.at(signal, "metadata.Signal.FFT") is not None:
        return "complex numbers (a Fourier transform or a wave)"
    if data.dtype.kind not in "iuf":
        return "colour" if data.dtype.names else "something other than numbers"
    if len(across) == 1 or (across and any("eV" in str(axis.get("units")) for axis in across)):
        return "a spectrum"
    if len(across) != 2 or data.ndim > 3:
        return f"{data.ndim}-dimensional data"
    # A map made from spectra may keep their type, but its axes have a length. DigitalMicrograph's images of other kinds
    # get such a type, too, from tags of the spectrometer.
    if form is _HSPY and str(vendor_tags.at(signal, _TYPE)).startswith(_SPECTRA) and _size(*across) is None:
        return "a spectrum"
    return None


def _micrograph(
    path: Path,
    form: Format,
    signal: Mapping[str, Any],
    left_out: list[str],
    max_pixels: int,
    section: int | None,
    emi: sidecars.EmiRecord | None,
    of_frames: stack.Stack | None = None,
) -> Micrograph:
    data, y, x = _upright(signal)
    _refuse_diffraction(path, form, signal, (y, x), emi)
    *_, height, width = data.shape
    stored = 1 if data.ndim == 2 else int(data.shape[0])
    check_plane(path, height, width)
    check_pixels(path, height, width, stored, max_pixels)
    chosen = range(stored) if section is None else pick_section(path, section, stored)
    pixels, warnings = sum_frames(_planes(data, chosen), chosen, stored)
    size, title = _size_of(signal, y, x), _title(signal)
    metadata: dict[str, Any] = {
        **frame_facts(chosen, stored, data.dtype, section),
        **({"title": title} if title else {}),
        **({} if size is None else {"pixel_size_from": f"{form.kind.upper()} header"}),
        **tiff_values.brightness(*vendor_tags.brightness(signal), len(chosen)),
    }
    if stored > 1:
        exposure = None if emi is None else emi.exposure(height * width)
        metadata = stack.merged(metadata, stack.weighed((_nature(form, signal, exposure), of_frames)))
    if left_out:
        warnings.append(f"left out of the file: {', '.join(sorted(set(left_out)))}")
    warnings += tail_remarks(pixels)
    how = vendor_tags.acquisition(signal) if emi is None else emi.taken
    return Micrograph(pixels, path, form.kind, size, metadata, tuple(warnings), how)


def _refuse_diffraction(
    path: Path,
    form: Format,
    signal: Mapping[str, Any],
    axes: tuple[Mapping[str, Any], Mapping[str, Any]],
    emi: sidecars.EmiRecord | None,
) -> None:
    """Raises MicrographError for axes y, x in reciprocal units, or without a length in a file that states diffraction.

    That is: they are called k or q, or DigitalMicrograph's mode of operation states it. HyperSpy's type of the signal
    alone is enough.
    """
    y, x = axes
    units = [str(axis.get("units") or "") for axis in axes]
    if (stated := vendor_tags.velox_size(signal)) is not None:
        units = list(stated[2:])
    if form is _SER and ((emi is not None and emi.diffraction) or _too_wide(x)):
        units = ["1/m", "1/m"]
    names = [str(axis.get("name") or "") for axis in axes]
    mode = str(vendor_tags.at(signal, _MODE))
    if "diffraction" in str(vendor_tags.at(signal, _TYPE)).lower():
        units = ["1/pixel", "1/pixel"]
    elif _size_of(signal, y, x) is None and (mode == "DIFFRACTION" or all(map(_FREQUENCY.fullmatch, names))):
        units = [unit if reciprocal(unit) else f"1/{unit or 'pixel'}" for unit in units]
    for unit in units:
        if reciprocal(unit):
            raise MicrographError(
                f"{path}: is a diffraction pattern (its pixels are measured in {unit}); it was left alone, because "
                "this denoiser is for images: move it to another folder"
            )


def _size_of(signal: Mapping[str, Any], y: Mapping[str, Any], x: Mapping[str, Any]) -> PixelSize | None:
    """The pixel size of an image with these axes."""
    stated = vendor_tags.velox_size(signal)
    return _size(y, x) if stated is None else pixel_size(*stated)


def _size(y: Mapping[str, Any], x: Mapping[str, Any]) -> PixelSize | None:
    """The pixel size that the axes state."""
    if y.get("scale") is None or x.get("scale") is None:
        return None
    down, across = (str(axis.get("units") or "") for axis in (y, x))
    high, wide = (abs(float(axis["scale"])) for axis in (y, x))  # an axis may run backwards
    if not down and high != wide:  # not calibrated
        return None
    return pixel_size(high, wide, across, down)


def _nature(form: Format, signal: Mapping[str, Any], exposure: float | None) -> stack.Stack | None:
    """The kind of a stack's sections, by the axis across them and by their own headers.

    `exposure`: seconds of each, if its .emi file states it.
    """
    own = vendor_tags.of_elements(signal)
    across = [axis for axis in signal["axes"] if axis.get("navigate", False)]
    if not across:
        return own
    name, unit = (str(across[0].get(key) or "") for key in ("name", "units"))
    name = "" if form in (_DM3, _DM4) else name  # RosettaSciIO always calls it z
    step = across[0].get("scale")
    by_axis = stack.of_axis(name, unit, f"{form.kind.upper()} axis", None if step is None else float(step))
    in_series = ser.nature(vendor_tags.at(signal, _SERIES) or {}, exposure) if form is _SER else None
    return stack.weighed((own, by_axis, in_series))


def _sectioned(signal: dict[str, Any]) -> dict[str, Any]:
    """A Berkeley EMD of three axes, of which two are called y and x: the third is across the sections.

    RosettaSciIO takes all of them for axes of one image.
    """
    axes = signal["axes"]
    kinds = [_letter(axis) for axis in axes]
    rows, columns = (sum(kind in names for kind in kinds) for names in (_ROWS, _COLUMNS))
    if (len(axes), rows, columns) != (3, 1, 1) or any(axis.get("navigate", False) for axis in axes):
        return signal
    named = zip(axes, kinds, strict=True)
    return {**signal, "axes": [{**axis, "navigate": kind not in (*_ROWS, *_COLUMNS)} for axis, kind in named]}


def _upright(signal: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any], Mapping[str, Any]]:
    """The data with rows before columns, and the axes y and x: by their names, if these identify them.

    RosettaSciIO takes the first dimension of older Berkeley EMD files for x, whatever it is called. Axes called Rx and
    Ry do not identify rows, which py4DSTEM numbers by Rx: they are the first dimension. Where the axis across the
    sections is not the first, it becomes the first.
    """
    axes = list(signal["axes"])
    order = sorted(range(len(axes)), key=lambda number: not axes[number].get("navigate", False))
    down, across = (axes[number] for number in order[-2:])
    data = signal["data"].transpose(order)
    if all(_SCANNED.fullmatch(str(axis.get("name"))) for axis in (down, across)):
        return (data.swapaxes(-1, -2), across, down) if signal.get(_TURNED) else (data, down, across)
    named = _letter(down), _letter(across)
    if (named[0] in _COLUMNS or named[1] in _ROWS) and not (named[0] in _ROWS or named[1] in _COLUMNS):
        return data.swapaxes(-1, -2), across, down
    return data, down, across


def _letter(axis: Mapping[str, Any]) -> str:
    """The essential part of an axis' name: "Y", "y axis" and "R_y" are y."""
    words = re.findall(r"[a-z]+", str(axis.get("name") or "").lower())
    return next((word for word in words if word in (*_ROWS, *_COLUMNS)), "")


def _too_wide(axis: Mapping[str, Any]) -> bool:
    """Whether a pixel is wider than a metre: SER files state metres or, unmarked, their inverse."""
    return float(axis.get("scale") or 0) * METRES.get(str(axis.get("units")), 0) > 1


def _planes(data: Any, chosen: range) -> Iterator[Pixels]:
    """One frame at a time: a long movie is never in memory as a whole."""
    for index in chosen:
        plane = data if data.ndim == 2 else data[index]
        # Otherwise Dask starts a thread for each core.
        yield np.asarray(plane.compute(scheduler="synchronous") if hasattr(plane, "compute") else plane)


def _title(signal: Mapping[str, Any]) -> str:
    return str(signal.get("metadata", {}).get("General", {}).get("title", "") or "")[:200]


def _end_of_hdf5(head: bytes, size: int) -> int:
    """The end-of-file address in an HDF5 superblock (versions 0 to 3)."""
    version = head[8]
    wide = head[13] if version < 2 else head[9]
    at = {0: 24, 1: 28}.get(version, 12) + (2 * wide)
    if wide not in (4, 8) or version > 3:
        return size  # a later version of HDF5
    return int.from_bytes(head[at : at + wide], "little")
