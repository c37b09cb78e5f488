"""Cuts micrographs into tiles in noise units and joins the results, for backends that only run a network on arrays."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daemon.backends import tiling
from daemon.backends.manifest import Manifest
from daemon.backends.protocol import OUT_OF_MEMORY
from daemon.counts import spikes
from daemon.counts.plane import Denoised, Plane, Prepared
from daemon.counts.scaling import MINMAX_CROP, Scaling, minmax_crop
from daemon.counts.spikes import infill, within
from daemon.errors import MicrographError
from daemon.micrograph import Image

Tiles = NDArray[np.float32]
"""(n, 1, H, W), in noise units."""
Result = Callable[[], Tiles]
"""Waits for the result of `Framed.run`, and returns it. Called once."""


@dataclass(frozen=True, slots=True)
class Frame:
    """How micrographs are cut: sides of tiles and halo in pixels, tiles computed at once, pixels of cross-fading.

    `fixed`: the network takes tiles of this side only; otherwise smaller ones, too.
    """

    tile: int
    halo: int
    batch: int = 1
    blend: int = 0
    fixed: bool = False

    def plan(self, shape: tuple[int, int], align: int) -> tiling.TilePlan:
        """As few tiles as possible for an image (H, W), no larger than needed if the network allows.

        Raises MicrographError if the image is too small.
        """
        return tiling.plan(shape, self._sides(shape, align), self.halo, align, self.blend)

    def _sides(self, shape: tuple[int, int], align: int) -> tuple[int, int]:
        if self.fixed:
            return self.tile, self.tile
        shared = -(-(2 * self.halo + self.blend) // align) * align
        sides = []
        for extent in shape:
            number = max(1, -(-(extent - shared) // (self.tile - shared)))
            sides.append(min(self.tile, tiling.even_side(extent, number, shared, align)))
        return sides[0], sides[1]


@dataclass(slots=True, eq=False)
class _InWork:
    """A micrograph in the network. `left`: batches without a result so far, those not yet cut included."""

    prepared: Prepared
    out: Image
    left: int


@dataclass(slots=True, eq=False)
class _Batch:
    micrograph: _InWork
    tiles: list[tiling.Tile]
    scalings: list[Scaling]
    result: Result


class Framed(ABC):
    """`Backend` around `run`, which its subclasses add, and `name`.

    Holds the micrographs of at most `in_flight` batches; with 1 it never reads ahead. `progress` is called after every
    batch, for a watchdog.
    """

    in_flight = 1

    def __init__(self, folder: Path, manifest: Manifest, frame: Frame, progress: Callable[[], None]) -> None:
        """`folder` holds the weights. Raises WeightsError if they cannot be served in such frames."""
        tiling.require(folder, manifest, frame.tile, frame.halo, frame.blend)
        self.manifest, self.frame, self.progress = manifest, frame, progress

    @property
    @abstractmethod
    def name(self) -> str:
        """See `Backend`."""

    @abstractmethod
    def run(self, units: Tiles, level: Tiles, live: bool) -> Result:
        """Start the network on tiles (n, 1, H, W) with levels (n, 1, 1, 1), both float32. `live` as in `Plane`.

        Raises BackendError, here or when the result is asked for.
        """

    @abstractmethod
    def close(self) -> None:
        """See `Backend`."""

    def connected(self) -> Frame:
        """How the next micrograph is cut. Raises BackendError if nothing can run the network now."""
        return self.frame

    def denoise(self, planes: Iterable[Plane | None]) -> Iterator[Denoised]:
        """See `Backend`."""
        flying: deque[_Batch] = deque()
        for plane in planes:
            if plane is None:
                yield from self._landed(flying, 0)
                continue
            try:
                yield from self._sent(plane, flying)
            except (MemoryError, MicrographError) as error:
                yield from self._landed(flying, 0)  # the error is of the first micrograph without a result
                raise error if isinstance(error, MicrographError) else MicrographError(OUT_OF_MEMORY) from error
        yield from self._landed(flying, 0)

    def _sent(self, plane: Plane, flying: deque[_Batch]) -> Iterator[Denoised]:
        """Cut a micrograph and start its batches; yields those that are done meanwhile."""
        frame = self.connected()
        survey = spikes.survey(plane.pixels, plane.gain, plane.offset, plane.false_alarm)
        prepared = plane.prepare(survey)
        del survey
        plan = frame.plan(prepared.pixels.shape, self.manifest.align)
        micrograph = _InWork(prepared, plan.canvas(), -(-len(plan) // frame.batch))
        del prepared
        waiting: list[tiling.Tile] = []
        for number, tile in enumerate(plan, 1):
            waiting.append(tile)
            if len(waiting) == frame.batch or number == len(plan):
                flying.append(self._started(micrograph, waiting, plane.live))
                waiting = []
                if number == len(plan):
                    del micrograph  # frees its memory before the next micrograph
                yield from self._landed(flying, self.in_flight - 1)

    def _started(self, micrograph: _InWork, tiles: list[tiling.Tile], live: bool) -> _Batch:
        one = micrograph.prepared
        units, scalings = [], []
        for tile in tiles:
            window, found, scaling = one.pixels[tile.window], within(one.spikes, *tile.window), one.scaling
            if self.manifest.scaling == MINMAX_CROP:
                scaling = minmax_crop(infill(window, found))
            scaled = scaling.to_units(window)
            scaled[found.rows, found.columns] = scaling.to_units(found.values)
            units.append(tile.expand(scaled))
            scalings.append(scaling)
        level = np.array([scaling.level for scaling in scalings], np.float32).reshape(-1, 1, 1, 1)
        return _Batch(micrograph, tiles, scalings, self.run(np.stack(units)[:, None], level, live))

    def _landed(self, flying: deque[_Batch], most: int) -> Iterator[Denoised]:
        """Wait until at most so many batches are in the network; yields the micrographs that are complete."""
        while len(flying) > most:
            batch = flying.popleft()
            micrograph = batch.micrograph
            try:
                for tile, scaling, result in zip(batch.tiles, batch.scalings, batch.result(), strict=True):
                    tiling.place(tile, scaling.to_pixels(result[0]), micrograph.out)
            except MemoryError as error:
                del batch, micrograph
                flying.clear()  # a later micrograph that comes out would be taken for this one
                raise MicrographError(OUT_OF_MEMORY) from error
            del batch
            self.progress()
            micrograph.left -= 1
            if not micrograph.left:
                yield Denoised(micrograph.out, micrograph.prepared, self.name)
            del micrograph
