"""From a micrograph to a denoised one, without folders or ledger: prepare, run a backend, judge."""

import warnings
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from daemon import manifest, spikes
from daemon.backends import Backend, resolve
from daemon.backends.cpu import CpuBackend
from daemon.config import Profile
from daemon.dose import Choice, Measured, finite_mean, measure
from daemon.errors import BackendError, MicrographError
from daemon.manifest import Manifest
from daemon.micrograph import Pixels, Prepared, Spikes
from daemon.scaling import noise_units
from daemon.tiling import SMALLEST

CANARY_DOSE = 20.0
CANARY_SIDE = 256
NO_SPIKES = Spikes(np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0, np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A micrograph ready for its network: the pixels, the mean counts per pixel, and what to warn of."""

    prepared: Prepared
    dose: float
    warnings: tuple[str, ...]


def require_plane(pixels: Pixels) -> None:
    """Raises MicrographError for what is no image plane (H, W) of real numbers, or too small to denoise."""
    if pixels.dtype.kind not in "biuf" or pixels.ndim != 2:
        raise MicrographError(f"an image plane (H, W) of real numbers is needed, not {pixels.dtype} {pixels.shape}")
    if min(pixels.shape) < SMALLEST:
        height, width = pixels.shape
        raise MicrographError(
            f"the image is {width} x {height} pixels; at least {SMALLEST} x {SMALLEST} are needed to denoise it"
        )


def prepare(pixels: Pixels, choice: Choice, weights: Manifest, find_spikes: bool = True) -> Served:
    """Spikes, dose and scaling of one (H, W) plane of any real dtype, which is only read.

    Raises MicrographError if the plane cannot be turned into counts.
    """
    require_plane(pixels)
    if find_spikes:
        found = spikes.find(pixels, choice.gain, choice.offset)
    elif np.issubdtype(pixels.dtype, np.floating) and not np.isfinite(pixels).all():
        # NaN and Inf would spread over the whole result, so these are filled in whatever was asked for.
        found = spikes.find(pixels, choice.gain, choice.offset, false_alarm=0.0)
    else:
        found = NO_SPIKES
    whole = finite_mean(pixels) * (np.isfinite(pixels).sum() if len(found) else pixels.size)
    flagged = pixels[found.rows, found.columns].astype(np.float64)
    mean = float((whole - flagged[np.isfinite(flagged)].sum()) / (pixels.size - len(found)))
    dose = choice.counts(mean)
    scaling = noise_units(dose, choice.gain, choice.offset)
    remarks = list(choice.warnings)
    for owner, limits in ((f"profile {choice.profile.name}", choice.profile.dose), ("the weights", weights.dose_range)):
        if choice.dose_known and limits is not None and not limits[0] <= dose <= limits[1]:
            remarks.append(f"{dose:.3g} counts per pixel are outside the {limits[0]:g} to {limits[1]:g} of {owner}")
    if len(found) > 1e-3 * pixels.size:
        remarks.append(f"{len(found)} pixels ({len(found) / pixels.size:.1%}) were X-ray hits, hot or not finite")
    return Served(Prepared(pixels, found, scaling), dose, tuple(remarks))


def canary(backend: Backend) -> None:
    """Run a small known image; raises BackendError if what comes back is not a denoised version of it."""
    rng = np.random.default_rng(0)
    wave = np.sin(np.arange(CANARY_SIDE) / 9)
    truth = CANARY_DOSE * (1 + 0.5 * wave[:, None] * wave)
    counts = rng.poisson(truth).astype(np.uint16)
    prepared = Prepared(counts, NO_SPIKES, noise_units(float(counts.mean())))
    try:
        (result,) = backend.denoise([prepared])
    except MicrographError as error:
        raise BackendError(f"{backend.name}: the canary tile failed: {error}") from error
    before, after = (float(np.square(image - truth).mean()) for image in (counts, result))
    if not after < 0.5 * before:  # also when it is NaN
        raise BackendError(
            f"{backend.name}: the canary tile came out wrong (mean squared error {after:.3g}, {before:.3g} "
            "before denoising); the process or the weights are damaged: restart, then reinstall"
        )


class Denoiser:
    """Denoises arrays: loaded once, used many times, as a context manager or not.

        from daemon import Denoiser
        denoised = Denoiser().denoise(counts)

    Args:
        weights: a shipped name or a weights folder.
        gain: the array's units per count; "auto" measures it from each image.
        offset: the array's value at zero counts.
        overlap: pixels of context at each edge of a tile that are thrown away afterwards; None for what was measured
            for the weights (the paper's program: 25).
        blend: pixels over which neighbouring tiles cross-fade; 0 cuts.
        padding: how the image is continued beyond its edges, in `numpy.pad`'s words, at some cost in time; "none"
            leaves the edges to the network, which was trained on images with edges.
        tile: side of the tiles in pixels; 0 for the weights' own.
        find_spikes: fill in X-ray hits and hot pixels first.

    Raises WeightsError if the weights cannot be loaded, BackendError if the backend cannot run here.
    """

    def __init__(
        self,
        weights: str = "fast",
        *,
        gain: float | Literal["auto"] = 1.0,
        offset: float = 0.0,
        overlap: int | None = None,
        blend: int = 0,
        padding: Literal["none", "reflect", "symmetric", "edge", "wrap"] = "none",
        tile: int = 0,
        batch: int = 1,
        threads: int = 0,
        find_spikes: bool = True,
        backend: Literal["auto", "cpu"] = "auto",
    ) -> None:
        if resolve(backend) != "cpu":
            raise BackendError(
                'an NVIDIA GPU was found, but this version has no TensorRT backend yet; use backend="cpu"'
            )
        folder = manifest.locate(weights)
        self.manifest = manifest.load(folder)
        self._halo = self.manifest.halo if overlap is None else overlap
        self._backend = CpuBackend(
            folder, self.manifest, threads=threads, tile=tile, halo=overlap, batch=batch, blend=blend
        )
        self._gain, self._offset, self._padding, self._find_spikes = gain, offset, padding, find_spikes

    def denoise(self, image: ArrayLike) -> NDArray[np.float32]:
        """(H, W), or a stack (..., H, W), of any real dtype → the same shape, float32, in the image's own units.

        Warns (UserWarning) of a dose outside the range of the weights, of measured gains and of many spikes. Raises
        MicrographError for an image that cannot be denoised (smaller than 32 × 32, no counts, all NaN).
        """
        array = np.asarray(image)
        if array.ndim < 2 or not array.size:
            raise MicrographError(f"an image (H, W) is needed, not an array of shape {array.shape}")
        height, width = array.shape[-2:]
        mode = self._padding
        margin = 0 if mode == "none" else self._halo
        planes = (
            plane if mode == "none" else np.pad(plane, margin, mode) for plane in array.reshape(-1, height, width)
        )
        results = self._backend.denoise(map(self._prepared, planes))
        inner = slice(margin, margin + height), slice(margin, margin + width)
        return np.stack([result[inner] for result in results]).reshape(array.shape)

    def _prepared(self, plane: Pixels) -> Prepared:
        require_plane(plane)
        found = measure(plane) if self._gain == "auto" else Measured(self._gain, self._offset, None)
        gain, offset, remark, known = found
        remarks = (remark,) if remark else ()
        choice = Choice(Profile(name="array", gain=gain, offset=offset), "asked for", gain, offset, remarks, known)
        served = prepare(plane, choice, self.manifest, self._find_spikes)
        for remark in served.warnings:
            warnings.warn(remark, stacklevel=2)
        return served.prepared

    def close(self) -> None:
        """Free the network."""
        self._backend.close()

    def __enter__(self) -> "Denoiser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
