"""The present session over time, and its outliers."""

from pathlib import Path

import pytest
from finished import Clock, Finished, counts
from page_over_http import data

from daemon.live_page.routes import Page
from daemon.live_page.session_curves import BINS, SessionSummary


def test_the_session_is_summed_up_and_kept_up_to_date(finished: Finished, page: Page, clock: Clock) -> None:
    assert data(page, "/data/session") == {"micrographs": 0}
    finished.add("old.tif", counts(0, (16, 16)))
    clock.now += 5 * 3600
    for number in range(12):
        verdict = "reject" if number == 5 else "good"
        facts = {"dose": 10.0 + number, "spikes": number}
        finished.add(f"{number}.tif", counts(number, (16, 16)), verdict=verdict, facts=facts)
        clock.now += 30
    finished.quarantine("broken.tif", "broken")
    one = data(page, "/data/session")
    assert one["micrographs"] == 13 and one["counts"] == {"good": 11, "reject": 1, "quarantined": 1}
    assert one["mean_dose"] == 15.5
    assert one["mean_spikes"] == pytest.approx(5.5e6 / 256)
    assert sum(map(sum, one["outcomes"].values())) == 13
    assert one["outliers"] == {"dose": [], "removed_noise": [], "spikes": []} and one["mean_removed_noise"] is None
    known = [value for value in one["dose"] if value is not None]
    assert known == sorted(known) and len(one["dose"]) == len(one["per_hour"]) <= BINS
    hours = one["bin_seconds"] / 3600
    assert sum(one["per_hour"]) * hours == pytest.approx(12)
    finished.add("new.tif", counts(1, (16, 16)), verdict="check")
    again = data(page, "/data/session")
    assert again["counts"] == {"good": 11, "check": 1, "reject": 1, "quarantined": 1}
    clock.now += 5 * 3600
    finished.add("next.tif", counts(1, (16, 16)))
    assert data(page, "/data/session")["counts"] == {"good": 1}


def test_outliers_are_single_micrographs_far_from_the_others(finished: Finished, page: Page) -> None:
    for number in range(20):
        facts = {"dose": 500.0 if number == 7 else 20.0 + number % 4, "removed_noise": "much" if number == 3 else 1.0}
        job = finished.add(f"{number}.tif", counts(number, (16, 16)), facts=facts)
        if number == 7:
            far = job
    found = data(page, "/data/session")
    assert found["outliers"]["dose"] == [{"id": far.id, "at": far.updated, "value": 500.0}]
    assert found["outliers"]["removed_noise"] == [] and found["mean_removed_noise"] == 1.0


def test_a_summary_kept_up_to_date_is_that_of_one_made_anew(finished: Finished, clock: Clock) -> None:
    summary = SessionSummary(finished.ledger)
    for number in range(10):
        job = finished.add(f"{number}.tif", counts(number, (16, 16)), facts={"dose": float(number)})
        if number % 3 == 0:
            assert summary.refresh()["micrographs"] == number + 1
    finished.replace_output(job, Path("/elsewhere"))  # the same one is finished again, later
    assert summary.refresh() == SessionSummary(finished.ledger).refresh()
    assert summary.refresh()["micrographs"] == 10
