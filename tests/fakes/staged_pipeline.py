"""A GPU pipeline on a fake CUDA: its micrographs, the pixels expected of it, and whole sessions."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from fake_cuda import FakeCuda, FakeNetwork
from numpy.typing import NDArray

from daemon.backends import manifest, tiling
from daemon.backends.gpu.device import Single
from daemon.backends.gpu.pipeline import Pipeline
from daemon.backends.manifest import Manifest
from daemon.counts import spikes
from daemon.counts.plane import Plane, Prepared, Survey
from daemon.counts.prepare import plane
from daemon.counts.profiles import Choice
from daemon.counts.scaling import MINMAX_CROP, minmax_crop
from daemon.micrograph import Image
from daemon.settings.profile import Profile

TILE, HALO, ALIGN = 48, 8, 8
WEIGHTS = manifest.load(manifest.locate("fast")).model_copy(update={"tile": TILE, "halo": HALO, "align": ALIGN})
PAPER = WEIGHTS.model_copy(update={"scaling": MINMAX_CROP})
COUNTED = Choice(Profile(name="test"), "", 1.0, 0.0)


def asked(pixels: NDArray[Any], choice: Choice = COUNTED) -> Plane:
    return plane(pixels, choice, WEIGHTS.dose_range)


JUDGED: dict[tuple[Any, ...], Prepared] = {}


def remembered(pixels: NDArray[Any]) -> Plane:
    """As `asked`; the host's judgement of the same pixels and the same survey is made once for all schedules."""
    one = asked(pixels)

    def prepare(survey: Survey) -> Prepared:
        key = (pixels.tobytes(), pixels.shape, pixels.dtype.str, survey.total, survey.missing.tobytes(),
               survey.suspects.tobytes())  # fmt: skip
        if key not in JUDGED:
            JUDGED[key] = one.prepare(survey)
        return replace(JUDGED[key], pixels=pixels)

    return replace(one, prepare=prepare)


def images(number: int = 7, seed: int = 0) -> list[NDArray[Any]]:
    """Of several sizes, types and doses, some with spikes, the largest in the middle."""
    rng = np.random.default_rng(seed)
    shapes = [(40, 56), (64, 33), (50, 50), (90, 70), (33, 90), (90, 70), (60, 60)]
    dtypes = ["u2", "f4", "u1", "u2", "f8", "i4", "i2"]
    made = []
    for index in range(number):
        image = rng.poisson(10 * (1 + index), shapes[index % 7]).astype(dtypes[index % 7])
        if index % 2:
            image[5, 7], image[30, 2] = image.max() * 6 + 50, image.max() * 6 + 60
        made.append(image)
    return made


def expected(
    prepared: Prepared, weights: Manifest = WEIGHTS, blend: int = 0, tile: tuple[int, int] = (TILE, TILE)
) -> Image:
    """What the pipeline is to compute, tile by tile in NumPy."""
    plan = tiling.plan(prepared.pixels.shape, tile, HALO, ALIGN, blend)
    out = plan.canvas()
    whole = spikes.infill(prepared.pixels, prepared.spikes)
    for one in plan:
        scaling = prepared.scaling
        if weights.scaling == MINMAX_CROP:
            scaling = minmax_crop(whole[one.window])
        units = scaling.to_units(tiling.cut(one, whole))[None, None]
        level = np.full((1, 1, 1, 1), prepared.scaling.level, np.float32)
        tiling.place(one, scaling.to_pixels(FakeNetwork.compute(units, level)[0, 0]), out)
    return out


def made(driver: FakeCuda, weights: Manifest = WEIGHTS, batch: int = 2, blend: int = 0, **options: Any) -> Pipeline:
    network = FakeNetwork(driver, TILE, batch)
    return Pipeline(driver, Single(network), weights, halo=HALO, blend=blend, **options)


class ByShape:
    """`Networks` that serves small frames with small tiles, and large ones with tiles that fit each shape."""

    def __init__(self, driver: FakeCuda) -> None:
        self._driver, self._open = driver, dict[tuple[int, int], FakeNetwork]()

    def _tile(self, shape: tuple[int, int]) -> tuple[int, int]:
        rows, halves = -(-shape[0] // ALIGN) * ALIGN, -(-shape[1] // 2 // ALIGN) * ALIGN + 16
        return (TILE, TILE) if shape[0] < 60 else (rows, halves)

    def ready(self, shape: tuple[int, int]) -> bool:
        return self._tile(shape) in self._open

    def of(self, shape: tuple[int, int]) -> FakeNetwork:
        tile = self._tile(shape)
        if tile not in self._open:
            self._open = {tile: FakeNetwork(self._driver, tile, 1 + tile[0] % 3)}
        return self._open[tile]


def session(driver: FakeCuda, networks: bool = False) -> list[Image]:
    """Streams of every kind: with pauses, left in the middle, with micrographs that grow; results kept and dropped."""
    one = Pipeline(driver, ByShape(driver) if networks else Single(FakeNetwork(driver, TILE, 2)), WEIGHTS, halo=HALO)
    given = images()
    kept: list[Image] = []

    def paused() -> Iterator[Plane | None]:
        for index, image in enumerate(given):
            yield remembered(image)
            if index in (1, 4):
                yield None

    kept += [result.image for result in one.denoise(paused())]
    for number in (1, 2):
        left = one.denoise(remembered(image) for image in images(4, seed=number))
        kept.append(next(left).image)
        left.close()
        # The next is larger than all before it: buffers are freed and made anew at once.
        large = np.random.default_rng(number).poisson(9, (100 + 8 * number, 90)).astype(np.uint16)
        kept += [result.image for result in one.denoise([remembered(large)])]
    for result in one.denoise(remembered(image) for image in given + given):
        kept.append(result.image if len(kept) % 3 else result.image.copy())
    copies = [image.copy() for image in kept]
    one.close()
    gc.collect()
    assert not driver.live, "memory was left behind"
    for image, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(image, copy, "an image changed after it was given out")
    return copies
