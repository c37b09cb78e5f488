"""HTML elements and wording shared by all parts of a report."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10
from typing import Any

REGIMES = {
    "low": "low dose",
    "ordinary": "ordinary dose",
    "contrast_0.2": "low dose, contrast 0.2",
    "contrast_0.05": "low dose, contrast 0.05",
    "every": "every dose",
}
STRATA = {
    "all": "all real micrographs",
    "clean": "real, truth clean enough",
    "simulated": "simulated, held out",
    "every": "every pair",
}

STYLE = """
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
th, td { padding: .22rem .6rem; text-align: right; border-bottom: 1px solid #e6e8ea; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { font-weight: 600; border-bottom: 1px solid #9aa3ab; } td:first-child, th:first-child { text-align: left; }
td.text, th.text { text-align: left; white-space: normal; } tr.ours td { background: #eef5fb; }
td.best { font-weight: 700; } .reached { color: #14703c; } .missed { color: #b3261e; font-weight: 600; }
.between { color: #7a5b00; }
"""
"""CSS rules next to those of all pages (`daemon.commands.html`)."""


def labels(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Method → label; two of the same label also get their names."""
    every = [method["label"] for method in methods.values()]
    return {
        name: str(method["label"]) + (f" [{name}]" if every.count(method["label"]) > 1 else "")
        for name, method in methods.items()
    }


def family(evaluation: Mapping[str, Any], name: str) -> str:
    """ "ours" for weights, "rival" for BM3D, else "other"."""
    kind = evaluation["methods"].get(name, {}).get("family", "")
    return {"weights": "ours", "bm3d": "rival"}.get(str(kind), "other")


def cell(value: object, kind: str = "") -> str:
    """One cell of a table; `kind` is a class of the style sheet."""
    return f"<td{f' class={kind}' if kind else ''}>{escape(str(value))}</td>"


def figure(value: float | None, form: str, factor: float = 1, kind: str = "") -> str:
    """A cell with `factor` times a number, formatted by `form`; empty for None."""
    return cell("" if value is None else f"{factor * value:{form}}", kind)


def table(
    columns: Sequence[str],
    lines: Sequence[Sequence[str]],
    families: Sequence[str] = (),
    text_columns: int = 1,
    last_is_text: bool = False,
) -> str:
    """Rows of cells under the names of their columns; `families` are the rows' classes."""
    head = "".join(
        f"<th{' class=text' if number < text_columns or (last_is_text and number == len(columns) - 1) else ''}>"
        f"{escape(name)}</th>"
        for number, name in enumerate(columns)
    )
    kinds = families or [""] * len(lines)
    body = "".join(
        f"<tr{f' class={kind}' if kind else ''}>{''.join(cells)}</tr>" for kind, cells in zip(kinds, lines, strict=True)
    )
    heading = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    return f"<div class=scroll><table>{heading}<tbody>{body}</tbody></table></div>"


def image(png: bytes, caption: str) -> str:
    """A picture embedded in the page."""
    data = base64.b64encode(png).decode()
    text = escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def number(value: float | None) -> str:
    """Three figures, never in powers of ten, and a real minus sign."""
    if value is None:
        return "not a number"
    digits = 0 if value == 0 else max(0, min(6, 2 - floor(log10(abs(value)))))
    return f"{value:.{digits}f}".replace("-", "−")


def plain(value: Any) -> str:
    """JSON as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def limit(sense: str, value: float) -> str:
    """A limit in as few figures as it has, three at most."""
    return f"{'≥' if sense == '>=' else '≤'} {value:.3g}".replace("-", "−")


def status(item: Mapping[str, Any]) -> str:
    """The last cell of a verdict's row."""
    if item.get("reached", item.get("worst")) is None:
        return cell("not measured", "missed")
    if not item["ok"]:
        return cell("not reached", "missed")
    if item.get("aim_ok") is False:
        return cell("reached, aim not", "between")
    return cell("aim reached" if item.get("aim_ok") else "reached", "reached")
