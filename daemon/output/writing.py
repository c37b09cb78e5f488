"""Writes results atomically: preview and JSON first, the image last; `disk.place` gives them their final names.

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

import numpy as np

from daemon import formats
from daemon.errors import MicrographError
from daemon.files import sha256, sha256_around
from daemon.micrograph import Image, Micrograph
from daemon.output import preview
from daemon.output.disk import alone, explained_writing, flush, held, place, temporary_files
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
    kind: formats.FileKind,
    preview_pixels: int | None = 1024,
    caption: str = "",
    same_settings: bool = False,
) -> Written:
    """Write preview, JSON and image of one micrograph below `root`, in that order.

    `denoised` is (H, W) float32 in the micrograph's own units. `provenance` must hold ``raw.sha256``; `writer` and
    `output` are added to it. `preview_pixels` None or 0 writes no preview. Outputs that an earlier run finished for
    the same raw bytes are adopted; with `same_settings` only if profile, weights and settings were the same too. If
    `revision` has the result of other bytes (the ledger was lost), the next free one is taken. Raises MicrographError
    if a foreign file has the name, the path leads out of `root` or the disk can never take it; StorageError if nothing
    can be written now; TransientError if only this one cannot.
    """
    if (adopted := _find(root, relative, revision, provenance, same_settings)) is not None:
        return adopted
    section = provenance.raw.section is not None
    folder = output_path(root, relative, revision, kind).parent
    with ExitStack() as stack:
        stack.enter_context(explained_writing(root, folder / relative.name))
        _make_folder(root, folder)
        # By this path nothing is written elsewhere, even if a sub-folder is exchanged for a link now.
        here = stack.enter_context(held(folder, root))
        temporary = stack.enter_context(temporary_files())
        _refuse_foreign(here, folder, _free(root, here, relative, revision, kind, section)[1], appearing=True)
        draft = _write_draft(temporary, here, relative, micrograph, denoised, provenance, kind, preview_pixels, caption)
        stated = temporary(here)
        stack.enter_context(alone(here))
        # Another process may have finished this micrograph, or have taken the name, in the meantime.
        if (adopted := _find(root, relative, revision, provenance, same_settings, here)) is not None:
            return adopted
        revision, name = _free(root, here, relative, revision, kind, section)
        _refuse_foreign(here, folder, name)
        image = folder / name
        shown = None if draft.picture is None else preview_path(image)
        output = Output(name=name, revision=revision, kind=kind, preview=None if shown is None else shown.name)
        content = _content(provenance, output, draft)
        stated.write_text(json.dumps(content.as_json(), indent=1, allow_nan=False) + "\n", encoding="ascii")
        flush(stated)
        if draft.picture is not None:
            draft.picture.replace(preview_path(here / name))
        stated.replace(beside(here / name, ".json"))
        flush(here)
        try:
            place(draft.image, here / name, image)
        except MicrographError:  # a disk without locks
            if (adopted := _find(root, relative, revision, provenance, same_settings, here)) is None:
                raise
            return adopted
        flush(here)
    return Written(
        image, beside(image, ".json"), shown, draft.sha256, adopted=False, content=content, warnings=draft.remarks
    )


@dataclass(frozen=True, slots=True)
class _Draft:
    """Image and preview as temporary files on the disk."""

    image: Path
    sha256: str
    shape: tuple[int, ...]
    turned: tuple[int, ...]
    picture: Path | None
    remarks: tuple[str, ...]
    """Why there is no preview although one is wanted."""


def _write_draft(
    temporary: Callable[[Path], Path],
    folder: Path,
    relative: PurePath,
    micrograph: Micrograph,
    denoised: Image,
    provenance: Record,
    kind: formats.FileKind,
    preview_pixels: int | None,
    caption: str,
) -> _Draft:
    unfinished = temporary(folder)
    stored, like, turns = formats.in_the_way_of(kind, denoised, micrograph)
    begin = formats.write(unfinished, kind, stored, like, _description(relative, provenance))
    flush(unfinished)
    picture: Path | None = None
    remarks: tuple[str, ...] = ()
    if preview_pixels:
        try:
            picture = _draw(temporary, folder, micrograph, denoised, preview_pixels, str(relative), caption)
            flush(picture)
        except _DRAWING_FAULTS as error:
            # The picture is for a quick look: a fault in drawing it must not cost the image.
            log.debug("traceback", exc_info=True)
            remarks = (f"no preview, it could not be drawn ({error!r}): please report it",)
    # Of the pixels as they are in memory: if the disk or share has changed them, the file does not have this hash.
    content = np.ascontiguousarray(stored, "<f4")
    digest = sha256_around(unfinished, begin, content.data)
    return _Draft(unfinished, digest, denoised.shape, tuple(turns), picture, remarks)


def _content(provenance: Record, output: Output, draft: _Draft) -> Record:
    """What the JSON states."""
    of_image = {"sha256": draft.sha256, "shape": draft.shape, "turned": draft.turned, "dtype": "float32"}
    added = {"warnings": (*provenance.warnings, *draft.remarks)} if draft.remarks else {}
    return provenance.model_copy(update={"writer": WRITER, "output": output.model_copy(update=of_image), **added})


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
        side_bar=micrograph.side_bar,
    )
    path = temporary(folder)
    preview.save(shown, path, WRITER)
    return path


def find_same(root: Path, relative: PurePath, provenance: Record) -> Written | None:
    """The finished outputs of the same raw bytes, made with the same profile, weights and settings, or None.

    `provenance` needs no more than these. Raises as `write_outputs` does.
    """
    return _find(root, relative, 1, provenance, same_settings=True)


def find_adoptable(
    root: Path, relative: PurePath, revision: int, raw_sha256: str, section: int | None = None
) -> Written | None:
    """The finished outputs of the same raw bytes, as `revision` or a later one, or None. `section`: of a stack.

    Finished means: image and JSON exist, the JSON names the raw file's SHA-256, and the image has the SHA-256 that the
    JSON gives. Raises as `write_outputs` does.
    """
    return _find(root, relative, revision, Record(raw=Raw(sha256=raw_sha256, section=section)), same_settings=False)


def _find(
    root: Path, relative: PurePath, revision: int, provenance: Record, same_settings: bool, here: Path | None = None
) -> Written | None:
    """`here`: the folder of the results as `held` has it, where it is."""
    kinds: tuple[formats.FileKind, ...] = ("tiff", "mrc")
    section = provenance.raw.section is not None
    for number in count(revision):
        taken = False
        for image in dict.fromkeys(output_path(root, relative, number, kind, section=section) for kind in kinds):
            at = image if here is None else here / image.name
            with explained_writing(root, image):
                if here is None:
                    _refuse_outside(root, image.parent)
                content = own_record(at)
                if content is None:
                    continue
                taken = True
                if content.raw.sha256 != provenance.raw.sha256:
                    continue
                if same_settings and content.made_with != provenance.made_with:
                    continue
                digest = sha256(at)
                if content.output.sha256 == digest:
                    found = preview_path(image) if preview_path(at).is_file() else None
                    return Written(image, beside(image, ".json"), found, digest, adopted=True, content=content)
        if not taken:
            break
    return None


def _free(
    root: Path, here: Path, relative: PurePath, revision: int, kind: formats.FileKind, section: bool
) -> tuple[int, str]:
    """The first revision from `revision` on that no result of ours has, and the image's name."""
    while own_record(here / (name := output_path(root, relative, revision, kind, section=section).name)) is not None:
        revision += 1
    return revision, name


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


def _refuse_foreign(here: Path, folder: Path, name: str, appearing: bool = False) -> None:
    """Raise MicrographError if an output would replace a file other than JSON and preview of an interrupted run.

    `here`: the folder as `held` gives it; `folder`: its path in messages. `appearing`: the folder is not locked, and
    the image of another process may have appeared, which is not foreign. Each file is examined after it was found, so
    that one which appears in between is examined, too.
    """
    image = here / name
    record, picture = beside(image, ".json"), preview_path(image)
    ours: tuple[tuple[Path, Callable[[], bool]], ...] = (
        (image, lambda: appearing and own_record(image) is not None),
        (record, lambda: read_record(record) is not None),
        (picture, lambda: preview.written_by(picture) == WRITER),
    )
    for path, is_ours in ours:
        if os.path.lexists(path) and not is_ours():
            raise MicrographError(
                f"{folder / path.name}: a file of this name is already in the output folder and is not the result "
                "of this micrograph; it was not replaced: move or rename it, then try "
                "again (the service: `emdenoised retry`)"
            )


def _description(relative: PurePath, provenance: Record) -> dict[str, Any]:
    """The metadata written into the image itself; all else is in the JSON beside it."""
    return {
        "denoised from": str(relative).encode("ascii", "replace").decode(),
        "raw SHA-256": provenance.raw.sha256,
    }
