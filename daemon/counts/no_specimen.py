"""Pixels that show no specimen, found before any noise is measured: data bar, fill value, defective lines.

The data bar and filled pixels stay as they are; hot and dead lines are filled in like other defects.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from daemon.counts import lines
from daemon.counts.plane import NOWHERE
from daemon.counts.reason import Reason
from daemon.errors import MicrographError
from daemon.micrograph import Micrograph, Pixels

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class NoSpecimen:
    """The pixels of one micrograph (H, W) without specimen; places are flat, row * W + column, ascending."""

    bar: range = range(0)
    """Rows of the data bar."""
    side: range = range(0)
    """Columns of a data bar at the left or right edge."""
    bar_by: str = ""
    """The source that states it; empty: it is only suspected."""
    filled: Indices = field(default_factory=NOWHERE.copy)
    """Pixels that the file marks as not recorded."""
    drawn: str = ""
    """The place of what looks like a scale bar within the picture; empty: none."""
    lines: Indices = field(default_factory=NOWHERE.copy)
    """Pixels of defective columns and rows."""

    def left(self, height: int, width: int) -> Indices:
        """Places of the pixels that stay as they are: the bar and the filled ones."""
        barred = np.arange(self.bar.start * width, self.bar.stop * width)
        if self.side:
            barred = (np.arange(0, height * width, width)[:, None] + np.asarray(self.side)).reshape(-1)
        return np.union1d(barred, self.filled) if len(self.filled) else barred

    def lines_as_json(self, shape: tuple[int, ...]) -> dict[str, list[int]]:
        """The defective columns and rows, for the record."""
        rows, columns = np.divmod(self.lines, shape[1])
        upright, level = np.bincount(columns, minlength=shape[1]), np.bincount(rows, minlength=shape[0])
        found = (np.flatnonzero(number > lines.PART).tolist() for number in (upright, level))
        return dict(zip(("columns", "rows"), found, strict=True))

    def reasons(self, shape: tuple[int, ...]) -> tuple[list[Reason], list[Reason]]:
        """Doubts and remarks."""
        doubts, remarks = [], []
        if barred := self.bar or self.side:
            where = f"{'rows' if self.bar else 'columns'} {barred.start} to {barred.stop - 1}"
            if self.bar_by:
                remarks.append(Reason("bar", f"the data bar ({where}, {self.bar_by}) was left as it is"))
            else:
                doubts.append(
                    Reason(
                        "bar-suspected",
                        f"{where} look like a data bar (letters on one value), though the file states none: they were "
                        "left as they are; save without the bar, or with the microscope's own tags",
                    )
                )
        if self.drawn:
            doubts.append(
                Reason(
                    "bar-suspected",
                    f"{self.drawn} look like a scale bar drawn into the picture: it and its letters were denoised as "
                    "if they were the specimen; save without it",
                )
            )
        if len(self.filled):
            share = len(self.filled) / (shape[0] * shape[1])
            text = f"{len(self.filled)} pixels ({share:.1%}) hold the file's fill value: they were left as they are"
            remarks.append(Reason("void", text))
        if len(self.lines):
            known = self.lines_as_json(shape).items()
            named = [f"{name if len(found) > 1 else name[:-1]} {_listed(found)}" for name, found in known if found]
            text = f"hot or dead lines were filled in from their neighbours: {' and '.join(named)}"
            remarks.append(Reason("lines", text))
        return doubts, remarks


def _listed(numbers: Iterable[int]) -> str:
    several = [str(number) for number in numbers]
    return ", ".join(several[:6]) + (f" and {len(several) - 6} more" if len(several) > 6 else "")


def find(micrograph: Micrograph) -> NoSpecimen:
    """Find the pixels without specimen. Raises MicrographError if all are."""
    pixels, metadata = micrograph.pixels, micrograph.metadata
    bar = micrograph.bar
    fill = metadata.get("fill")
    filled = NOWHERE if fill is None else np.flatnonzero(pixels == fill)
    if len(filled) == pixels.size:
        raise MicrographError(
            "every pixel of the image holds the fill value that its file states: nothing was recorded; export it again"
        )
    side, (height, width) = micrograph.side_bar, pixels.shape
    rows, columns = _beside(bar, height), _beside(side, width)
    numbers = _numbers(pixels, filled)[rows, columns]
    down, across = np.divmod(lines.find(numbers), numbers.shape[1])
    found = (down + rows.start) * width + across + columns.start
    if len(filled):
        found = np.setdiff1d(found, filled, assume_unique=True)
    drawn = metadata.get("scale_bar")
    where = "" if drawn is None else "rows {} to {}, columns {} to {}".format(*drawn["rows"], *drawn["columns"])
    return NoSpecimen(bar, side, metadata["data_bar"]["by"] if bar or side else "", filled, where, found)


def _beside(bar: range, side: int) -> slice:
    """Rows or columns of the picture, of so many in all: the larger part on one side of the bar."""
    return slice(0, bar.start or side) if bar.start >= side - bar.stop or not bar else slice(bar.stop, side)


def measurable(pixels: Pixels, apart: NoSpecimen) -> Pixels:
    """What noise is measured in: the picture (h, w) beside the bar, lines replaced, NaN where it is filled."""
    return picture(_numbers(lines.replaced(pixels, apart.lines), apart.filled), apart)


def _numbers(pixels: Pixels, filled: Indices) -> Pixels:
    """The pixels (H, W) with NaN at the `filled` places."""
    if not len(filled):
        return pixels
    numbers = pixels.astype(np.float64)
    numbers.reshape(-1)[filled] = np.nan
    return numbers


def picture(pixels: Pixels, apart: NoSpecimen) -> Pixels:
    """The pixels (h, w) beside the bar: a view."""
    height, width = pixels.shape
    return pixels[_beside(apart.bar, height), _beside(apart.side, width)]
