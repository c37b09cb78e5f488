"""The preview of a result: raw and denoised side by side, same contrast, with a scale bar and a caption."""

import struct
import unicodedata
from math import ceil, floor, log10
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from daemon.errors import MicrographError
from daemon.formats import RawFile
from daemon.formats.contrast import window
from daemon.formats.units import METRES, convert
from daemon.micrograph import Image, Pixels, PixelSize

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SMALLEST = 256
_STRIP_PIXELS = 1 << 19
RUNS = 3
"""zlib's strategy Z_RLE."""
_GREYS = bytes(level for level in range(256) for _ in range(3))
"""A palette, red, green and blue: each number is the grey of its own value."""
_GAP = 4
_BACKGROUND, _INK, _DIM, _BOX = 18, 255, 190, 28


class Sliceable(Protocol):
    """An array of pixels (H, W), or one that is read from its file part by part."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, part: tuple[slice, slice], /) -> Pixels: ...


def render(
    raw: Pixels,
    denoised: Image,
    *,
    pixels: int,
    size: PixelSize | None,
    title: str,
    caption: str,
    bar: range = range(0),
    side_bar: range = range(0),
) -> Picture.Image:
    """Raw | denoised, each binned by area to at most `pixels` a side, as an 8-bit greyscale picture.

    `raw` (H, W) any real dtype, `denoised` (H, W) float32, both in the same units; neither is changed. Contrast ignores
    the rows of a data bar (`bar`), which the scale bar does not cover, and the columns of one at the side (`side_bar`).
    """
    height, width = denoised.shape
    bin_by = max(1, ceil(max(height, width) / pixels))
    panels = [binned(image, bin_by) for image in (raw, denoised)]
    shown_bar = range(bar.start // bin_by, -(-bar.stop // bin_by))
    aside = range(side_bar.start // bin_by, min(-(-side_bar.stop // bin_by), panels[1].shape[1]))
    low, high = window(np.delete(np.delete(panels[1], shown_bar, axis=0), aside, axis=1))
    enlarge = max(1, _SMALLEST // max(panels[0].shape))
    greys = [grey(panel, low, high) for panel in panels]
    if enlarge > 1:
        greys = [panel.repeat(enlarge, 0).repeat(enlarge, 1) for panel in greys]
    left, right = (Picture.fromarray(panel) for panel in greys)
    text = max(13, round(left.width / 44))
    shown = (max(left.width, _SMALLEST), max(left.height, 6 * text))
    margins = ((shown[0] - left.width) // 2, (shown[1] - left.height) // 2)
    canvas = Picture.new("L", (2 * shown[0] + _GAP, shown[1] + 2 * text), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(text)
    for x, panel, label in ((0, left, "raw"), (shown[0] + _GAP, right, "denoised")):
        canvas.paste(panel, (x + margins[0], margins[1]))
        _tag(draw, font, (x + text // 2, text // 2), text, label)
    below = margins[1] + (len(panels[1]) - shown_bar.start) * enlarge if bar.stop == height else 0
    if size is not None:
        _scale_bar(
            draw,
            font,
            (shown[0] + _GAP + text // 2, shown[1] - text // 2 - below),
            text,
            0.25 * shown[0],
            PixelSize(size.y, size.x * bin_by / enlarge, size.unit),
        )
    _caption(draw, font, canvas.width, shown[1] + text // 2, text, _printable(title), _printable(caption))
    return canvas


def save(picture: Picture.Image, path: Path, writer: str) -> None:
    """Write a PNG that names its `writer`. Raises OSError."""
    info = PngInfo()
    info.add_text("Software", writer)
    indexed = picture.copy()
    indexed.putpalette(_GREYS)
    with path.open("wb") as stream:
        # Noise does not compress. To look for runs only, and with a palette for no filter that suits each row, takes a
        # third of the time; the file is about a quarter larger.
        indexed.save(stream, "PNG", compress_level=1, compress_type=RUNS, pnginfo=info)


def written_by(path: Path) -> str | None:
    """The program that a PNG names as its writer; "None" if it names none; None if there is no such PNG."""
    try:
        with RawFile(path).open() as stream, Picture.open(stream, formats=["PNG"]) as picture:  # never waits for a pipe
            return str(picture.info.get("Software"))
    except (FileNotFoundError, MicrographError):
        return None
    except (UnidentifiedImageError, SyntaxError, ValueError, EOFError, struct.error):
        return None


def binned(pixels: Sliceable, factor: int) -> Image:
    """Mean over `factor` x `factor` blocks, float32, a strip at a time; NaN and Inf count as 0.

    Columns and rows that do not fill a block are left out, unless nothing would remain.
    """
    height, width = max(1, pixels.shape[0] // factor), max(1, pixels.shape[1] // factor)
    down, across = min(factor, pixels.shape[0]), min(factor, pixels.shape[1])
    out = np.empty((height, width), np.float32)
    rows = max(1, _STRIP_PIXELS // (pixels.shape[1] * down))
    for top in range(0, height, rows):
        count = min(rows, height - top)
        block = pixels[top * down : (top + count) * down, : width * across]
        with np.errstate(over="ignore", invalid="ignore"):
            sums = _sums(block, down, across)
            if not np.isfinite(sums).all():
                sums = _sums(np.nan_to_num(block.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0), down, across)
        out[top : top + count] = sums / (down * across)
    return out


def _sums(block: Pixels, down: int, across: int) -> Image:
    """Over `down` rows and `across` columns each."""
    rows = block.reshape(-1, down, block.shape[1])
    summed: Image = np.einsum("ijk->ik", rows, dtype=np.float32, casting="unsafe")
    columns = summed[:, ::across].copy()
    for column in range(1, across):
        columns += summed[:, column::across]
    return columns


def grey(panel: Image, low: float, high: float) -> NDArray[np.uint8]:
    """Values (H, W) as grey levels: 0 at `low` and below and for NaN, 255 at `high` and above."""
    scaled = panel - np.float32(low)
    scaled *= np.float32(255.0 / (high - low))
    np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    return np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)


def _tag(draw: ImageDraw.ImageDraw, font: Font, corner: tuple[int, int], text: int, label: str) -> None:
    """White text on a dark box, readable on any micrograph. `corner` is the box's upper left."""
    x, y = corner
    pad = text // 2
    draw.rounded_rectangle((x, y, x + draw.textlength(label, font) + 2 * pad, y + 2 * text), pad, _BOX)
    draw.text((x + pad, y + text), label, _INK, font, anchor="lm")


def _scale_bar(
    draw: ImageDraw.ImageDraw, font: Font, corner: tuple[int, int], text: int, longest: float, pixel: PixelSize
) -> None:
    """A bar of a round length, its label above it. `corner` is the box's lower left; `pixel` a displayed pixel."""
    length, label = round_length(pixel, longest)
    x, y = corner
    pad, thick = text // 2, max(3, text // 4)
    inner = max(length, draw.textlength(label, font))
    top = y - 2 * pad - round(1.3 * text) - thick
    draw.rounded_rectangle((x, top, x + inner + 2 * pad, y), pad, _BOX)
    middle = x + pad + inner / 2
    draw.text((middle, top + pad + text / 2), label, _INK, font, anchor="mm")
    draw.rectangle((round(middle - length / 2), y - pad - thick, round(middle + length / 2), y - pad - 1), _INK)


def round_length(pixel: PixelSize, at_most: float) -> tuple[float, str]:
    """The longest bar of 1, 2 or 5 times a power of ten within `at_most` pixels: its pixels and its label."""
    metres = convert(pixel, "m")
    if metres is not None:
        unit = next((name for name in ("mm", "um") if metres.x * at_most >= METRES[name]), "nm")
        pixel = convert(pixel, unit) or pixel
    side = pixel.x
    power = 10.0 ** floor(log10(side * at_most))
    value = max(step * power for step in (1, 2, 5) if step * power <= side * at_most * (1 + 1e-9))
    return value / side, f"{value:g} {pixel.unit}"


def _caption(draw: ImageDraw.ImageDraw, font: Font, width: int, y: int, margin: int, title: str, caption: str) -> None:
    """The title on the left, shortened in its middle if need be; the caption on the right."""
    right = draw.textlength(caption, font)
    room = width - right - 3 * margin
    shown, wide = title, draw.textlength(title, font)
    keep = len(title) if wide <= room else int(len(title) * max(0.0, room) / wide)
    while draw.textlength(shown, font) > room and keep > 8:
        keep -= 1
        shown = f"{title[: keep // 2]}...{title[len(title) - (keep - keep // 2) :]}"
    draw.text((margin, y), shown, _INK, font)
    draw.text((width - margin - right, y), caption, _DIM, font)


def _printable(text: str) -> str:
    """`text` in the characters of Pillow's own font, mostly ASCII: accents are dropped, the rest becomes "?"."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", text.replace("µ", "u")) if not unicodedata.combining(c))
    return "".join(c if (c.isascii() and c.isprintable()) or c == "·" else "?" for c in bare)
