"""Micrographs in tiles: no image comes out under another micrograph's name."""

from collections.abc import Callable

import numpy as np
import pytest

from daemon.backends import manifest
from daemon.backends.canary import NO_SPIKES
from daemon.backends.framing import Frame, Framed, Result, Tiles
from daemon.counts.plane import Plane, Prepared
from daemon.counts.scaling import noise_units
from daemon.errors import MicrographError

WEIGHTS = manifest.verified("fast")


class Copies(Framed):
    """Returns the tiles as they are, of several micrographs at once; `fetch` is called with each result's number."""

    in_flight = 3
    name = "copies"

    def __init__(self, fetch: Callable[[int], None]) -> None:
        super().__init__(WEIGHTS.folder, WEIGHTS.manifest, Frame(256, WEIGHTS.manifest.halo), lambda: None)
        self._fetch, self._runs = fetch, 0

    def run(self, units: Tiles, level: Tiles, live: bool) -> Result:
        number, self._runs = self._runs, self._runs + 1

        def result() -> Tiles:
            self._fetch(number)
            return units

        return result

    def close(self) -> None:
        pass


def plane(seed: int) -> Plane:
    pixels = np.random.default_rng(seed).poisson(20, (64, 64)).astype(np.uint16)
    return Plane.known(Prepared(pixels, NO_SPIKES, noise_units(20.0), 20.0))


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_where_memory_runs_out_for_one_micrograph_no_later_one_comes_out_in_its_place(failing: int) -> None:
    def fetch(number: int) -> None:
        if number == failing:
            raise MemoryError

    planes, images = [plane(seed) for seed in range(4)], []
    with pytest.raises(MicrographError, match="not enough memory"):
        for done in Copies(fetch).denoise(planes):
            images.append(done.image)  # noqa: PERF401 - those before the error count
    assert len(images) == failing
    for image, given in zip(images, planes, strict=False):
        np.testing.assert_allclose(image, given.pixels, atol=1e-3)
