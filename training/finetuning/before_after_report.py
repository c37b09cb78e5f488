"""The report of a before/after comparison: Markdown, JSON and a picture."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from daemon.files import save
from daemon.micrograph import Image
from training import markdown
from training.averages import Interval
from training.finetuning.before_after import ENOUGH_FILES, BeforeAfter, HeldOutCase, Regime

REPORT, NUMBERS, PICTURE = "before_after.md", "before_after.json", "before_after.png"


def write(outcome: BeforeAfter, out: Path, title: str, remarks: Sequence[str]) -> None:
    """Write report, numbers and picture to `out`. Raises ConfigError if that fails."""
    save(out / NUMBERS, json.dumps(outcome.as_json(), indent=1).encode() + b"\n")
    save(out / PICTURE, picture(*outcome.shown))
    save(out / REPORT, report(outcome, title, remarks).encode())


def advice(outcome: BeforeAfter) -> str:
    """The verdict and advice in one sentence."""
    match outcome.verdict:
        case "better" if not outcome.recommended:
            return (
                f"The fine-tuned weights are better on the {outcome.files} held-out file(s), but {ENOUGH_FILES} are "
                "needed to expect the same of the next one: look at the pictures, or give more micrographs."
            )
        case "better":
            return "The fine-tuned weights are better on the held-out images: use them."
        case "no measurable difference":
            return (
                "No difference could be measured on the held-out images: keep the weights you have. More micrographs "
                "or more minutes may help."
            )
        case "mixed":
            return "The fine-tuned weights are better in some regimes and worse in others: they are not recommended."
        case "worse":
            return "The fine-tuned weights are worse than the ones it started from: do not use them."


def report(outcome: BeforeAfter, title: str, remarks: Sequence[str]) -> str:
    """The report, Markdown."""
    psnr = outcome.regimes[0].psnr_before is not None
    lines = [f"# {title}", "", f"**{advice(outcome)}**", "", *(f"- {remark}" for remark in remarks), ""]
    lines += [
        "Error: mean squared error over the noise variance of the input (1: as noisy as it came), on files that were",
        "not trained on; in brackets the interval from resampling files and blocks within them, wrong for any of the",
        "rows in 5 % of all cases.",
    ]
    if not psnr:
        lines += [
            "There is no truth: an independent half of the same data stands in for it, and the variance of its noise",
            "is subtracted. The estimate has no bias, and its own error may take it below zero.",
        ]
    head = ["held-out images", "files", "error before", "error after", "change of the error"]
    head += ["PSNR before / after, dB"] if psnr else []
    lines += ["", *markdown.table(head, [_regime_cells(one) for one in outcome.regimes])]
    if any(one.files < 3 for one in outcome.regimes):
        lines += ["", "With fewer than three held-out files this speaks for these files and hardly for others."]
    lines += ["", f"![input, before, after and their difference]({PICTURE})", ""]
    files = [(row.file, row.regime, f"{row.before:.4g}", f"{row.after:.4g}") for row in outcome.rows]
    lines += markdown.table(("file", "regime", "before", "after"), files)
    return "\n".join(lines) + "\n"


def _regime_cells(one: Regime) -> list[str]:
    """A regime's row: errors before and after, their change, and PSNR where the truth is known."""
    # A fall is a negative change, and the ends of its interval swap places.
    ends = (-one.fall.mean, -one.fall.high, -one.fall.low)
    if one.before.mean > 0:
        mean, low, high = (f"{value / one.before.mean:+.1%}" for value in ends)
    else:
        mean, low, high = (f"{value:+.4g}" for value in ends)
    cells = [one.name, str(one.files), shown(one.before), shown(one.after), f"{mean} [{low}, {high}]"]
    return cells if one.psnr_before is None else [*cells, f"{one.psnr_before:.2f} / {one.psnr_after:.2f}"]


def shown(interval: Interval) -> str:
    """A mean and its interval."""
    return f"{interval.mean:.4g} [{interval.low:.4g}, {interval.high:.4g}]"


def picture(case: HeldOutCase, before: Image, after: Image) -> bytes:
    """Input, before, after in one grey scale, and the difference of the last two in its own; PNG."""
    low, high = (float(value) for value in np.nanpercentile(before, (0.5, 99.5)))
    largest = float(np.nanpercentile(np.abs(after - before), 99.5)) or 1.0
    panels = [(case.noisy, low, high), (before, low, high), (after, low, high), (after - before, -largest, largest)]
    labels = ["input", "before", "after", f"change, +-{largest:.2g} sigma"]
    height, width = case.noisy.shape
    gap, text = 4, 18
    canvas = Picture.new("L", (4 * width + 3 * gap, height + text), 18)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for number, ((panel, black, white), label) in enumerate(zip(panels, labels, strict=True)):
        grey = np.clip((np.nan_to_num(panel) - black) * (255 / max(white - black, 1e-9)), 0, 255).astype(np.uint8)
        canvas.paste(Picture.fromarray(grey), (number * (width + gap), text))
        draw.text((number * (width + gap) + 2, 2), label, 255, font)
    stream = io.BytesIO()
    canvas.save(stream, "PNG")
    return stream.getvalue()
