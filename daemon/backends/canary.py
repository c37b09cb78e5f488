"""A small known image that tests a backend before it gets a micrograph."""

import numpy as np

from daemon.backends.protocol import Backend
from daemon.counts.plane import Plane, Prepared, Spikes
from daemon.counts.scaling import noise_units
from daemon.errors import BackendError, MicrographError

_CANARY_DOSE = 20.0
_CANARY_SIDE = 256
NO_SPIKES = Spikes(np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0, np.float32))


def canary(backend: Backend) -> None:
    """Denoise the canary tile. Raises BackendError unless its squared error is at least halved."""
    rng = np.random.default_rng(0)
    wave = np.sin(np.arange(_CANARY_SIDE) / 9)
    truth = _CANARY_DOSE * (1 + 0.5 * wave[:, None] * wave)
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
