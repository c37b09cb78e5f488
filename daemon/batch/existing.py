"""Results of earlier runs: whether a file needs to be denoised at all.

Compared are size and modification time of the raw file, profile, hashes of weights and settings, as the record beside
each result states them: a file that is done is not read, unlike by `writing.find_same`. With `verify` the hashes of raw
file and result are compared as well, which reads both in full.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from os import stat_result
from pathlib import Path, PurePath, PurePosixPath
from stat import S_ISREG

from daemon import formats
from daemon.backends.manifest import Weights
from daemon.counts.profiles import ASKED_FOR
from daemon.errors import MicrographError, TransientError
from daemon.files import sha256
from daemon.formats.decoder import Reader
from daemon.output.paths import output_path, section_name
from daemon.output.record import Record, own_record
from daemon.service import fingerprints, sections
from daemon.settings.config import Config

_KINDS: tuple[formats.FileKind, ...] = ("tiff", "mrc")


@dataclass(frozen=True, slots=True)
class _EarlierResult:
    image: Path
    record: Record


class Existing:
    """The results in `out` that count as made with these settings.

    `profile`: that of the command line. `reader`: needed for `verify`, as sections are hashed by their pixels.
    """

    def __init__(
        self,
        out: Path,
        config: Config,
        weights: Mapping[str, Weights],
        profile: str | None = None,
        verify: Reader | None = None,
    ) -> None:
        self._out, self._config, self._profile, self._verify = out, config, profile, verify
        self._settings = config.fingerprint()
        self._sha256 = {name: weights[one.weights].manifest.sha256 for name, one in config.profiles.items()}

    def of(self, path: Path, relative: str) -> tuple[Record, ...]:
        """Records of the results of a file: one, or one for each section.

        () if any is missing or out of date, if that cannot be determined, and for what is no regular file. `relative`:
        the path below the listed folder.
        """
        try:
            state = path.lstat()
            return self._of(path, relative, state) if S_ISREG(state.st_mode) else ()
        except (OSError, MicrographError, TransientError):  # denoising it reports the reason
            return ()

    def _of(self, path: Path, relative: str, state: stat_result) -> tuple[Record, ...]:
        for whole in self._candidates(PurePosixPath(relative), relative, state, None):
            if self._verify is None or self._whole_agrees(path, whole):
                return (whole.record,)
        found: list[Record] = []
        number, of = 1, 1
        while number <= of:
            one = self._section(path, relative, state, number)
            if one is None or not isinstance(total := one.raw.metadata.get("sections"), int):
                return ()
            found.append(one)
            number, of = number + 1, total
        return tuple(found)

    def _section(self, path: Path, relative: str, state: stat_result, number: int) -> Record | None:
        candidates = self._candidates(section_name(relative, number), relative, state, number)
        if self._verify is None:
            return next((one.record for one in candidates), None)
        section: sections.Section | None = None
        for one in candidates:
            section = section or sections.read(self._verify, path, number)[1]
            if section.sha256 == one.record.raw.sha256 and sha256(one.image) == one.record.output.sha256:
                return one.record if section.of == one.record.raw.metadata.get("sections") else None
        return None

    def _candidates(
        self, name: PurePath, relative: str, state: stat_result, section: int | None
    ) -> Iterator[_EarlierResult]:
        """Results of this name, in the order of their revisions, that agree but for the hashes."""
        for revision in count(1):
            taken = False
            for kind in _KINDS:
                image = output_path(self._out, name, revision, kind, section=section is not None)
                if (record := own_record(image)) is None:
                    continue
                taken = True
                raw = record.raw
                if (raw.size, raw.mtime_ns, raw.section) != (state.st_size, state.st_mtime_ns, section):
                    continue
                if raw.relative == str(name) and self._made_so(record, relative):
                    yield _EarlierResult(image, record)
            if not taken:
                return

    def _made_so(self, record: Record, relative: str) -> bool:
        used = record.profile
        if used is None or used.name is None or record.weights is None or record.config_sha256 != self._settings:
            return False
        if record.weights.sha256 != self._sha256.get(used.name):
            return False
        if self._profile is None and used.why == f"{used.name}: {ASKED_FOR}":  # the rules may choose another
            return False
        if self._profile not in (None, used.name):
            return False
        return sections.taken_alike(self._config, relative, record.raw, self._profile)

    def _whole_agrees(self, path: Path, one: _EarlierResult) -> bool:
        raw = fingerprints.fingerprint(path, self._config.backend.max_pixels)
        return raw.sha256 == one.record.raw.sha256 and sha256(one.image) == one.record.output.sha256
