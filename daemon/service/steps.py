"""The steps of one micrograph from file to finished output, without threads and ledger."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version
from pathlib import Path, PurePath

import numpy as np

from daemon import __version__, formats
from daemon.backends.manifest import Weights
from daemon.counts import profiles, voids
from daemon.counts.plane import Denoised, Plane, Prepared
from daemon.counts.prepare import plane
from daemon.counts.profiles import Choice
from daemon.counts.reason import SESSION, Reason
from daemon.errors import MicrographError, TransientError
from daemon.formats.decoder import Reader
from daemon.micrograph import Micrograph, Pixels
from daemon.output import writing
from daemon.output.record import (
    PixelSizeStated,
    ProfileUsed,
    Raw,
    Record,
    Spike,
    SpikesFound,
    VerdictFound,
    WeightsUsed,
)
from daemon.service.fingerprints import ChangedError
from daemon.service.sections import Section
from daemon.settings.config import Config
from daemon.verdict import judge

_SPIKES_LISTED = 1000
"""The JSON lists at most this many spikes; their count includes the others."""


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A micrograph in work. `relative`: path below the drop folder; `seconds`: duration of each step so far."""

    relative: PurePath
    raw: Raw
    """Path, SHA-256, size and modification time of the raw file."""
    micrograph: Micrograph
    choice: Choice
    weights: Weights
    plane: Plane
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    section: Section | None = None
    """Its number and hashes, where a stack is processed section by section."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A result that was written, summarised for log, ledger and user."""

    written: writing.Written
    dose: str
    """In words: so many counts per pixel, or unknown."""
    profile: str
    spikes: int
    verdict: str
    """good, check or reject."""
    warnings: tuple[str, ...]
    """The verdict's reasons among them."""
    seconds: dict[str, float]
    of_session: tuple[Reason, ...] = ()
    """Those of the warnings that concern the camera, the settings or the way files are saved."""

    def news(self, reported: set[str]) -> tuple[str, ...]:
        """The warnings; those of the session whose codes are in `reported` only by code. Adds the codes to it."""
        known = {reason.text: reason.code for reason in self.of_session if reason.code in reported}
        reported.update(reason.code for reason in self.of_session)
        again = (f"as before: {', '.join(dict.fromkeys(known.values()))}",) if known else ()
        return *(warning for warning in self.warnings if warning not in known), *again

    def describe(self, path: str, revision: int, reported: set[str]) -> str:
        """The log's one line about a finished micrograph; `reported` as in `news`."""
        seconds = ", ".join(f"{step} {value:.2f}" for step, value in self.seconds.items())
        spikes = f", {self.spikes} spikes filled in" if self.spikes else ""
        number = f" (revision {revision})" if revision > 1 else ""
        text = (
            f"{'adopted' if self.written.adopted else 'denoised'} {path!r}{number}: {self.verdict}, {self.dose}, "
            f"profile {self.profile}{spikes}, {sum(self.seconds.values()):.2f} s ({seconds})"
        )
        return text + "".join(f"; warning: {warning}" for warning in self.news(reported))


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Add the duration of the block to ``seconds[step]``."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        seconds[step] = round(seconds.get(step, 0.0) + time.perf_counter() - begin, 4)


def read(
    config: Config,
    weights: dict[str, Weights],
    path: Path,
    relative: PurePath,
    raw: Raw,
    reader: Reader,
    warning: str | None = None,
    profile: str | None = None,
    micrograph: Micrograph | None = None,
) -> Work:
    """Read one file and choose its profile. `raw` is its `fingerprint`; `profile` overrides the rules.

    `micrograph`: the file's content, where it was read before; otherwise a stack is summed. Raises MicrographError if
    the file can never be processed as it is, TransientError if it cannot be processed now.
    """
    begin = time.perf_counter()
    micrograph = micrograph or reader.read(path)
    took = time.perf_counter() - begin
    try:
        after = path.stat()
    except OSError as error:
        raise TransientError(
            f"{path}: cannot be read now ({error.strerror}): check that the share is connected"
        ) from error
    if (after.st_size, after.st_mtime_ns) != (raw.size, raw.mtime_ns):
        raise ChangedError(f"{path}: changed while it was read; it is read again once it has settled")
    one = prepare(config, weights, path, relative, raw, micrograph, warning, profile)
    one.seconds["read"] = round(took, 4)
    return one


def prepare(
    config: Config,
    weights: dict[str, Weights],
    path: Path,
    relative: PurePath,
    raw: Raw,
    micrograph: Micrograph,
    warning: str | None = None,
    profile: str | None = None,
) -> Work:
    """Choose the profile of a micrograph and prepare it for the network. Raises MicrographError, TransientError."""
    seconds: dict[str, float] = {}
    with timed(seconds, "prepare"):
        try:
            choice = profiles.choose(config, relative, micrograph, profile)
            chosen = weights[choice.profile.weights]
            given = plane(micrograph.pixels, choice, chosen.manifest.dose_range, config.spikes.find)
        except MicrographError as error:
            raise MicrographError(f"{path}: {error}") from error
    warnings = (*([warning] if warning else []), *micrograph.warnings)
    return Work(relative, raw, micrograph, choice, chosen, given, warnings, seconds)


def _dose_in_words(choice: Choice, prepared: Prepared) -> str:
    """The dose as log, preview and terminal show it."""
    return f"{prepared.dose:.3g} counts per pixel" if choice.dose_known else "dose unknown"


def finish(
    config: Config,
    work: Work,
    denoised: Denoised,
    root: Path,
    revision: int = 1,
    *,
    same_settings: bool = False,
) -> Finished:
    """Judge and write one result below `root`; `same_settings` and errors as in `writing.write_outputs`."""
    prepared, image = denoised.prepared, denoised.image
    with timed(work.seconds, "judge"):
        verdict = judge.judge(image, prepared, work.choice)
        image = voids.restored(image, prepared)
    remarks = (reason.text for reason in verdict.remarks)
    warnings = tuple(dict.fromkeys((*verdict.reasons, *work.warnings, *remarks)))
    dose = _dose_in_words(work.choice, prepared)
    name = work.choice.profile.name
    spikes = _spikes(work.micrograph.pixels, prepared)
    kind: formats.FileKind = "mrc" if work.micrograph.kind == "mrc" else "tiff"
    with timed(work.seconds, "write"):
        written = writing.write_outputs(
            root,
            work.relative,
            revision,
            work.micrograph,
            image,
            provenance(config, work, prepared, verdict, spikes, warnings, denoised.backend),
            kind=kind if config.output.format == "same" else config.output.format,
            preview_pixels=config.output.preview_pixels if config.output.preview else None,
            caption=f"{dose}, profile {name}, verdict: {verdict.word}",
            same_settings=same_settings,
        )
    warnings = (*warnings, *written.warnings)
    of_session = tuple(reason for reason in (*verdict.why, *verdict.remarks) if reason.code in SESSION)
    return Finished(written, dose, name, spikes.count or 0, verdict.word, warnings, work.seconds, of_session)


def made_with(config: Config, work: Work) -> Record:
    """The part of `provenance` that determines the result; known before the network runs."""
    return Record(
        raw=work.raw,
        profile=ProfileUsed(name=work.choice.profile.name),
        weights=WeightsUsed(sha256=work.weights.manifest.sha256),
        config_sha256=config.fingerprint(),
    )


def provenance(
    config: Config,
    work: Work,
    prepared: Prepared,
    verdict: judge.Verdict,
    spikes: SpikesFound,
    warnings: tuple[str, ...],
    backend: str,
) -> Record:
    """The record of a result, but for `writer` and `output`, which writing adds."""
    micrograph, choice, scaling = work.micrograph, work.choice, prepared.scaling
    return Record(
        raw=_raw(work),
        dose=prepared.dose if choice.dose_known else None,
        profile=_profile_used(choice),
        dose_evidence=choice.dose_evidence.as_json(),
        scaling={
            "kind": work.weights.manifest.scaling,
            "zero": scaling.zero,
            "unit": scaling.unit,
            "level": scaling.level,
        },
        spikes=spikes,
        lines=choice.dose_evidence.no_specimen.lines_as_json(micrograph.pixels.shape),
        void=voids.as_json(prepared.void, micrograph.pixels),
        weights=WeightsUsed(
            asked=choice.profile.weights,
            name=work.weights.manifest.name,
            network=work.weights.manifest.network,
            sha256=work.weights.manifest.sha256,
        ),
        config_sha256=config.fingerprint(),
        backend=backend,
        passes=work.plane.passes,
        verdict=VerdictFound.model_validate(verdict.as_json()),
        warnings=warnings,
        seconds=dict(work.seconds),
        versions=_versions(),
        finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


@cache
def _versions() -> dict[str, str]:
    """Of what this process runs."""
    packages = {name: version(name) for name in ("numpy", "onnxruntime", "tifffile", "mrcfile")}
    return {"emdenoised": __version__, "python": platform.python_version(), **packages}


def _raw(work: Work) -> Raw:
    micrograph = work.micrograph
    size = micrograph.pixel_size
    stated = {
        "relative": str(work.relative),
        "kind": micrograph.kind,
        "shape": micrograph.pixels.shape,
        "dtype": str(micrograph.pixels.dtype),
        "metadata": dict(micrograph.metadata),
        "acquisition": micrograph.acquisition.as_json(),
        "pixel_size": None if size is None else PixelSizeStated(y=size.y, x=size.x, unit=size.unit),
    }
    return work.raw.model_copy(update=stated)


def _profile_used(choice: Choice) -> ProfileUsed:
    return ProfileUsed(
        name=choice.profile.name,
        why=choice.why,
        gain=choice.gain,
        offset=choice.offset,
        readout=choice.readout,
        psf=choice.psf,
        effective_gain=choice.noise.effective_gain,
        effective_offset=choice.noise.effective_offset,
    )


def _spikes(pixels: Pixels, prepared: Prepared) -> SpikesFound:
    """The spikes that lie neither in hot lines nor in voids."""
    spikes = prepared.spikes
    elsewhere = np.union1d(prepared.void, prepared.lines)
    single = np.isin(spikes.rows * pixels.shape[1] + spikes.columns, elsewhere, invert=True)
    rows, columns, values = spikes.rows[single], spikes.columns[single], spikes.values[single]
    listed = tuple(
        Spike(row=int(row), column=int(column), raw=pixels[row, column].item(), filled_with=float(value))
        for row, column, value, _ in zip(rows, columns, values, range(_SPIKES_LISTED), strict=False)
    )
    return SpikesFound(count=len(rows), listed=listed)
