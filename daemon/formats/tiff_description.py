"""What ImageJ's and tifffile's descriptions state of a stack."""

import json
import math
import re
from typing import Any


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
