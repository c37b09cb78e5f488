"""`emdenoised replay`: a past session through other weights, compared with the results it had."""

import argparse
import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Picture

from daemon import formats
from daemon.backends import manifest, open_backend
from daemon.backends.protocol import Backend
from daemon.commands import html
from daemon.commands.html import text
from daemon.commands.progress import Progress
from daemon.commands.report import WORDS
from daemon.commands.shared import open_ledger, settings_of
from daemon.errors import MicrographError, TransientError, UsageError, WeightsError
from daemon.files import write_atomically
from daemon.formats.contrast import window
from daemon.formats.decoder import Reader
from daemon.ledger import sessions
from daemon.ledger.job import Job
from daemon.logs import one_line
from daemon.micrograph import Image, Pixels
from daemon.output import paths
from daemon.output.preview import grey
from daemon.output.record import as_it_was_made, own_record
from daemon.service import fingerprints, sections, steps
from daemon.settings import config as settings
from daemon.settings.config import Config
from daemon.verdict import judge

CROP = 256
"""Side of the detail that is shown of each micrograph, pixels."""
_RANK = {word: place for place, word in enumerate(reversed(WORDS))}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One micrograph, then and now. `difference`: rms of new minus old, in standard deviations of the noise."""

    micrograph: str
    old: str
    new: str
    old_error_ratio: float | None
    new_error_ratio: float | None
    reasons: tuple[str, ...]
    """Of the new verdict."""
    difference: float
    picture: Picture.Image | None = field(repr=False)
    """Raw, old, new and their difference where that is largest; None where others differ more."""

    @property
    def disagreement(self) -> tuple[int, float]:
        """Sorts pairs of results: the larger, the more they differ."""
        return abs(_RANK[self.new] - _RANK[self.old]), self.difference

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name != "picture"}


@dataclass(frozen=True, slots=True)
class Skipped:
    """A micrograph that could not be compared, and why."""

    micrograph: str
    reason: str


def run(
    config: Config, jobs: Sequence[Job], weights: str, pictures: int, progress: Progress
) -> tuple[list[Comparison], list[Skipped]]:
    """Run a session's micrographs through `weights`, one at a time; nothing of the session is changed.

    Both results are judged by the same rules. Only the `pictures` that differ most are kept. Raises WeightsError,
    BackendError, ConfigError.
    """
    found: list[Comparison] = []
    skipped: list[Skipped] = []
    pictured: list[tuple[tuple[int, float], int]] = []
    for one in _compare(config, jobs, weights, progress):
        if isinstance(one, Skipped):
            skipped.append(one)
            continue
        heapq.heappush(pictured, (one.disagreement, len(found)))
        found.append(one)
        if len(pictured) > pictures:  # a long session's pictures would fill the memory
            _, least = heapq.heappop(pictured)
            found[least] = replace(found[least], picture=None)
    return found, skipped


def _compare(config: Config, jobs: Sequence[Job], weights: str, progress: Progress) -> Iterator[Comparison | Skipped]:
    new = settings.with_profiles(config, weights=weights)
    loaded = manifest.load_weights(new)
    (only,) = loaded.values()
    backend = open_backend(config.backend, only, config.folders.engines, progress.beat)
    try:
        with Reader(config.backend.max_pixels, config.backend.decode_seconds) as reader:
            for job in jobs:
                for result in paths.results_of(job):
                    relative = result.relative
                    progress.next(str(relative))
                    try:
                        one = _compared(new, loaded, backend, reader, job, result)
                        progress.say(f"{one.old} → {one.new}, difference {one.difference:.2f}")
                        yield one
                    except (MicrographError, TransientError, OSError, MemoryError) as error:
                        progress.say(f"not compared\n    {one_line(str(error))}")
                        yield Skipped(str(relative), str(error) or repr(error))
    finally:
        backend.close()


def _compared(
    new: Config,
    loaded: dict[str, manifest.Weights],
    backend: Backend,
    reader: Reader,
    job: Job,
    result: paths.JobImage,
) -> Comparison:
    relative, section, image = result.relative, result.section, result.image
    path = new.folders.drop / job.path
    record = own_record(image)
    if record is None:
        raise MicrographError(f"{image}: the result or the JSON beside it is missing")
    profile = None if record.profile is None else record.profile.name
    if not record.raw.sha256 or profile is None:
        raise MicrographError(f"{image}: the JSON beside it does not state its raw file: it is damaged")
    if section is None:
        raw = fingerprints.fingerprint(path, new.backend.max_pixels)
    else:
        micrograph, found = sections.read(reader, path, section)
        raw = found.raw
    if raw.sha256 != record.raw.sha256:
        raise MicrographError(f"{path}: has changed since this result was made from it")
    known = profile if profile in new.profiles else None
    if section is None:
        one = steps.read(new, loaded, path, relative, raw, reader, profile=known)
    else:
        one = steps.prepare(new, loaded, path, relative, raw, micrograph, profile=known)
    (done,) = backend.denoise([one.plane])
    stored = formats.read(image, new.backend.max_pixels).pixels
    old = as_it_was_made(image, stored, record).astype(np.float32, copy=False)
    old = np.where(np.isfinite(old), old, done.image)  # regions without numbers: neither result has any
    scaling, prepared = done.prepared.scaling, done.prepared
    before, after = (judge.judge(result, prepared, one.choice) for result in (old, done.image))
    difference = done.image - old
    return Comparison(
        str(relative),
        before.word,
        after.word,
        _estimate(before),
        _estimate(after),
        after.reasons,
        round(float(np.sqrt(np.mean(np.square(difference), dtype=np.float64))) / scaling.unit, 4),
        _picture(prepared.pixels, old, done.image, difference, scaling.unit),
    )


def _estimate(verdict: judge.Verdict) -> float | None:
    return None if verdict.evidence is None else round(verdict.evidence.error_ratio, 4)


def _picture(raw: Pixels, old: Image, new: Image, difference: Image, sigma: float) -> Picture.Image:
    """Raw, old, new at one contrast, and their difference from -3 to 3 standard deviations of the noise."""
    height, width = (min(CROP, side) for side in raw.shape)
    rows, columns = raw.shape[0] // height, raw.shape[1] // width
    blocks = np.square(difference[: rows * height, : columns * width]).reshape(rows, height, columns, width)
    row, column = divmod(int(blocks.mean(axis=(1, 3)).argmax()), columns)
    here = slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width)
    low, high = window(new[here])
    panels = [grey(image[here].astype(np.float32), low, high) for image in (raw, old, new)]
    panels.append(grey(difference[here], -3 * sigma, 3 * sigma))
    gap = np.full((height, 4), 255, np.uint8)
    return Picture.fromarray(np.hstack([part for panel in panels for part in (panel, gap)][:-1]))


def write(folder: Path, named: str, weights: str, found: Sequence[Comparison], skipped: Sequence[Skipped]) -> None:
    """``replay.html``, disagreements first, and ``replay.json`` with the same figures. Raises OSError."""
    html.save(folder / "replay.html", f"emdenoised: session {named} through {weights}", _parts(found, skipped))
    content = {
        "session": named,
        "weights": weights,
        "compared": [one.as_json() for one in found],
        "not compared": [asdict(one) for one in skipped],
    }
    write_atomically(folder / "replay.json", lambda stream: stream.write(json.dumps(content, indent=1).encode("ascii")))


def _parts(found: Sequence[Comparison], skipped: Sequence[Skipped]) -> Iterator[str]:
    ranked = sorted(found, key=lambda one: one.disagreement, reverse=True)
    yield from html.facts(_summary(found, skipped))
    yield (
        '<p class="note">Both results are judged by the same rules. The error is estimated, as a share of the raw '
        "image's squared error: smaller is better. The difference is that of the two results, in standard deviations "
        "of the counting noise. Disagreements come first.</p>"
    )
    head = ("micrograph", "then", "now", "error then", "error now", "difference", "why now")
    rows = (
        (
            one.micrograph,
            one.old,
            one.new,
            _figure(one.old_error_ratio),
            _figure(one.new_error_ratio),
            _figure(one.difference),
            "; ".join(one.reasons),
        )
        for one in ranked
    )
    yield from html.table(head, rows, WORDS)
    if skipped:
        yield "<h2>Not compared</h2>"
        yield from html.table(("micrograph", "reason"), ((one.micrograph, one.reason) for one in skipped))
    if any(one.picture for one in ranked):
        yield (
            "<h2>Where they differ most</h2><p class='note'>Raw, then, now: one contrast. Last: now minus then, black "
            "to white from -3 to 3 standard deviations of the noise.</p>"
        )
    for one in ranked:
        if one.picture is None:
            continue
        words = f'<span class="{one.old}">{one.old}</span> → <span class="{one.new}">{one.new}</span>'
        yield html.figure(one.picture, f"<b>{text(one.micrograph)}</b>: {words}")


def _summary(found: Sequence[Comparison], skipped: Sequence[Skipped]) -> Mapping[str, object]:
    def words(which: Sequence[str]) -> str:
        return ", ".join(f"{which.count(word)} {word}" for word in WORDS if word in which) or "none"

    pairs = [(one.old_error_ratio, one.new_error_ratio) for one in found]
    known = [(then, now) for then, now in pairs if then is not None and now is not None]
    better = sum(now < then for then, now in known)
    middle = [sqrt(float(np.median(side))) for side in zip(*known, strict=True)]
    return {
        "Compared": f"{len(found)}, not compared {len(skipped)}",
        "Verdicts then": words([one.old for one in found]),
        "Verdicts now": words([one.new for one in found]),
        "Words that changed": sum(one.old != one.new for one in found),
        "Estimated error smaller now": f"{better} of {len(known)}",
        "Median error, of the raw image's": f"{middle[0]:.3f} then, {middle[1]:.3f} now (rms)" if middle else "unknown",
    }


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def replay_session(options: argparse.Namespace) -> int:
    """Compare and write the page; 0 if at least one micrograph was compared."""
    config = settings_of(options)
    with open_ledger(config, "read") as ledger:
        jobs = [job for job in sessions.find(ledger, options.session) if job.state == "done"]
    weights = settings.weights_named(options.weights)
    try:
        manifest.verified(weights)
    except WeightsError as error:
        raise UsageError(f"--weights {options.weights}: {error}") from error
    options.to.mkdir(parents=True, exist_ok=True)
    with Progress(sum(max(1, job.sections) for job in jobs)) as progress:
        found, skipped = run(config, jobs, weights, max(0, options.pictures), progress)
    write(options.to, options.session, options.weights, found, skipped)
    changed = sum(one.old != one.new for one in found)
    summary = f"{len(found)} compared, {changed} with another verdict, {len(skipped)} not compared"
    print(f"{summary} → {options.to / 'replay.html'}")
    return 0 if found else 1
