"""Released weights: their folders never change, and what comes out of them stays the same under other runtimes.

For new weights, once, before their release: ``python tests/weights/test_released.py fast-4`` writes fast-4.json.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from daemon.backends import manifest
from daemon.backends.canary import NO_SPIKES
from daemon.backends.cpu import CpuBackend
from daemon.counts.plane import Plane, Prepared
from daemon.counts.scaling import noise_units

HERE = Path(__file__).parent
COUNTS = HERE / "counts.npy"
"""(96, 128) uint8: nanocrystals of the demo's simulator, 20 counts per pixel; from a file, for generators change."""
CROP = np.s_[40:56, 60:76]
WORST, RMS, FIGURE = 0.02, 0.002, 1e-3
"""Bounds, in standard deviations of the counting noise: one pixel of the crop, all of it; and of the figures."""


def denoised(name: str) -> tuple[NDArray[Any], NDArray[np.float32], float]:
    """The counts, what the weights make of them, and the noise's standard deviation."""
    counts = np.load(COUNTS, allow_pickle=False)
    folder = manifest.locate(name)
    dose = float(counts.mean())
    backend = CpuBackend(folder, manifest.load(folder), threads=1)
    (done,) = backend.denoise([Plane.known(Prepared(counts, NO_SPIKES, noise_units(dose), dose))])
    return counts, done.image, float(np.sqrt(dose))


def figures(counts: NDArray[Any], image: NDArray[np.float32]) -> dict[str, float]:
    return {
        "mean": float(image.mean(dtype=np.float64)),
        "deviation": float(image.std(dtype=np.float64)),
        "removed": float((image - counts).std(dtype=np.float64)),
        "lowest": float(image.min()),
        "highest": float(image.max()),
    }


def content(name: str) -> dict[str, str]:
    """Each file of a weights folder → its SHA-256."""
    files = sorted(path for path in manifest.locate(name).iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.suffix != ".md"}


@pytest.mark.parametrize("name", manifest.names())
def test_a_released_folder_never_changes(name: str) -> None:
    """Correct a model card freely; for anything else choose a new name (docs/weights.md)."""
    assert content(name) == json.loads((HERE / f"{name}.json").read_text())["files"]


@pytest.mark.parametrize("name", manifest.names())
def test_any_runtime_gives_what_the_weights_gave_when_they_were_released(name: str) -> None:
    expected = json.loads((HERE / f"{name}.json").read_text())
    counts, image, sigma = denoised(name)
    difference = (image[CROP] - np.array(expected["crop"])) / sigma
    assert np.abs(difference).max() <= WORST, f"ONNX Runtime {onnxruntime.__version__}, then {expected['runtime']}"
    assert np.sqrt(np.mean(difference**2)) <= RMS
    for key, value in figures(counts, image).items():
        bound = WORST if key in ("lowest", "highest") else FIGURE
        assert value == pytest.approx(expected["figures"][key], abs=bound * sigma), key


def test_every_alias_stands_for_released_weights() -> None:
    assert "fast" in manifest.aliases()
    assert {f"{name}.json" for name in manifest.aliases().values()} <= {path.name for path in HERE.glob("*.json")}


def main(name: str) -> None:
    counts, image, _ = denoised(name)
    found = {
        "runtime": f"ONNX Runtime {onnxruntime.__version__}",
        "files": content(name),
        "figures": figures(counts, image),
        "crop": np.round(image[CROP].astype(float), 4).tolist(),
    }
    (HERE / f"{name}.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
