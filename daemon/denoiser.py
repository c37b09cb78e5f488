"""From a micrograph to a denoised one, without folders or ledger: prepare, run a backend, judge."""

import logging
import warnings
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from daemon.backends import Backend, manifest, open_backend
from daemon.backends.gpu.engine import default_folder
from daemon.backends.manifest import Manifest
from daemon.backends.tiling import SMALLEST
from daemon.counts import spikes
from daemon.counts.profiles import Choice, Evidence, scaled, witness
from daemon.counts.scaling import noise_units
from daemon.errors import BackendError, EmdenoisedError, MicrographError
from daemon.micrograph import Micrograph, Pixels, Plane, Prepared, Spikes, Survey
from daemon.service import voids
from daemon.settings.config import BackendConfig, Profile

log = logging.getLogger(__name__)

CANARY_DOSE = 20.0
CANARY_SIDE = 256
NO_SPIKES = Spikes(np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0, np.float32))


def require_plane(pixels: Pixels) -> None:
    """Raises MicrographError for what is no image plane (H, W) of real numbers, or too small to denoise."""
    if pixels.dtype.kind not in "biuf" or pixels.ndim != 2:
        raise MicrographError(f"an image plane (H, W) of real numbers is needed, not {pixels.dtype} {pixels.shape}")
    if min(pixels.shape) < SMALLEST:
        height, width = pixels.shape
        raise MicrographError(
            f"the image is {width} x {height} pixels; at least {SMALLEST} x {SMALLEST} are needed to denoise it"
        )


def plane(pixels: Pixels, choice: Choice, weights: Manifest, find_spikes: bool = True) -> Plane:
    """One (H, W) plane of any real dtype for a backend; it is only read.

    NaN and Inf are filled in even without `find_spikes`: they would spread over the whole result, in which only regions
    of them come back (`daemon.service.voids`). Raises
    MicrographError for what is no image plane.
    """
    require_plane(pixels)
    false_alarm = spikes.FALSE_ALARM if find_spikes else 0.0
    gain, offset = choice.noise.effective_gain, choice.noise.effective_offset
    return Plane(pixels, gain, offset, false_alarm, partial(_prepare, pixels, choice, weights, false_alarm))


def _prepare(pixels: Pixels, choice: Choice, weights: Manifest, false_alarm: float, survey: Survey) -> Prepared:
    """Spikes, dose and scaling. Raises MicrographError if the plane cannot be turned into counts."""
    try:
        return _judged(pixels, choice, weights, false_alarm, survey)
    except (EmdenoisedError, MemoryError):
        raise
    except Exception as error:
        # A backend calls this: a defect of ours must cost one micrograph and not the session.
        log.debug("traceback", exc_info=True)
        raise MicrographError(f"internal error, please report it: {error!r}") from error


def _judged(pixels: Pixels, choice: Choice, weights: Manifest, false_alarm: float, survey: Survey) -> Prepared:
    noise = choice.noise
    found = spikes.find(pixels, noise.effective_gain, noise.effective_offset, false_alarm=false_alarm, surveyed=survey)
    places = found.rows * pixels.shape[1] + found.columns
    counted = np.isin(places, survey.missing, assume_unique=True, invert=True)
    flagged = pixels[found.rows[counted], found.columns[counted]].sum(dtype=np.float64)
    mean = (survey.total - float(flagged)) / (pixels.size - len(found))
    dose, scaling = choice.counts(mean), noise.scaling(mean)
    doubts = list(choice.doubts)
    for owner, limits in ((f"profile {choice.profile.name}", choice.profile.dose), ("the weights", weights.dose_range)):
        if choice.dose_known and limits is not None and not limits[0] <= dose <= limits[1]:
            doubts.append(f"{dose:.3g} counts per pixel are outside the {limits[0]:g} to {limits[1]:g} of {owner}")
    void = voids.find(survey.missing, pixels.shape)
    single = len(found) - len(void)
    if single > 1e-3 * pixels.size:
        doubts.append(f"{single} pixels ({single / pixels.size:.1%}) were X-ray hits, hot or not finite")
    remarks = [f"a region of {len(void)} pixels ({len(void) / pixels.size:.1%}) holds no numbers: it was left as it is"]
    warnings = tuple(dict.fromkeys((*choice.warnings, *doubts, *(remarks if len(void) else ()))))
    return Prepared(pixels, found, scaling, dose, warnings, tuple(doubts), void)


def canary(backend: Backend) -> None:
    """Run a small known image; raises BackendError if what comes back is not a denoised version of it."""
    rng = np.random.default_rng(0)
    wave = np.sin(np.arange(CANARY_SIDE) / 9)
    truth = CANARY_DOSE * (1 + 0.5 * wave[:, None] * wave)
    counts = rng.poisson(truth).astype(np.uint16)
    dose = float(counts.mean())
    try:
        (result,) = backend.denoise([Plane.known(Prepared(counts, NO_SPIKES, noise_units(dose), dose))])
    except MicrographError as error:
        raise BackendError(f"{backend.name}: the canary tile failed: {error}") from error
    before, after = (float(np.square(image - truth).mean()) for image in (counts, result.image))
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
        backend: "auto" is the GPU where an NVIDIA driver answers, else the processor. On a GPU, use it in one thread.
        engines: folder where engines for the GPU are kept; None for the user's cache folder.

    Raises WeightsError if the weights cannot be loaded, BackendError if the backend cannot run here, ConfigError if a
    GPU is to be used and TensorRT is not installed.
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
        backend: Literal["auto", "cpu", "tensorrt"] = "auto",
        engines: Path | None = None,
    ) -> None:
        folder = manifest.locate(weights)
        self.manifest = manifest.load(folder)
        self._halo = self.manifest.halo if overlap is None else overlap
        settings = BackendConfig(kind=backend, threads=threads, tile=tile, batch=batch)
        self._backend = open_backend(settings, folder, engines or default_folder(), halo=overlap, blend=blend)
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
        planes = (one if mode == "none" else np.pad(one, margin, mode) for one in array.reshape(-1, height, width))
        inner = slice(margin, margin + height), slice(margin, margin + width)
        results = []
        for result in self._backend.denoise(map(self._plane, planes)):
            results.append(voids.restored(result.image, result.prepared)[inner])
            for remark in result.prepared.warnings:
                warnings.warn(remark, stacklevel=2)
        return np.stack(results).reshape(array.shape)

    def _plane(self, pixels: Pixels) -> Plane:
        require_plane(pixels)
        micrograph = Micrograph(pixels, Path("array"), "array")
        seen = witness(micrograph) if self._gain == "auto" else Evidence()
        profile = Profile(name="array", gain=self._gain, offset=self._offset)
        choice = scaled(profile, "asked for", micrograph, seen)
        return plane(pixels, choice, self.manifest, self._find_spikes)

    def close(self) -> None:
        """Free the network."""
        self._backend.close()

    def __enter__(self) -> "Denoiser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
