"""What OME's XML, in the description of a TIFF, states of its images."""

import re
from collections.abc import Mapping
from itertools import pairwise
from math import nan

from daemon.formats import stack, units
from daemon.formats.reading import number
from daemon.formats.stack import Stack

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b([^<>]*)")
_PLANE = re.compile(r"<(?:\w+:)?Plane\b([^<>]*)")
_MODULO = re.compile(r"<(?:\w+:)?ModuloAlong[ZTC]\b([^<>]*)")
_IMAGE_END = re.compile(r"</(?:\w+:)?Image\s*>|<(?:\w+:)?(?:Image|StructuredAnnotations)\b")
_REFERENCE = re.compile(r"<(?:\w+:)?AnnotationRef\b([^<>]*)")
_ANNOTATION = re.compile(r"<(?:\w+:)?\w+Annotation\b([^<>]*)|</(?:\w+:)?\w+Annotation\s*>")
_ATTRIBUTE = re.compile(r"""\b(\w+)\s*=\s*(["'])(.*?)\2""")


def is_ome(description: str) -> bool:
    """Whether it is OME's XML, with or without a prefix of its namespace."""
    return re.search(r"<(\w+:)?OME\b", description[:2000]) is not None


def images(description: str, shape: tuple[int, int]) -> list[dict[str, str]]:
    """The attributes of the Pixels of each image of this height and width; empty for another description.

    A file may hold an overview and a label beside the micrograph, each with sizes of its own. An image that states no
    height and width counts as well.
    """
    return [attributes for attributes, _ in _matching(description, shape)]


def times(description: str, shape: tuple[int, int]) -> tuple[list[float], float | None]:
    """Of the first image of this `shape` (H, W): the times in seconds from one plane to the next, and the longest
    exposure time (None: not stated).

    The planes' times are measured ones; the nominal increment counts only without them.
    """
    attributes, content = next(iter(_matching(description, shape)), ({}, ""))
    planes = [_attributes(element) for element in _PLANE.findall(content)]
    started = sorted({time for plane in planes if (time := _seconds(plane, "DeltaT")) is not None})
    steps = [later - earlier for earlier, later in pairwise(started)]
    exposures = [time for plane in planes if (time := _seconds(plane, "ExposureTime"))]
    if not steps and (nominal := _seconds(attributes, "TimeIncrement")) is not None:
        steps = [nominal]
    return steps, max(exposures, default=None)


def nature(description: str, shape: tuple[int, int]) -> Stack | None:
    """The kind of the sections that OME states beside the sizes of the first image of this `shape` (H, W).

    Its axes Z, T and C may hold a further one, such as angles or tiles (the annotation "modulo"), and each plane may
    have a position of the stage. An annotation to which images refer is that of these; one without such a reference
    counts for each.
    """
    if not is_ome(description):
        return None
    _, content = next(iter(_matching(description, shape)), ({}, ""))
    planes = [_attributes(element) for element in _PLANE.findall(content)]
    places = ((_metres(plane, "PositionX"), _metres(plane, "PositionY")) for plane in planes)
    axes = _modulos(_COMMENT.sub("", description), content)
    further = [axis for axis in axes if axis.get("Start", "0") != axis.get("End", "1")]  # of more than one section
    return stack.weighed(
        (
            *(stack.of_axis(_name(axis), axis.get("Unit", ""), "OME modulo annotation") for axis in further),
            stack.of_stage(places, "OME"),
        )
    )


def _modulos(text: str, content: str) -> list[dict[str, str]]:
    """The modulo annotations of the image of this `content`, and those of no image."""
    used, own = ({_attributes(element).get("ID") for element in _REFERENCE.findall(part)} for part in (text, content))
    marks = sorted((*_ANNOTATION.finditer(text), *_MODULO.finditer(text)), key=lambda mark: mark.start())
    found, within = [], None
    for mark in marks:
        if mark.re is _ANNOTATION:
            within = None if mark[1] is None else _attributes(mark[1]).get("ID")
        elif within is None or within in own or within not in used:
            found.append(_attributes(mark[1]))
    return found


def _metres(plane: Mapping[str, str], position: str) -> float:
    """A position of the stage, in OME's usual micrometres where its unit is none of length; NaN if not stated."""
    known = number(plane.get(position))
    if known is None:
        return nan
    stated = units.metres(known, plane.get(f"{position}Unit", ""))
    return known * units.METRES["um"] if stated is None else stated


def _name(modulo: Mapping[str, str]) -> str:
    """The name of a further axis: its type or, of another type, its description."""
    kind = modulo.get("Type", "").lower()
    return modulo.get("TypeDescription", kind) if kind == "other" else kind


def _matching(description: str, shape: tuple[int, int]) -> list[tuple[dict[str, str], str]]:
    """The attributes of each Pixels element that may have this shape, and what follows in its Image."""
    if not is_ome(description):
        return []
    text = _COMMENT.sub("", description)
    elements = list(_PIXELS.finditer(text))
    starts = [element.start() for element in elements[1:]] + [len(text)] * bool(elements)
    ends = [_IMAGE_END.search(text, one.end(), start) for one, start in zip(elements, starts, strict=True)]
    found = [
        (_attributes(one[1]), text[one.end() : start if end is None else end.start()])
        for one, start, end in zip(elements, starts, ends, strict=True)
    ]
    wanted = tuple(map(str, shape))
    return [one for one in found if (one[0].get("SizeY"), one[0].get("SizeX")) in ((None, None), wanted)]


def _attributes(element: str) -> dict[str, str]:
    return {key: value for key, _, value in _ATTRIBUTE.findall(element)}


def _seconds(stated: Mapping[str, str], name: str) -> float | None:
    value = number(stated.get(name))
    return None if value is None else stack.seconds(value, stated.get(f"{name}Unit", "s"))
