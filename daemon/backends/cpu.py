"""The default backend: the ONNX file on the processor, by ONNX Runtime."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import onnxruntime

from daemon.backends.framing import Frame, Framed, Result, Tiles
from daemon.backends.manifest import Manifest
from daemon.errors import BackendError, WeightsError


class CpuBackend(Framed):
    """`Backend` on the processor. Holds one micrograph's result and `batch` tiles at a time, and never reads ahead.

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
        options.intra_op_num_threads = cores_of(threads)
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
        sides = self._session.get_inputs()[0].shape[2:]
        frame = Frame(
            tile=manifest.tile_of(tile),
            halo=manifest.halo if halo is None else halo,
            batch=batch,
            blend=blend,
            fixed=all(isinstance(side, int) for side in sides),
        )
        super().__init__(folder, manifest, frame, progress)
        if frame.fixed and tile and sides != [tile, tile]:
            raise WeightsError(f"{folder}: these weights work on tiles of {sides[0]} pixels only; set backend.tile: 0")
        self._name = f"cpu: ONNX Runtime {onnxruntime.__version__}, float32, {_in_words(options.intra_op_num_threads)}"

    @property
    def name(self) -> str:
        """See `Backend`."""
        return self._name

    def run(self, units: Tiles, level: Tiles, live: bool) -> Result:
        """See `Framed`. Computes at once."""
        try:
            result: Tiles = self._session.run(["denoised"], {"units": units, "level": level})[0]
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise BackendError(
                f"ONNX Runtime failed: {error}; if memory ran out, lower backend.batch or backend.tile"
            ) from error
        return lambda: result

    def close(self) -> None:
        """See `Backend`."""
        del self._session


def cores_of(threads: int | Literal["auto"]) -> int:
    """How many processor threads a setting means: 0 is all cores, auto all but one."""
    cores = len(os.sched_getaffinity(0))
    return max(1, cores - 1) if threads == "auto" else threads or cores


def _in_words(threads: int) -> str:
    return f"{threads} thread" if threads == 1 else f"{threads} threads"
