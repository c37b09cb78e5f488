"""Selects the pages of a TIFF that are the micrograph, and classifies several of them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from daemon.errors import MicrographError
from daemon.formats import ome, stack, tiff_description
from daemon.formats.reading import DamagedError, number
from daemon.formats.stack import Stack
from daemon.formats.tiff_description import Axis
from daemon.formats.tiff_layout import PageLayout, TiffLayout

EER = (65000, 65001, 65002)
"""Thermo Fisher's compressions of electron events."""
_COLOURED = {
    2: "RGB colour",
    5: "CMYK colour",
    6: "YCbCr colour",
    8: "Lab colour",
    9: "Lab colour",
    32803: "a colour mosaic",
}
_FLOAT = 3
_MASK = 4
_REDUCED, _TRANSPARENCY = 1, 4
_LISTED = 4
_AXES = {"A": "angle", "E": "lambda", "H": "lifetime", "L": "exposure", "M": "mosaic", "P": "phase", "R": "tile",
         "V": "event"}  # fmt: skip
"""Of tifffile's letters those that `stack.of_axis` does not know."""
_LABELS = 50839
"""ImageJ's tag of further metadata, as tifffile parses it."""
_DERIVED = re.compile(
    r"(?<![^\W\d_])(i?fft|dft|fourier|power[ _-]?spectr(um|a)|diffractogram|(auto|cross)[ _-]?correlation|thumb(nail)?"
    r"|icon|preview|masks?|labels?|segmentation|annotations?|overlay|histogram)(?![^\W\d_])",
    re.IGNORECASE,
)
"""Words in the name of a page that is made from the micrograph."""
_SMALL, _SMALLEST = 1 / 4, 1 / 16
"""Shares of the chosen page's area: smaller pages are thumbnails; the second where that one is floating-point."""
_COUNT = re.compile(r"\d{1,9}", re.ASCII)


def choose(path: Path, layout: TiffLayout) -> list[int]:
    """Indices of the pages that are the micrograph: the largest and deepest greyscale ones, all of one shape and type.

    Raises MicrographError if there is none or the choice is not clear; DamagedError for a frame unlike the others.
    """
    full = _full_size(path, layout)
    pages = {index: layout.pages[index] for index in full}
    deepest = max(page.bits for page in pages.values())
    largest = max(_area(page) for page in pages.values())
    best = {_kind(page) for page in pages.values() if _rank(page) == (deepest, largest)}
    hidden = [page for page in layout.inner if _refusal(page) is None and not page.subfile & _REDUCED]
    if len(best) != 1 or any(page.bits > deepest or _area(page) > largest for page in hidden):
        raise unclear(path, [*pages.values(), *hidden])
    (main,) = best
    chosen = [index for index, page in pages.items() if _kind(page) == main]
    for index, page in pages.items():
        # A thumbnail is before or after a stack; a different page within it is a damaged frame.
        if _kind(page) != main and chosen[0] < index < chosen[-1]:
            raise DamagedError(
                f"page {index + 1} of the TIFF ({page.height} x {page.width}, {page.bits} bits) is unlike the other "
                "frames of the stack"
            )
    return chosen


def unclear(path: Path, pages: Iterable[PageLayout]) -> MicrographError:
    """For pages of several kinds, where the file does not state which is the micrograph."""
    kinds = "; ".join(list(dict.fromkeys(f"{p.height} x {p.width}, {p.bits} bits" for p in pages))[:_LISTED])
    return MicrographError(
        f"{path}: holds images of several kinds ({kinds}), and does not state which is the micrograph; "
        "save that one as a separate file"
    )


def doubtful(path: Path, layout: TiffLayout, chosen: Sequence[int]) -> list[int]:
    """Indices of the pages that may be the micrograph instead of the chosen ones, unless they are copies of these.

    The deepest page may be one that was made from the micrograph, such as its Fourier transform.
    """
    main = layout.pages[chosen[0]]
    found = []
    for index in _full_size(path, layout):
        page = layout.pages[index]
        small = (_SMALLEST if main.sample_format == _FLOAT else _SMALL) * _area(main)
        if _kind(page) != _kind(main) and _area(page) > small:
            found.append(index)
    return found


def _full_size(path: Path, layout: TiffLayout) -> list[int]:
    """Indices of the greyscale pages, without thumbnails, spectra and masks where there are others.

    Raises MicrographError if there is none.
    """
    refusals = [_refusal(page) for page in layout.pages]
    grey = [index for index, refusal in enumerate(refusals) if refusal is None]
    if not grey:
        raise MicrographError(
            f"{path}: holds {refusals[0]}, not one intensity per pixel; export it as greyscale, 8, 16 or 32 bit"
        )
    full = [index for index in grey if not layout.pages[index].subfile & _REDUCED] or grey
    return [index for index in full if not _DERIVED.search(layout.pages[index].name)] or full


def _kind(page: PageLayout) -> tuple[int, ...]:
    return page.height, page.width, page.depth, page.bits, page.sample_format, page.photometric == 0


def _area(page: PageLayout) -> int:
    return page.height * page.width


def _rank(page: PageLayout) -> tuple[int, int]:
    return page.bits, _area(page)


def _refusal(page: PageLayout) -> str | None:
    """The reason why a page is no micrograph, or None."""
    if page.photometric in _COLOURED:
        return _COLOURED[page.photometric]
    if page.samples > 1:
        return f"{page.samples} values per pixel"
    if page.bits == 1 and page.compression not in EER:
        return "a black-and-white drawing (1 bit)"
    if page.sample_format in (5, 6):
        return "complex numbers (a Fourier transform or a wave)"
    if page.photometric == _MASK or page.subfile & _TRANSPARENCY:
        return "a transparency mask"
    return None


def refuse_channels(path: Path, text: str, page: PageLayout, stored: int) -> None:
    """Raises MicrographError for `stored` planes that are several channels, by the description of their file."""
    sizes = _imagej(text) if text.startswith("ImageJ=") else _ome(text, page)
    axes = str(tiff_description.shaped(text).get("axes", ""))
    across = {*_shaped_axes(text), *(axis.name for axis in _scifio(text))}
    if stored > 1 and (sizes.get("C", 1) > 1 or {"C", "S", "Channel"} & across):
        raise MicrographError(f"{path}: holds several channels; save each channel as a file of its own")
    if {"Y", "X"} <= set(axes) and set(axes.rstrip("CS")[-2:]) != {"Y", "X"}:
        raise MicrographError(
            f"{path}: its pages are no images by its own description (axes {axes}); save it with y and x as "
            "the last axes"
        )


def nature(layout: TiffLayout, pages: list[int], tags: Mapping[int, Any]) -> Stack | None:
    """The kind of the stack of these pages; None if the file and its description do not state it."""
    text, page = layout.description, layout.pages[pages[0]]
    if page.compression in EER:
        return Stack("frames", "EER")
    return stack.weighed(
        (
            Stack("slices", "TIFF volume") if page.depth > 1 else None,
            _of_sizes(_imagej(text), "ImageJ", _imagej_steps(text)) if text.startswith("ImageJ=") else None,
            _of_sizes(_ome(text, page), "OME", *ome.times(text, (page.height, page.width))),
            ome.nature(text, (page.height, page.width)),
            *(stack.of_axis(_AXES.get(axis, axis), "", "tifffile") for axis in _shaped_axes(text)),
            *(stack.of_axis(axis.name, axis.unit, "SCIFIO", axis.step) for axis in _scifio(text)),
            stack.of_axis("", tags[65005], "Gatan tags") if isinstance(tags.get(65005), str) else None,
            stack.of_words(text, "TIFF description"),
            stack.of_names([layout.pages[index].name for index in pages], "names of its pages"),
            stack.of_names(_labels(tags), "ImageJ labels"),
        )
    )


def _imagej(text: str) -> dict[str, int]:
    found = dict(re.findall(r"^(slices|frames|channels)=(\d{1,9})\s*$", text, re.MULTILINE))
    return {{"slices": "Z", "frames": "T", "channels": "C"}[name]: int(number) for name, number in found.items()}


def _ome(text: str, page: PageLayout) -> dict[str, int]:
    """Sizes of the first image of this shape in an OME description, and how many there are ("images")."""
    found = ome.images(text, (page.height, page.width))
    sizes = {axis: found[0].get(f"Size{axis}", "") for axis in "ZTC"} if found else {}
    return {**{axis: int(size) for axis, size in sizes.items() if _COUNT.fullmatch(size)}, "images": len(found)}


def _imagej_steps(text: str) -> list[float]:
    """Seconds from one frame to the next, if stated."""
    stated = dict(re.findall(r"^(finterval|fps|tunit)=(.{1,40}?)\s*$", text, re.MULTILINE))
    if interval := number(stated.get("finterval")):
        step = stack.seconds(interval, stated.get("tunit", "sec"))
        return [] if step is None else [step]
    rate = number(stated.get("fps"))
    return [1 / rate] if rate else []


def _labels(tags: Mapping[int, Any]) -> list[str]:
    """ImageJ's labels of the sections."""
    labels = tags[_LABELS].get("Labels") if isinstance(tags.get(_LABELS), Mapping) else None
    # Further lines hold metadata, which ImageJ does not show as the label.
    return [str(label).partition("\n")[0] for label in labels] if isinstance(labels, list) else []


def _of_sizes(sizes: Mapping[str, int], by: str, steps: Sequence[float], exposure: float | None = None) -> Stack | None:
    if sizes.get("images", 1) > 1:
        return Stack("exposures", by)
    if sizes.get("Z", 1) > 1:
        return Stack("slices", by)
    return stack.of_times(by, steps, exposure) if sizes.get("T", 1) > 1 else None


def _scifio(text: str) -> list[Axis]:
    """The axes across the pages that SCIFIO's description names, those longer than 1."""
    return [axis for axis in tiff_description.scifio(text) if axis.size > 1 and axis.name not in ("X", "Y")]


def _shaped_axes(text: str) -> list[str]:
    """The axes across the pages that tifffile's own description names, those longer than 1."""
    stated = tiff_description.shaped(text)
    axes, shape = stated.get("axes"), stated.get("shape")
    if not (isinstance(axes, str) and isinstance(shape, list) and len(axes) == len(shape)):
        return []
    return [axis for axis, number in zip(axes, shape, strict=True) if number != 1 and axis not in "YX"]
