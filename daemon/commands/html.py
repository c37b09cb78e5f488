"""A web page that is one file: for a lab book, to be opened in ten years by any browser and without a network."""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from PIL import Image as Picture

from daemon.files import write_atomically
from daemon.logs import one_line

_COMMON = """
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1c2024; max-width: 1180px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
p, li { max-width: 48rem; } .note { color: #59626b; font-size: .9em; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .86em; margin: .6rem 0; }
img { max-width: 100%; height: auto; } pre { white-space: pre-wrap; }
"""
_STYLE = """
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid #e6e8ea;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
th { border-bottom: 1px solid #9aa3ab; white-space: nowrap; }
.dated td:first-child { white-space: nowrap; }
figure { margin: 1.4rem 0; } figcaption { font-size: .9em; }
td.good, td.check, td.reject, td.quarantined { white-space: nowrap; } .good { color: #14703c; }
.check { color: #7a5b00; font-weight: 600; } .reject, .quarantined { color: #b3261e; font-weight: 600; }
pre { font-size: .82em; background: #f5f6f7; padding: .8rem; }
code { font-size: .92em; overflow-wrap: anywhere; }
summary { cursor: pointer; } summary + ul { margin: .2rem 0; padding-left: 1.2rem; }
@media print { body { margin: 0; } figure, tr { break-inside: avoid; } }
"""
_QUALITY = 88


def opening(title: str, style: str) -> str:
    """What is before the first part of a page: its title, and CSS rules added to those that all pages share."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        # Whatever a file's name holds, nothing in this page runs or asks for anything.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f'<meta name="viewport" content="width=device-width"><title>{text(title)}</title>'
        f"<style>{_COMMON}{style}</style></head><body>\n"
    )


def save(path: Path, title: str, parts: Iterable[str]) -> None:
    """Write one page of HTML `parts` atomically. Raises OSError."""
    first = f"{opening(title, _STYLE)}<h1>{text(title)}</h1>"

    def write(stream: BinaryIO) -> None:
        stream.writelines(part.encode("utf-8") + b"\n" for part in chain((first,), parts, ("</body></html>",)))

    write_atomically(path, write)


def text(value: object) -> str:
    """Anything as text of a page, line by line; bytes of a name that are no UTF-8 are shown as what they are."""
    shown = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    return escape("\n".join(map(one_line, shown.split("\n"))))


@dataclass(frozen=True, slots=True)
class Folded:
    """A cell or caption of which the `head` is shown and the `rest` on a click."""

    head: str
    rest: tuple[str, ...] = ()

    def as_html(self) -> str:
        if not self.rest:
            return text(self.head)
        items = "".join(f"<li>{text(one)}</li>" for one in self.rest)
        return f"<details><summary>{text(self.head)}</summary><ul>{items}</ul></details>"


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], classes: Sequence[str] = (), *, dated: bool = False
) -> Iterator[str]:
    """A table; a cell that is one of `classes` is drawn as such. `dated`: the first of a row is kept on one line."""
    yield (
        f'<div class="scroll"><table{" class=dated" if dated else ""}><tr>'
        + "".join(f"<th>{text(cell)}</th>" for cell in head)
        + "</tr>"
    )
    for row in rows:
        cells = (f'<td class="{cell}">' if cell in classes else "<td>" for cell in row)
        shown = (cell.as_html() if isinstance(cell, Folded) else text(cell) for cell in row)
        yield "<tr>" + "".join(f"{tag}{cell}</td>" for tag, cell in zip(cells, shown, strict=True)) + "</tr>"
    yield "</table></div>"


def facts(values: Mapping[str, object]) -> Iterator[str]:
    """Names and values, one below the other."""
    yield "<table>" + "".join(f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in values.items())
    yield "</table>"


def figure(picture: Picture.Image, caption: str) -> str:
    """A greyscale picture, in the page itself, with a caption of HTML."""
    stream = io.BytesIO()
    picture.convert("L").save(stream, "JPEG", quality=_QUALITY)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<figure><img src="data:image/jpeg;base64,{data}" alt=""><figcaption>{caption}</figcaption></figure>'
