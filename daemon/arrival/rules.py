"""Rules of the settings for file names: micrographs, companion files, stacks. Pure: opens no file."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from pathlib import PurePosixPath

from daemon.settings.config import Arrival, Config
from daemon.settings.names import folded
from daemon.settings.profile import Profile


def ignores(arrival: Arrival, path: str) -> bool:
    """Whether a file or folder is ignored by its name: temporary, hidden, or excluded by the settings.

    Globs are case-insensitive: without "/" for the name of a file or folder, with "/" for the relative path.
    """
    return _matches(arrival.ignore, path)


def wants(arrival: Arrival, path: str) -> bool:
    """Whether `path` (relative, "/" between folders) is a micrograph to be processed."""
    return path.lower().endswith(arrival.extensions) and not ignores(arrival, path)


def by_section(arrival: Arrival, path: str) -> bool:
    """Whether `arrival.sections` lists `path`: each section is a micrograph."""
    return _matches(arrival.sections, path)


def of_frames(arrival: Arrival, path: str) -> bool:
    """Whether `arrival.frames` lists `path`: its sections are frames of one exposure."""
    return _matches(arrival.frames, path)


def is_sidecar(arrival: Arrival, path: str) -> bool:
    """Whether `path` may be a companion file that `arrival.require_sidecar` waits for."""
    match arrival.require_sidecar:
        case "epu":
            return path.lower().endswith((".xml", ".dm5"))
        case "serialem":
            return path.lower().endswith(".mdoc")
    return False


def sidecars(arrival: Arrival, path: str) -> tuple[str, ...]:
    """Names (`folded`) of companion files, one of which `path` needs before it is complete; () if none is required."""
    path = folded(path)
    stem = path[: path.rindex(".")]
    match arrival.require_sidecar:
        case "epu":  # movies carry a suffix that their XML does not
            stems = {stem, stem.removesuffix("_fractions"), stem.removesuffix("_eer")}
            return tuple(one + ending for one in stems for ending in (".xml", ".dm5"))
        case "serialem":
            return (path + ".mdoc", stem + ".mdoc")
    return ()


def _matches(globs: tuple[str, ...], path: str) -> bool:
    """Ignores case and Unicode's composition."""
    names, paths = _compiled(globs)
    path = folded(path)
    return names.match(path.rpartition("/")[2]) is not None or paths.match(path) is not None


@lru_cache(maxsize=64)
def _compiled(globs: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """One pattern for names (globs without "/") and one for relative paths."""
    plain = [folded(glob) for glob in globs]
    return _any_of(glob for glob in plain if "/" not in glob), _any_of(glob for glob in plain if "/" in glob)


def _any_of(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(translate(glob) for glob in globs) or r"(?!)")


@dataclass(frozen=True, slots=True)
class Taking:
    """How a stack is processed, and why."""

    by_section: bool
    """Whether each section is a micrograph of its own."""
    why: str

    @property
    def words(self) -> str:
        """For the record."""
        return "each by itself" if self.by_section else "summed"


def stated(config: Config, path: str, profile: str | None = None) -> Taking | None:
    """How the settings process a stack at `path` (relative to the drop folder), whatever it contains.

    By `profile`, or the profile that folder and name choose, or the default one; else by `arrival.sections`; None if
    these do not state it.
    """
    relative = PurePosixPath(path)
    chosen = next(_fitting(config, relative), config.profiles[config.default_profile])
    if profile is not None:
        chosen = config.profiles[profile]
    if chosen.frames is not None:
        return Taking(chosen.frames == "each", f"profile {chosen.name} has frames: {chosen.frames}")
    return Taking(True, "arrival.sections names it") if by_section(config.arrival, path) else None


def _fitting(config: Config, relative: PurePosixPath) -> Iterator[Profile]:
    for profile in config.profiles.values():
        if profile.match.states_a_rule and not profile.match.measured and profile.match.path_fits(relative):
            yield profile


def sections_by_settings(config: Config, path: str, profile: str | None = None) -> bool:
    """Whether by the settings each section of `path` is a micrograph."""
    by_settings = stated(config, path, profile)
    return by_settings is not None and by_settings.by_section
