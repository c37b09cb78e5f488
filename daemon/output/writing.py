"""Writes results atomically: preview and JSON first, the image last.

An image that exists under its final name is complete, and so are its preview and JSON. Each file is written under a
temporary name in its own folder, flushed to the disk and then renamed. Files of other programs are never replaced.
"""

import errno
import json
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path, PurePath
from typing import Any

from daemon import formats
from daemon.errors import MicrographError
from daemon.files import sha256
from daemon.micrograph import Image, Micrograph
from daemon.output import preview
from daemon.output.disk import explained, flush, held, place, temporary_files
from daemon.output.paths import beside, output_path, preview_path
from daemon.output.record import WRITER, Output, Raw, Record, own_record, read_record

log = logging.getLogger(__name__)
_DRAWING_FAULTS = (ArithmeticError, AttributeError, ImportError, LookupError, MemoryError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Written:
    """The outputs of one micrograph. `adopted`: an earlier run wrote them."""

    image: Path
    record: Path
    preview: Path | None
    sha256: str
    adopted: bool
    content: Record = field(repr=False)
    """The record in the JSON."""
    warnings: tuple[str, ...] = ()


def write_outputs(
    root: Path,
    relative: PurePath,
    revision: int,
    micrograph: Micrograph,
    denoised: Image,
    provenance: Record,
    *,
    kind: formats.Kind,
    preview_pixels: int | None = 1024,
    caption: str = "",
    same_settings: bool = False,
) -> Written:
    """Write preview, JSON and image of one micrograph below `root`, in that order.

    `denoised` is (H, W) float32 in the micrograph's own units. `provenance` must hold ``raw.sha256``; `writer` and
    `output` are added to it. `preview_pixels` None or 0 writes no preview. Outputs that an earlier run finished for
    the same raw bytes are adopted; with `same_settings` only if profile, weights and settings were the same too. If
    `revision` has the result of other bytes (the ledger was lost, or a raw file is named a.r2.tif), the next free one
    is taken. Raises MicrographError if a foreign file has the name, the path leads out of `root` or the disk can never
    take it; StorageError if nothing can be written now; TransientError if only this one cannot.
    """
    adopted = _find(root, relative, revision, provenance, same_settings)
    if adopted is not None:
        return adopted
    folder = output_path(root, relative, revision, kind).parent
    with ExitStack() as stack:
        stack.enter_context(explained(root, folder / relative.name))
        _make_folder(root, folder)
        # By this path nothing is written elsewhere, whoever exchanges a sub-folder for a link now.
        here = stack.enter_context(held(folder, root))
        temporary = stack.enter_context(temporary_files())
        while own_record(here / output_path(root, relative, revision, kind).name) is not None:
            revision += 1
        name = output_path(root, relative, revision, kind).name
        _refuse_foreign(here, folder, name)
        unfinished = temporary(here)
        stored, like, turns = formats.in_the_way_of(kind, denoised, micrograph)
        formats.write(unfinished, kind, stored, like, _description(relative, provenance))
        flush(unfinished)
        digest = sha256(unfinished)
        steps: list[tuple[Path, Path]] = []
        remarks: tuple[str, ...] = ()
        if preview_pixels:
            try:
                drawn = _draw(temporary, here, micrograph, denoised, preview_pixels, str(relative), caption)
                steps.append((drawn, preview_path(here / name)))
            except _DRAWING_FAULTS as error:
                # The picture is for a quick look: a fault in drawing it must not cost the image.
                log.debug("traceback", exc_info=True)
                remarks = (f"no preview, it could not be drawn ({error!r}): please report it",)
        shown = preview_path(folder / name) if steps else None
        output = Output(
            name=name,
            sha256=digest,
            shape=denoised.shape,
            turned=tuple(turns),
            dtype="float32",
            kind=kind,
            revision=revision,
            preview=None if shown is None else shown.name,
        )
        added = {"warnings": (*provenance.warnings, *remarks)} if remarks else {}
        content = provenance.model_copy(update={"writer": WRITER, "output": output, **added})
        steps.append((temporary(here), beside(here / name, ".json")))
        text = json.dumps(content.as_json(), indent=1, allow_nan=False)
        steps[-1][0].write_text(text + "\n", encoding="ascii")
        for source, target in steps:
            flush(source)
            source.replace(target)
        flush(here)
        image = folder / name
        place(unfinished, here / name, image)
        flush(here)
    return Written(image, beside(image, ".json"), shown, digest, adopted=False, content=content, warnings=remarks)


def _draw(
    temporary: Callable[[Path], Path],
    folder: Path,
    micrograph: Micrograph,
    denoised: Image,
    pixels: int,
    title: str,
    caption: str,
) -> Path:
    shown = preview.render(
        micrograph.pixels,
        denoised,
        pixels=pixels,
        size=micrograph.pixel_size,
        title=title,
        caption=caption,
        bar=micrograph.bar,
    )
    path = temporary(folder)
    preview.save(shown, path, WRITER)
    return path


def find_adoptable(root: Path, relative: PurePath, revision: int, raw_sha256: str) -> Written | None:
    """The finished outputs of the same raw bytes, as `revision` or a later one, or None.

    Finished means: image and JSON exist, the JSON names the raw file's SHA-256, and the image has the SHA-256 that the
    JSON gives. Raises as `write_outputs` does.
    """
    return _find(root, relative, revision, Record(raw=Raw(sha256=raw_sha256)), same_settings=False)


def _find(root: Path, relative: PurePath, revision: int, provenance: Record, same_settings: bool) -> Written | None:
    kinds: tuple[formats.Kind, ...] = ("tiff", "mrc")
    for number in count(revision):
        taken = False
        for image in dict.fromkeys(output_path(root, relative, number, kind) for kind in kinds):
            with explained(root, image):
                _refuse_outside(root, image.parent)
                content = own_record(image)
                if content is None:
                    continue
                taken = True
                if content.raw.sha256 != provenance.raw.sha256:
                    continue
                if same_settings and content.made_with != provenance.made_with:
                    continue
                digest = sha256(image)
                if content.output.sha256 == digest:
                    picture = preview_path(image)
                    found = picture if picture.is_file() else None
                    return Written(image, beside(image, ".json"), found, digest, adopted=True, content=content)
        if not taken:
            break
    return None


def _refuse_outside(root: Path, folder: Path) -> None:
    if ".." in folder.relative_to(root).parts or not folder.resolve().is_relative_to(root.resolve()):
        raise MicrographError(f"{folder}: leads out of the output folder {root}; remove the '..' or the link in it")


def _make_folder(root: Path, folder: Path) -> None:
    _refuse_outside(root, folder)
    if not root.is_dir():  # never made here: it may be the mount point of a missing share
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(root))
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        flush(new.parent)


def _refuse_foreign(here: Path, folder: Path, name: str) -> None:
    """Raise MicrographError if an output would replace a file other than JSON and preview of an interrupted run.

    `here`: the folder as `held` gives it; `folder`: its path in messages.
    """
    image = here / name
    record, picture = beside(image, ".json"), preview_path(image)
    for path, ours in (
        (image, False),
        (record, read_record(record) is not None),
        (picture, preview.written_by(picture) == WRITER),
    ):
        if os.path.lexists(path) and not ours:
            raise MicrographError(
                f"{folder / path.name}: a file of this name is already in the output folder and is not the result "
                "of this micrograph; it was not replaced: move or rename it, then try "
                "again (the service: `emdenoised retry`)"
            )


def _description(relative: PurePath, provenance: Record) -> dict[str, Any]:
    """The metadata written into the image itself; all else is in the JSON beside it."""
    return {
        "denoised from": str(relative).encode("ascii", "replace").decode(),
        "raw SHA-256": str(provenance.raw.sha256),
    }
