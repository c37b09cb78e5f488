"""Which images a finished job brought: one, or one for each section of a stack."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from daemon import formats
from daemon.ledger.jobs import Job
from daemon.output import writing
from daemon.service import sections


@dataclass(frozen=True, slots=True)
class Result:
    """One image that a job brought."""

    relative: PurePosixPath
    """What it was made from, below the drop folder: the file, or a section of the stack as if it were one."""
    section: int | None
    """From 1, where a stack was taken section by section."""
    image: Path


def of(job: Job) -> Iterator[Result]:
    """What a job brought: nothing, one image, or one for each section of a stack."""
    if job.output is None:
        return
    last = Path(job.output)
    if not job.sections:
        yield Result(PurePosixPath(job.path), None, last)
    kind: formats.Kind = "mrc" if last.suffix.lower() in formats.SUFFIXES["mrc"] else "tiff"
    for number in range(1, job.sections + 1):
        relative = sections.name(job.path, number)
        image = last.with_name(writing.output_path(Path(), relative, job.revision, kind).name)
        yield Result(relative, number, image)
