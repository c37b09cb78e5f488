"""Micrographs that a person has marked as seen, in the ledger and by the command."""

import argparse
import json
from pathlib import Path

import pytest
from ledgers import Clock, arrive, claim, start

from daemon.commands.status import run_acknowledge, run_status
from daemon.ledger import jobs
from daemon.ledger.job import Job
from daemon.ledger.jobs import Ledger
from daemon.ledger.queries import _COUNT_PROBLEMS
from daemon.ledger.table import Query, Table


def refused(ledger: Ledger, path: str) -> Job:
    arrive(ledger, path)
    return ledger.quarantine(claim(ledger), f"{path}: broken")


def judged(ledger: Ledger, path: str, verdict: str) -> Job:
    arrive(ledger, path)
    return ledger.finish(claim(ledger), f"/out/{path}", verdict=verdict, facts={})


def test_what_is_acknowledged_is_no_problem_any_more_and_stays_where_it_was(tmp_path: Path, clock: Clock) -> None:
    with start(tmp_path, clock) as ledger:
        for verdict in ("good", "check"):
            judged(ledger, f"{verdict}.tif", verdict)
        one, other, rejected = refused(ledger, "a/x.tif"), refused(ledger, "b/x.tif"), judged(ledger, "r.tif", "reject")
        assert ledger.problems() == 3
        clock.now += 60
        assert [job.path for job in ledger.acknowledge("A/*")] == ["a/x.tif"] and ledger.problems() == 2
        assert [job.id for job in ledger.acknowledge(only=rejected.id)] == [rejected.id]
        assert ledger.acknowledge("good.tif") == ledger.acknowledge(only=one.id) == []
        seen = ledger.get(one.id)
        assert seen.acknowledged == clock.now and (seen.state, seen.error, seen.updated) == (
            "quarantined",
            one.error,
            one.updated,
        )
        assert ledger.counts()["quarantined"] == 2 and ledger.get(other.id).acknowledged is None
    with start(tmp_path, clock) as ledger:  # kept over restarts
        assert ledger.problems() == 1 and ledger.get(rejected.id).acknowledged is not None
        with Table(tmp_path) as table:
            assert [row.path for row in table.each(Query()) if row.acknowledged] == ["r.tif", "a/x.tif"]


@pytest.mark.parametrize("command", ["acknowledge", "retry"])
def test_many_are_changed_in_portions_between_which_a_service_can_write(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(jobs, "_PORTION", 2)
    with start(tmp_path, clock) as service, Ledger(tmp_path, "edit", clock=clock) as beside:
        found = [refused(service, f"{number}.tif") for number in range(5)]
        pauses = list[float]()

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 2:
                arrive(service, "4.tif", size=101)  # changed by its camera: to be denoised, and no problem any more
                assert claim(service).path == "4.tif"

        monkeypatch.setattr(jobs.time, "sleep", pause)
        assert [job.path for job in getattr(beside, command)()] == ["0.tif", "1.tif", "2.tif", "3.tif"]
        assert len(pauses) == 3 and pauses[1] > 0
        assert service.problems() == 0 and service.get(found[4].id).state == "running"
        assert service.get(found[4].id).acknowledged is None


def test_it_is_a_problem_anew_if_it_fails_again(tmp_path: Path, clock: Clock) -> None:
    with start(tmp_path, clock) as ledger:
        one = refused(ledger, "x.tif")
        ledger.acknowledge()
        ledger.retry()
        assert ledger.get(one.id).acknowledged is None and ledger.problems() == 0
        ledger.quarantine(claim(ledger), "broken still")
        assert ledger.problems() == 1
        ledger.acknowledge()
        arrive(ledger, "x.tif", size=101)  # the file has changed
        assert ledger.get(one.id).acknowledged is None
        ledger.finish(claim(ledger), "/out/x.tif", verdict="reject", facts={})
        assert ledger.problems() == 1


def test_counting_problems_reads_an_index_only(tmp_path: Path) -> None:
    with start(tmp_path) as ledger:
        plan = ledger._db.execute(f"EXPLAIN QUERY PLAN {_COUNT_PROBLEMS}").fetchone()["detail"]
        assert "COVERING INDEX problems" in plan


def test_a_click_on_the_page_reads_one_row_however_many_problems_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(tmp_path) as ledger:
        _, one, other = (refused(ledger, f"{name}.tif") for name in "abc")
        read: list[str] = []
        monkeypatch.setattr("daemon.ledger.jobs._matches", lambda path, _: bool(read.append(path)) or True)
        assert [job.id for job in ledger.acknowledge(only=one.id)] == [one.id] and read == ["b.tif"]
        assert [job.id for job in ledger.retry(only=other.id)] == [other.id] and read == ["b.tif", "c.tif"]
        assert not ledger.acknowledge(only=other.id) and ledger.problems() == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("folders: {drop: drop, output: out, state: state}\n")
    with start(tmp_path / "state") as ledger:
        refused(ledger, "a.tif")
        judged(ledger, "r.tif", "reject")
    given = argparse.Namespace(config=file, drop=None, out=None, state=None, pattern="*", json=False)
    assert run_status(given) == 0
    assert "2 quarantined or rejected that nobody has acknowledged" in capsys.readouterr().out
    assert run_acknowledge(given) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 acknowledged"
    assert run_acknowledge(given) == 0
    assert "no open problem matches '*'" in capsys.readouterr().out
    assert run_status(given) == 0
    said = capsys.readouterr().out
    assert "'a.tif' (acknowledged): broken" in said and "nobody has acknowledged" not in said
    assert run_status(argparse.Namespace(**vars(given) | {"json": True})) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == 0 and found["quarantined"][0]["acknowledged"] > 0
