"""`emdenoised calibrate`: reads flats and darks, writes the camera's file and a page about it.

Modules that load image libraries are imported inside functions: `--help` must be quick.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon import __version__
from daemon.commands.progress import Progress
from daemon.errors import MicrographError, UsageError
from daemon.settings import config as settings

if TYPE_CHECKING:
    from daemon.counts.calibration import Frames
    from daemon.micrograph import Acquisition

_TEACHING = """\
how to take the frames, once for each camera, high tension and binning:
  darks   two or more frames with the beam blanked, at the exposure time you use
  flats   no specimen, no aperture, the beam spread evenly; two or more frames at each of several brightnesses,
          from faint to nearly the brightest you use; raw, as the camera records them (dark and gain reference off)

example:
  emdenoised calibrate flat_*.mrc --dark dark_*.mrc -o cameras/ceta.yaml

writes cameras/ceta.yaml, explained line by line, and cameras/ceta.html, a page with the curves. Name the camera in a
profile of config.yaml (the folder `cameras` lies beside it), and its gain, offset, read-out noise and point spread
are used for every image of that profile:

  profiles:
    ceta: {camera: ceta}
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the command's options, and how to take the frames."""
    command.epilog = _TEACHING
    command.add_argument(
        "flats",
        nargs="+",
        type=Path,
        metavar="FLATS",
        help="flat-field exposures: files of one frame or of many, sorted by their brightness automatically",
    )
    command.add_argument(
        "--dark", nargs="+", type=Path, default=[], metavar="DARKS", help="frames without light; two or more"
    )
    command.add_argument(
        "-o", "--to", type=Path, required=True, metavar="FILE", help="the camera's file, such as cameras/ceta.yaml"
    )


def run(options: argparse.Namespace) -> int:
    """Calibrate; 0 if the camera's file was written."""
    from daemon.commands import camera_page
    from daemon.counts.calibration import calibrate
    from daemon.settings import camera_file

    target: Path = options.to
    if target.suffix.lower() not in (".yaml", ".yml"):
        raise UsageError(f"{target}: the camera's file must end in .yaml, such as cameras/{target.stem}.yaml")
    target.parent.mkdir(parents=True, exist_ok=True)
    frames, taken = read(options.flats, options.dark)
    made = f"{time.strftime('%Y-%m-%d')}, emdenoised {__version__}"
    found = calibrate(frames, made, _stated(taken, "detector"), _stated(taken, "voltage_kv"))
    camera_file.save(target, found.camera)
    page = target.with_suffix(".html")
    camera_page.save(page, found, [*options.flats, *options.dark])
    camera = found.camera
    print(
        f"gain {camera.gain:.4g} units per count (± {camera.gain_error:.1%}), offset {camera.offset:.5g} units, "
        f"read-out {camera.readout:.3g} counts rms, point spread {camera.psf:.3g} pixels; "
        f"{camera.defects.hot} hot and {camera.defects.dead} dead pixels"
    )
    for remark in found.remarks:
        print(f"note: {remark}")
    print(f"{target} and {page} written; use it in a profile: `camera: {target.stem}`")
    return 0


def read(flats: Sequence[Path], darks: Sequence[Path]) -> "tuple[Frames, list[Acquisition]]":
    """Every frame of the files, and how each was taken. Raises MicrographError for a file that cannot be used."""
    from daemon.counts.calibration import Frames
    from daemon.formats.decoder import Reader

    frames = Frames()
    taken: list[Acquisition] = []
    limits = settings.BackendConfig()
    reading = Reader(limits.max_pixels, limits.decode_seconds, references=True)
    with reading as reader, Progress(len(flats) + len(darks)) as progress:
        for dark, files in ((True, darks), (False, flats)):
            for path in files:
                progress.next(str(path))
                path.stat()  # a missing file is an error of this command, and not one that passes
                section, number = 0, 1
                while section < number:
                    one = reader.read(path, section)
                    number = int(one.metadata.get("sections", 1))
                    frames.add(one.pixels, f"{path}, frame {section + 1}" if number > 1 else str(path), dark)
                    taken.append(one.acquisition)
                    section += 1
                    progress.beat()
                progress.say(f"{number} {'dark' if dark else 'flat'} frame{'s' if number > 1 else ''}")
    return frames, taken


def _stated(taken: "Sequence[Acquisition]", name: str) -> Any:
    """The value that all files state; None if none does. Raises MicrographError if they differ."""
    values = {value for one in taken if (value := getattr(one, name)) is not None}
    if len(values) > 1:
        raise MicrographError(
            f"the files were taken with different settings ({name}: {', '.join(map(str, sorted(values, key=str)))}); "
            "calibrate each separately"
        )
    return next(iter(values), None)
