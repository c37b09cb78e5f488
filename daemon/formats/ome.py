"""What OME's XML, in the description of a TIFF, states of its images."""

import re

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b([^<>]*)")
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
