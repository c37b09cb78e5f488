"""Names of results, and the images of a finished job: one, or one for each section of a stack."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from daemon import formats
from daemon.formats import rosettasciio
from daemon.ledger.job import Job

_LIKE_A_RESULT = re.compile(r"\.(s\d{4,}|r([2-9]|[1-9]\d+))", re.IGNORECASE)
"""What ends the names of sections and of revisions, before the file's ending."""
_WHOLE = ".s0000"
"""Ends the name of a result where the name of its raw file could be that of a section or a revision."""
_APPENDED_TO = {suffix for suffixes in (*formats.SUFFIXES.values(), rosettasciio.SUFFIXES) for suffix in suffixes}


@dataclass(frozen=True, slots=True)
class JobImage:
    """One result image of a job."""

    relative: PurePosixPath
    """Path of its micrograph below the drop folder; for a section of a stack, that of `section_name`."""
    section: int | None
    """From 1, where a stack was processed section by section."""
    image: Path


def results_of(job: Job) -> Iterator[JobImage]:
    """The result images of a job: none, one, or one for each section of a stack."""
    if job.output is None:
        return
    last = Path(job.output)
    if not job.sections:
        yield JobImage(PurePosixPath(job.path), None, last)
    kind: formats.FileKind = "mrc" if last.suffix.lower() in formats.SUFFIXES["mrc"] else "tiff"
    for number in range(1, job.sections + 1):
        relative = section_name(job.path, number)
        image = last.with_name(output_path(Path(), relative, job.revision, kind, section=True).name)
        yield JobImage(relative, number, image)


def output_path(
    root: Path, relative: PurePath, revision: int, kind: formats.FileKind, *, section: bool = False
) -> Path:
    """Path of a raw file's result: the same relative path, with `.r2` and so on for later revisions.

    For another file format the new ending is appended (a.mrc → a.mrc.tif), so that a.tif and a.mrc never collide.
    `section`: `relative` is from `section_name`. A file with the name that a section, a revision or an appended ending
    makes of another file's gets a name of its own, whichever came first: a.s0001.mrc → a.s0001.s0000.mrc.
    """
    ending = relative.suffix
    appended = ending.lower() not in formats.SUFFIXES[kind]
    stem = relative.stem if section else whole_stem(relative, appended)
    name = stem + ("" if revision <= 1 else f".r{revision}") + ending
    return root / relative.parent / (name + formats.SUFFIXES[kind][0] if appended else name)


def whole_stem(relative: PurePath, appended: bool) -> str:
    """Name, without its ending, of the result of a whole file; `appended`: its own ending is kept before another."""
    stem = relative.stem
    before = PurePath(stem).suffix
    alike = _LIKE_A_RESULT.fullmatch(before) or (not appended and before.lower() in _APPENDED_TO)
    return stem + _WHOLE if alike else stem


def preview_path(image: Path) -> Path:
    """Path of an image's preview."""
    return beside(image, ".png")


def beside(image: Path, ending: str) -> Path:
    return image.with_name(image.name + ending)


def section_name(path: str, number: int) -> PurePosixPath:
    """Path of a section, relative to the drop folder, as if it were a file: tilt.st → tilt.s0007.st."""
    stack = PurePosixPath(path)
    return stack.with_name(f"{stack.stem}.s{number:04d}{stack.suffix}")
