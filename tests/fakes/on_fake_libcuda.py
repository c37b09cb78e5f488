"""The real pycuda under the daemon's own driver and pipeline, on a libcuda that computes on the processor.

Run by the installed program's Python, with that library on LD_LIBRARY_PATH.
"""

import os
from typing import Any

import numpy as np

from daemon.backends import manifest
from daemon.backends.gpu import nvidia
from daemon.backends.gpu.cuda import Cuda
from daemon.backends.gpu.device import OutOfMemoryError, Single
from daemon.backends.gpu.pipeline import Pipeline
from daemon.counts import spikes
from daemon.counts.prepare import plane
from daemon.counts.profiles import Choice
from daemon.errors import BackendError
from daemon.settings.profile import Profile

WEIGHTS = manifest.load(manifest.locate("fast"))
COUNTED = Choice(Profile(name="test"), "", 1.0, 0.0)


class Copy:
    """A network that changes nothing."""

    tile, batch = (64, 96), 2

    def enqueue(self, units: int, level: int, result: int, stream: Any) -> None:
        import pycuda.driver

        assert int(stream.handle)
        pycuda.driver.memcpy_dtod_async(result, units, 4 * self.batch * 64 * 96, stream)


card = nvidia.find_gpu(0)
assert card == nvidia.Gpu("Fake card", "sm86", "CUDA 13.0"), card
assert card.memory == 16 << 30
assert nvidia.find_gpu(1) is None

driver = Cuda(0)
rng = np.random.default_rng(0)
given = [rng.poisson(20, shape).astype(dtype) for shape, dtype in (
    ((100, 130), "u2"), ((64, 33), "u1"), ((150, 150), "f4"), ((100, 90), "i4"), ((80, 80), "f8"))]  # fmt: skip
given[0][3, 4] = 20_000
given[2][9, 9] = np.nan
for blend in (0, 8):
    one = Pipeline(driver, Single(Copy()), WEIGHTS, halo=8, blend=blend)
    kept = []
    for image, result in zip(
        given * 2, one.denoise(plane(image, COUNTED, WEIGHTS.dose_range) for image in given * 2), strict=True
    ):
        np.testing.assert_allclose(result.image, spikes.infill(image, result.prepared.spikes), rtol=1e-5, atol=1e-4)
        kept.append((result.image, result.image.copy()))
    assert sum(len(result) for result, _ in kept) > 0
    one.close()
    for image, copy in kept:  # also those that were lent, now that their memory is unlocked
        np.testing.assert_array_equal(image, copy)

os.environ["FAKE_CUDA_ROOM"] = "100000"
try:
    driver.device(1 << 20)
    raise SystemExit("memory that is not there was given out")
except OutOfMemoryError as error:
    print("full:", error)
del os.environ["FAKE_CUDA_ROOM"]

event = driver.event()
driver.record(event, driver.stream())
os.environ["FAKE_CUDA_BROKEN"] = "yes"
try:
    driver.synchronise(event)
    raise SystemExit("a broken card was not noticed")
except OutOfMemoryError as error:
    raise SystemExit("a broken card was taken for a full one") from error
except BackendError as error:
    print("broken:", error)
del event
driver.close()
print("all went through pycuda")
