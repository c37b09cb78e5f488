"""What OME's XML, in the description of a TIFF, states of its images."""

import re
from collections.abc import Mapping
from itertools import pairwise

from daemon.formats import stack
from daemon.formats.reading import number

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b([^<>]*)")
_PLANE = re.compile(r"<(?:\w+:)?Plane\b([^<>]*)")
_ATTRIBUTE = re.compile(r"""\b(\w+)\s*=\s*(["'])(.*?)\2""")


def is_ome(description: str) -> bool:
    """Whether it is OME's XML, with or without a prefix of its namespace."""
    return re.search(r"<(\w+:)?OME\b", description[:2000]) is not None


def images(description: str, shape: tuple[int, int]) -> list[dict[str, str]]:
    """The attributes of the Pixels of each image of this height and width; empty for another description.

    A file may hold an overview and a label beside the micrograph, each with sizes of its own. An image that states no
    height and width counts as well.
    """
    if not is_ome(description):
        return []
    elements = _PIXELS.findall(_COMMENT.sub("", description))
    found = [{key: value for key, _, value in _ATTRIBUTE.findall(element)} for element in elements]
    wanted = tuple(map(str, shape))
    return [one for one in found if (one.get("SizeY"), one.get("SizeX")) in ((None, None), wanted)]


def times(description: str) -> tuple[float | None, float | None]:
    """Seconds from one point of time to the next, the longest that is stated, and exposure time; None: not stated."""
    if not is_ome(description):
        return None, None
    text = _COMMENT.sub("", description)
    every, planes = (
        [{key: value for key, _, value in _ATTRIBUTE.findall(element)} for element in pattern.findall(text)]
        for pattern in (_PIXELS, _PLANE)
    )
    started = sorted({time for plane in planes if (time := _seconds(plane, "DeltaT")) is not None})
    steps = [later - earlier for earlier, later in pairwise(started)]
    steps += [step for one in every if (step := _seconds(one, "TimeIncrement")) is not None]
    exposures = [time for plane in planes if (time := _seconds(plane, "ExposureTime"))]
    return max(steps, default=None), max(exposures, default=None)


def _seconds(stated: Mapping[str, str], name: str) -> float | None:
    value = number(stated.get(name))
    return None if value is None else stack.seconds(value, stated.get(f"{name}Unit", "s"))
