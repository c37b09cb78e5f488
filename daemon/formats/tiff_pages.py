"""The kind of a stack of TIFF pages by the headers that each page has of its own: detector, signal, stage, time."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import degrees, nan
from typing import Any

import numpy as np
import tifffile

from daemon.formats import section_headers, stack, tiff_tags, units
from daemon.formats.reading import number
from daemon.formats.section_headers import SectionHeader
from daemon.formats.stack import Stack
from daemon.formats.tiff_layout import TiffLayout
from daemon.formats.tiff_stack import EER
from daemon.micrograph import UNKNOWN, Acquisition

_COMPARED = 64
"""At most so many pages have their vendor's headers parsed."""
_TVIPS_AXES = 5
"""Numbers of TVIPS's position of the stage: x, y, z and two tilts."""
_MICRO_MANAGER, _METAMORPH = 51123, 33629
_POSITION = (286, 287)
"""TIFF's position of a page in a larger picture."""
_ORIENTATION = 274
_FORM = (42112, 65009, 65010, 65022, 65024)
"""GDAL's calibration of values; Gatan's pixel size and calibration of values."""
_PRINTED = (0, 1, 72, 96, 100, 150, 200, 300, 600, 1200)
"""Resolutions of screens and printers, which programs write by default."""


def nature(file: tifffile.TiffFile, layout: TiffLayout, pages: Sequence[int]) -> Stack | None:
    """The kind of the stack of these pages by the headers that each has of its own."""
    plain = [layout.pages[index] for index in pages]
    if layout.planes > 1:
        return _metamorph(file.pages[pages[0]])
    if len(pages) == 1 or plain[0].compression in EER:
        return None
    tagged = [
        SectionHeader(place, replace(UNKNOWN, recorded=page.recorded), page.signal) for place, page in enumerate(plain)
    ]
    return stack.weighed(
        (
            section_headers.nature(tagged, "the pages' own tags"),
            section_headers.nature(_by_vendor(file, pages), "the pages' own headers"),
        )
    )


def _metamorph(page: Any) -> Stack | None:
    """The kind of MetaMorph's planes by the times at which they were made (Julian days, milliseconds)."""
    stated = tiff_tags.of_page(page).get(_METAMORPH)
    if not isinstance(stated, Mapping):
        return None
    days, milliseconds = (np.ravel(stated.get(key, ())).astype(float) for key in ("DateCreated", "TimeCreated"))
    found = stack.of_times("MetaMorph tags", np.diff(days * 86400 + milliseconds / 1000).tolist())
    return found if found.are != "frames" else None


def _by_vendor(file: tifffile.TiffFile, pages: Sequence[int]) -> list[SectionHeader]:
    """The headers of first, last and some pages between."""
    step = -(-len(pages) // _COMPARED)
    found: list[SectionHeader] = []
    for place in sorted({*range(0, len(pages), step), len(pages) - 1}):
        page = file.pages[pages[place]]
        if not isinstance(page, tifffile.TiffPage):
            continue
        found.append(_of_tags(place, tiff_tags.of_page(page)))
    return found


def _of_tags(place: int, tags: Mapping[int, Any]) -> SectionHeader:
    manager = tags.get(_MICRO_MANAGER)
    stated: Mapping[str, Any] = manager if isinstance(manager, Mapping) else {}
    taken: Acquisition = tiff_tags.acquisition(tags, str(tags.get(270, "")))
    if taken.recorded is None and isinstance(stated.get("Time"), str):
        taken = replace(taken, recorded=stated["Time"])
    return SectionHeader(
        place,
        taken,
        _signal(tags) or str(stated.get("Channel") or ""),
        _stage(tags, stated),
        _tilt(tags),
        place=tuple(str(tags.get(code, "")) for code in _POSITION),
        form=(
            str(tags.get(_ORIENTATION, 1)),
            *map(_fine, (tags.get(282), tags.get(283))),
            *(str(tags.get(code, "")) for code in _FORM),
        ),
    )


def _fine(resolution: Any) -> str:
    """A resolution that is no default of a program; empty for others."""
    match resolution:
        case (int(pixels), int(units)) if units > 0 and pixels / units not in _PRINTED:
            return f"{pixels / units:.6g}"
    return ""


def _signal(tags: Mapping[int, Any]) -> str:
    """FEI's signal (SE, BSE) of the detector that its header names."""
    fei = tiff_tags.header(tags, *tiff_tags.FEI)
    detectors = fei.get("Detectors")
    if not isinstance(detectors, Mapping):
        return ""
    own = fei.get(str(detectors.get("Name")))
    stated = own.get("Signal") if isinstance(own, Mapping) else None
    return str(stated or detectors.get("Signal") or detectors.get("Mode") or "")


def _stage(tags: Mapping[int, Any], manager: Mapping[str, Any]) -> tuple[float, float]:
    """Position of the stage, metres, by the headers of FEI, Thermo Fisher, Tescan and Zeiss, and by Micro-Manager's.

    NaN if not stated.
    """
    fei = tiff_tags.header(tags, *tiff_tags.FEI).get("Stage")
    tescan, xml = tiff_tags.tescan(tags), tiff_tags.fei_xml(tags)
    zeiss = tiff_tags.header(tags, tiff_tags.ZEISS)
    x, y = (
        next(
            (
                place
                for place in (
                    _metres(fei.get(f"Stage{axis}"), "m") if isinstance(fei, Mapping) else None,
                    _metres(tescan.get(f"Stage{axis}"), "m"),
                    _metres(manager.get(f"{axis}PositionUm"), "um"),
                    _metres(xml.get(f"Stage {axis} um"), "um"),
                    _zeiss(zeiss.get(f"ap_stage_at_{axis.lower()}")),
                )
                if place is not None
            ),
            nan,
        )
        for axis in "XY"
    )
    return x, y


def _tilt(tags: Mapping[int, Any]) -> float:
    """Tilt of the stage, degrees, by the headers of FEI (radians), TVIPS and Zeiss; NaN if not stated."""
    fei, zeiss, tvips = (
        tiff_tags.header(tags, *codes) for codes in (tiff_tags.FEI, (tiff_tags.ZEISS,), (tiff_tags.TVIPS,))
    )
    if len(position := np.ravel(tvips.get("TemStagePosition", ()))) == _TVIPS_AXES:
        return float(position[3])
    stage, entry = fei.get("Stage"), zeiss.get("ap_stage_at_t")
    if isinstance(stage, Mapping) and isinstance(stage.get("StageT"), int | float):
        return degrees(stage["StageT"])
    return float(entry[1]) if isinstance(entry, tuple) and isinstance(entry[1], int | float) else nan


def _metres(value: Any, unit: str) -> float | None:
    known = number(str(value)) if isinstance(value, int | float | str) else None
    return None if known is None else units.metres(known, unit)


def _zeiss(entry: Any) -> float | None:
    return _metres(entry[1], str(entry[2])) if isinstance(entry, tuple) and len(entry) > 2 else None
