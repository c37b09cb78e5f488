"""Which images a finished job brought: one, or one for each section of a stack."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from daemon import formats
from daemon.ledger.jobs import Job


@dataclass(frozen=True, slots=True)
class Result:
    """One image that a job brought."""

    relative: PurePosixPath
    """What it was made from, below the drop folder: the file, or a section of the stack as if it were one."""
    section: int | None
    """From 1, where a stack was taken section by section."""
    image: Path


def results_of(job: Job) -> Iterator[Result]:
    """What a job brought: nothing, one image, or one for each section of a stack."""
    if job.output is None:
        return
    last = Path(job.output)
    if not job.sections:
        yield Result(PurePosixPath(job.path), None, last)
    kind: formats.Kind = "mrc" if last.suffix.lower() in formats.SUFFIXES["mrc"] else "tiff"
    for number in range(1, job.sections + 1):
        relative = section_name(job.path, number)
        image = last.with_name(output_path(Path(), relative, job.revision, kind).name)
        yield Result(relative, number, image)


def output_path(root: Path, relative: PurePath, revision: int, kind: formats.Kind) -> Path:
    """Where the image of a raw file goes: same relative path, `.r2` and so on for later revisions.

    Where the kind changes, the new ending is appended (a.mrc → a.mrc.tif), so that a.tif and a.mrc never meet.
    """
    stem, ending = relative.stem, relative.suffix
    name = relative.name if revision <= 1 else f"{stem}.r{revision}{ending}"
    if ending.lower() not in formats.SUFFIXES[kind]:
        name += formats.SUFFIXES[kind][0]
    return root / relative.parent / name


def preview_path(image: Path) -> Path:
    """Where the preview of an image is, if it has one."""
    return beside(image, ".png")


def beside(image: Path, ending: str) -> Path:
    return image.with_name(image.name + ending)


def section_name(path: str, number: int) -> PurePosixPath:
    """What a section is called, relative to the drop folder: tilt.st → tilt.s0007.st."""
    stack = PurePosixPath(path)
    return stack.with_name(f"{stack.stem}.s{number:04d}{stack.suffix}")
