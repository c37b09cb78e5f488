"""`emdenoised status`, `retry` and `prune`: what the ledger has, beside a running service or without one."""

import argparse
import json
import time
from dataclasses import asdict

from daemon.commands.shared import settings_of
from daemon.ledger.jobs import Job, Ledger
from daemon.logs import one_line


def run_status(options: argparse.Namespace) -> int:
    with Ledger(settings_of(options).folders.state, "read") as ledger:
        counts = ledger.counts()
        recent, set_aside = ledger.recent(10), ledger.recent(1_000_000 if options.json else 100, "quarantined")
    if options.json:
        print(
            json.dumps(
                {
                    "counts": counts,
                    "recent": [asdict(job) for job in recent],
                    "quarantined": [asdict(job) for job in set_aside],
                },
                indent=1,
                default=str,
            )
        )
        return 0
    print(", ".join(f"{number} {state}" for state, number in counts.items()))
    if used := {_weights(job): None for job in recent if job.state == "done"}:
        print(f"weights of the latest: {', '.join(used)}")
    for job in recent:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.updated))
        remark = job.error or job.warning or ""
        word = job.verdict if job.state == "done" and job.verdict else job.state
        print(f"  {when}  {word:11}  {job.path!r}{f'  ({one_line(remark)})' if remark else ''}")
    if set_aside:
        print("quarantined; looked at again when they change, or with: emdenoised retry")
        for job in set_aside:
            print(f"  {job.path!r}: {one_line(job.error or '')}")
        if (more := counts["quarantined"] - len(set_aside)) > 0:
            print(f"  and {more} more: emdenoised status --json")
    return 0


def _weights(job: Job) -> str:
    """Name and hash of the weights that a result was made with."""
    match job.facts.get("weights"):
        case {"name": str(name), "sha256": str(sha256)}:
            return f"{name} ({sha256[:12]})"
    return "unknown"


def run_retry(options: argparse.Namespace) -> int:
    with Ledger(settings_of(options).folders.state, "edit") as ledger:
        jobs = ledger.retry(options.pattern)
    for job in jobs:
        print(f"again: {job.path!r}")
    print(f"{len(jobs)} to be tried again" if jobs else f"nothing quarantined matches {options.pattern!r}")
    return 0


def run_prune(options: argparse.Namespace) -> int:
    from daemon.service.housekeeping import prune

    config = settings_of(options)
    with Ledger(config.folders.state, "read" if options.dry_run else "edit") as ledger:
        pruned = prune(config, ledger, dry_run=options.dry_run)
    print(f"{'would be removed' if options.dry_run else 'removed'}: {pruned}")
    return 0
