"""Stacks: frames of one exposure are summed; all others are processed section by section, and may still grow.

The sum of anything but one exposure's frames is wrong, so it needs evidence: a profile, the file or its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from daemon.arrival.rules import Taking, of_frames, sections_by_settings, stated
from daemon.errors import EmdenoisedError, MicrographError, TransientError
from daemon.formats import stack
from daemon.formats.decoder import Reader
from daemon.micrograph import Micrograph
from daemon.output.record import Raw, sha256_of_pixels
from daemon.settings.config import Config


@dataclass(frozen=True, slots=True)
class Section:
    """One section of a stack."""

    number: int
    """From 1."""
    of: int
    """Sections that the stack had when this one was read."""
    sha256: str
    """Of its pixels; the file's hash changes with every new section."""
    first: str
    """Hash of the first section, which identifies the stack."""
    raw: Raw
    """As `fingerprints.fingerprint` gives it for a whole file."""

    @property
    def for_ledger(self) -> dict[str, Any]:
        """Arguments of `Ledger.finish`."""
        return {"sha256": self.first, "sections": self.number, "more": self.number < self.of}

    def __str__(self) -> str:
        return f"section {self.number} of {self.of}"


UNKNOWN = "its file does not say what its sections are"


def taking(config: Config, path: str, micrograph: Micrograph, profile: str | None = None) -> Taking:
    """Whether to sum the stack at `path`, of which `micrograph` is a section or the sum: by settings, file, then name.

    Raises MicrographError if a profile demands the sum of sections that are certainly not one exposure.
    """
    try:
        return _taking(config, path, micrograph.metadata.get("stack"), profile)
    except MicrographError as error:
        raise MicrographError(f"{micrograph.source}: {error}") from error


def taken_alike(config: Config, path: str, raw: Raw, profile: str | None = None) -> bool:
    """Whether a stack whose record holds `raw` would be taken now as it was then: summed, or section by section."""
    stored = raw.metadata.get("stack")
    if stored is None:  # a single image
        return sections_by_settings(config, path, profile) == (raw.section is not None)
    try:
        found = _taking(config, path, stored if "sure" in stored else None, profile)
    except (MicrographError, LookupError, TypeError):  # a record that somebody has changed by hand
        return False
    return found.by_section == (raw.section is not None)


def _taking(config: Config, path: str, in_file: Mapping[str, Any] | None, profile: str | None) -> Taking:
    by_settings = stated(config, path, profile)
    if by_settings is not None:
        if not by_settings.by_section and in_file is not None and in_file["are"] in stack.NEVER_SUMMED:
            raise MicrographError(
                f"its sections are {stack.WORDS[in_file['are']]} ({in_file['by']}), but {by_settings.why}: their sum "
                "would be no image; give it a profile with frames: each"
            )
        return by_settings
    named = of_frames(config.arrival, path)
    if in_file is not None and (in_file["sure"] or not named):
        return Taking(in_file["are"] != "frames", f"its sections are {stack.WORDS[in_file['are']]} ({in_file['by']})")
    return Taking(not named, "arrival.frames names it" if named else UNKNOWN)


def noted(micrograph: Micrograph, taking: Taking) -> Micrograph:
    """The micrograph with `taking` in its metadata, and a warning where that may be wrong."""
    metadata = dict(micrograph.metadata)
    in_file = metadata.get("stack") or {"are": "unknown", "by": ""}
    metadata["stack"] = {**in_file, "taken": taking.words, "because": taking.why}
    remarks = []
    if taking.why == UNKNOWN:
        remarks.append(
            f"{UNKNOWN}: each is denoised separately; if they are frames of one exposure, state frames: sum in its "
            "profile or its name in arrival.frames"
        )
    elif not taking.by_section and in_file["are"] not in ("frames", "unknown"):
        remarks.append(f"its sections were summed because {taking.why}, but {in_file['by']} says {in_file['are']}")
    return replace(micrograph, metadata=metadata, warnings=(*micrograph.warnings, *remarks))


def whole(reader: Reader, config: Config, path: Path, relative: str, profile: str | None = None) -> Micrograph | None:
    """The micrograph in a file, its only image or the sum of its frames; None if its sections are processed singly.

    `relative`: the file's path below the drop folder. Raises as `Reader.read` and `taking` do.
    """
    if sections_by_settings(config, relative, profile):
        return None
    if reader.count(path) == 1:
        return reader.read(path)
    first = reader.read(path, 0)
    if first.metadata["sections"] == 1:
        alone = {key: value for key, value in first.metadata.items() if key not in ("section", "sections")}
        return replace(first, metadata=alone)
    found = taking(config, relative, first, profile)
    return None if found.by_section else noted(reader.read(path), found)


def grows(reader: Reader, config: Config, path: Path, relative: str) -> bool | None:
    """Whether a file is a stack whose sections are taken one by one; False for one that cannot be read now.

    None for a vendor's format: only decoding shows it, so the file is taken as it was the last time.
    """
    by_settings = stated(config, relative)
    if by_settings is not None:
        return by_settings.by_section
    try:
        if (stored := reader.count(path)) is None:
            return None
        if stored == 1:
            return False
        return taking(config, relative, reader.read(path, 0)).by_section
    except EmdenoisedError:
        return False  # reading it reports the reason


def read(reader: Reader, path: Path, number: int, first: str | None = None) -> tuple[Micrograph, Section]:
    """Read section `number`, counted from 1. `first`: the hash of the first section, unless this is it.

    Raises as `Reader.read` does; MicrographError if the stack has no such section.
    """
    micrograph = reader.read(path, number - 1)
    digest = sha256_of_pixels(micrograph.pixels)
    try:
        state = path.stat(follow_symlinks=False)
    except OSError as error:
        raise TransientError(
            f"{path}: cannot be read now ({error.strerror}): check that the share is connected"
        ) from error
    total = int(micrograph.metadata["sections"])
    raw = Raw(
        path=str(path),
        sha256=digest,
        sha256_of=f"the pixels of section {number}",
        section=number,
        size=state.st_size,
        mtime_ns=state.st_mtime_ns,
    )
    return micrograph, Section(number, total, digest, first or digest, raw)
