"""Names of results, and the images of a finished job: one, or one for each section of a stack."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from daemon import formats
from daemon.ledger.job import Job


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
        image = last.with_name(output_path(Path(), relative, job.revision, kind).name)
        yield JobImage(relative, number, image)


def output_path(root: Path, relative: PurePath, revision: int, kind: formats.FileKind) -> Path:
    """Path of a raw file's result: the same relative path, with `.r2` and so on for later revisions.

    For another file format the new ending is appended (a.mrc → a.mrc.tif), so that a.tif and a.mrc never collide.
    """
    stem, ending = relative.stem, relative.suffix
    name = relative.name if revision <= 1 else f"{stem}.r{revision}{ending}"
    if ending.lower() not in formats.SUFFIXES[kind]:
        name += formats.SUFFIXES[kind][0]
    return root / relative.parent / name


def preview_path(image: Path) -> Path:
    """Path of an image's preview."""
    return beside(image, ".png")


def beside(image: Path, ending: str) -> Path:
    return image.with_name(image.name + ending)


def section_name(path: str, number: int) -> PurePosixPath:
    """Path of a section, relative to the drop folder, as if it were a file: tilt.st → tilt.s0007.st."""
    stack = PurePosixPath(path)
    return stack.with_name(f"{stack.stem}.s{number:04d}{stack.suffix}")
