"""Files → fields of view for training without clean images: noisy pairs, frames of stacks, or single images of counts.

Unsuitable files are skipped, and reported with the measurement.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray

from daemon import formats
from daemon.counts import spikes
from daemon.counts.gain import measure
from daemon.counts.thinning import examine
from daemon.errors import ConfigError, EmdenoisedError, MicrographError
from daemon.formats import mrc
from daemon.formats.reading import explained_reading
from daemon.micrograph import Image, Micrograph, Pixels
from training.data import cache as store
from training.data.truths import MAX_PIXELS
from training.finetuning.alignment import compare
from training.finetuning.noisy import Field
from training.progress import Bar

log = logging.getLogger(__name__)

PARTNERS = (("a", "b"), ("1", "2"), ("odd", "even"), ("odd", "evn"), ("half1", "half2"), ("h1", "h2"))
"""Endings of names of two exposures of one field, after "_", "-", "." or a blank: grid3_07_a.tif, grid3_07_b.tif."""

GROUPS = 8
"""Interleaved groups into which a movie's frames are summed, at most: enough ways to divide it."""
_SPIKES = 1e-3
"""Largest share of X-ray hits and hot pixels for thinning: their replacements are no counts."""
VERSION = 1


@dataclass(frozen=True, slots=True)
class Reading:
    """How files become fields.

    `gain`: units per count ("auto": measured); `offset`: value at zero counts of one frame. `partners`: endings.
    `smallest`: shortest side, pixels.
    """

    how: Literal["pairs", "thinning"]
    gain: float | Literal["auto"] = 1.0
    offset: float = 0.0
    partners: tuple[tuple[str, str], ...] = PARTNERS
    smallest: int = 128

    def __post_init__(self) -> None:
        if self.gain != "auto" and not (np.isfinite(self.gain) and self.gain > 0 and np.isfinite(self.offset)):
            raise ConfigError(f"gain {self.gain} and offset {self.offset}: give a positive gain, both finite")
        if self.how == "thinning" and self.gain == "auto":
            raise ConfigError(
                "--gain auto is an estimate, and thinning must know the counts themselves; give --gain and --offset of "
                "the camera, or leave them out if the files hold plain counts"
            )


class SkippedFile(NamedTuple):
    """A file, below the data folder, that was not used, and why."""

    file: str
    reason: str


def load_fields(folder: Path, reading: Reading, cache: Path, apart: Path) -> tuple[list[Field], list[SkippedFile]]:
    """Every suitable field of view below `folder`, and the skipped files, in order of names.

    `cache`: folder for the counts, memory-mapped. `apart`: folder whose files are ignored. Raises ConfigError
    if `folder` does not exist; OSError if the cache cannot be written.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name a folder of micrographs")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.resolve().is_relative_to(apart.resolve())
    )
    fields: list[Field] = []
    skipped: list[SkippedFile] = []
    bar = Bar("fields of view read")
    groups = paired(files, reading.partners) if reading.how == "pairs" else [(path,) for path in files]
    for number, group in enumerate(groups, 1):
        names = tuple(path.relative_to(folder).as_posix() for path in group)
        try:
            fields.append(_cached(group, names, reading, cache))
        except EmdenoisedError as error:
            log.warning("skipped: %s", error)
            skipped += [SkippedFile(name, str(error)) for name in names]
        bar.show(number, len(groups))
    return fields, skipped


def paired(files: Sequence[Path], partners: Sequence[tuple[str, str]]) -> list[tuple[Path, ...]]:
    """Groups of files: two of one field by their names, or any other file alone (a stack, if it is suitable).

    "1" and "2" are partners only if there is no "3": then they are numbers.
    """
    ends = sorted({end for pair in partners for end in pair}, key=len, reverse=True)
    pattern = re.compile(rf"(.+)[ _.-]({'|'.join(map(re.escape, ends))}|\d+)", re.IGNORECASE)
    named: defaultdict[tuple[Path, str], dict[str, Path]] = defaultdict(dict)
    for path in files:
        if match := pattern.fullmatch(path.stem):
            named[path.parent, match[1]][match[2].lower()] = path
    groups: dict[Path, tuple[Path, ...]] = {}
    for members in named.values():
        for first, second in partners:
            numbers = {end for end in members if end.isdigit()}
            if {first, second} <= members.keys() and not (first.isdigit() and len(numbers) > 2):
                groups[members[first]] = groups[members[second]] = (members[first], members[second])
                break
    return list(dict.fromkeys(groups.get(path, (path,)) for path in files))


def _cached(group: Sequence[Path], names: tuple[str, ...], reading: Reading, cache: Path) -> Field:
    """As `_read_field`, with the cache."""
    with explained_reading(group[0]):
        seen = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in group]
    key = store.key_of(VERSION, asdict(reading), seen)
    if (found := store.get(cache, key)) is None:
        exposures, doses, measured = _read_field(group, reading)
        stored = store.put(cache, key, exposures, {"doses": doses, "measured": measured})
    else:
        stored, notes = found
        doses, measured = notes["doses"], notes["measured"]
    source = Path(names[0]).parent.as_posix()
    return Field(names[0], source, names, stored, tuple(doses), measured)


def _read_field(group: Sequence[Path], reading: Reading) -> tuple[list[Image], list[float], dict[str, float]]:
    """Exposures of one field in counts, their doses, and measurements. Raises MicrographError with the reason."""
    micrographs = [formats.read(path, MAX_PIXELS) for path in group]
    for micrograph in micrographs:
        formats.require_one_exposure(micrograph)
    path, (height, width) = group[0], micrographs[0].pixels.shape
    if min(height, width) < reading.smallest:
        raise MicrographError(
            f"{path}: {width} × {height} pixels; at least {reading.smallest} on either side are needed"
        )
    if reading.how == "thinning":
        return _countable(path, micrographs[0], reading)
    planes, halves = _exposures(group, micrographs, reading)
    gain, offset = _gain(path, planes, reading)
    exposures = [_counts(path, plane, gain, offset * number)[0] for plane, number in planes]
    doses = [float(exposure.mean(dtype=np.float64)) for exposure in exposures]
    if min(doses) <= 0:
        raise MicrographError(
            f"{path}: an exposure has {min(doses):.3g} counts per pixel on average after gain {gain:g} and offset "
            f"{offset:g} per frame; correct --gain and --offset"
        )
    compared = compare(*(_counts(path, half, gain, offset * number)[0] for half, number in halves))
    if reason := compared.refusal():
        raise MicrographError(f"{path}: {reason}")
    return exposures, doses, {"gain": gain, "offset": offset, **asdict(compared)}


_Summed = list[tuple[Pixels, int]]
"""Planes (H, W), each with the number of frames that were summed to it."""


def _exposures(group: Sequence[Path], micrographs: Sequence[Micrograph], reading: Reading) -> tuple[_Summed, _Summed]:
    """Independent exposures of one field, and its two halves in the order of time; of a pair both are the same.

    Raises MicrographError where there is one exposure only, or two of different sizes.
    """
    path, first = group[0], micrographs[0]
    frames = int(first.metadata.get("frames", 1))
    if len(group) == 2:
        if first.pixels.shape != micrographs[1].pixels.shape:
            raise MicrographError(f"{path}: {group[1].name} is of another size; exposures of a field must be alike")
        pair = [(one.pixels, int(one.metadata.get("frames", 1))) for one in micrographs]
        return pair, pair
    if frames > 1:
        stack = _read_frames(path, first, frames)
        planes = [(summed(stack[start::GROUPS]), len(stack[start::GROUPS])) for start in range(min(GROUPS, frames))]
        # Drift shows between the beginning and the end of a movie, which interleaved groups share.
        return planes, [(summed(part), frames // 2) for part in (stack[: frames // 2], stack[-(frames // 2) :])]
    ends = ", ".join(f"_{one} and _{other}" for one, other in reading.partners)
    raise MicrographError(
        f"{path}: one image without a partner; a pair is two files of one field whose names end in {ends}, or a "
        "stack of frames. For single images of counts use --how thinning"
    )


def _countable(
    path: Path, micrograph: Micrograph, reading: Reading
) -> tuple[list[Image], list[float], dict[str, float]]:
    """An image of counts, its dose and measurements. Raises MicrographError if its values are no counts."""
    assert reading.gain != "auto"
    frames = int(micrograph.metadata.get("frames", 1))
    counts, filled = _counts(path, micrograph.pixels, reading.gain, reading.offset * frames)
    test = examine(counts, str(micrograph.metadata.get("dtype", "")) if frames == 1 else "")
    reasons = list(test.reasons)
    if filled > _SPIKES:
        reasons.append(
            f"{filled:.2%} of the pixels are X-ray hits, hot or not finite, more than the {_SPIKES:.1%} allowed"
        )
    if reasons:
        raise MicrographError(f"{path}: cannot be thinned, which needs plain counts: {'; '.join(reasons)}")
    measured = {"variance_over_mean": test.variance_over_mean, "correlation": test.correlation}
    return [np.rint(counts)], [test.dose], measured


def _counts(path: Path, pixels: Pixels, gain: float, offset: float) -> tuple[Image, float]:
    """Counts (H, W) float32 with spikes filled in, and the share of these."""
    try:
        found = spikes.find(pixels, gain, offset)
    except MicrographError as error:
        raise MicrographError(f"{path}: {error}") from error
    counts = ((pixels.astype(np.float64) - offset) / gain).astype(np.float32)
    filled = (found.values.astype(np.float64) - offset) / gain
    whole = np.issubdtype(pixels.dtype, np.integer) and gain == 1
    counts[found.rows, found.columns] = np.rint(filled) if whole else filled
    return counts, len(found) / pixels.size


def _gain(path: Path, planes: Sequence[tuple[Pixels, int]], reading: Reading) -> tuple[float, float]:
    """Gain, and offset of one frame, as stated or as measured from the sum of all exposures."""
    if reading.gain != "auto":
        return reading.gain, reading.offset
    try:
        found = measure(summed([plane for plane, _ in planes]))
    except MicrographError as error:
        raise MicrographError(f"{path}: {error}") from error
    noise = found.noise  # the losses are in units of single pixels' noise
    return noise.effective_gain, noise.effective_offset / sum(number for _, number in planes)


def summed(planes: Iterable[Pixels]) -> NDArray[np.float64]:
    """Sum of planes (H, W), of which there is at least one."""
    first, *others = planes
    total = first.astype(np.float64)
    for plane in others:
        total += plane
    return total


def _read_frames(path: Path, micrograph: Micrograph, frames: int) -> NDArray[Any]:
    """The frames (F, H, W) whose sum `micrograph` is. Raises MicrographError if they cannot be separated."""
    with explained_reading(path):
        if micrograph.kind == "mrc":
            with formats.RawFile(path).open() as stream:
                layout = mrc.parse(stream.read(mrc.HEADER_BYTES))
            # Signed 16 bit may be unsigned by the micrograph's metadata.
            dtype = np.dtype(str(micrograph.metadata["dtype"])).newbyteorder(layout.dtype.byteorder)
            stack: NDArray[Any] = np.memmap(path, dtype, "r", layout.data, layout.shape)
        elif micrograph.kind == "tiff":
            stack = np.asarray(tifffile.imread(path))
        else:
            stack = np.stack([formats.read(path, MAX_PIXELS, number).pixels for number in range(frames)])
    height, width = micrograph.pixels.shape
    if stack.shape[-2:] != (height, width) or stack.size != frames * height * width:
        raise MicrographError(f"{path}: its frames cannot be separated from other images in it; save them as a stack")
    return stack.reshape(frames, height, width)
