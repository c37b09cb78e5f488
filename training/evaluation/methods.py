"""The compared methods: the paper's nine (its section 4.1), BM3D for Poisson counts, and trained weights.

Every method maps a `Pair` to a restored image (H, W) float32 in counts. The nine work on the noisy image scaled to
[0, 1] by its extremes, as the paper's did, and are scaled back; the others work on counts.

bm3d, OpenCV and scikit-image are imported where they are used: the package `bm3d` is for non-commercial use and an
evaluation without it must be possible.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.signal import wiener as scipy_wiener
from scipy.stats import poisson
from skimage.restoration import denoise_nl_means, denoise_tv_bregman, denoise_tv_chambolle, denoise_wavelet

from daemon import backends
from daemon.backends import cpu, framing, manifest, passes, protocol, tiling
from daemon.counts import plane, prepare, scaling, spikes, stand_ins
from daemon.counts.profiles import Choice
from daemon.counts.scaling import ANSCOMBE, minmax_crop, noise_units
from daemon.errors import ConfigError
from daemon.files import write_atomically
from daemon.micrograph import Image
from daemon.settings.config import BackendConfig
from daemon.settings.profile import Profile
from training.data.exposure import Pair

RECORD, WEIGHTS = "record.json", "model.safetensors"
"""Files of a finished training run."""

Family = Literal["nine", "bm3d", "weights", "identity"]

_TV_WEIGHT = 0.1
_TV_TOLERANCE = 2e-4
_TV_ITERATIONS = 200


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """A way to restore an image. `identity` changes whenever its results could."""

    name: str
    label: str
    family: Family
    slow: bool
    identity: str
    run: Callable[[Pair], Image]
    load_seconds: float = 0.0
    megabytes: float = 0.0


def gaussian(noisy: Image) -> Image:
    """OpenCV's Gaussian blur with a 3 × 3 kernel (σ = 0.8 follows from the size)."""
    return np.asarray(cv2.GaussianBlur(noisy, (3, 3), 0), np.float32)


def bilateral(noisy: Image) -> Image:
    """OpenCV's bilateral filter: 9 pixels, both scales 75. On [0, 1] the radiometric scale has no effect."""
    return np.asarray(cv2.bilateralFilter(noisy, 9, 75, 75), np.float32)


def median(noisy: Image) -> Image:
    """OpenCV's 3 × 3 median."""
    return np.asarray(cv2.medianBlur(noisy, 3), np.float32)


def wiener(noisy: Image) -> Image:
    """SciPy's local Wiener filter, 3 × 3, the noise estimated as the mean local variance."""
    with np.errstate(divide="ignore", invalid="ignore"):  # flat neighbourhoods have no variance
        restored = np.asarray(scipy_wiener(noisy.astype(np.float64)), np.float32)
    return np.where(np.isfinite(restored), restored, noisy)


def wavelet(noisy: Image) -> Image:
    """scikit-image's BayesShrink soft thresholding; the noise from the median detail coefficient (Donoho)."""
    return np.asarray(denoise_wavelet(noisy), np.float32)


def chambolle(noisy: Image) -> Image:
    """scikit-image's Chambolle total variation: weight 0.1, until the cost changes by less than 2e-4, or 200 times."""
    return np.asarray(
        denoise_tv_chambolle(noisy, weight=_TV_WEIGHT, eps=_TV_TOLERANCE, max_num_iter=_TV_ITERATIONS), np.float32
    )


def bregman(noisy: Image) -> Image:
    """scikit-image's split Bregman anisotropic total variation, with the same weight, tolerance and iterations."""
    return np.asarray(
        denoise_tv_bregman(noisy, weight=_TV_WEIGHT, eps=_TV_TOLERANCE, max_num_iter=_TV_ITERATIONS, isotropic=False),
        np.float32,
    )


def nl_means(noisy: Image) -> Image:
    """scikit-image's non-local means with its defaults."""
    return np.asarray(denoise_nl_means(noisy), np.float32)


@lru_cache(maxsize=1)
def _inverse_table() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means of 2√(n + 3/8) over Poisson counts n, and the λ of those counts, up to where a series is exact."""
    rate = np.concatenate([np.linspace(0, 2, 401), np.geomspace(2, 120, 1200)[1:]])
    counts = np.arange(400)
    transformed = 2 * np.sqrt(counts + ANSCOMBE)
    return poisson.pmf(counts[None, :], rate[:, None]) @ transformed, rate


def unbiased_inverse(stabilised: NDArray[np.float64]) -> NDArray[np.float64]:
    """λ whose Poisson counts have this mean of 2√(n + 3/8): the exact unbiased inverse (Mäkitalo and Foi 2011).

    The plain inverse of Anscombe's square root is too low at few counts: the mean of a root is not the root of a mean.
    """
    means, rate = _inverse_table()
    series = (stabilised / 2) ** 2 - 0.125
    return np.where(stabilised < means[-1], np.interp(stabilised, means, rate), series)


def bm3d(counts: Image) -> Image:
    """BM3D (profile `np`, one thread) on Anscombe counts, scaled to [0, 1] as its thresholds expect, and back."""
    from bm3d import BM3DProfile
    from bm3d import bm3d as run

    profile = BM3DProfile()
    profile.num_threads = 1  # more would change the order of additions, and so the result
    stabilised = 2 * np.sqrt(counts.astype(np.float64) + ANSCOMBE)
    low, span = stabilised.min(), np.ptp(stabilised) or 1.0
    restored = np.asarray(run((stabilised - low) / span, 1 / span, profile), np.float64) * span + low
    return unbiased_inverse(restored).astype(np.float32)


NINE: dict[str, tuple[str, Callable[[Image], Image]]] = {
    "unfiltered": ("Unfiltered", lambda noisy: noisy),
    "gaussian": ("Gaussian 3×3", gaussian),
    "bilateral": ("Bilateral", bilateral),
    "median": ("Median 3×3", median),
    "wiener": ("Wiener", wiener),
    "wavelet": ("Wavelet", wavelet),
    "chambolle": ("Chambolle TV", chambolle),
    "bregman": ("Bregman TV", bregman),
    "nl_means": ("Non-local means", nl_means),
}
_SLOW = {"bregman", "nl_means"}
_PACKAGES = {"gaussian": "opencv-python-headless", "bilateral": "opencv-python-headless",
             "median": "opencv-python-headless", "wiener": "scipy"}  # fmt: skip


def digest_of(*modules: ModuleType) -> str:
    """Eight hexadecimal digits of the source code of modules."""
    return hashlib.sha256("".join(map(inspect.getsource, modules)).encode()).hexdigest()[:8]


SERVING = digest_of(backends, passes, protocol, cpu, framing, plane, prepare, scaling, spikes, stand_ins, tiling)
"""Digest of the code that serves weights: rows measured with other code are measured again."""
_SETTINGS = 1
"""Increased when parameters of a method above change."""


def _on_unit_scale(restore: Callable[[Image], Image]) -> Callable[[Pair], Image]:
    return lambda pair: pair.scaling.to_pixels(restore(pair.noisy))


def _identity(name: str) -> str:
    package = "bm3d" if name == "bm3d" else _PACKAGES.get(name, "scikit-image")
    return f"{name} {_SETTINGS}" + ("" if name in ("unfiltered", "identity") else f" {package} {version(package)}")


def methods(names: Sequence[str] = ()) -> dict[str, Method]:
    """The nine, bm3d and identity, or those named. Raises ConfigError for a name that is none of them."""
    made: dict[str, Method] = {
        name: Method(name, label, "nine", name in _SLOW, _identity(name), _on_unit_scale(restore))
        for name, (label, restore) in NINE.items()
        if not names or name in names
    }
    if not names or "bm3d" in names:
        try:
            made["bm3d"] = Method("bm3d", "BM3D, Anscombe", "bm3d", True, _identity("bm3d"), lambda p: bm3d(p.counts))
        except PackageNotFoundError as error:
            raise ConfigError(
                "BM3D is not installed; pip install bm3d (for non-commercial use), or leave it out with --methods"
            ) from error
    if "identity" in names:
        made["identity"] = Method("identity", "Identity", "identity", False, "identity", lambda pair: pair.counts)
    if unknown := set(names) - set(made):
        known = ", ".join([*NINE, "bm3d", "identity"])
        raise ConfigError(f"no method is called {', '.join(sorted(unknown))}; --methods takes: {known}")
    return made


def weights(name_or_folder: str, threads: int = 1) -> Method:
    """A shipped name, a weights folder or that of a training run → a method. Raises WeightsError, ConfigError."""
    folder = manifest.locate(name_or_folder)
    if (folder / RECORD).is_file() and not (folder / manifest.MANIFEST).is_file():
        return _run_of_training(folder, threads)
    begin = perf_counter()
    loaded = manifest.verified(folder)
    described = loaded.manifest
    backend = backends.open_backend(BackendConfig(kind="cpu", threads=threads), loaded, folder)
    load_seconds = perf_counter() - begin
    camera = Choice(Profile(name="counts"), "made so", 1.0, 0.0)

    def run(pair: Pair) -> Image:
        (done,) = backend.denoise([prepare.plane(pair.counts, camera, described.dose_range, find_spikes=False)])
        return done.image

    file = described.onnx
    return Method(
        folder.name, f"{described.name} ({described.network})", "weights", False,
        f"{described.sha256[file]} onnxruntime {version('onnxruntime')} tile {described.tile} halo {described.halo} "
        f"threads {threads} code {SERVING}",
        run, load_seconds, (folder / file).stat().st_size / 1e6,
    )  # fmt: skip


def learnt_from(name_or_folder: str) -> set[str]:
    """Names of the training files of weights, or of a training run, by their record."""
    folder = manifest.locate(name_or_folder)
    try:
        if (folder / manifest.MANIFEST).is_file():
            record = json.loads((folder / manifest.MANIFEST).read_text())["training"]
        else:
            record = json.loads((folder / RECORD).read_text())
        return {Path(name).name for name in record.get("micrographs", ())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def on_counts(method: Method, memory: Path | None = None) -> Callable[[Image], Image]:
    """A method as a function from counts to counts. `memory`: folder of earlier results, for slow methods."""

    def run(counts: Image) -> Image:
        scaling = minmax_crop(counts)
        # No method uses the truth; there is none here.
        return method.run(Pair(scaling.to_units(counts), counts, scaling, counts, counts))

    def remembered(counts: Image) -> Image:
        assert memory is not None
        digest = hashlib.sha256(method.identity.encode() + str(counts.shape).encode() + counts.tobytes()).hexdigest()
        path = memory / f"{digest[:32]}.npy"
        try:
            return np.asarray(np.load(path, allow_pickle=False), np.float32)
        except (OSError, ValueError, EOFError):
            result = run(counts)
        memory.mkdir(parents=True, exist_ok=True)
        write_atomically(path, partial(np.save, arr=result))
        return result

    return remembered if memory else run


def _run_of_training(folder: Path, threads: int) -> Method:
    """The weights of a run before export: float32, PyTorch, the whole image at once."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from training.network import build

    begin = perf_counter()
    try:
        recipe = json.loads((folder / RECORD).read_text())["recipe"]
        kind = recipe.get("network", "fast")
        paper = recipe.get("protocol") == "paper"
        network = build(kind, recipe["arguments"]).eval()
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"{folder}: not a finished training run ({error}); --weights takes one with {WEIGHTS}"
        ) from error
    load_seconds = perf_counter() - begin
    digest = manifest.sha256(folder / WEIGHTS)

    def run(pair: Pair) -> Image:
        height, width = pair.counts.shape
        scaling = minmax_crop(pair.counts) if paper else noise_units(float(pair.counts.mean(dtype=np.float64)))
        margin = [(0, -extent % network.stride) for extent in (height, width)]
        units = np.pad(scaling.to_units(pair.counts), margin, "reflect")
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.no_grad():
                out = network(torch.from_numpy(units)[None, None], torch.full((1, 1, 1, 1), scaling.level))
        finally:
            torch.set_num_threads(before)
        return scaling.to_pixels(out[0, 0].numpy()[:height, :width])

    return Method(
        folder.name, f"{folder.name} ({kind}, run)", "weights", False, f"{digest} torch {version('torch')}",
        run, load_seconds, (folder / WEIGHTS).stat().st_size / 1e6,
    )  # fmt: skip
