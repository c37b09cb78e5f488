"""What the header of each page of a TIFF states: detectors, signals, stage and times tell what they are."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import degrees, nan
from typing import Any

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


def nature(file: tifffile.TiffFile, layout: TiffLayout, pages: Sequence[int]) -> Stack | None:
    """The kind of the stack of these pages by the headers that each has of its own."""
    plain = [layout.pages[index] for index in pages]
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


def _by_vendor(file: tifffile.TiffFile, pages: Sequence[int]) -> list[SectionHeader]:
    """The vendor's headers of first, last and some pages between; none if the first has none."""
    step = -(-len(pages) // _COMPARED)
    found: list[SectionHeader] = []
    for place in sorted({*range(0, len(pages), step), len(pages) - 1}):
        page = file.pages[pages[place]]
        if not isinstance(page, tifffile.TiffPage):
            continue
        one = _of_tags(place, tiff_tags.of_page(page))
        if one.taken != UNKNOWN:
            found.append(one)
        elif not found:
            break
    return found


def _of_tags(place: int, tags: Mapping[int, Any]) -> SectionHeader:
    taken: Acquisition = tiff_tags.acquisition(tags, str(tags.get(270, "")))
    return SectionHeader(place, taken, _signal(tags), _stage(tags), _tilt(tags))


def _signal(tags: Mapping[int, Any]) -> str:
    """FEI's signal (SE, BSE) of the detector that its header names."""
    fei = tiff_tags.header(tags, *tiff_tags.FEI)
    detectors = fei.get("Detectors")
    if not isinstance(detectors, Mapping):
        return ""
    own = fei.get(str(detectors.get("Name")))
    stated = own.get("Signal") if isinstance(own, Mapping) else None
    return str(stated or detectors.get("Signal") or detectors.get("Mode") or "")


def _stage(tags: Mapping[int, Any]) -> tuple[float, float]:
    """Position of the stage, metres, by the headers of FEI, Thermo Fisher, Tescan and Zeiss; NaN if not stated."""
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
    """Tilt of the stage, degrees, by the headers of FEI (radians) and Zeiss; NaN if not stated."""
    fei, zeiss = (tiff_tags.header(tags, *codes) for codes in (tiff_tags.FEI, (tiff_tags.ZEISS,)))
    stage, entry = fei.get("Stage"), zeiss.get("ap_stage_at_t")
    if isinstance(stage, Mapping) and isinstance(stage.get("StageT"), int | float):
        return degrees(stage["StageT"])
    return float(entry[1]) if isinstance(entry, tuple) and isinstance(entry[1], int | float) else nan


def _metres(value: Any, unit: str) -> float | None:
    known = number(str(value)) if isinstance(value, int | float | str) else None
    return None if known is None else units.metres(known, unit)


def _zeiss(entry: Any) -> float | None:
    return _metres(entry[1], str(entry[2])) if isinstance(entry, tuple) and len(entry) > 2 else None
