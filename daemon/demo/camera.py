"""A simulated camera: nanoparticle micrographs with known truth, written to a drop folder as real cameras do.

**This simulator is excluded from training**: its images never enter a training set, so that a PSNR measured against
its truth is honest. Gold nanocrystals (single, twinned, five-fold) lie on an amorphous carbon film and are imaged
coherently (bright-field TEM: phase contrast, Fresnel fringes, an information limit) or incoherently (annular
dark-field STEM). It runs in its own process:
``python -m daemon.demo.camera DROP --truth FOLDER --seed N``.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.demo.specimen import PIXEL_NM, expose, scene

Pause = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Exposure:
    """One micrograph of the session, and the way its file is written."""

    file: str
    """Path below the drop folder; the suffix decides between TIFF and MRC."""
    side: int
    """Height and width, pixels."""
    dose: float
    """Mean counts per pixel."""
    contrast: float
    manner: str
    """A key of `MANNERS`."""
    hits: int = 0
    """X-ray hits."""


SESSION = (
    Exposure("low/exposure_001.tif", 512, 20, 1.0, "in pieces"),
    Exposure("low/exposure_002.mrc", 512, 20, 0.2, "renamed"),
    Exposure("low/exposure_003.tif", 1024, 20, 0.05, "preallocated"),
    Exposure("low/grid 2/exposure_001.tif", 2048, 20, 0.2, "in pieces"),
    Exposure("ordinary/exposure_001.tif", 512, 200, 1.0, "reopened"),
    Exposure("ordinary/exposure_002.mrc", 2048, 200, 0.05, "preallocated"),
    Exposure("ordinary/exposure_003.tif", 1024, 200, 0.2, "renamed", hits=2),
    Exposure("exposure_004.mrc", 1024, 20, 0.05, "reopened"),
    Exposure("exposure_005.mrc", 512, 20, 0.05, "in pieces"),
)
"""Two doses, contrasts from 5 % to 100 %, both formats, every manner of writing, one name in several folders; the
folders are those of the shipped profiles, and the last two get the default profile."""


def encode(counts: NDArray[np.uint16], kind: str) -> bytes:
    """A (H, W) image as the bytes of a file with its pixel size: `kind` ".tif" (ImageJ, nm) or ".mrc" (MRC2014, Å)."""
    if kind == ".mrc":
        import mrcfile  # drawing scenes, as training does, needs no writers

        with tempfile.TemporaryDirectory() as folder:  # mrcfile writes files only
            path = Path(folder) / "exposure.mrc"
            with mrcfile.new(path, counts) as mrc:
                mrc.voxel_size = 10 * PIXEL_NM
            return path.read_bytes()
    import tifffile

    stream = io.BytesIO()
    per_nm = 1 / PIXEL_NM
    tifffile.imwrite(stream, counts, imagej=True, resolution=(per_nm, per_nm), metadata={"unit": "nm"})
    return stream.getvalue()


def _write_in_pieces(path: Path, data: bytes, pause: Pause) -> None:
    """One open file, flushed piece by piece: a camera computer on a slow network."""
    with path.open("wb") as stream:
        for piece in _pieces(data, 10):
            stream.write(piece)
            stream.flush()
            pause(0.2)


def _write_preallocated(path: Path, data: bytes, pause: Pause) -> None:
    """The full size at once, then the content, with a rest in the middle: a copy by Windows Explorer."""
    with path.open("wb") as stream:
        stream.truncate(len(data))
        for number, piece in enumerate(_pieces(data, 4)):
            stream.write(piece)
            stream.flush()
            pause(2.0 if number == 1 else 0.2)


def _write_renamed(path: Path, data: bytes, pause: Pause) -> None:
    """A temporary name in the same folder, then a rename: rsync and careful acquisition software."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as stream:
        for piece in _pieces(data, 4):
            stream.write(piece)
            stream.flush()
            pause(0.3)
    temporary.replace(path)


def _write_reopened(path: Path, data: bytes, pause: Pause) -> None:
    """Opened, appended to and closed several times, with rests: a camera that saves strip by strip."""
    for number, piece in enumerate(_pieces(data, 4)):
        with path.open("ab") as stream:
            stream.write(piece)
        pause(1.2 if number < 3 else 0.0)


MANNERS: dict[str, Callable[[Path, bytes, Pause], None]] = {
    "in pieces": _write_in_pieces,
    "preallocated": _write_preallocated,
    "renamed": _write_renamed,
    "reopened": _write_reopened,
}


def _pieces(data: bytes, number: int) -> Iterator[bytes]:
    length = ceil(len(data) / number)
    return (data[start : start + length] for start in range(0, len(data), length))


def shoot(drop: Path, truth: Path, seed: int, exposures: Sequence[Exposure], pause: Pause) -> Iterator[dict[str, Any]]:
    """Make and write `exposures` below `drop`, their expected counts as .npy below `truth`; yield events.

    Events are plain JSON: {"event": "started", file, side, dose, contrast, manner} when the file appears,
    {"event": "complete", file, bytes, hits: [[row, column], ...], truth} just after its last byte.
    """
    for number, exposure in enumerate(exposures):
        rng = np.random.default_rng([seed, number])
        counts, expected = expose(scene(rng, exposure.side), exposure.dose, exposure.contrast, rng)
        hits = rng.integers(0, exposure.side, (exposure.hits, 2))
        counts[hits[:, 0], hits[:, 1]] = 30_000
        path, answer = drop / exposure.file, truth / f"{exposure.file}.npy"
        for folder in (path.parent, answer.parent):
            folder.mkdir(parents=True, exist_ok=True)
        np.save(answer, expected)
        data = encode(counts, path.suffix)
        yield {"event": "started", "file": exposure.file, "side": exposure.side, "dose": exposure.dose,
               "contrast": exposure.contrast, "manner": exposure.manner}  # fmt: skip
        MANNERS[exposure.manner](path, data, pause)
        yield {"event": "complete", "file": exposure.file, "bytes": len(data), "hits": hits.tolist(),
               "truth": str(answer)}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: write the session below a drop folder; each event is one JSON line on stdout."""
    parser = argparse.ArgumentParser(prog="python -m daemon.demo.camera", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("drop", type=Path, help="folder to write micrographs into")
    parser.add_argument("--truth", type=Path, required=True, help="folder for the expected counts (.npy); outside DROP")
    parser.add_argument("--seed", type=int, default=2018, help="another seed, another specimen")
    parser.add_argument("--count", type=int, default=len(SESSION), help="only the first exposures of the session")
    parser.add_argument("--pace", type=float, default=1.0, help="multiplies every pause; 0 writes without pausing")
    given = parser.parse_args(arguments)
    if given.truth.resolve().is_relative_to(given.drop.resolve()):
        parser.error(f"--truth {given.truth} lies inside the drop folder {given.drop}; choose a folder outside it")

    def pause(seconds: float) -> None:
        time.sleep(seconds * given.pace)

    for event in shoot(given.drop, given.truth, given.seed, SESSION[: given.count], pause):
        print(json.dumps(event), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
