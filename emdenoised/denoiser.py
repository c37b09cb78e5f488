"""Denoises arrays as the daemon denoises files: prepare, run a backend, judge."""

import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError

from daemon.backends import manifest, open_backend
from daemon.backends.gpu.engine import default_folder
from daemon.backends.protocol import Backend
from daemon.counts import voids
from daemon.counts.plane import Denoised, Plane
from daemon.counts.prepare import plane, require_plane
from daemon.counts.profiles import ASKED_FOR, Choice, dose_evidence, scaled
from daemon.errors import BackendError, ConfigError, MicrographError
from daemon.micrograph import Image, Micrograph, Pixels
from daemon.settings.config import BackendConfig, weights_named
from daemon.settings.profile import Profile
from daemon.verdict import judge

_Kind = Literal["auto", "cpu", "tensorrt"]
"""A server needs further settings, which arrays have no place for."""
_COLOURS = (3, 4)
"""Length of the last axis of a colour picture: RGB, RGBA."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A denoised image with dose, gain and verdict; returned by `Denoiser.denoise_with_verdict`."""

    image: Image
    """(H, W) float32, in the units of the given image."""
    dose: float | None
    """Mean detected counts per pixel; None: unknown, only the noise was measured."""
    gain: float
    """Units per count, measured or stated."""
    offset: float
    """Value at zero counts, in units."""
    verdict: judge.Word
    """good, check or reject."""
    reasons: tuple[str, ...]
    """Reasons why the verdict is not good, the most important first."""
    warnings: tuple[str, ...]
    """Further remarks for the microscopist."""


class Denoiser:
    """Denoises arrays: loaded once, used many times, as a context manager or not.

        from emdenoised import Denoiser
        denoised = Denoiser().denoise(image)

    Args:
        weights: the name of shipped weights, a folder of weights, or a `Profile` of the settings, for a camera whose
            offset is known or that was calibrated: ``daemon.settings.config.load(path).profiles["low"]``.
        backend: "auto": the GPU if an NVIDIA driver answers, else the processor. Use a GPU in one thread only.
        gain: the array's units per count, with zero counts at 0; "auto" measures both from each image.
        passes: 8 averages the results of the eight orientations of the image, for 0.1 dB at eight times the time;
            None: as the profile states, 1 without one.
        threads: processor cores to use; 0: all, "auto": all but one.

    Raises ConfigError for an argument that cannot be used, or if a GPU is wanted and TensorRT is not installed,
    WeightsError if the weights cannot be loaded, BackendError if the backend cannot run here.
    """

    def __init__(
        self,
        weights: str | Path | Profile = "fast",
        *,
        backend: _Kind = "auto",
        gain: float | Literal["auto"] = "auto",
        passes: Literal[1, 8] | None = None,
        threads: int | Literal["auto"] = 0,
    ) -> None:
        if backend not in get_args(_Kind):
            *names, last = map(repr, get_args(_Kind))
            raise ConfigError(f"backend = {backend!r}: use one of {', '.join(names)} or {last}")
        try:
            self._profile = _profile(weights, gain, passes)
            settings = BackendConfig(kind=backend, threads=threads)
        except ValidationError as error:
            raise ConfigError(_in_words(error)) from error
        loaded = manifest.verified(self._profile.weights)
        self.manifest = loaded.manifest
        self._backend: Backend | None = open_backend(settings, loaded, default_folder())

    def denoise(self, image: ArrayLike) -> NDArray[np.float32]:
        """(H, W), or a stack of images (..., H, W), of any real dtype → the same shape, float32, in the same units.

        Warns (UserWarning) of a dose outside the range of the weights, of measured gains and of many spikes. Raises
        MicrographError for images that cannot be denoised (colour, smaller than 32 × 32, no counts, all NaN),
        BackendError after `close`.
        """
        array = _array(image)
        planes = array.reshape(-1, *array.shape[-2:])
        results = []
        for done, _ in self._run(planes):
            results.append(voids.restored(done.image, done.prepared))
            for remark in done.prepared.warnings:
                warnings.warn(remark, stacklevel=2)
        return np.stack(results).reshape(array.shape)

    def denoise_with_verdict(self, image: ArrayLike) -> Result:
        """One image (H, W) of any real dtype → the denoised image with dose, gain and verdict. Raises as `denoise`."""
        array = _array(image)
        if array.ndim != 2:
            raise MicrographError(f"one image (H, W) has one verdict; pass those of this {array.shape} one by one")
        ((done, choice),) = self._run([array])
        verdict = judge.judge(done.image, done.prepared, choice)
        remarks = (one for one in done.prepared.warnings if one not in verdict.reasons)
        return Result(
            image=voids.restored(done.image, done.prepared),
            dose=done.prepared.dose if choice.dose_known else None,
            gain=choice.gain,
            offset=choice.offset,
            verdict=verdict.word,
            reasons=verdict.reasons,
            warnings=tuple(remarks),
        )

    def close(self) -> None:
        """Free the network. Safe to call twice."""
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()

    def __enter__(self) -> "Denoiser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, images: Iterable[Pixels]) -> Iterator[tuple[Denoised, Choice]]:
        if self._backend is None:
            raise BackendError("this Denoiser is closed; make a new one, or use it inside its `with` block")
        choices: deque[Choice] = deque()

        def planes() -> Iterator[Plane]:
            for pixels in images:
                require_plane(pixels)
                micrograph = Micrograph(pixels, Path("array"), "array")
                choices.append(scaled(self._profile, ASKED_FOR, micrograph, dose_evidence(micrograph)))
                yield plane(pixels, choices[-1], self.manifest.dose_range)

        for done in self._backend.denoise(planes()):
            yield done, choices.popleft()


def denoise(
    image: ArrayLike,
    weights: str | Path | Profile = "fast",
    *,
    backend: _Kind = "auto",
    gain: float | Literal["auto"] = "auto",
    passes: Literal[1, 8] | None = None,
    threads: int | Literal["auto"] = 0,
) -> NDArray[np.float32]:
    """Denoise one array or stack: `Denoiser` and its `denoise` in one call, which loads the network each time."""
    with Denoiser(weights, backend=backend, gain=gain, passes=passes, threads=threads) as denoiser:
        return denoiser.denoise(image)


def _profile(weights: str | Path | Profile, gain: Any, passes: Any) -> Profile:
    if isinstance(gain, Real) and not isinstance(gain, bool):
        gain = float(gain)  # NumPy's numbers, too
    if isinstance(weights, Profile):
        if gain != "auto":
            raise ConfigError(f"gain = {gain!r}: the profile states the gain already; leave out one of the two")
        return weights if passes is None else Profile.model_validate({**dict(weights), "passes": passes})
    return Profile(name="array", weights=weights_named(str(weights)), gain=gain, passes=1 if passes is None else passes)


def _in_words(error: ValidationError) -> str:
    """One line for each argument that cannot be used."""
    return "\n".join(
        f"{one['loc'][0]} = {one['input']!r}: {one['msg'].removeprefix('Value error, ')}" for one in error.errors()
    )


def _array(image: ArrayLike) -> NDArray[Any]:
    """The argument as an array (..., H, W). Raises MicrographError for other shapes."""
    try:
        array = np.asarray(image)
    except ValueError as error:
        raise MicrographError(f"an image (H, W) is needed: its rows must be of one length ({error})") from error
    if array.ndim < 2 or not array.size:
        raise MicrographError(f"an image (H, W) is needed, not an array of shape {array.shape}")
    if array.ndim > 2 and array.shape[-1] in _COLOURS:
        raise MicrographError(
            f"an array of shape {array.shape} looks like a colour picture (H, W, {array.shape[-1]}), which holds no "
            "counts: give the camera's grey image (H, W), or a stack with its images first (N, H, W)"
        )
    return array
