"""What a site calls a micrograph, by its name, and how long it waits for one. Pure: no file is touched."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property
from typing import Literal


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
    require_sidecar: Literal["epu", "serialem"] | None = None
    """The file that the microscope's software writes last, if it must be there too."""
    recursive: bool = True

    @cached_property
    def _ignored_names(self) -> re.Pattern[str]:
        return _any_of(glob for glob in self.ignore if "/" not in glob)

    @cached_property
    def _ignored_paths(self) -> re.Pattern[str]:
        return _any_of(glob for glob in self.ignore if "/" in glob)

    @cached_property
    def _section_names(self) -> re.Pattern[str]:
        return _any_of(glob for glob in self.sections if "/" not in glob)

    @cached_property
    def _section_paths(self) -> re.Pattern[str]:
        return _any_of(glob for glob in self.sections if "/" in glob)

    def ignores(self, path: str) -> bool:
        """Whether a file or folder is passed over by its name: temporary, hidden, or excluded by the site."""
        name = path.rpartition("/")[2]
        return (
            self._ignored_names.match(name.lower()) is not None or self._ignored_paths.match(path.lower()) is not None
        )

    def wants(self, path: str) -> bool:
        """Whether `path` (relative, "/" between folders) is a micrograph to be processed."""
        return path.lower().endswith(self.extensions) and not self.ignores(path)

    def by_section(self, path: str) -> bool:
        """Whether the sections of `path` are taken one by one, each as it comes."""
        name = path.rpartition("/")[2].lower()
        return self._section_names.match(name) is not None or self._section_paths.match(path.lower()) is not None

    def is_sidecar(self, path: str) -> bool:
        """Whether `path` may be what `require_sidecar` waits for."""
        match self.require_sidecar:
            case "epu":
                return path.lower().endswith((".xml", ".dm5"))
            case "serialem":
                return path.lower().endswith(".mdoc")
        return False

    def sidecars(self, path: str) -> tuple[str, ...]:
        """The lower-case names of which one must be there before `path` counts as finished; () if none is required."""
        stem = path[: path.rindex(".")].lower()
        match self.require_sidecar:
            case "epu":  # movies carry a suffix that their XML does not
                stems = {stem, stem.removesuffix("_fractions"), stem.removesuffix("_eer")}
                return tuple(one + ending for one in stems for ending in (".xml", ".dm5"))
            case "serialem":
                return (path.lower() + ".mdoc", stem + ".mdoc")
        return ()


def _any_of(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(translate(glob.lower()) for glob in globs) or r"(?!)")
