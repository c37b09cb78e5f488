"""Folders with finished micrographs, as the service leaves them: raw files, results, records, ledger."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from daemon import formats
from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger
from daemon.micrograph import Image, Micrograph
from daemon.output import writing
from daemon.output.record import Record
from daemon.settings.config import Config


def counts(seed: int = 0, shape: tuple[int, int] = (64, 64), dose: float = 20.0) -> NDArray[np.uint16]:
    """A wavy specimen, counted: (H, W) uint16."""
    y, x = (np.arange(side) / 40 for side in shape)
    expected = dose * (1 + 0.4 * np.sin(y + seed)[:, None] * np.sin(x))
    return np.random.default_rng(seed).poisson(expected).astype(np.uint16)


def smoothed(pixels: NDArray[Any]) -> Image:
    """What stands for denoised: a mean over neighbours."""
    one = pixels.astype(np.float32)
    return (one + np.roll(one, 1, 0) + np.roll(one, 1, 1) + np.roll(one, -1, 0) + np.roll(one, -1, 1)) / np.float32(5)


@dataclass
class Clock:
    """Each question comes `step` seconds after the one before."""

    now: float = 1_700_000_000.0
    step: float = 1.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Finished:
    """A ledger that is owned, and what it tells of; `clock` gives the times."""

    def __init__(self, config: Config, clock: Callable[[], float]) -> None:
        self.config = config
        self.ledger = Ledger(config.folders.state, clock=clock)

    def add(
        self,
        name: str,
        pixels: NDArray[Any],
        *,
        verdict: str | None = "good",
        reasons: tuple[str, ...] = (),
        facts: dict[str, Any] | None = None,
        spikes: list[dict[str, Any]] | None = None,
        denoise: Callable[[NDArray[Any]], Image] = smoothed,
        **options: Any,
    ) -> Job:
        """One that is done; `options` for the TIFF of its raw pixels."""
        path = self.config.folders.drop / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, pixels, **options)
        micrograph = formats.read(path, 1 << 28)
        state = path.stat()
        provenance = {
            "raw": {
                "path": str(path),
                "sha256": f"{state.st_mtime_ns:064d}"[-64:],
                "size": state.st_size,
                "mtime_ns": state.st_mtime_ns,
                "shape": list(micrograph.pixels.shape),
                "dtype": str(micrograph.pixels.dtype),
                "pixel_size": {"y": 0.04, "x": 0.04, "unit": "nm"},
            },
            "dose": 20.0,
            "profile": {"name": "low", "why": "low: folder low"},
            "backend": "fake",
            "spikes": {"count": len(spikes or []), "listed": spikes or []},
            "verdict": {"word": verdict, "reasons": list(reasons), "mean_raw": 20.0, "mean_denoised": 20.0},
            "warnings": list(reasons),
        }
        return self.write(name, micrograph, denoise(micrograph.pixels), provenance, verdict, facts)

    def write(
        self,
        name: str,
        micrograph: Micrograph,
        denoised: Image,
        provenance: dict[str, Any],
        verdict: str | None = "good",
        facts: dict[str, Any] | None = None,
    ) -> Job:
        """The result of what was read, and its row in the ledger."""
        state = (self.config.folders.drop / name).stat()
        written = writing.write_outputs(
            self.config.folders.output, PurePosixPath(name), 1, micrograph, denoised, Record.model_validate(provenance),
            kind="tiff", preview_pixels=None,
        )  # fmt: skip
        known = {"dose": 20.0, "shape": list(denoised.shape), "pixel_size": None, "spikes": 2, "reasons": []}
        job = self._claimed(name, state.st_size, state.st_mtime_ns)
        return self.ledger.finish(
            job, str(written.image), profile="low", timings={"read": 0.01, "network": 2.0}, verdict=verdict,
            facts=known | (facts or {}),
        )  # fmt: skip

    def quarantine(self, name: str, reason: str) -> Job:
        """One that could not be done; there is no file."""
        return self.ledger.quarantine(self._claimed(name, 1, 1), reason)

    def wait(self, name: str) -> Job | None:
        """One that is still to be done; there is no file."""
        return self.ledger.register(name, 1, 1, live=True)

    def _claimed(self, name: str, size: int, mtime_ns: int) -> Job:
        registered = self.ledger.register(name, size, mtime_ns, live=True)
        claimed = self.ledger.claim()
        assert registered is not None and claimed is not None and claimed.id == registered.id
        return claimed

    def replace_output(self, job: Job, output: Path) -> Job:
        """As if the ledger said that the result lies elsewhere."""
        with self.ledger._transaction():
            return self.ledger._move(job, ("done",), output=os.fsencode(output))
