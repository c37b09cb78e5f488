"""From a micrograph to a denoised one, without folders or ledger: prepare, run a backend, judge."""

import warnings
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from daemon.backends import manifest, open_backend
from daemon.backends.gpu.engine import default_folder
from daemon.counts import lines, voids
from daemon.counts.apart import Apart
from daemon.counts.plane import Plane
from daemon.counts.prepare import plane, require_plane
from daemon.counts.profiles import Evidence, scaled, witness
from daemon.errors import MicrographError
from daemon.micrograph import Micrograph, Pixels
from daemon.settings.config import BackendConfig, Profile


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
        margin = 0 if self._padding == "none" else self._halo
        planes = array.reshape(-1, height, width)
        inner = slice(margin, margin + height), slice(margin, margin + width)
        results = []
        for result in self._backend.denoise(map(self._plane, planes)):
            results.append(voids.restored(result.image, result.prepared)[inner])
            for remark in result.prepared.warnings:
                warnings.warn(remark, stacklevel=2)
        return np.stack(results).reshape(array.shape)

    def _plane(self, image: Pixels) -> Plane:
        padding = self._padding
        pixels = image if padding == "none" else np.pad(image, self._halo, padding)
        require_plane(pixels)
        bad = lines.mask(image)  # beyond the edges of the image everything is repeated
        bad = bad if padding == "none" else np.pad(bad, self._halo, padding)
        micrograph = Micrograph(pixels, Path("array"), "array")
        apart = Apart(lines=np.flatnonzero(bad))
        seen = witness(micrograph, apart) if self._gain == "auto" else Evidence(apart=apart)
        profile = Profile(name="array", gain=self._gain, offset=self._offset)
        choice = scaled(profile, "asked for", micrograph, seen)
        return plane(pixels, choice, self.manifest.dose_range, self._find_spikes)

    def close(self) -> None:
        """Free the network."""
        self._backend.close()

    def __enter__(self) -> "Denoiser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
