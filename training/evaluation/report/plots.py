"""The figures of an evaluation, drawn without a display: plain data in, PNG bytes out. Figure 3 is `training.curve`'s.

Numbers follow the paper: 4 densities of errors, 5 maps of the mean absolute error, 6 to 8 examples. Weights are drawn
strongly, BM3D as their rival, and the paper's nine behind them.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image as Pillow
from skimage.exposure import equalize_adapthist

from daemon.micrograph import Image
from training.evaluation import metrics

_MSE_RANGE = (0.0, 1.2e-3)
_SSIM_RANGE = (0.0, 1.0)
_CORNER = 16
_ENLARGED = 64

INSTANT = 1e-3
"""Seconds below which a method is drawn as instant."""

_RC: Any = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 7.5, "xtick.labelsize": 8,
    "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7,
    "axes.grid": True, "grid.color": "0.92", "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
    "figure.dpi": 110, "savefig.dpi": 110, "font.family": "DejaVu Sans",
}  # fmt: skip

# Okabe and Ito's colours, distinct for people with colour-blindness.
_WEIGHTS = ("#0072B2", "#CC79A7", "#009E73", "#56B4E9")
_RIVAL = "#D55E00"
_NINE = ("0.15", "#8c6d31", "#7b6ba8", "#5a9a8b", "#b5738d", "#6b8e23", "#9c5c3a", "#4f6d8f", "0.55")
_DASHES = ("-", "--", "-.", ":")


@dataclass(frozen=True, slots=True)
class Style:
    """Drawing style of one method in every figure."""

    colour: str
    width: float
    dashes: str
    marker: str
    above: int
    """Drawing order: higher lies on top."""

    def line(self) -> dict[str, object]:
        """Arguments of `Axes.plot`."""
        return {"color": self.colour, "linewidth": self.width, "linestyle": self.dashes, "zorder": self.above}


def styles(families: Mapping[str, str]) -> dict[str, Style]:
    """Method → style, from method → family ("weights", "bm3d", anything else)."""
    made: dict[str, Style] = {}
    weights = others = 0
    for name, family in families.items():
        if family == "weights":
            made[name] = Style(_WEIGHTS[weights % len(_WEIGHTS)], 2.2, _DASHES[weights // len(_WEIGHTS) % 4], "o", 5)
            weights += 1
        elif family == "bm3d":
            made[name] = Style(_RIVAL, 2.0, "-", "s", 4)
        else:
            made[name] = Style(_NINE[others % len(_NINE)], 1.1, _DASHES[others % 4], "^", 3)
            others += 1
    return made


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors of one method at one dose: `mse` (n,) in the [0, 1] scale squared, `ssim` (n,)."""

    mse: Sequence[float]
    ssim: Sequence[float]


def densities(doses: Mapping[str, Mapping[str, Errors]], style: Mapping[str, Style]) -> bytes:
    """Figure 4. Title → method label → errors: densities (Scott's rule, 200 bins), highest of each panel scaled to 1.

    `style` has the same labels. Only the start of the MSE is shown, as in the paper; the densities include the
    rest.
    """
    with rc_context(_RC):
        figure = Figure(figsize=(9, 2.9 * len(doses) + 0.9), layout="constrained")
        panels = figure.subplots(len(doses), 2, squeeze=False)
        for row, (title, methods) in enumerate(doses.items()):
            for axes, quantity in zip(panels[row], ("mse", "ssim"), strict=True):
                low, high = _MSE_RANGE if quantity == "mse" else _SSIM_RANGE
                unit = 1e3 if quantity == "mse" else 1.0
                curves = {label: metrics.kde(getattr(errors, quantity), low, high) for label, errors in methods.items()}
                peak = max((float(density.max()) for _, density in curves.values()), default=0.0) or 1.0
                for label, (where, density) in curves.items():
                    axes.plot(where * unit, density / peak, label=label, **style[label].line())
                axes.set(xlim=(low * unit, high * unit), ylim=(0, 1.05), title=title)
                axes.set_xlabel("mean squared error (×10⁻³)" if quantity == "mse" else "structural similarity (SSIM)")
                axes.set_ylabel("density (highest = 1)")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)) or 1)
        return _png(figure)


def error_maps(maps: Mapping[str, Image]) -> bytes:
    """Figure 5. Title → mean absolute error of every pixel (H, W), [0, 1] scale.

    On the left equalised (CLAHE, after the hundredth of lowest and of highest values is cut, so that edges do not
    take all grey levels), which shows faint structure; on the right the top left 16 × 16 pixels as they are.
    """
    with rc_context(_RC | {"axes.grid": False}):
        figure = Figure(figsize=(9.2, 5.4 * len(maps)), layout="constrained")
        panels = figure.subplots(len(maps), 2, squeeze=False, width_ratios=(1.6, 1))
        for (whole, corner), (title, values) in zip(panels, maps.items(), strict=True):
            low, high = (float(value) for value in np.percentile(values, (1, 99)))
            flat = np.clip((values.astype(np.float64) - low) / ((high - low) or 1.0), 0, 1)
            whole.imshow(equalize_adapthist(flat, nbins=1024), cmap="gray")
            whole.set_title(f"{title}: mean {values.mean():.4f}, from {values.min():.4f} to {values.max():.4f}")
            shown = corner.imshow(values[:_CORNER, :_CORNER], cmap="viridis", interpolation="nearest")
            corner.set_title(f"top left {_CORNER} × {_CORNER} px")
            bar = figure.colorbar(shown, ax=corner, location="bottom", shrink=0.95)
            bar.set_label("mean absolute error, [0, 1] scale")
            bar.ax.locator_params(nbins=4)
            for axes in (whole, corner):
                axes.set(xticks=[], yticks=[], anchor="N")
                axes.spines[:].set_visible(False)
        return _png(figure, dpi=75)  # noise fills it, and no format compresses that


def examples(rows: Sequence[tuple[str, Mapping[str, Image]]]) -> bytes:
    """Figures 6 to 8. Rows of (caption, column title → image (H, W)); every row has the columns of the first.

    Under every image its top left 64 × 64 pixels, enlarged. One grey scale along a row, from the last image of it,
    which is the truth; nothing else is adjusted.
    """
    columns = list(rows[0][1])
    size = 2.5  # inches
    with rc_context(_RC | {"axes.grid": False}):
        figure = Figure(figsize=(size * len(columns) + 0.4, 2.04 * size * len(rows) + 0.25), layout="constrained")
        figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
        panels = figure.subplots(2 * len(rows), len(columns), squeeze=False)
        for row, (caption, images) in enumerate(rows):
            low, high = (float(value) for value in np.percentile(images[columns[-1]], (0.2, 99.8)))
            grey: Any = {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-9)}
            for column, title in enumerate(columns):
                whole, part = panels[2 * row, column], panels[2 * row + 1, column]
                whole.imshow(images[title], interpolation="antialiased", **grey)
                part.imshow(images[title][:_ENLARGED, :_ENLARGED], interpolation="nearest", **grey)
                for axes in (whole, part):
                    axes.set(xticks=[], yticks=[])
                    axes.spines[:].set_visible(False)
                if row == 0:
                    whole.set_title(title)
            panels[2 * row, 0].set_ylabel(caption, fontsize=8)
            panels[2 * row + 1, 0].set_ylabel(f"{_ENLARGED} × {_ENLARGED} px", fontsize=8)
        return _png(figure, grey=True)


@dataclass(frozen=True, slots=True, eq=False)
class RingCurve:
    """By ring: mean correlation with the truth, and the standard error of that mean."""

    mean: NDArray[np.float64]
    error: NDArray[np.float64]


def ring_curves(
    panels: Mapping[str, tuple[Mapping[str, RingCurve], NDArray[np.float64]]], style: Mapping[str, Style]
) -> bytes:
    """Title → (method label → correlation by ring, 2σ line of noise alone); bands are ± 2 standard errors."""
    frequency = metrics.frequencies()
    with rc_context(_RC):
        figure = Figure(figsize=(9, 3.4 * -(-len(panels) // 2) + 0.4), layout="constrained")
        grid = figure.subplots(-(-len(panels) // 2), min(2, len(panels)), squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, (title, (curves, noise)) in zip(grid, panels.items(), strict=False):
            for label, curve in curves.items():
                low, high = curve.mean - 2 * curve.error, curve.mean + 2 * curve.error
                axes.fill_between(frequency, low, high, color=style[label].colour, alpha=0.15, linewidth=0)
                axes.plot(frequency, curve.mean, label=label, **style[label].line())
            axes.plot(frequency, noise, color="0.4", linewidth=1, linestyle=(0, (1, 1.5)), label="2σ of noise")
            axes.axvline(0.25, color="0.75", linewidth=0.8)
            axes.text(0.252, 1.0, "half Nyquist", fontsize=7, color="0.5", va="top")
            axes.set(xlim=(0, 0.5), ylim=(-0.05, 1.03), title=title)
            axes.set_xlabel("spatial frequency (cycles per pixel)")
            axes.set_ylabel("correlation with the truth")
        _legend_below(figure, grid[0])
        return _png(figure)


@dataclass(frozen=True, slots=True)
class Cost:
    """Time and quality of one method."""

    label: str
    seconds: float
    """Per image of the stated size."""
    psnr: float
    """dB."""


def cost_against_quality(panels: Mapping[str, Sequence[Cost]], style: Mapping[str, Style], size: str) -> bytes:
    """Title → methods: PSNR against seconds per image of `size` ("512 × 512 px"), logarithmic; up and left is better.

    Instant methods (the unfiltered image) are lines; those more than 10 dB below the best are named at the foot.
    """
    with rc_context(_RC):
        figure = Figure(figsize=(4.7 * len(panels), 4.2), layout="constrained")
        for axes, (title, methods) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            best = max((cost.psnr for cost in methods), default=0.0)
            foot = [cost for cost in methods if cost.psnr < best - 10]
            near = [cost for cost in methods if cost not in foot]
            points = [cost for cost in near if cost.seconds >= INSTANT]
            for cost in points:
                look = style[cost.label]
                axes.scatter(
                    cost.seconds, cost.psnr, color=look.colour, marker=look.marker, s=20 * look.width, zorder=look.above
                )
            for cost in near:
                if cost.seconds < INSTANT:
                    axes.axhline(cost.psnr, color=style[cost.label].colour, linewidth=0.9, linestyle="--")
                    axes.annotate(cost.label, (0.99, cost.psnr), xycoords=("axes fraction", "data"), xytext=(0, 3),
                                  textcoords="offset points", ha="right", fontsize=7.5)  # fmt: skip
            axes.set_xscale("log")
            axes.margins(x=0.15, y=0.12)
            axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # names are placed in these
            _name_points(axes, points, style)
            if foot:
                text = ", ".join(f"{cost.label} {cost.psnr:.1f} dB" for cost in foot)
                axes.text(0.01, 0.01, f"below: {text}", transform=axes.transAxes, fontsize=7.5, color="0.35")
            axes.set(title=title, xlabel=f"processor time per {size} (s)", ylabel="PSNR (dB)")
        return _png(figure)


def _name_points(axes: Axes, methods: Sequence[Cost], style: Mapping[str, Style]) -> None:
    """Write a name right or left of every point, or slightly above or below: in the first free place."""
    low, high = axes.get_ylim()
    left, right = np.log10(axes.get_xlim())
    place = {
        cost.label: (float((np.log10(cost.seconds) - left) / (right - left)), (cost.psnr - low) / (high - low))
        for cost in methods
    }
    taken = [(x - 0.015, x + 0.015, y) for x, y in place.values()]
    for cost in sorted(methods, key=lambda cost: -cost.psnr):
        x, y = place[cost.label]
        width = 0.0165 * len(cost.label)
        choices = [(side, up) for up in (0.0, 0.035, -0.035, 0.065, -0.065) for side in (1, -1)]

        def clash(side: int, up: float, x: float = x, y: float = y, width: float = width) -> float:
            start, end = (x + 0.02, x + 0.02 + width) if side > 0 else (x - 0.02 - width, x - 0.02)
            outside = max(0.0, end - 1) + max(0.0, -start)
            return 10 * outside + sum(start < e and end > s and abs(y + up - other) < 0.038 for s, e, other in taken)

        side, up = min(choices, key=lambda choice: clash(*choice))
        start = x + 0.02 if side > 0 else x - 0.02 - width
        taken.append((start, start + width, y + up))
        axes.annotate(
            cost.label, (x + 0.02 * side, y + up), xycoords="axes fraction", ha="left" if side > 0 else "right",
            va="center", fontsize=7.5, color=style[cost.label].colour,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gain:
    """PSNR of a method over the rival's, dB, with its 95 % interval, for one condition."""

    condition: str
    mean: float
    low: float
    high: float


def gains(panels: Mapping[str, Mapping[str, Sequence[Gain]]], style: Mapping[str, Style], rival: str) -> bytes:
    """Title → method label → gains over `rival` by condition (contrast, dose), with 95 % intervals."""
    with rc_context(_RC):
        figure = Figure(figsize=(4.7 * len(panels), 3.4), layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (title, methods) in zip(grid, panels.items(), strict=True):
            conditions = list(dict.fromkeys(gain.condition for series in methods.values() for gain in series))
            for number, (label, series) in enumerate(methods.items()):
                shift = 0.5 * ((number + 0.5) / len(methods) - 0.5)
                where = [conditions.index(gain.condition) + shift for gain in series]
                mean = np.array([gain.mean for gain in series])
                below = np.maximum(mean - [gain.low for gain in series], 0)
                above = np.maximum([gain.high for gain in series] - mean, 0)
                look = style[label]
                axes.errorbar(where, mean, yerr=(below, above), color=look.colour, marker=look.marker, markersize=5,
                              linestyle="none", capsize=3, linewidth=1.3, label=label, zorder=look.above)  # fmt: skip
            axes.axhline(0, color=_RIVAL, linewidth=1)
            axes.set_xticks(range(len(conditions)), conditions)
            axes.set(title=title, xlim=(-0.6, len(conditions) - 0.4))
        grid[0].set_ylabel(f"PSNR over {rival} (dB)")
        _legend_below(figure, grid[0])
        return _png(figure)


def gain_by_dose(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
                 style: Mapping[str, Style], rival: str) -> bytes:  # fmt: skip
    """Title → method label → (mean counts per pixel, PSNR over the rival's in dB) of every pair, and their medians.

    Medians are of eighths of the pairs, in order of dose.
    """
    with rc_context(_RC):
        figure = Figure(figsize=(4.7 * len(panels), 3.4), layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (title, methods) in zip(grid, panels.items(), strict=True):
            for label, (doses, values) in methods.items():
                order = np.argsort(doses)
                dose, value = np.asarray(doses, float)[order], np.asarray(values, float)[order]
                axes.scatter(dose, value, s=5, alpha=0.3, color=style[label].colour, linewidths=0)
                groups = [group for group in np.array_split(np.arange(len(dose)), 8) if len(group)]
                axes.plot([np.median(dose[group]) for group in groups], [np.median(value[group]) for group in groups],
                          label=label, marker=style[label].marker, markersize=4, **style[label].line())  # fmt: skip
            axes.axhline(0, color=_RIVAL, linewidth=1)
            axes.set_xscale("log")
            axes.set(title=title, xlabel="mean dose (counts per pixel)")
        grid[0].set_ylabel(f"PSNR over {rival} (dB)")
        _legend_below(figure, grid[0])
        return _png(figure)


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))


def _png(figure: Figure, grey: bool = False, dpi: float | None = None) -> bytes:
    """The figure as a file, in greys or in 256 colours; the same data give the same bytes."""
    stream, smaller = io.BytesIO(), io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi or "figure", metadata={"Software": None})
    with Pillow.open(stream) as picture:
        few = picture.convert("L") if grey else picture.convert("RGB").quantize(256, dither=Pillow.Dither.NONE)
        few.save(smaller, "PNG", optimize=True)
    return smaller.getvalue()
