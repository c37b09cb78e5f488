"""Writes results so that they are whole or absent: preview and JSON first, the image last.

The name of an image in the output folder is the promise that everything about it is there. Each file is written
under a temporary name in its own folder, flushed to the disk and only then renamed; nothing that somebody else
put into the output folder is ever replaced.
"""

import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from daemon import formats, preview
from daemon.errors import MicrographError, StorageError
from daemon.micrograph import Image, Micrograph

WRITER = "emdenoised"
_PREFIX, _SUFFIX = ".emdenoised-", ".tmp"
_RECORD_LIMIT = 16 << 20
_REASONS = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EROFS: "the disk is mounted read-only: check it and mount it writable",
    errno.EIO: "the disk or share reports an input/output error: check its cable, share or health",
    errno.EACCES: "writing is not allowed: give the service's user the right to write there",
    errno.EPERM: "writing is not allowed: give the service's user the right to write there",
    errno.ENOENT: "the output folder is gone: check that its disk or share is mounted",
    errno.ESTALE: "the share went away: check that it is mounted",
}


@dataclass(frozen=True, slots=True)
class Written:
    """What lies in the output folder for one micrograph. `adopted`: it was there already, from an earlier run."""

    image: Path
    record: Path
    preview: Path | None
    sha256: str
    adopted: bool


def output_path(root: Path, relative: PurePath, revision: int, kind: formats.Kind) -> Path:
    """Where the image of a raw file goes: same relative path, `.r2` and so on for later revisions.

    Where the kind changes, the new ending is appended (a.mrc → a.mrc.tif), so that a.tif and a.mrc never meet.
    """
    stem, ending = relative.stem, relative.suffix
    name = relative.name if revision <= 1 else f"{stem}.r{revision}{ending}"
    if ending.lower() not in formats.SUFFIXES[kind]:
        name += formats.SUFFIXES[kind][0]
    return root / relative.parent / name


def write_outputs(
    root: Path,
    relative: PurePath,
    revision: int,
    micrograph: Micrograph,
    denoised: Image,
    provenance: Mapping[str, Any],
    *,
    kind: formats.Kind,
    preview_pixels: int | None = 1024,
    caption: str = "",
) -> Written:
    """Write preview, JSON and image of one micrograph below `root`, in that order.

    `denoised` is (H, W) float32 in the micrograph's own units. `provenance` must hold ``raw.sha256``; what is
    written adds ``writer`` and ``output``. `preview_pixels` None or 0 writes no preview. Outputs that an earlier
    run finished for the same raw bytes are adopted. Raises MicrographError where a foreign file has the name or
    the path leads out of `root`, StorageError where the disk or share refuses now.
    """
    image = output_path(root, relative, revision, kind)
    record, picture = _beside(image, ".json"), _beside(image, ".png")
    adopted = find_adoptable(root, relative, revision, str(provenance["raw"]["sha256"]))
    if adopted is not None:
        return adopted
    with _explained(image), _temporary_files() as temporary:
        _make_folder(root, image.parent)
        _refuse_foreign(image, record, picture)
        unfinished = temporary(image.parent)
        formats.write(unfinished, kind, denoised, micrograph, _description(relative, provenance))
        _flush(unfinished)
        sha256 = _sha256(unfinished)
        steps: list[tuple[Path, Path]] = []
        if preview_pixels:
            shown = preview.render(
                micrograph.pixels,
                denoised,
                pixels=preview_pixels,
                size=micrograph.pixel_size,
                title=str(relative),
                caption=caption,
            )
            steps.append((temporary(image.parent), picture))
            preview.save(shown, steps[-1][0], WRITER)
        output = {
            "name": image.name,
            "sha256": sha256,
            "shape": list(denoised.shape),
            "dtype": "float32",
            "kind": kind,
            "revision": revision,
            "preview": picture.name if preview_pixels else None,
        }
        steps.append((temporary(image.parent), record))
        text = json.dumps(_plain({"writer": WRITER, **provenance, "output": output}), indent=1, allow_nan=False)
        steps[-1][0].write_text(text + "\n", encoding="ascii")
        for source, target in steps:
            _flush(source)
            source.replace(target)
        _flush(image.parent)
        _place(unfinished, image)
        _flush(image.parent)
    return Written(image, record, picture if preview_pixels else None, sha256, adopted=False)


def find_adoptable(root: Path, relative: PurePath, revision: int, raw_sha256: str) -> Written | None:
    """The finished outputs of these very raw bytes, or None.

    Finished means: image and JSON are there, the JSON names the raw file's SHA-256, and the image still has the
    SHA-256 the JSON gives. Raises MicrographError where the path leads out of `root`, StorageError on disk faults.
    """
    kinds: tuple[formats.Kind, ...] = ("tiff", "mrc")
    for image in dict.fromkeys(output_path(root, relative, revision, kind) for kind in kinds):
        with _explained(image):
            _refuse_outside(root, image.parent)
            record, picture = _beside(image, ".json"), _beside(image, ".png")
            if image.is_symlink() or not image.is_file():
                continue
            content = _read_record(record)
            if content is None or _get(content, "raw", "sha256") != raw_sha256:
                continue
            sha256 = _sha256(image)
            if _get(content, "output", "sha256") == sha256:
                return Written(image, record, picture if picture.is_file() else None, sha256, adopted=True)
    return None


def clean_temporary(root: Path) -> int:
    """Remove what an interrupted run left half-written below `root`; returns how many files. Never follows links."""
    removed = 0
    for folder, _, names in os.walk(root):
        for name in names:
            if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
                with suppress(OSError):  # a leftover that cannot be removed does no harm
                    (Path(folder) / name).unlink()
                    removed += 1
    return removed


def _beside(image: Path, ending: str) -> Path:
    return image.with_name(image.name + ending)


def _refuse_outside(root: Path, folder: Path) -> None:
    if ".." in folder.relative_to(root).parts or not folder.resolve().is_relative_to(root.resolve()):
        raise MicrographError(f"{folder}: leads out of the output folder {root}; remove the '..' or the link in it")


def _make_folder(root: Path, folder: Path) -> None:
    _refuse_outside(root, folder)
    if not root.is_dir():  # never made here: it may be the mount point of a share that is gone
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(root))
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        _flush(new.parent)


def _refuse_foreign(image: Path, record: Path, picture: Path) -> None:
    """An image is never replaced; JSON and preview only where they are ours, left by a run that did not finish."""
    for path, ours in (
        (image, False),
        (record, _read_record(record) is not None),
        (picture, preview.written_by(picture) == WRITER),
    ):
        if os.path.lexists(path) and not ours:
            raise MicrographError(
                f"{path}: a file of this name is already in the output folder and is not the result "
                "of this micrograph; it was not replaced: move or rename it, then try "
                "again (the service: `emdenoised retry`)"
            )


def _read_record(record: Path) -> dict[str, Any] | None:
    """One of our JSON files, or None if it is not there, not ours or damaged."""
    try:
        if record.is_symlink() or record.stat().st_size > _RECORD_LIMIT:
            return None
        content = json.loads(record.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and content.get("writer") == WRITER else None


def _get(content: Mapping[str, Any], section: str, key: str) -> object:
    inner = content.get(section)
    return inner.get(key) if isinstance(inner, dict) else None


def _description(relative: PurePath, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The few words that travel inside the image; everything else is in the JSON beside it."""
    return {
        "denoised from": str(relative).encode("ascii", "replace").decode(),
        "raw SHA-256": str(provenance["raw"]["sha256"]),
    }


def _plain(value: Any) -> Any:
    """Plain JSON types; what is not finite becomes null, because JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def _place(source: Path, target: Path) -> None:
    """Give a finished file its name, and never another file's."""
    try:
        os.link(source, target)  # unlike a rename, this fails where the name is taken
    except FileExistsError as error:
        raise MicrographError(
            f"{target}: appeared in the output folder while the result was being written and was "
            "not replaced: move it away, then run `emdenoised retry`"
        ) from error
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES):
            raise
        source.rename(target)  # FAT and some shares know no links; the name was free a moment ago


def _flush(path: Path) -> None:
    """Force a file, or a folder's list of names, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some shares cannot flush folders
            raise
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _temporary_files() -> Iterator[Callable[[Path], Path]]:
    """Yields a function that makes an empty temporary file; those that were not renamed are removed."""
    made: list[Path] = []

    def make(folder: Path) -> Path:
        made.append(folder / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}")
        made[-1].open("xb").close()
        return made[-1]

    try:
        yield make
    finally:
        for path in made:
            with suppress(OSError):  # the fault that brought us here is the one to report
                path.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an OSError into words: what the disk refuses now may work later, a name too long never will."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise MicrographError(f"{path}: the name is too long for the output disk; shorten the file name") from error
        if error.errno is None:  # numpy's short write
            reason = f"it could not be written completely ({error}): the disk is probably full"
        else:
            reason = _REASONS.get(error.errno, f"{error.strerror}: check the output folder")
        raise StorageError(f"{path}: cannot be written now, {reason}; it is tried again") from error
