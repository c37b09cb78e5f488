"""The learning curve of a run: rows in a file, a picture like the paper's figure 3, and TensorBoard's format."""

import io
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from daemon.errors import ConfigError
from daemon.files import save

log = logging.getLogger(__name__)

matplotlib.use("Agg")  # no display on a server

CURVE = "curve.jsonl"
PICTURE = "curve.png"

Row = Mapping[str, float]


class Curve:
    """The rows of one run, each a mapping of names to numbers with `step` and `rate` among them."""

    def __init__(self, run: Path, step: int = 0) -> None:
        """Drops rows after `step`, which a resumed training writes again."""
        from torch.utils.tensorboard import SummaryWriter  # seconds to import; readers of a curve do not need it

        self._path = run / CURVE
        kept = [row for row in read(run) if row["step"] <= step]
        save(self._path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def add(self, row: Row) -> None:
        """Append a row and flush it to the disk."""
        try:
            with self._path.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be written ({error.strerror}); make room, then go on") from error
        for name, value in row.items():
            if name != "step":
                self._board.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        self._board.close()


def read(run: Path) -> list[dict[str, float]]:
    """The rows of a run so far; a line cut off by a kill, or damaged, is left out."""
    path = run / CURVE
    rows: list[dict[str, float]] = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
        else:
            log.warning("%s: a damaged line is left out", path)
    return rows


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Running mean over `window` values, fewer at the ends, of the same length."""
    width = max(1, min(window, len(values)))
    kernel = np.ones(width)
    sums: np.ndarray = np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
    return sums


def draw(run: Path, title: str) -> bytes:
    """The curve as PNG: training loss and validation figures against steps, learning rates marked where they change.

    Raises ValueError if the run has no rows yet.
    """
    rows = read(run)
    if not rows:
        raise ValueError(f"{run}: no learning curve yet")
    step = np.array([row["step"] for row in rows])
    validation = [name for name in rows[-1] if name.startswith("validation")]
    figure, axes = plt.subplots(
        1 + bool(validation), 1, figsize=(8, 3 + 2.5 * bool(validation)), sharex=True, squeeze=False
    )
    loss = np.array([row["loss"] for row in rows])
    window = max(1, len(rows) // 60)
    top = axes[0, 0]
    top.plot(step, loss, color="0.8", linewidth=0.8)
    top.plot(step, smooth(loss, window), color="tab:blue", linewidth=1.4)
    top.set_ylabel("training loss")
    top.set_title(title, fontsize=10)
    if min(loss) > 0 and max(loss) > 5 * min(loss):
        top.set_yscale("log")
    for name in validation:
        values = np.array([row.get(name, np.nan) for row in rows])
        axes[1, 0].plot(
            step, smooth(values, window), linewidth=1.4, label=name.removeprefix("validation_").replace("_", " ")
        )
    if validation:
        axes[1, 0].set_ylabel("validation")
        axes[1, 0].legend(fontsize=8)
    rates = [row["rate"] for row in rows]
    stepped = len(set(rates)) < 10  # a cosine changes at every row
    for before, after, where in zip(rates, rates[1:], step[1:], strict=False):
        if stepped and before != after:
            for axis in axes[:, 0]:
                axis.axvline(where, color="0.5", linewidth=0.7, linestyle=":")
            top.annotate(f"rate {after:g}", (where, top.get_ylim()[1]), fontsize=7, rotation=90, va="top", ha="right")
    axes[-1, 0].set_xlabel("batches")
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    plt.close(figure)
    return picture.getvalue()
