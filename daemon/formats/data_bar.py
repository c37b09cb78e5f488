"""Finds the data bar, the strip of letters and scale that SEM software draws into an image.

Vendors state the height of the picture or of the bar, in tags or in a text file beside the image. Otherwise a bar is
only suspected, by its appearance: letters of one value on a background of one value, up to any edge of the
image; a picture with noise never has so many equal pixels in each of its rows.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.formats import drawings, sidecars, tiff_tags
from daemon.formats.raw_file import RawFile
from daemon.micrograph import Micrograph, Pixels

_TALLEST = 0.4
"""Largest share of the image's height."""
_LEAST = 8
"""Fewest rows of a bar."""
_FRAME = 3
"""Rows of a frame around it."""
_FLAT, _TWO = 0.5, 0.8
"""Smallest share of background, and of background and ink together, in most rows of a bar."""
_PICTURE = 0.35
"""Largest share of one value in most rows of the picture: counts of 0 are no bar."""
_APART, _APART_ASIDE = 0.2, 0.5
"""Smallest difference of ink and background, as a share of the image's range; and that of a bar at the side: there bars
are rare, and empty parts of images of few counts as frequent as below."""
_INK = 0.3
"""Smallest share of one value in the letters' pixels; smoothed letters have several values."""


def of_tags(tags: Mapping[int, Any], height: int) -> dict[str, Any]:
    """For a micrograph's metadata: the bar that a TIFF's tags state; empty without one."""
    header = tiff_tags.header(tags, *tiff_tags.FEI)
    picture, bar = (_part(header, *place) for place in (("Image", "ResolutionY"), ("PrivateFei", "DatabarHeight")))
    for by, first in (
        ("FEI tags", picture or _less(height, bar)),
        ("Thermo Fisher XML", _less(height, _number(tiff_tags.fei_xml(tags).get("databarHeight")))),
        ("Tescan tags", _less(height, _number(tiff_tags.tescan(tags).get("ImageStripSize")))),
        ("Zeiss tags", _zeiss(tiff_tags.header(tags, tiff_tags.ZEISS))),
    ):
        if found := _rows(first, height, by):
            return found
    return {}


def located(micrograph: Micrograph, raw: RawFile) -> Micrograph:
    """The micrograph with its bar in `metadata["data_bar"]`: first and last row or column, and source ("": suspected).

    Without one, `metadata["scale_bar"]` has the rows and columns of what looks like a scale bar within the picture.
    """
    if "data_bar" in micrograph.metadata:
        return micrograph
    height, width = micrograph.pixels.shape
    # Zeiss's tags state no height, but Zeiss's software draws a bar into the picture.
    by = "Zeiss tags and its look" if micrograph.metadata.get("pixel_size_from") == "Zeiss tags" else ""
    found = _beside(raw, height, width) or _suspected(micrograph.pixels, by)
    found = found or drawings.scale_bar(micrograph.pixels)
    return replace(micrograph, metadata={**micrograph.metadata, **found}) if found else micrograph


def _beside(raw: RawFile, height: int, width: int) -> dict[str, Any]:
    """The bar by the text file of JEOL or Hitachi (`name.txt`) or Tescan (`name-tif.hdr`) beside the image."""
    path = raw.path
    ending = path.suffix.removeprefix(".")
    for name in (path.with_suffix(".txt").name, f"{path.stem}-{ending}.hdr", f"{path.stem}.hdr"):
        data = raw.beside(name)
        if data is None:
            continue
        text = sidecars.decoded(data, "latin-1")
        for by, pattern in (
            ("JEOL text file", r"^\s*\$CM_FULL_SIZE\s+(\d{1,6})\s+(\d{1,6})\s*$"),
            ("Hitachi text file", r"^\s*DataSize\s*=\s*(\d{1,6})\s*x\s*(\d{1,6})\s*$"),
        ):
            match = re.search(pattern, text, re.MULTILINE)
            if match and int(match[1]) == width and (found := _rows(int(match[2]), height, by)):
                return found
        strip = re.search(r"^\s*ImageStripSize\s*=\s*(\d{1,6})\s*$", text, re.MULTILINE)
        if strip and (found := _rows(_less(height, int(strip[1])), height, "Tescan header")):
            return found
    return {}


def _suspected(pixels: Pixels, by: str) -> dict[str, Any]:
    """A bar at the lower, upper, right or left edge, by its appearance. `by`: the source for one below or above."""
    for lines, turned, source, apart in (("rows", pixels, by, _APART), ("columns", pixels.T, "", _APART_ASIDE)):
        for reverse in (False, True):
            upright = turned[::-1] if reverse else turned
            number = _lettered(upright, apart)
            if not number and (within := _lettered(upright[: -(_FRAME + 1)], apart)):
                number = within + _FRAME + 1  # a frame, or lines of another kind, between it and the edge
            if number:
                first = 0 if reverse else len(turned) - number
                return {"data_bar": {lines: [first, first + number - 1], "by": source}}
    return {}


def _lettered(pixels: Pixels, apart: float) -> int:
    """Number of last rows that look like a bar; 0: none. `apart`: as `_APART`."""
    height = len(pixels)
    most = int(_TALLEST * height)
    if most < 2 * _LEAST:
        return 0
    lower = pixels[height - most :]
    background = _mode(lower[-_LEAST:])
    if (lower[-_LEAST:] == background).mean() < _FLAT / 2:
        return 0  # as in almost every image; the test is fast
    last = (lower[-2 * _LEAST :] == background).mean(axis=1)
    if _run(last[::-1] >= _FLAT) < _LEAST:
        return 0  # as in images of few counts
    flat = (lower == background).mean(axis=1)
    rows = _run(flat[::-1] >= _FLAT)
    if rows < _LEAST or rows == most:
        return 0
    for row in lower[-rows - _FRAME : -rows][::-1]:
        if (row == _mode(row)).mean() < _TWO:
            break
        rows += 1
    bar, above = lower[-rows:], pixels[: height - rows]
    if float(np.median([(row == _mode(row)).mean() for row in above[:: max(1, len(above) // 32)]])) > _PICTURE:
        return 0
    letters = bar[bar != background]
    if not len(letters):
        return 0
    ink = _mode(letters)
    low, high = (float(end) for end in np.percentile(pixels[:: max(1, height // 256)], (0.5, 99.5)))
    inked = bar == ink
    beside = inked[:, 1:] & inked[:, :-1]
    if (
        abs(float(ink) - float(background)) < apart * (high - low)
        or float((letters == ink).mean()) < _INK
        or float(beside.sum()) < 0.25 * float(inked.sum())
        or float((((bar == background) | inked).mean(axis=1) >= _TWO).mean()) < 0.5
    ):
        return 0
    return rows


def _run(flat: NDArray[np.bool_]) -> int:
    """Number of flat rows from the first; up to two others in turn may be a frame or the scale bar."""
    length = 0
    for start in range(len(flat)):
        if flat[start]:
            length = start + 1
        elif start - length >= 2:
            break
    return length


def _mode(values: Pixels) -> Any:
    found, numbers = np.unique(values, return_counts=True)
    return found[numbers.argmax()]


def _rows(first: int | None, height: int, by: str) -> dict[str, Any]:
    """The rows from `first` on, if they can be a bar."""
    if first is None or not 0 < height - first <= _TALLEST * height:
        return {}
    return {"data_bar": {"rows": [first, height - 1], "by": by}}


def _less(height: int, bar: int | None) -> int | None:
    return height - bar if bar else None


def _zeiss(header: Mapping[str, Any]) -> int | None:
    """The height of the picture as stored, without the rows below it."""
    stored = header.get("dp_image_store")
    match = re.fullmatch(r"\s*\d+\s*\*\s*(\d{1,6})\s*", str(stored[1])) if isinstance(stored, tuple) else None
    return int(match[1]) if match else None


def _part(header: Any, section: str, key: str) -> int | None:
    inner = header.get(section)
    return _number(inner.get(key)) if isinstance(inner, Mapping) else None


def _number(value: Any) -> int | None:
    """A whole number above 0."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number > 0 else None
