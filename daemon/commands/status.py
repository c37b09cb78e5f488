"""`emdenoised status`, `retry`, `acknowledge` and `prune`: the ledger, whether or not the service runs."""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from daemon.commands.shared import open_ledger, settings_file, settings_of
from daemon.commands.terminal import coloured, wrapped
from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger
from daemon.logs import reason


def run_status(options: argparse.Namespace) -> int:
    """Counts, the latest micrographs, and those that are quarantined, with reasons."""
    config = settings_of(options)
    drop = config.folders.drop
    with open_ledger(config, "read") as ledger:
        counts, problems = ledger.counts(), ledger.problems()
        recent, set_aside = ledger.recent(10), ledger.recent(1_000_000 if options.json else 100, "quarantined")
    if options.json:
        print(
            json.dumps(
                {
                    "counts": counts,
                    "problems": problems,
                    "recent": [_as_json(job, drop) for job in recent],
                    "quarantined": [_as_json(job, drop) for job in set_aside],
                },
                indent=1,
                default=str,
            )
        )
        return 0
    print(f"{drop} → {config.folders.output} (settings: {settings_file(options)})")
    print(", ".join(f"{number} {state}" for state, number in counts.items()))
    if problems:
        print(f"{problems} quarantined or rejected that nobody has acknowledged (emdenoised acknowledge)")
    if used := {_weights(job): None for job in recent if job.state == "done"}:
        print(f"weights of the latest: {', '.join(used)}")
    for job in recent:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.updated))
        remark = reason(job.error or job.warning, drop, job.path)
        word = job.verdict if job.state == "done" and job.verdict else job.state
        line = wrapped(f"  {when}  {word:11}  {job.path!r}{f'  ({remark})' if remark else ''}", 34)
        print(line.replace(word, coloured(word), 1))
    if set_aside:
        print("quarantined; tried again when the files change, or with: emdenoised retry")
        for job in set_aside:
            seen = "" if job.acknowledged is None else " (acknowledged)"
            print(wrapped(f"  {job.path!r}{seen}: {reason(job.error, drop, job.path)}"))
        if (more := counts["quarantined"] - len(set_aside)) > 0:
            print(f"  and {more} more: emdenoised status --json")
    return 0


def _as_json(job: Job, drop: Path) -> dict[str, Any]:
    texts = {name: getattr(job, name) and reason(getattr(job, name), drop, job.path) for name in ("error", "warning")}
    return {**asdict(job), **texts}


def _weights(job: Job) -> str:
    """Name and hash of the weights that a result was made with."""
    match job.facts.get("weights"):
        case {"name": str(name), "sha256": str(sha256)}:
            return f"{name} ({sha256[:12]})"
    return "unknown"


def run_retry(options: argparse.Namespace) -> int:
    """Try quarantined micrographs again."""
    return _change(options, Ledger.retry, "again", "to be tried again", "nothing quarantined")


def run_acknowledge(options: argparse.Namespace) -> int:
    """Mark open problems as seen."""
    return _change(options, Ledger.acknowledge, "acknowledged", "acknowledged", "no open problem")


def _change(
    options: argparse.Namespace, change: Callable[[Ledger, str], list[Job]], each: str, all_of_them: str, none: str
) -> int:
    with open_ledger(settings_of(options), "edit") as ledger:
        jobs = change(ledger, options.pattern)
    for job in jobs:
        print(f"{each}: {job.path!r}")
    print(f"{len(jobs)} {all_of_them}" if jobs else f"{none} matches {options.pattern!r}")
    return 0


def run_prune(options: argparse.Namespace) -> int:
    from daemon.service.housekeeping import prune

    config = settings_of(options)
    with open_ledger(config, "read" if options.dry_run else "edit") as ledger:
        pruned = prune(config, ledger, dry_run=options.dry_run)
    print(f"{'would be removed' if options.dry_run else 'removed'}: {pruned}")
    return 0
