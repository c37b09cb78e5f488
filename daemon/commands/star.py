"""`emdenoised star`: a STAR file of denoised micrographs, for picking particles in RELION or cryoSPARC."""

import argparse
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from daemon.errors import MicrographError, UsageError
from daemon.files import save
from daemon.logs import one_line

if TYPE_CHECKING:
    from daemon.output.record import Raw

_SQUARE = 1e-3
"""Of the pixel size, in which its sides may differ: RELION has one number for both."""
_STAR = """\
# version 30001
# Denoised micrographs, for picking only: extract the particles from the micrographs as recorded.

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnMicrographPixelSize #3
_rlnMicrographOriginalPixelSize #4
_rlnVoltage #5
_rlnSphericalAberration #6
_rlnAmplitudeContrast #7
{optics}

# version 30001

data_micrographs

loop_
_rlnMicrographName #1
_rlnOpticsGroup #2
{micrographs}
"""


@dataclass(frozen=True, slots=True)
class Optics:
    """What RELION needs to know of a micrograph's optics: angstrom, kV."""

    pixel: float
    voltage: float


@dataclass(frozen=True, slots=True)
class _PickingResult:
    image: Path
    raw: str
    """Identifies the micrograph: path of its file, and section."""
    revision: int
    name: PurePath
    """Of the link, below the folder of links."""
    optics: Optics


def run(options: argparse.Namespace) -> int:
    """Write FILE and, beside it, a folder of links named `_denoised`. Raises MicrographError without any to list."""
    results, star = options.results.resolve(), options.to.resolve()
    if not results.is_dir():
        raise UsageError(f"{options.results}: is no folder; give the folder of the results")
    if star.suffix != ".star":
        raise UsageError(f"{options.to}: must end in .star, or RELION does not recognise it")
    left_out: Counter[str] = Counter()
    latest: dict[str, _PickingResult] = {}
    for one in _results(results, options.kv, left_out):
        if one.raw not in latest or latest[one.raw].revision < one.revision:
            latest[one.raw] = one
    links = _distinguished(latest.values(), left_out)
    for reason, number in left_out.items():
        print(f"left out: {number} {reason}")
    if not links:
        why = "all were left out" if left_out else "results have a record, such as a.mrc.json, beside them"
        raise MicrographError(f"{options.results}: has no results to list; {why}")
    folder = star.parent / _without_blanks(PurePath(star.stem))
    for name, result in links.items():
        _link(folder / name, result.image)
    listed = {str(PurePath(folder.name) / name): result.optics for name, result in sorted(links.items())}
    save(star, _star_file(listed, options.cs, options.amplitude_contrast).encode("ascii"))
    print(f"{options.to}: {len(listed)} denoised micrographs, for picking only; links to them in {folder.name}/")
    return 0


def _star_file(listed: Mapping[str, Optics], cs: float, amplitude_contrast: float) -> str:
    """The tables of optics and micrographs, as RELION has them from version 3.1 on. `listed`: by micrographs' names."""
    groups = {optics: number for number, optics in enumerate(dict.fromkeys(listed.values()), 1)}
    optics = "\n".join(
        f"opticsGroup{number} {number} {one.pixel:.6f} {one.pixel:.6f} {one.voltage:.6f} {cs:.6f} "
        f"{amplitude_contrast:.6f}"
        for one, number in groups.items()
    )
    micrographs = "\n".join(f"{name} {groups[one]}" for name, one in listed.items())
    return _STAR.format(optics=optics, micrographs=micrographs)


def _results(root: Path, kv: float | None, left_out: Counter[str]) -> Iterator[_PickingResult]:
    """The results below a folder; counts those that cannot be listed, by reason."""
    from daemon.output.paths import whole_stem
    from daemon.output.record import own_record

    for folder, _, files in os.walk(root):
        for file in sorted(files):
            image = Path(folder, file.removesuffix(".json"))
            if not file.endswith(".json") or (record := own_record(image)) is None:
                continue
            if record.verdict is not None and record.verdict.word == "reject":
                left_out["with the verdict reject"] += 1
                continue
            optics = _optics(record.raw, kv)
            if isinstance(optics, str):
                left_out[optics] += 1
                continue
            section = "" if record.raw.section is None else f".s{record.raw.section:04d}"
            known = PurePath(record.raw.relative or record.raw.path)  # that of a section has its number
            stem = known.stem.removesuffix(section) + section if section else whole_stem(known, appended=True)
            ending = ".mrc" if record.output.kind == "mrc" else ".tif"
            name = image.relative_to(root).parent / f"{stem}_denoised{ending}"
            yield _PickingResult(
                image, f"{record.raw.path}{section}", record.output.revision or 1, _without_blanks(name), optics
            )


def _optics(raw: "Raw", kv: float | None) -> Optics | str:
    """The optics of a raw image, or the reason why RELION cannot use it."""
    from daemon.formats.units import convert, pixel_size

    stated = raw.pixel_size and pixel_size(raw.pixel_size.y, raw.pixel_size.x, raw.pixel_size.unit)
    size = stated and convert(stated, "angstrom")
    if size is None:
        return "without a pixel size"
    if abs(size.y / size.x - 1) > _SQUARE:
        return "whose pixels are not square"
    voltage = (raw.acquisition or {}).get("voltage_kv") if kv is None else kv
    if not isinstance(voltage, int | float) or not 0 < voltage < inf:
        return "whose voltage is unknown: state it with --kv"
    return Optics(round(size.x, 4), float(voltage))


def _without_blanks(name: PurePath) -> PurePath:
    """RELION ends a name at a blank, and its names are ASCII."""
    return PurePath(*(re.sub(r"[^\w.+-]", "_", part, flags=re.ASCII) for part in name.parts))


def _distinguished(results: Iterable[_PickingResult], left_out: Counter[str]) -> dict[PurePath, _PickingResult]:
    """Results by their links' names. RELION ignores the ending: of two that differ in it only, the first is kept."""
    links: dict[PurePath, _PickingResult] = {}
    for one in results:
        first = links.setdefault(one.name.with_suffix(""), one)
        if first is not one:
            left_out["called like another one of the same folder"] += 1
    return {one.name: one for one in links.values()}


def _link(link: Path, image: Path) -> None:
    """Make a link, or replace an older one. Raises MicrographError for another file of that name."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        if link.readlink() == image:
            return
        link.unlink()
    elif link.exists():
        raise MicrographError(f"{one_line(str(link))}: is no link of this command; move it away, or choose another -o")
    link.symlink_to(image)
