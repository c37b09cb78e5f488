"""`emdenoised report`: a session as one page for a lab book, with pictures, verdicts, settings and hashes."""

import argparse
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from PIL import Image as Picture

from daemon import __version__, formats
from daemon.commands import html
from daemon.commands.html import text
from daemon.commands.shared import open_ledger, settings_of
from daemon.counts.reason import SESSION
from daemon.errors import MicrographError, UsageError
from daemon.ledger import sessions
from daemon.ledger.job import Job
from daemon.logs import reason
from daemon.output import paths
from daemon.output.record import Record, VerdictFound, WeightsUsed, own_record
from daemon.settings.config import Config

WORDS = ("reject", "check", "good")
"""The worst first."""
WIDEST = 1000
"""Of a picture in the page, pixels."""
_ENDINGS = (".html", ".htm")


@dataclass(frozen=True, slots=True)
class _SessionResult:
    job: Job
    name: str
    image: Path
    word: str
    record: Record | None = field(repr=False)
    """The JSON beside the image, if both are where they were written."""


def write(config: Config, jobs: Sequence[Job], named: str, path: Path, pictures: int) -> None:
    """Write the page about a session's jobs to `path`; at most `pictures` of them, the doubtful ones first.

    Raises OSError if it cannot be written.
    """
    html.save(path, f"emdenoised: session {named}", _parts(config, jobs, pictures))


def _parts(config: Config, jobs: Sequence[Job], pictures: int) -> Iterator[str]:
    done = [job for job in jobs if job.state == "done"]
    refused = [job for job in jobs if job.state == "quarantined"]
    every = [result for job in done for result in _results(job)]
    records = [result.record for result in every if result.record is not None]
    yield from html.facts(_summary(config, jobs, every, records))
    yield (
        '<p class="note">Verdicts compare each result with its raw data: <b>good</b>: nothing speaks against it; '
        "<b>check</b>: look at it for the reason given; <b>reject</b>: it is probably worse than the raw image. A "
        "denoised image is an estimate: measure on the raw data where it matters.</p>"
    )
    common = _common(records)
    if pictures:
        yield from _pictures(every, pictures, common)
    if common:
        yield "<h2>Of the whole session</h2><ul>"
        for one in common:
            yield f"<li>{text(one.text)} ({one.number} of {len(records)} micrographs)</li>"
        yield "</ul><p class='note'>Where this is why a result is <b>check</b>, the page names it by its code.</p>"
    yield "<h2>Micrographs</h2>"
    yield from html.table(
        ("finished", "micrograph", "verdict", "why", "counts per pixel", "profile", "pixels", "spikes"),
        (_row(one, common) for one in every),
        WORDS,
        dated=True,
    )
    if refused:
        yield "<h2>Not denoised</h2>"
        drop = config.folders.drop
        rows = (
            (_clock(job.updated), job.path + _seen(job), "quarantined", reason(job.error, drop, job.path))
            for job in refused
        )
        yield from html.table(("when", "file", "state", "reason"), rows, ("quarantined",), dated=True)
    yield "<details><summary>Hashes</summary>"
    yield "<p class='note'>SHA-256 of raw file (of a stack's section: of its pixels) and result.</p>"
    hashes = (
        (result.name, result.record.raw.sha256, result.record.output.sha256)
        for result in every
        if result.record is not None
    )
    yield from html.table(("micrograph", "raw", "result"), hashes)
    yield "</details><details><summary>Settings</summary>"
    yield from _settings(config, records)
    yield "</details>"


def _results(job: Job) -> Iterator[_SessionResult]:
    """One, or one for each section of a stack, of which the ledger has only the worst verdict."""
    for found in paths.results_of(job):
        try:
            record = own_record(found.image)
        except OSError:
            record = None
        if record is not None and record.spikes is not None:  # a thousand places each, of which the page shows none
            record = record.model_copy(update={"spikes": record.spikes.model_copy(update={"listed": ()})})
        word = job.verdict if found.section is None else _verdict(record).word
        name = str(found.relative) + (f" (revision {job.revision})" if job.revision > 1 else "") + _seen(job)
        yield _SessionResult(job, name, found.image, str(word or "none"), record)


def _summary(
    config: Config, jobs: Sequence[Job], every: Sequence[_SessionResult], records: Sequence[Record]
) -> dict[str, object]:
    words = Counter(result.word for result in every)
    doses = [record.dose for record in records if record.dose is not None]
    refused = sum(job.state == "quarantined" for job in jobs)
    weights = sorted({_weights(record) for record in records})
    backends = sorted({str(record.backend) for record in records})
    return {
        "From": _clock(jobs[0].updated),
        "To": _clock(jobs[-1].updated),
        "Micrographs": f"{len(every)} denoised, {refused} quarantined",
        "Verdicts": ", ".join(f"{words[word]} {word}" for word in (*WORDS, "none") if words[word]) or "none",
        "Mean counts per pixel": f"{sum(doses) / len(doses):.3g} (of {len(doses)} whose dose is known)"
        if doses
        else "unknown",
        "X-ray hits and hot pixels": sum(record.spikes.count or 0 for record in records if record.spikes),
        "Weights": "; ".join(weights) or "unknown",
        "Network run by": "; ".join(backends) or "unknown",
        "Raw files": config.folders.drop,
        "Results": config.folders.output,
        "Program": f"emdenoised {__version__}; this page was written {_clock(time.time())}",
    }


def _weights(record: Record) -> str:
    used = record.weights or WeightsUsed()
    return f"{used.name} ({'; '.join(f'{name} {digest}' for name, digest in (used.sha256 or {}).items())})"


@dataclass(frozen=True, slots=True)
class _Common:
    """A remark about camera, settings or files that most results of the session share."""

    code: str
    text: str
    """As the first of them has it."""
    number: int


def _common(records: Sequence[Record]) -> list[_Common]:
    """What is reported once for the session and not of each micrograph; nothing of records that have no codes."""
    texts: dict[str, list[str]] = {}
    for record in records:
        found = {code: words for code, words in _reasons(record) if code in SESSION}
        for code, words in found.items():
            texts.setdefault(code, []).append(words)
    most = [_Common(code, found[0], len(found)) for code, found in texts.items()]
    return [one for one in most if one.number >= max(2, len(records) / 2)]


def _reasons(record: Record) -> list[tuple[str, str]]:
    """Codes and words of a verdict's reasons and remarks; the code of an older record is empty."""
    found = _verdict(record)
    codes = found.codes if len(found.codes) == len(found.reasons) else [""] * len(found.reasons)
    pairs = list(zip(codes, found.reasons, strict=True))
    return pairs + [(remark.code, remark.text) for remark in found.remarks]


def _why(record: Record, common: Sequence[_Common]) -> html.Folded:
    """The first reason of its own, the others folded; by their codes those that the session shares."""
    shared = {one.code for one in common}
    pairs, reasons = _reasons(record), _verdict(record).reasons
    own = [words for code, words in pairs if code not in shared]
    listed = {words for _, words in pairs}
    own += [words for words in record.warnings if words not in listed]
    first = next((words for code, words in pairs if words in reasons and code not in shared), None)
    if first is not None:
        return html.Folded(first, tuple(words for words in own if words != first))
    of_session = ", ".join(code for code, words in pairs if words in reasons)
    return html.Folded(f"see the whole session: {of_session}", tuple(own)) if of_session else _remarked(own)


def _remarked(own: list[str]) -> html.Folded:
    """Of a result for which nothing is doubtful."""
    return html.Folded(f"{len(own)} remarks", tuple(own)) if len(own) > 1 else html.Folded("".join(own))


def _row(result: _SessionResult, common: Sequence[_Common]) -> tuple[object, ...]:
    when, record = _clock(result.job.updated), result.record
    if record is None:
        return when, result.name, result.word, "the result is no longer where it was", "", "", "", ""
    return (
        when,
        result.name,
        result.word,
        _why(record, common),
        "unknown" if record.dose is None else f"{record.dose:.3g}",
        (record.profile and record.profile.name) or "",
        " x ".join(map(str, reversed(record.raw.shape or ()))),
        record.spikes and record.spikes.count,
    )


def _pictures(every: Sequence[_SessionResult], number: int, common: Sequence[_Common]) -> Iterator[str]:
    yield "<h2>Pictures</h2><p class='note'>Raw and denoised, same contrast. The doubtful ones come first.</p>"
    rank = {word: place for place, word in enumerate(WORDS)}
    shown = 0
    for result in sorted(every, key=lambda one: rank.get(one.word, len(rank))):
        if shown == number:
            break
        picture = None if result.record is None else _preview(result.image)
        if picture is None or result.record is None:
            continue
        shown += 1
        word, why = text(result.word), _why(result.record, common).as_html()
        yield html.figure(picture, f'<b>{text(result.name)}</b>: <span class="{word}">{word}</span> {why}')
    left_out = len(every) - shown
    if left_out:
        yield f'<p class="note">{left_out} more are not shown: no preview, or --pictures allows for no more.</p>'


def _preview(image: Path) -> Picture.Image | None:
    """The preview beside a result, small enough for a page."""
    try:
        with (
            formats.RawFile(paths.preview_path(image)).open() as stream,
            Picture.open(stream, formats=["PNG"]) as found,
        ):
            picture = found.convert("L")
    except (OSError, MicrographError, SyntaxError, ValueError, EOFError, struct.error, Picture.DecompressionBombError):
        return None
    picture.thumbnail((WIDEST, WIDEST))
    return picture


def _settings(config: Config, records: Sequence[Record]) -> Iterator[str]:
    now = config.fingerprint()
    other = sum(record.config_sha256 != now for record in records)
    yield f"<p>As they are now; what influences pixels has the SHA-256 <code>{now}</code>."
    if other:
        yield f" <b>{other} of these micrographs were made with others</b>; the JSON beside each has their hash."
    yield "</p>"
    yield f"<pre>{text(yaml.safe_dump(config.model_dump(mode='json'), sort_keys=False, allow_unicode=True))}</pre>"


def _verdict(record: Record | None) -> VerdictFound:
    return (record and record.verdict) or VerdictFound()


def _seen(job: Job) -> str:
    return "" if job.acknowledged is None else " (acknowledged)"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def report_session(options: argparse.Namespace) -> int:
    """Write the page; returns 0. Raises UsageError if its name is not that of a page."""
    config = settings_of(options)
    to, in_folder = Path(options.to), options.to.endswith("/") or Path(options.to).is_dir()
    if not in_folder and to.suffix.lower() not in _ENDINGS:
        raise UsageError(f"{to}: must end in .html, or browsers do not recognise the page; for a folder: {to}/")
    with open_ledger(config, "read") as ledger:
        jobs = sessions.find(ledger, options.session)
    if in_folder:
        to /= time.strftime("session-%Y-%m-%d-%H%M.html", time.localtime(jobs[0].updated))
    to.parent.mkdir(parents=True, exist_ok=True)
    write(config, jobs, options.session, to, max(0, options.pictures))
    number = sum(len(list(paths.results_of(job))) or 1 for job in jobs)
    print(f"{number} micrographs → {to}")
    return 0
