"""Stacks whose sections are taken one by one: a tilt series, which grows while it is recorded."""

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from daemon.config import Config
from daemon.errors import TransientError
from daemon.micrograph import Micrograph
from daemon.reader import Reader
from daemon.rules import Rules


@dataclass(frozen=True, slots=True)
class Section:
    """One section of a stack; the stack may have more by now than it had when this was read."""

    number: int
    """From 1."""
    of: int
    sha256: str
    """Of its pixels: that of the file changes with each section that comes."""
    first: str
    """That of the first section, by which the stack is known again."""
    raw: dict[str, Any]
    """What `work.fingerprint` says of a whole file."""

    @property
    def told(self) -> dict[str, Any]:
        """For `Ledger.finish`."""
        return {"sha256": self.first, "sections": self.number, "more": self.number < self.of}

    def __str__(self) -> str:
        return f"section {self.number} of {self.of}"


def apart(config: Config, rules: Rules, path: str) -> bool:
    """Whether each section of `path` (relative to the drop folder) is a micrograph of its own.

    As the profile says that its folder and name choose, or the default where none does; else as `arrival.sections`.
    """
    relative = PurePosixPath(path)
    fitting = (
        profile
        for profile in config.profiles.values()
        if profile.match.states_a_rule and not profile.match.measured and profile.match.path_fits(relative)
    )
    frames = next(fitting, config.profiles[config.default_profile]).frames
    return rules.by_section(path) if frames is None else frames == "each"


def name(path: str, number: int) -> PurePosixPath:
    """What a section is called, relative to the drop folder: tilt.st → tilt.s0007.st."""
    stack = PurePosixPath(path)
    return stack.with_name(f"{stack.stem}.s{number:04d}{stack.suffix}")


def read(reader: Reader, path: Path, number: int, first: str | None = None) -> tuple[Micrograph, Section]:
    """Read one section, counted from 1; `first`: the hash of the first one, if this is another.

    Raises as `Reader.read` does: a stack that does not have that section cannot be processed as it is.
    """
    micrograph = reader.read(path, number - 1)
    digest = hashlib.sha256(np.ascontiguousarray(micrograph.pixels).data).hexdigest()
    try:
        state = path.stat(follow_symlinks=False)
    except OSError as error:
        raise TransientError(f"{path}: cannot be read now ({error.strerror}); it is tried again") from error
    total = int(micrograph.metadata["sections"])
    raw = {
        "path": str(path),
        "sha256": digest,
        "sha256_of": f"the pixels of section {number}",
        "section": number,
        "size": state.st_size,
        "mtime_ns": state.st_mtime_ns,
    }
    return micrograph, Section(number, total, digest, first or digest, raw)
