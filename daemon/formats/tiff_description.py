"""What the descriptions of ImageJ, SCIFIO (Fiji's newer library) and tifffile state of a stack."""

import json
import math
import re
from typing import Any, NamedTuple

from daemon.formats.reading import number


class Axis(NamedTuple):
    """An axis of an image or stack: its length, and its step in a unit (None, "": not stated)."""

    name: str
    size: int
    step: float | None
    unit: str


_SIGNAL = re.compile(
    r"""(?<![^\W_])(?:detector|signal|channel)(?:[ _]?name)?"?\s{0,3}[:=>]\s{0,3}"?([^\W\d_][^"\r\n,;<>{}|]{0,60})""",
    re.IGNORECASE,
)
"""A detector, signal or channel and its name: as key and value, in JSON, or as an element of XML."""
_TITLE = re.compile(
    r"""(?:^|[{,])\s{0,8}"?(?:(?:page|image)[ _]?)?(?:name|title|label|caption|content)"?\s{0,3}"""
    r"""[:=]\s{0,3}"?([^"\r\n,{}<>]{1,100})""",
    re.IGNORECASE | re.MULTILINE,
)
"""A name as key and value, on a line of its own or in JSON."""
_SEARCHED = 1 << 16
LONGEST_NAME = 100
_SIZE = re.compile(r"\d{1,9}", re.ASCII)


def frames(description: str, pixels: int) -> int:
    """Frames of so many pixels that ImageJ's or tifffile's description declares; 1 if it declares none."""
    if description.startswith("ImageJ="):
        match = re.search(r"^images=(\d{1,9})\s*$", description, re.MULTILINE)
        return int(match[1]) if match else 1
    shape = shaped(description).get("shape")
    if isinstance(shape, list) and len(shape) <= 8 and all(isinstance(n, int) and 0 <= n < 1 << 32 for n in shape):
        return math.prod(shape) // pixels
    return 1


def shaped(description: str) -> dict[str, Any]:
    """The JSON that tifffile writes into the description (shape, axes); empty without one."""
    if not (description.startswith("{") and '"shape"' in description):
        return {}
    try:
        content = json.loads(description)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def scifio(description: str) -> list[Axis]:
    """The axes of an image or stack that SCIFIO states, in lists of names, lengths, steps and units; else none."""
    if not description.startswith("SCIFIO="):
        return []
    found = dict(re.findall(r"^(axes|lengths|scales|units)=(.*)$", description, re.MULTILINE))
    names, sizes, steps, units = (
        found.get(key, "").strip().split(",") for key in ("axes", "lengths", "scales", "units")
    )
    if not len(names) == len(sizes) == len(steps) == len(units):
        return []
    rows = zip(names, sizes, steps, units, strict=True)
    return [Axis(name, int(size), number(step), unit) for name, size, step, unit in rows if _SIZE.fullmatch(size)]


def signal(description: str) -> str:
    """The names of detector, signal and channel that the description of one page states; empty without one."""
    return ", ".join(dict.fromkeys(name.strip() for name in _SIGNAL.findall(description[:_SEARCHED])))


def title(description: str) -> str:
    """A short description, or the name that a longer one states in a line or in JSON; empty without one."""
    if len(description) <= LONGEST_NAME:
        return description
    found = _TITLE.search(description[:_SEARCHED])
    return found[1].strip() if found else ""
