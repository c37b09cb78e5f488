"""Reads extended headers of MRC files (Thermo Fisher, SerialEM, the older Agard form): how sections were taken."""

from collections.abc import Sequence
from itertools import pairwise
from math import isclose
from typing import Any, BinaryIO

import numpy as np
from mrcfile.dtypes import get_ext_header_dtype

from daemon.formats import stack
from daemon.formats.stack import Stack
from daemon.formats.units import convert, pixel_size
from daemon.micrograph import UNKNOWN, Acquisition, PixelSize

HEADER_BYTES = 1024
_PLACEHOLDER = 1e-10
"""Metres: what programs write that do not know the pixel size."""
_MOST = 1 << 24
"""Bytes of an extended header that are read, at most."""
_SERIALEM = ((1, 1), (2, 3), (4, 2), (8, 1), (16, 1), (32, 2))
"""SerialEM's flags and the number of 16-bit numbers of each: tilt, piece, stage, magnification, intensity, dose."""
_TECNAI = 1 << 17
"""Bytes of the extended header of FEI's older software: 1024 records of 32 floating-point numbers."""
_FOCUS = 8
"""Decimals of a defocus in metres: readings of one setting differ by less than 10 nm."""
_DETECTOR = ("Camera name", "STEM Detector name")
_FIRST_DAY, _LAST_DAY, _DAY = 3e4, 8e4, 86400.0
"""Days since 30 December 1899 that may be a time of acquisition (1982 to 2119), and seconds of a day."""
_DEGREES = 0.01
"""SerialEM counts tilt angles in hundredths of a degree."""


def acquisition(stream: BinaryIO, header: Any, section: int, size: PixelSize | None) -> Acquisition:
    """The acquisition of a section, counted from 0; all unknown without an extended header."""
    if _serialem_form(header) is not None:
        return _of_serialem(stream, header, section, size)
    record = _thermo_fisher(stream, header, section)
    if record is None:
        return UNKNOWN
    area = None if size is None else convert(size, "m")
    return Acquisition.stated(
        voltage_kv=float(record["HT"]) * 1e-3,
        magnification=float(record["Magnification"]),
        exposure_seconds=float(record["Integration time"]) or float(record["Dwell time"]),
        microscope=_text(record, "Microscope type"),
        detector=_text(record, *_DETECTOR),
        electrons_per_pixel=None if area is None else float(record["Dose"]) * area.x * area.y,
    )


def _text(record: Any, *names: str) -> str | None:
    """The first of these fields that is not empty."""
    words = (bytes(record[name]).split(b"\0")[0].decode("latin-1").strip() for name in names)
    return next((word for word in words if word), None)


def stated_size(stream: BinaryIO, header: Any) -> PixelSize | None:
    """Pixel size of the first section by Thermo Fisher's extended header, in metres."""
    record = _thermo_fisher(stream, header, 0)
    if record is None:
        return None
    y, x = (float(record[name]) for name in ("Pixel size Y", "Pixel size X"))
    placeholder = all(isclose(side, _PLACEHOLDER, rel_tol=1e-6) for side in (y, x))
    return None if placeholder else pixel_size(y, x, "m")


def nature(stream: BinaryIO, header: Any, stored: int) -> Stack | None:
    """The kind of the `stored` sections; None if the extended header does not state it."""
    if stored < 2:
        return None
    form = _serialem_form(header)
    if form is not None:
        return _serialem_nature(stream, header, stored, *form)
    angles = _agard_tilts(stream, header, stored)
    if angles is not None:
        return stack.of_tilts(angles, "tilt angles of the extended header")
    return _thermo_fisher_nature(stream, header, stored)


def _serialem_nature(stream: BinaryIO, header: Any, stored: int, length: int, flags: int) -> Stack | None:
    found = [_numbers(stream, header, number, length, flags) for number in range(min(stored, _MOST // length))]
    records = [one for one in found if one]
    if len(records) < 2:
        return None
    by = "SerialEM extended header"
    return stack.weighed(
        (
            stack.of_places((tuple(one[2]) for one in records if 2 in one), "pieces", by),
            stack.of_tilts((one[1][0] * _DEGREES for one in records if 1 in one), by),
            Stack("exposures", by),  # frames of one exposure have no separate records
        )
    )


def _thermo_fisher_nature(stream: BinaryIO, header: Any, stored: int) -> Stack | None:
    records = []
    for number in range(min(stored, _MOST >> 10)):
        one = _thermo_fisher(stream, header, number)
        if one is None:
            break
        records.append(one)
    if len(records) < 2:
        return None
    by = "Thermo Fisher extended header"
    fraction = any("Is dose fraction" in one.dtype.names and bool(one["Is dose fraction"]) for one in records)
    places = [(float(one["X-Stage"]), float(one["Y-Stage"])) for one in records]
    detectors = [_text(one, *_DETECTOR) or "" for one in records]
    optics = {(float(one["Magnification"]), round(float(one["Defocus"]), _FOCUS)) for one in records}
    return stack.weighed(
        (
            *(stack.of_tilts((float(one[axis]) for one in records), by) for axis in ("Alpha tilt", "Beta tilt")),
            stack.of_signals(detectors, by),
            Stack("frames", by) if fraction else stack.of_stage(places, by),
            None if fraction else stack.of_places(optics, "exposures", by),
            None if fraction else _in_time(records, by),
        )
    )


def _in_time(records: Sequence[Any], by: str) -> Stack | None:
    """Exposures, where times (days, as Windows counts them) are far apart; times that cannot be are not known."""
    days = [float(one["Timestamp"]) for one in records]
    if not all(_FIRST_DAY < day < _LAST_DAY for day in days):
        return None
    found = stack.of_times(by, [(later - earlier) * _DAY for earlier, later in pairwise(days)])
    return found if found.are != "frames" else None


def _thermo_fisher(stream: BinaryIO, header: Any, section: int) -> Any:
    """Thermo Fisher's record of a section, or None."""
    form = get_ext_header_dtype(bytes(header["exttyp"]), header.dtype["nx"].byteorder)
    if form is None or bytes(header["exttyp"])[:3] != b"FEI":
        return None
    if int(header["nsymbt"]) < (section + 1) * form.itemsize:
        return None
    stream.seek(HEADER_BYTES + section * form.itemsize)
    data = stream.read(form.itemsize)
    return None if len(data) < form.itemsize else np.frombuffer(data, form)[0]


def _serialem_form(header: Any) -> tuple[int, int] | None:
    """Bytes of each section's record, and flags of its numbers; None if the extended header is not SerialEM's.

    Headers before 2014 have no name; there the flags must account for all bytes (IMOD's description of the MRC format).
    """
    order = header.dtype["nx"].byteorder
    length, flags = (int(n) for n in np.frombuffer(bytes(header["extra2"]), np.dtype("i2").newbyteorder(order), 2, 16))
    if length <= 0 or length > int(header["nsymbt"]):
        return None
    named = bytes(header["exttyp"])
    accounted = sum(2 * words for flag, words in _SERIALEM if flags & flag)
    if named == b"SERI" or (not named.strip(b"\0 ") and 0 < flags < 64 and accounted == length):
        return length, flags
    return None


def _numbers(stream: BinaryIO, header: Any, section: int, length: int, flags: int) -> dict[int, list[int]]:
    """A section's 16-bit numbers, by their flag; empty if the header ends before them."""
    if int(header["nsymbt"]) < (section + 1) * length:
        return {}
    stream.seek(HEADER_BYTES + section * length)
    data = stream.read(length // 2 * 2)
    numbers = np.frombuffer(data[: len(data) // 2 * 2], np.dtype("i2").newbyteorder(header.dtype["nx"].byteorder))
    found: dict[int, list[int]] = {}
    at = 0
    for flag, words in _SERIALEM:
        if flags & flag and at + words <= len(numbers):
            found[flag] = [int(number) for number in numbers[at : at + words]]
            at += words
    return found


def _of_serialem(stream: BinaryIO, header: Any, section: int, size: PixelSize | None) -> Acquisition:
    form = _serialem_form(header)
    found = {} if form is None else _numbers(stream, header, section, *form)
    area = None if size is None else convert(size, "angstrom")
    dose = None
    if 32 in found:  # electrons per square angstrom: 24 bits and a power of two, in two short numbers
        first, second = found[32]
        value = abs(first) * 256 + abs(second) % 256
        dose = (-value if first < 0 else value) * 2.0 ** (-(abs(second) // 256) if second < 0 else second // 256)
    return Acquisition.stated(
        magnification=found[8][0] * 100 if 8 in found else None,
        electrons_per_pixel=None if area is None or dose is None else dose * area.x * area.y,
    )


def _agard_tilts(stream: BinaryIO, header: Any, stored: int) -> list[float] | None:
    """Tilt angles by the older form: of each section the first floating-point number, after its integers."""
    order = header.dtype["nx"].byteorder
    ints, floats = (int(n) for n in np.frombuffer(bytes(header["extra2"]), np.dtype("i2").newbyteorder(order), 2, 16))
    if (ints, floats, int(header["nsymbt"])) == (0, 0, _TECNAI):  # which does not state the length of a record
        floats = 32
    if bytes(header["exttyp"]).strip(b"\0 ") not in (b"", b"AGAR", b"MRCO") or ints < 0 or not 0 < floats <= 1024:
        return None
    length = 4 * (ints + floats)
    number = min(stored, int(header["nsymbt"]) // length, _MOST // length)
    stream.seek(HEADER_BYTES)
    data = stream.read(number * length)
    if number < 2 or len(data) < number * length:
        return None
    records = np.frombuffer(data, np.dtype("f4").newbyteorder(order)).reshape(number, -1)
    return [float(angle) for angle in records[:, ints] if np.isfinite(angle)]
