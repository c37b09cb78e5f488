"""Folder of micrographs → truths for training: read, judged, binned, stretched, cached, and split by source."""

import csv
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from daemon.errors import ConfigError, EmdenoisedError, MicrographError
from daemon.files import save
from training.data import cache as store
from training.data.exposure import Image
from training.progress import Bar

log = logging.getLogger(__name__)

Rule = Literal["clean", "paper"]

_NO_TRUTH = "C"
"""Grade, in the column `quality` of a list of sources, of a micrograph too noisy for training."""

_NOISE_OVER_RANGE = 0.035
"""A micrograph whose own noise exceeds this share of its grey range is binned before it may serve as truth."""

_PAPER_SIDE = 512
"""Shortest side, pixels, that binning as in the paper must leave."""

MAX_PIXELS = 2**28

_HOT_REMARK = 0.1
"""Share of the range that the 99.99 % quantile must reach."""
_SATURATED_REMARK, _SATURATED_REFUSED = 0.02, 0.5
"""Shares of pixels at the highest value from which on a micrograph gets a remark, and is refused."""

CACHE_VERSION = 1
"""Increased when the same file gives other truths."""


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """A micrograph that is clean enough for training.

    `versions` are images (H, W) float32 in [0, 1]; with a cache they are memory-mapped on access. `binned`: factor by
    which each was reduced (1: not).
    """

    name: str
    """Path below the data folder."""
    source: str
    """Origin; micrographs of one source are never split between training and validation."""
    versions: Sequence[Image]
    binned: tuple[int, ...]


def load_truths(
    folder: Path,
    cache: Path | None = None,
    sources: Path | None = None,
    smallest: int = 192,
    rule: Rule = "clean",
) -> list[Truth]:
    """Every suitable micrograph below `folder`, in the order of names; the log lists the others with reasons.

    `cache`: folder for the prepared images, which saves memory and makes the next start fast; it may be deleted while
    no training uses it. `sources`: CSV file with columns `name` (of the file, without its ending) and `source`; other
    files get their source from the sub-folder, else from the beginning of the name. Files with grade C in a column
    `quality` are left out. `smallest`: shortest side in pixels. `rule`: "clean" bins until the micrograph's own noise
    is low, and adds one more version; "paper" bins by two where 512 pixels are left.

    Raises ConfigError if the folder is missing or holds no suitable micrograph, or if `sources` cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name a folder of micrographs")
    named = read_sources(sources) if sources else {}
    loaded: list[Truth] = []
    remarks: Counter[str] = Counter()
    skipped = 0
    files, bar = _files(folder, cache), Bar("files read")
    for number, path in enumerate(files, 1):
        bar.show(number, len(files))
        name = path.relative_to(folder)
        listed = named.get(path.stem) or named.get(path.name)
        if listed and listed.quality == _NO_TRUTH:
            log.info("skipped: %s: graded %s in %s, too noisy for training", path, _NO_TRUTH, sources)
            skipped += 1
            continue
        try:
            prepared = _cached(path, cache, smallest, rule) if cache else prepare(path, smallest, rule)
        except EmdenoisedError as error:
            log.warning("skipped: %s", error)
            skipped += 1
            continue
        remarks.update(prepared.remarks)
        source = listed.source if listed else guess_source(name)
        loaded.append(Truth(name.as_posix(), source, prepared.versions, prepared.binned))
    if not loaded:
        raise ConfigError(f"{folder}: holds no micrograph for training; the warnings above state why each was skipped")
    log.info(
        "%s: %d micrographs of %d sources, %d files skipped",
        folder, len(loaded), len({truth.source for truth in loaded}), skipped,
    )  # fmt: skip
    for remark, number in sorted(remarks.items()):
        log.info("%s: %d of %d micrographs: %s", folder, number, len(loaded), remark)
    missing = [t for t in loaded if named.keys().isdisjoint((t.name, Path(t.name).name, Path(t.name).stem))]
    if named and missing:
        log.warning("%s: names no source for %d micrographs; taken from their folder or name", sources, len(missing))
    return loaded


# One micrograph


@dataclass(frozen=True, slots=True, eq=False)
class PreparedTruth:
    """The versions of one micrograph that serve as truth, their binning, and remarks."""

    versions: Sequence[Image]
    binned: tuple[int, ...]
    remarks: tuple[str, ...]


def prepare(path: Path, smallest: int, rule: Rule) -> PreparedTruth:
    """Read a micrograph and make truths of it. Raises EmdenoisedError with the reason if none can be made."""
    from daemon import formats  # not needed for prepared micrographs

    micrograph = formats.read(path, MAX_PIXELS)
    formats.require_one_exposure(micrograph)
    pixels = micrograph.pixels
    remarks = judge(path, pixels, smallest)
    low, high = float(pixels.min()), float(pixels.max())
    if high - low < 1e-6 or max(abs(low), abs(high)) > 1e30:  # beyond float32
        pixels = (pixels.astype(np.float64) - low) / (high - low)
    image = pixels.astype(np.float32)
    if rule == "clean":
        return PreparedTruth(*clean_versions(image, smallest), remarks)
    versions, binned = paper_version(image)
    if float(np.percentile(versions[0], 99.99)) < _HOT_REMARK:
        remarks += ("a few pixels far brighter than all others, which section 3.1 would leave black: infill them",)
    if binned == (1,):
        remarks += (f"not downsized by two: less than {_PAPER_SIDE} pixels would be left on the short side",)
    if min(versions[0].shape) < _PAPER_SIDE:
        remarks += (
            f"smaller than the paper's crops of {_PAPER_SIDE} pixels: crops are smaller, or mirrored at the edge",
        )
    return PreparedTruth(versions, binned, remarks)


def judge(path: Path, pixels: NDArray[Any], smallest: int) -> tuple[str, ...]:
    """Remarks on a micrograph as truth. Raises MicrographError if it is not suitable."""
    if min(pixels.shape) < smallest:
        raise MicrographError(
            f"{path}: {pixels.shape[0]} × {pixels.shape[1]} pixels; at least {smallest} on the short side are needed: "
            "use a larger image, or allow smaller ones"
        )
    if not np.isfinite(pixels).all():
        raise MicrographError(f"{path}: some pixels are not finite numbers, as a truth needs; export it again")
    low, high = pixels.min(), pixels.max()
    if low == high:
        raise MicrographError(f"{path}: constant image (every pixel is {low:g}), nothing to learn from; remove it")
    if not np.isfinite(float(high) - float(low)):
        raise MicrographError(
            f"{path}: its values range from {low:g} to {high:g}, which no camera gives; export it again"
        )
    darkest, brightest = np.percentile(pixels, (0.5, 99.5))
    if darkest == brightest:
        raise MicrographError(
            f"{path}: nearly constant (99 % of the pixels are {darkest:g}), nothing to learn from; remove it"
        )
    remarks = []
    top = float(np.mean(pixels == high))
    if top > _SATURATED_REFUSED:
        raise MicrographError(
            f"{path}: {top:.0%} of its pixels have the highest value, {high:g}: the camera was saturated, or this is a "
            "mask; record it with a shorter exposure, or remove it"
        )
    if top > _SATURATED_REMARK:
        remarks.append(f"more than {_SATURATED_REMARK:.0%} of the pixels are saturated; what is flat there is learnt")
    if pixels.dtype == np.uint8:
        remarks.append("8-bit, so scaled for display and no counts; used as truth, to which doses are simulated")
    elif low < 0:
        remarks.append("negative values (a dark reference was subtracted, or an offset lost); the lowest becomes black")
    return tuple(remarks)


def clean_versions(image: Image, smallest: int) -> tuple[list[Image], tuple[int, ...]]:
    """A micrograph (H, W) as it is or binned until clean, and binned once more, in [0, 1]; and the binning of each.

    Binning stops at `smallest` pixels; remaining noise only slows the training, because it is unpredictable.
    """
    low, high = np.percentile(image, (0.01, 99.99))
    image = np.clip((image - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)
    spread = float(np.subtract(*np.percentile(image, (99.5, 0.5)))) or 1.0
    versions: list[Image] = []
    binned: list[int] = []
    factor = 1
    while min(image.shape) >= smallest and len(versions) < 2:
        smaller = bin2(image)
        if own_noise(image) < _NOISE_OVER_RANGE * spread or min(smaller.shape) < smallest:
            versions.append(image)
            binned.append(factor)
        image = smaller
        factor *= 2
    return versions, tuple(binned)


def paper_version(image: Image) -> tuple[list[Image], tuple[int, ...]]:
    """A micrograph binned by two, as in section 3.1, if its short side stays at least 512; else as it is; in [0, 1]."""
    factor = 2 if min(image.shape) >= 2 * _PAPER_SIDE else 1
    image = bin2(image) if factor == 2 else image
    low = image.min()
    return [((image - low) / max(float(image.max() - low), 1e-12)).astype(np.float32)], (factor,)


def own_noise(image: Image) -> float:
    """Standard deviation of white noise in an image, from its finest diagonal detail (Donoho's MAD estimate)."""
    height, width = (side // 2 * 2 for side in image.shape)
    image = image[:height, :width]
    detail = (image[::2, ::2] - image[1::2, ::2] - image[::2, 1::2] + image[1::2, 1::2]) / 2
    return float(np.median(np.abs(detail)) / 0.6745)


def bin2(image: Image) -> Image:
    """Area downsizing by two, as the paper does before cropping; an odd last row or column is dropped."""
    height, width = (side // 2 * 2 for side in image.shape)
    binned: Image = image[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3), dtype=np.float32)
    return binned


# Sources


def guess_source(name: Path) -> str:
    """Source of a file by its path below the data folder: the sub-folder, else the beginning of the name.

    The beginning goes up to the first underscore, hyphen, blank or digit; of a name that begins with one of these,
    the whole stem.
    """
    if name.parent != Path():
        return name.parent.as_posix()
    return re.split(r"[_\-\s\d]", name.stem, maxsplit=1)[0] or name.stem


class Listed(NamedTuple):
    """A micrograph's entry in a list of sources; `quality` is empty without a grade."""

    source: str
    quality: str


def read_sources(path: Path) -> dict[str, Listed]:
    """CSV with columns `name`, `source` and perhaps `quality` (others are ignored), by name. Raises ConfigError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream)
            if not {"name", "source"} <= set(rows.fieldnames or ()):
                raise ConfigError(f"{path}: needs the columns name and source in its first line, separated by commas")
            return {
                row["name"]: Listed(row["source"], row.get("quality") or "")
                for row in rows
                if row["name"] and row["source"]
            }
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as a CSV file ({error}); save it again as CSV, UTF-8") from error


def split_by_source(truths: Sequence[Truth], share: float, seed: int) -> tuple[list[Truth], list[Truth]]:
    """Whole sources at random, about `share` of the micrographs → (training, held out); both in the order given.

    The same for the same names and seed, whatever the order. At least one source is on either side. Raises
    ConfigError if there is only one, ValueError if `share` is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share held out must lie between 0 and 1, not {share}")
    sizes = Counter(truth.source for truth in truths)
    if len(sizes) < 2:
        raise ConfigError(
            f"all {len(truths)} micrographs come from one source ({''.join(sizes)}), which cannot be split; name a "
            "folder of others to validate on, sort them into sub-folders, or give a CSV of sources"
        )
    order = [sorted(sizes)[i] for i in np.random.default_rng(seed).permutation(len(sizes))]
    wanted = share * len(truths)
    held: list[str] = []
    for source in order[:-1]:
        count = sum(sizes[name] for name in held)
        if abs(count + sizes[source] - wanted) < abs(count - wanted):
            held.append(source)
    if not held:
        held = [min(order, key=lambda source: sizes[source])]
    return [t for t in truths if t.source not in held], [t for t in truths if t.source in held]


def evened(truths: Sequence[Truth]) -> list[Truth]:
    """Truths repeated so that the weight of a source is nearly the square root of its number of micrographs.

    Of sources with 1, 4 and 16 micrographs, the first has a quarter of the weight of the last, not a sixteenth.
    """
    sizes = Counter(truth.source for truth in truths)
    most = max(sizes.values(), default=1)
    return [truth for truth in truths for _ in range(round(2 * sqrt(most / sizes[truth.source])))]


def write_split(path: Path, training: Iterable[Truth], held_out: Iterable[Truth], share: float, seed: int) -> None:
    """Write as JSON the micrographs for training and those held out: source → micrograph → binning."""

    def listed(truths: Iterable[Truth]) -> dict[str, dict[str, tuple[int, ...]]]:
        by_source: dict[str, dict[str, tuple[int, ...]]] = {}
        for truth in sorted(truths, key=lambda truth: (truth.source, truth.name)):
            by_source.setdefault(truth.source, {})[truth.name] = truth.binned
        return by_source

    record = {"seed": seed, "share": share, "training": listed(training), "held_out": listed(held_out)}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    save(path, text.encode())


def _cached(path: Path, folder: Path, smallest: int, rule: Rule) -> PreparedTruth:
    """As `prepare`, with the cache."""
    try:
        status = path.stat()
    except OSError as error:
        raise MicrographError(
            f"{path}: cannot be examined ({error.strerror}); check the share and its rights"
        ) from error
    key = store.key_of(CACHE_VERSION, rule, smallest, str(path.resolve()), status.st_size, status.st_mtime_ns)
    if found := store.get(folder, key):
        stored, notes = found
        return PreparedTruth(stored, tuple(notes["binned"]), tuple(notes["remarks"]))
    prepared = prepare(path, smallest, rule)
    notes = {"file": str(path), "binned": prepared.binned, "remarks": prepared.remarks}
    try:
        return PreparedTruth(store.put(folder, key, prepared.versions, notes), prepared.binned, prepared.remarks)
    except OSError as error:
        log.warning("%s: cannot be written (%s); %s stays in memory: make room there", folder, error.strerror, path)
        return prepared


def _files(folder: Path, cache: Path | None) -> list[Path]:
    """Files below a folder in the order of names, without hidden ones and the cache; logs unreadable folders."""
    own = cache.resolve() if cache else None

    def shut(error: OSError) -> None:
        log.warning("skipped: %s: cannot be opened (%s); check its access rights", error.filename, error.strerror)

    found: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=shut):
        folders[:] = [name for name in folders if name[0] != "." and Path(place, name).resolve() != own]
        found += [Path(place, name) for name in files if name[0] != "."]
    return sorted(found)
