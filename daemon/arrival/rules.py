"""What a site calls a micrograph, by its name, and how long it waits for one. Pure: no file is touched."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property
from pathlib import PurePosixPath
from typing import Literal

from daemon.settings.config import Config, Profile
from daemon.settings.names import folded


@dataclass(frozen=True)
class Rules:
    """What counts as a micrograph and when it counts as finished. Times are in seconds."""

    settle_seconds: float = 1.0
    """How long size, modification time and inode must stay the same."""
    suspicious_tail_seconds: float = 30.0
    """How much longer a file is held whose end is zeros: a copy that is still being filled looks like this."""
    stuck_seconds: float = 60.0
    """After how long without any change an unfinished file is handed over, to be quarantined with the reason.
    A quarantined file that changes is looked at again, so a slow copy loses nothing by this."""
    extensions: tuple[str, ...] = (".tif", ".tiff", ".mrc", ".st", ".dm3", ".dm4", ".ser", ".emd", ".hspy", ".eer")
    """Endings of micrographs, lower case with the dot."""
    ignore: tuple[str, ...] = (".*", "~*", "*.tmp", "*.part")
    """Globs, case-insensitive: without "/" for the name of a file or folder, with "/" for the relative path."""
    sections: tuple[str, ...] = ("*.st",)
    """Globs as in `ignore`, of stacks whose sections are micrographs of their own and not to be summed."""
    frames: tuple[str, ...] = ("*movie*", "*frames*", "*fractions*", "*.eer", "movies/*", "*/movies/*")
    """Globs as in `ignore`, of stacks whose sections are frames of one exposure, where the file does not say."""
    require_sidecar: Literal["epu", "serialem"] | None = None
    """The file that the microscope's software writes last, if it must be there too."""
    recursive: bool = True

    @cached_property
    def _ignored(self) -> "_Globs":
        return _Globs(self.ignore)

    @cached_property
    def _sections(self) -> "_Globs":
        return _Globs(self.sections)

    @cached_property
    def _frames(self) -> "_Globs":
        return _Globs(self.frames)

    def ignores(self, path: str) -> bool:
        """Whether a file or folder is passed over by its name: temporary, hidden, or excluded by the site."""
        return self._ignored.match(path)

    def wants(self, path: str) -> bool:
        """Whether `path` (relative, "/" between folders) is a micrograph to be processed."""
        return path.lower().endswith(self.extensions) and not self.ignores(path)

    def by_section(self, path: str) -> bool:
        """Whether the sections of `path` are taken one by one, each as it comes."""
        return self._sections.match(path)

    def of_frames(self, path: str) -> bool:
        """Whether the sections of `path` are frames of one exposure by its name."""
        return self._frames.match(path)

    def is_sidecar(self, path: str) -> bool:
        """Whether `path` may be what `require_sidecar` waits for."""
        match self.require_sidecar:
            case "epu":
                return path.lower().endswith((".xml", ".dm5"))
            case "serialem":
                return path.lower().endswith(".mdoc")
        return False

    def sidecars(self, path: str) -> tuple[str, ...]:
        """Names (`folded`) of which one must be there before `path` counts as finished; () if none is required."""
        path = folded(path)
        stem = path[: path.rindex(".")]
        match self.require_sidecar:
            case "epu":  # movies carry a suffix that their XML does not
                stems = {stem, stem.removesuffix("_fractions"), stem.removesuffix("_eer")}
                return tuple(one + ending for one in stems for ending in (".xml", ".dm5"))
            case "serialem":
                return (path + ".mdoc", stem + ".mdoc")
        return ()


class _Globs:
    """Patterns of names (those without "/") and of relative paths; neither case nor Unicode's composition matters."""

    def __init__(self, globs: Iterable[str]) -> None:
        plain = [folded(glob) for glob in globs]
        self._names = _any_of(glob for glob in plain if "/" not in glob)
        self._paths = _any_of(glob for glob in plain if "/" in glob)

    def match(self, path: str) -> bool:
        path = folded(path)
        return self._names.match(path.rpartition("/")[2]) is not None or self._paths.match(path) is not None


def _any_of(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(translate(glob) for glob in globs) or r"(?!)")


@dataclass(frozen=True, slots=True)
class Taking:
    """What becomes of a stack, and why."""

    apart: bool
    """Whether each section is a micrograph of its own."""
    why: str

    @property
    def words(self) -> str:
        """For the record."""
        return "each by itself" if self.apart else "summed"


def stated(config: Config, rules: Rules, path: str, profile: str | None = None) -> Taking | None:
    """What the settings say of the stacks at `path` (relative to the drop folder), whatever is in the file.

    As `profile` says, or the one that folder and name choose, or the default where none does; else as
    `arrival.sections` says; None where all are silent.
    """
    relative = PurePosixPath(path)
    chosen = next(_fitting(config, relative), config.profiles[config.default_profile])
    if profile is not None:
        chosen = config.profiles[profile]
    if chosen.frames is not None:
        return Taking(chosen.frames == "each", f"profile {chosen.name} has frames: {chosen.frames}")
    return Taking(True, "arrival.sections names it") if rules.by_section(path) else None


def _fitting(config: Config, relative: PurePosixPath) -> Iterator[Profile]:
    for profile in config.profiles.values():
        if profile.match.states_a_rule and not profile.match.measured and profile.match.path_fits(relative):
            yield profile


def apart(config: Config, rules: Rules, path: str, profile: str | None = None) -> bool:
    """Whether the settings say that each section of `path` is a micrograph of its own."""
    by_settings = stated(config, rules, path, profile)
    return by_settings is not None and by_settings.apart


def rules_of(config: Config) -> Rules:
    """The arrival settings as the tracker wants them."""
    arrival = config.arrival
    return Rules(
        settle_seconds=arrival.settle_seconds,
        suspicious_tail_seconds=arrival.suspicious_tail_seconds,
        extensions=arrival.extensions,
        ignore=arrival.ignore,
        sections=arrival.sections,
        frames=arrival.frames,
        require_sidecar=arrival.require_sidecar,
        recursive=arrival.recursive,
    )
