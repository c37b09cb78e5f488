"""Stacks whose sections are done one by one: one job that goes on."""

import pytest
from ledgers import claim

from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger


def test_a_stack_goes_on_where_it_was(ledger: Ledger) -> None:
    def grown(size: int) -> Job | None:
        return ledger.register("tilt.st", size, size, live=True, by_section=True)

    assert grown(100) is not None and grown(100) is None
    job = ledger.finish(claim(ledger), "/out/1", sections=1, more=True, sha256="first")
    assert (job.state, job.sections, job.attempts) == ("pending", 1, 0)
    grown(200)
    second = claim(ledger)
    assert (second.sections, second.sha256, second.size, second.revision) == (1, "first", 200, 1)
    grown(300)  # while it is in hand, and so it is not the last
    assert ledger.finish(second, "/out/2", sections=2).state == "pending"
    assert ledger.finish(claim(ledger), "/out/3", sections=3).state == "done"
    assert ledger.known("tilt.st", 300, 300)
    grown(400)
    ledger.quarantine(claim(ledger), "broken")
    job = grown(500)
    assert job is not None and (job.state, job.sections, job.error, job.output) == ("pending", 3, None, "/out/3")
    assert ledger.counts()["pending"] == 1 and len(ledger.recent(9)) == 1


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (("good", "good"), "good"),
        (("good", "reject", "good"), "reject"),
        (("check", "good"), "check"),
        (("check", "reject"), "reject"),
        ((None, "good"), "good"),
    ],
)
def test_a_stack_has_the_worst_verdict_of_its_sections(
    ledger: Ledger, words: tuple[str | None, ...], kept: str
) -> None:
    ledger.register("tilt.st", 1, 1, live=True, by_section=True)
    for number, word in enumerate(words, 1):
        told = {"verdict": word, "facts": {}, "sections": number, "more": number < len(words)}
        job = ledger.finish(claim(ledger), f"/out/{number}", **told)  # type: ignore[arg-type]
    assert job.verdict == kept
    ledger.register("tilt.st", 2, 2, live=True, by_section=True)
    ledger.replaced(claim(ledger))  # another stack: nothing of the one before counts
    assert ledger.finish(claim(ledger), "/out/1", sections=1, verdict="good", facts={}).verdict == "good"


def test_a_file_of_which_only_decoding_tells_is_taken_as_it_was_the_last_time(ledger: Ledger) -> None:
    for path, sections in (("tilt.dm4", 3), ("movie.dm4", 0)):
        ledger.register(path, 1, 1, live=True, by_section=None)
        ledger.finish(claim(ledger), "/out/1", sections=sections or None, sha256="first")
    touched = [ledger.register(path, 1, 2, live=True, by_section=None) for path in ("tilt.dm4", "movie.dm4")]
    assert [(job.path, job.revision, job.sections) for job in touched if job] == [
        ("tilt.dm4", 1, 3),
        ("movie.dm4", 2, 0),
    ]


def test_another_stack_under_the_same_name_is_the_next_revision(ledger: Ledger) -> None:
    ledger.register("tilt.st", 1, 1, live=True, by_section=True)
    ledger.finish(claim(ledger), "/out/1", sections=1, sha256="first")
    ledger.register("tilt.st", 2, 2, live=True, by_section=True)
    job = ledger.replaced(claim(ledger))
    assert (job.state, job.revision, job.sections, job.sha256, job.attempts) == ("pending", 2, 0, None, 0)
