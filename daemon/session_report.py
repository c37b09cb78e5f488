"""A session as one page for a lab book: what was done, pictures, settings, hashes and verdicts."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from PIL import Image as Picture
from PIL import UnidentifiedImageError

from daemon import __version__, document, report
from daemon.config import Config
from daemon.document import text
from daemon.ledger import Job

WORDS = ("reject", "check", "good")
"""The worst first."""
WIDEST = 1000
"""Of a picture in the page, pixels."""


def write(config: Config, jobs: Sequence[Job], named: str, path: Path, pictures: int) -> None:
    """Write the page about a session's jobs to `path`; at most `pictures` of them, the doubtful ones first.

    Raises OSError if it cannot be written.
    """
    document.save(path, f"emdenoised: session {named}", _parts(config, jobs, pictures))


def _parts(config: Config, jobs: Sequence[Job], pictures: int) -> Iterator[str]:
    done = [job for job in jobs if job.state == "done"]
    refused = [job for job in jobs if job.state == "quarantined"]
    records = {job.id: _record(job) for job in done}
    yield from document.facts(_summary(config, jobs, [record for record in records.values() if record]))
    yield (
        '<p class="note">Verdicts compare each result with its raw data: <b>good</b>: nothing speaks against it; '
        "<b>check</b>: look at it for the reason given; <b>reject</b>: it is probably worse than the raw image. A "
        "denoised image is an estimate: measure on the raw data where it matters.</p>"
    )
    yield "<h2>Micrographs</h2>"
    yield from document.table(
        ("finished", "micrograph", "verdict", "why", "counts per pixel", "profile", "pixels", "spikes"),
        (_row(job, records[job.id]) for job in done),
        WORDS,
    )
    if refused:
        yield "<h2>Not denoised</h2>"
        rows = ((_clock(job.updated), job.path, "quarantined", job.error or "") for job in refused)
        yield from document.table(("when", "file", "state", "reason"), rows, ("quarantined",))
    if pictures:
        yield from _pictures(done, records, pictures)
    yield "<h2>Hashes</h2><p class='note'>SHA-256 of raw file (of a stack's section: of its pixels) and result.</p>"
    hashes = (
        (job.path, _get(record, "raw", "sha256"), _get(record, "output", "sha256"))
        for job, record in _with(done, records)
    )
    yield from document.table(("micrograph", "raw", "result"), hashes)
    yield "<h2>Settings</h2>"
    yield from _settings(config, [record for _, record in _with(done, records)])


def _record(job: Job) -> dict[str, Any] | None:
    """The JSON beside the result, if both are where they were written."""
    try:
        return None if job.output is None else report.own_record(Path(job.output))
    except OSError:
        return None


def _with(done: Sequence[Job], records: Mapping[int, dict[str, Any] | None]) -> Iterator[tuple[Job, dict[str, Any]]]:
    for job in done:
        if (record := records[job.id]) is not None:
            yield job, record


def _summary(config: Config, jobs: Sequence[Job], records: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    words = Counter(job.verdict or "none" for job in jobs if job.state == "done")
    doses = [dose for record in records if (dose := _number(record.get("dose"))) is not None]
    refused = sum(job.state == "quarantined" for job in jobs)
    weights = sorted({_weights(record) for record in records})
    backends = sorted({str(record.get("backend")) for record in records})
    return {
        "From": _clock(jobs[0].updated),
        "To": _clock(jobs[-1].updated),
        "Micrographs": f"{len(jobs) - refused} denoised, {refused} quarantined",
        "Verdicts": ", ".join(f"{words[word]} {word}" for word in (*WORDS, "none") if words[word]) or "none",
        "Mean counts per pixel": f"{sum(doses) / len(doses):.3g} (of {len(doses)} whose dose is known)"
        if doses
        else "unknown",
        "X-ray hits and hot pixels": sum(int(_number(_get(record, "spikes", "count")) or 0) for record in records),
        "Weights": "; ".join(weights) or "unknown",
        "Network run by": "; ".join(backends) or "unknown",
        "Raw files": config.folders.drop,
        "Results": config.folders.output,
        "Program": f"emdenoised {__version__}; this page was written {_clock(time.time())}",
    }


def _weights(record: Mapping[str, Any]) -> str:
    hashes = _get(record, "weights", "sha256")
    told = "; ".join(f"{name} {digest}" for name, digest in hashes.items()) if isinstance(hashes, Mapping) else ""
    return f"{_get(record, 'weights', 'name')} ({told})"


def _row(job: Job, record: Mapping[str, Any] | None) -> tuple[object, ...]:
    if record is None:
        return (
            _clock(job.updated),
            job.path,
            job.verdict or "none",
            "the result is no longer where it was",
            "",
            "",
            "",
            "",
        )
    dose = _number(record.get("dose"))
    return (
        _clock(job.updated),
        job.path + (f" (revision {job.revision})" if job.revision > 1 else ""),
        job.verdict or "none",
        "; ".join(_listed(record.get("warnings"))),
        "unknown" if dose is None else f"{dose:.3g}",
        _get(record, "profile", "name") or "",
        " x ".join(reversed(_listed(_get(record, "raw", "shape")))),
        _get(record, "spikes", "count"),
    )


def _pictures(done: Sequence[Job], records: Mapping[int, dict[str, Any] | None], number: int) -> Iterator[str]:
    yield "<h2>Pictures</h2><p class='note'>Raw and denoised, same contrast. The doubtful ones come first.</p>"
    rank = {word: place for place, word in enumerate(WORDS)}
    shown = 0
    for job, record in sorted(_with(done, records), key=lambda one: rank.get(one[0].verdict or "", len(rank))):
        if shown == number:
            break
        picture = _preview(job)
        if picture is None:
            continue
        shown += 1
        word = job.verdict or "none"
        reasons = "; ".join(_listed(_get(record, "verdict", "reasons")))
        yield document.figure(
            picture, f'<b>{text(job.path)}</b>: <span class="{text(word)}">{text(word)}</span> {text(reasons)}'
        )
    left_out = len(done) - shown
    if left_out:
        yield f'<p class="note">{left_out} more are not shown: no preview, or --pictures allows for no more.</p>'


def _preview(job: Job) -> Picture.Image | None:
    """The preview beside the result, small enough for a page."""
    try:
        with (
            report.preview_path(Path(job.output or "")).open("rb") as stream,
            Picture.open(stream, formats=["PNG"]) as found,
        ):
            picture = found.convert("L")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError):
        return None
    picture.thumbnail((WIDEST, WIDEST))
    return picture


def _settings(config: Config, records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    now = config.fingerprint()
    other = sum(record.get("config_sha256") != now for record in records)
    yield f"<p>As they are now; what influences pixels has the SHA-256 <code>{now}</code>."
    if other:
        yield f" <b>{other} of these micrographs were made with others</b>; the JSON beside each has their hash."
    yield "</p>"
    yield f"<pre>{text(yaml.safe_dump(config.model_dump(mode='json'), sort_keys=False, allow_unicode=True))}</pre>"


def _get(record: Mapping[str, Any], section: str, key: str) -> Any:
    found = record.get(section)
    return found.get(key) if isinstance(found, Mapping) else None


# A record that somebody wrote by hand costs its own cells, not the page.


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and isfinite(value) else None


def _listed(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
