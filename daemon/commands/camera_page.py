"""The page about a camera's calibration, beside its file: its figures, photon transfer and noise spectrum."""

from collections.abc import Callable, Iterator, Sequence
from html import escape
from math import ceil, log10
from pathlib import Path

from daemon.commands import html
from daemon.counts.calibration import Calibrated
from daemon.counts.scaling import Noise

Place = Callable[[tuple[float, float]], tuple[float, float]]


def save(path: Path, found: Calibrated, files: Sequence[Path]) -> None:
    """Write the page. Raises OSError."""
    html.save(path, f"Camera {path.stem}", _parts(found, files))


def _parts(found: Calibrated, files: Sequence[Path]) -> Iterator[str]:
    camera = found.camera
    yield from html.facts(
        {
            "Made": camera.made,
            "Frames": f"{camera.size[1]} x {camera.size[0]} pixels, from {len(files)} files",
            "Detector, high tension": f"{camera.detector or 'unknown'}, {camera.voltage_kv or 'unknown'} kV",
            "Gain": f"{camera.gain:.4g} units per count (± {camera.gain_error:.2%})",
            "Offset": f"{camera.offset:.5g} units at zero counts",
            "Read-out noise": f"{camera.readout:.3g} counts rms",
            "Point spread": f"Gaussian of {camera.psf:.3g} (± {camera.psf_error:.2g}) pixels",
            "Linear to": "the brightest flat" if camera.linear_to is None else f"{camera.linear_to:.5g} units",
            "Fixed pattern": "unknown" if camera.fixed_pattern is None else f"{camera.fixed_pattern:.2%} of the light",
            "Hot and dead pixels": f"{camera.defects.hot} and {camera.defects.dead}",
            "Rows, columns that deviate": f"{list(camera.defects.rows)}, {list(camera.defects.columns)}",
        }
    )
    for remark in found.remarks:
        yield f'<p class="check">{html.text(remark)}</p>'
    noise = Noise(camera.gain, camera.offset, camera.readout, camera.psf)
    line = [(mean, noise.effective_gain * (mean - noise.effective_offset)) for mean, *_ in camera.curve]
    yield "<h2>Photon transfer</h2>"
    yield plot([(one[0], one[1]) for one in camera.curve], line, "mean, units", "variance, units²")
    yield from html.table(
        ("mean, units", "variance, units²", "as fitted", "frames"),
        (
            (f"{mean:.5g}", f"{variance:.5g}", f"{fit:.5g}", f"{number:.0f}")
            for (mean, variance, number), (_, fit) in zip(camera.curve, line, strict=True)
        ),
    )
    yield "<h2>Noise spectrum</h2><p class='note'>At the brightest level; 1: white noise of the same variance.</p>"
    radial = [(one[0], one[1]) for one in camera.spectrum]
    yield plot(radial, [(one[0], one[2]) for one in camera.spectrum], "cycles per pixel", "power")
    yield "<h2>Files</h2><ul>" + "".join(f"<li>{html.text(path)}</li>" for path in files) + "</ul>"


def plot(points: Sequence[tuple[float, float]], line: Sequence[tuple[float, float]], across: str, up: str) -> str:
    """Points and a line through others, as SVG in the page itself."""
    width, height, left, bottom = 640, 300, 80, 40
    widest, highest = (max(max(one[axis] for one in (*points, *line)), 1e-30) for axis in (0, 1))

    def place(one: tuple[float, float]) -> tuple[float, float]:
        return left + one[0] / widest * (width - left - 20), height - bottom - one[1] / highest * (height - bottom - 20)

    marks = "".join('<circle cx="{:.1f}" cy="{:.1f}" r="3.5" fill="#14703c"/>'.format(*place(one)) for one in points)
    path = " ".join("{:.1f},{:.1f}".format(*place(one)) for one in line)
    ticks = "".join(_tick(place, value, 0) for value in _round(widest))
    ticks += "".join(_tick(place, value, 1) for value in _round(highest))
    words = (
        f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">{escape(across)}</text>'
        f'<text x="14" y="{height / 2}" text-anchor="middle" transform="rotate(-90 14 {height / 2})">'
        f"{escape(up)}</text>"
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" font-size="12" role="img">{ticks}'
        f'<polyline points="{path}" fill="none" stroke="#9aa3ab" stroke-width="1.5"/>{marks}{words}</svg>'
    )


def _round(largest: float) -> list[float]:
    """A few round numbers from 0 on."""
    step = 10.0 ** ceil(log10(largest / 4) - 1)
    step = next(step * one for one in (1, 2, 5, 10) if largest / (step * one) <= 6)
    return [number * step for number in range(int(largest / step) + 1)]


def _tick(place: Place, value: float, axis: int) -> str:
    x, y = place((0.0, value) if axis else (value, 0.0))
    if axis:
        return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="620" y2="{y:.1f}" stroke="#e6e8ea"/>' + (
            f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'
        )
    return f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{value:.4g}</text>'
