"""The weights of a session: one that continues after a restart of the service keeps those with which it began.

This concerns profiles that name an alias, such as `fast`, which an upgrade may have pointed to other weights. A profile
that names weights gets these at once.
"""

import logging

from daemon.backends import manifest
from daemon.backends.manifest import Weights
from daemon.errors import WeightsError
from daemon.ledger import sessions
from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger

log = logging.getLogger(__name__)


def kept(loaded: dict[str, Weights], ledger: Ledger, now: float) -> dict[str, Weights]:
    """The `loaded` weights, by their names in profiles; aliases stand for the weights that the present session uses.

    `now`: seconds, wall clock. Raises as the ledger does.
    """
    found = dict(loaded)
    undecided = {asked for asked in loaded if asked in manifest.aliases()}
    for job in sessions.in_progress(ledger, now):
        if not undecided:
            break
        used = job.facts.get("weights")
        if not isinstance(used, dict) or used.get("asked") not in undecided:
            continue
        asked = used["asked"]
        undecided.discard(asked)
        if used.get("sha256") != _sha256(found[asked]):
            found[asked] = _as_before(asked, found[asked], str(used.get("name")), used.get("sha256"), job)
    return found


def _as_before(asked: str, new: Weights, name: str, sha256: object, job: Job) -> Weights:
    """The weights with which a job was done, or the new ones if those no longer exist or were changed."""
    try:
        old = manifest.verified(name)
    except WeightsError as error:
        log.warning("the session began with weights %s, which cannot be loaded (%s); it continues with %s", name, error,
                    new.manifest)  # fmt: skip
        return new
    if _sha256(old) != sha256:
        log.warning("the session began with other weights of the name %s (%r); it continues with %s", name, job.path,
                    new.manifest)  # fmt: skip
        return new
    log.info(
        "weights %s: the session in progress keeps %s, with which it began; %s comes at the first start after a pause "
        "of %.0f hours, or at once with `weights: %s` in the profile",
        asked, old.manifest, new.manifest, sessions.PAUSE_SECONDS / 3600, new.manifest.name,
    )  # fmt: skip
    return old


def _sha256(weights: Weights) -> str:
    return weights.manifest.sha256[weights.manifest.onnx]
