"""Folded names beside the jobs: each job has one, and a search by them finds what comparing every path would."""

import os
from fnmatch import fnmatchcase
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from ledgers import arrive, claim, start

from daemon.ledger.jobs import Ledger
from daemon.ledger.names import certain, decode, stored
from daemon.settings.names import folded

LETTERS = st.text("aB[]!*?-/é\u0301\udcff\n", max_size=6)


def named(ledger: Ledger) -> dict[int, str]:
    found = dict(map(tuple, ledger._db.execute("SELECT job, name FROM names")))
    paths = dict(map(tuple, ledger._db.execute("SELECT id, path FROM jobs")))
    assert found == {job: stored(path) for job, path in paths.items()}
    return {job: decode(name) for job, name in found.items()}


def test_every_job_has_its_name_however_it_comes_and_goes(tmp_path: Path) -> None:
    with start(tmp_path) as ledger:
        for path in ("Grid 1/E\u0301.TIF", "odd \udcff.tif", "c.tif"):
            arrive(ledger, path)
        assert named(ledger) == {1: "grid 1/é.tif", 2: "odd \udcff.tif", 3: "c.tif"}
        ledger.forget(claim(ledger))
        assert 3 not in named(ledger)
        arrive(ledger, "D.tif")  # with the number of the one that went
        done = [ledger.finish(claim(ledger), "x") for _ in range(3)]
        arrive(ledger, "D.tif", size=101)  # a revision
        assert named(ledger)[3] == named(ledger)[4] == "d.tif"
        assert ledger.purge(done) == 3 and named(ledger) == {4: "d.tif"}
        assert ledger.readmit(["odd \udcff.tif"]) == 1 and "odd \udcff.tif" in named(ledger).values()


@given(LETTERS, LETTERS)
def test_what_a_glob_surely_contains_is_in_each_name_that_it_matches(glob: str, name: str) -> None:
    wanted, path = folded(glob), stored(os.fsencode(name))
    if fnmatchcase(decode(path), wanted):
        assert certain(wanted) in path


def test_the_longest_certain_part() -> None:
    assert certain("*/grid 2/*.tif") == b"/grid 2/" and certain("a?b[cde]f") == b"a" and certain("*") == b""
