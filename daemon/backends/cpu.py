"""The default backend: the ONNX file on the processor, by ONNX Runtime."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from daemon.backends import tiling
from daemon.backends.manifest import Manifest
from daemon.backends.protocol import OUT_OF_MEMORY
from daemon.counts import spikes
from daemon.counts.plane import Denoised, Plane, Prepared
from daemon.counts.scaling import MINMAX_CROP, minmax_crop
from daemon.counts.spikes import infill, within
from daemon.errors import BackendError, MicrographError, WeightsError
from daemon.micrograph import Image


class CpuBackend:
    """`Backend` on the processor. Holds one micrograph's result and `batch` tiles at a time.

    Args:
        folder, manifest: the weights.
        threads: processor threads; 0 for all cores, auto for all but one.
        tile, halo: sides in pixels; None or 0 for the manifest's.
        batch: tiles computed at once.
        blend: pixels over which neighbouring tiles cross-fade; 0 cuts.
        progress: called after every batch, for a watchdog.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        threads: int | Literal["auto"] = 0,
        tile: int = 0,
        halo: int | None = None,
        batch: int = 1,
        blend: int = 0,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        options = onnxruntime.SessionOptions()
        cores = len(os.sched_getaffinity(0))
        options.intra_op_num_threads = max(1, cores - 1) if threads == "auto" else threads or cores
        options.log_severity_level = 4
        # A plan of the memory for each shape of tile nearly doubles the peak, and is no faster.
        options.enable_mem_pattern = False
        # Idle threads must sleep: on a microscope PC the acquisition software needs the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(folder / manifest.onnx), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise WeightsError(
                f"{folder / manifest.onnx}: cannot be loaded ({error}); reinstall the weights"
            ) from error
        self._manifest = manifest
        self._tile = -(-(tile or manifest.tile) // manifest.align) * manifest.align
        self._halo = manifest.halo if halo is None else halo
        self._batch, self._blend, self._progress = batch, blend, progress
        tiling.require(folder, manifest, self._tile, self._halo, blend)
        sides = self._session.get_inputs()[0].shape[2:]
        self._fixed = all(isinstance(side, int) for side in sides)
        if self._fixed and tile and sides != [tile, tile]:
            raise WeightsError(f"{folder}: these weights work on tiles of {sides[0]} pixels only; set backend.tile: 0")
        self.name = f"cpu: ONNX Runtime {onnxruntime.__version__}, float32, {_in_words(options.intra_op_num_threads)}"

    def denoise(self, planes: Iterable[Plane | None]) -> Iterator[Denoised]:
        """See `Backend`. Reads one micrograph at a time, never ahead."""
        for plane in planes:
            if plane is not None:
                try:
                    survey = spikes.survey(plane.pixels, plane.gain, plane.offset, plane.false_alarm)
                    prepared = plane.prepare(survey)
                    image = self._frame(prepared)
                except MemoryError as error:
                    raise MicrographError(OUT_OF_MEMORY) from error
                yield Denoised(image, prepared, self.name)
                del survey, prepared, image  # frees their memory before the next micrograph

    def close(self) -> None:
        """See `Backend`."""
        del self._session

    def _frame(self, one: Prepared) -> Image:
        plan = tiling.plan(
            one.pixels.shape, self._sides(one.pixels.shape), self._halo, self._manifest.align, self._blend
        )
        out = plan.canvas()
        waiting: list[tiling.Tile] = []
        for tile in plan:
            waiting.append(tile)
            if len(waiting) == self._batch:
                self._tiles(one, waiting, out)
                waiting = []
        if waiting:
            self._tiles(one, waiting, out)
        return out

    def _sides(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Sides of the tiles, pixels: as few tiles as possible, no larger than needed if the network allows."""
        if self._fixed:
            return self._tile, self._tile
        align = self._manifest.align
        shared = -(-(2 * self._halo + self._blend) // align) * align
        sides = []
        for extent in shape:
            number = max(1, -(-(extent - shared) // (self._tile - shared)))
            sides.append(min(self._tile, tiling.even_side(extent, number, shared, align)))
        return sides[0], sides[1]

    def _tiles(self, one: Prepared, tiles: list[tiling.Tile], out: Image) -> None:
        units, scalings = [], []
        for tile in tiles:
            window, found, scaling = one.pixels[tile.window], within(one.spikes, *tile.window), one.scaling
            if self._manifest.scaling == MINMAX_CROP:
                scaling = minmax_crop(infill(window, found))
            scaled = scaling.to_units(window)
            scaled[found.rows, found.columns] = scaling.to_units(found.values)
            units.append(tile.expand(scaled))
            scalings.append(scaling)
        feeds: dict[str, NDArray[np.float32]] = {
            "units": np.stack(units)[:, None],
            "level": np.array([scaling.level for scaling in scalings], np.float32).reshape(-1, 1, 1, 1),
        }
        try:
            results = self._session.run(["denoised"], feeds)[0]
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise BackendError(
                f"ONNX Runtime failed: {error}; if memory ran out, lower backend.batch or backend.tile"
            ) from error
        for tile, scaling, result in zip(tiles, scalings, results, strict=True):
            tiling.place(tile, scaling.to_pixels(result[0]), out)
        self._progress()


def _in_words(threads: int) -> str:
    return f"{threads} thread" if threads == 1 else f"{threads} threads"
