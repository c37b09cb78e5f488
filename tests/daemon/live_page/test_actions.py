"""Retrying and acknowledging from the live page: off by default, and only for the page itself."""

from collections.abc import Callable, Iterator

import pytest
from finished import Finished, counts
from page_over_http import ask

from daemon.settings.config import Config


@pytest.fixture
def finished(config: Callable[..., Config], request: pytest.FixtureRequest) -> Iterator[Finished]:
    actions = getattr(request, "param", True)
    made = config()
    monitor = made.monitor.model_copy(update={"actions": actions})
    one = Finished(made.model_copy(update={"monitor": monitor}), iter(range(10**9)).__next__)
    yield one
    one.ledger.close()


def post(port: int, path: str, **headers: str) -> tuple[int, str]:
    return ask(port, path, "POST", **headers).said


def token(port: int) -> str | None:
    found: str | None = ask(port, "/data/state").data["token"]
    return found


def own(port: int) -> dict[str, str]:
    return {"Origin": f"http://127.0.0.1:{port}", "X_Emdenoised_Token": str(token(port))}


def test_the_page_retries_one_micrograph(finished: Finished, port: int) -> None:
    job, other = finished.quarantine("a.tif", "broken"), finished.quarantine("sub/a.tif", "broken")
    assert post(port, f"/act/retry/{job.id}", Sec_Fetch_Site="same-origin", **own(port)) == (200, "{}")
    assert finished.ledger.get(job.id).state == "pending" and finished.ledger.get(other.id).state == "quarantined"
    assert finished.ledger.get(job.id).attempts == 0
    status, text = post(port, f"/act/retry/{job.id + 99}", **own(port))
    assert status == 404 and "is not quarantined" in text
    done = finished.add("done.tif", counts(1))
    assert post(port, f"/act/retry/{done.id}", **own(port))[0] == 404
    assert finished.ledger.get(done.id).state == "done"


def test_the_page_acknowledges_one_problem(finished: Finished, port: int) -> None:
    job = finished.quarantine("a.tif", "broken")
    rejected, good = finished.add("r.tif", counts(1), verdict="reject"), finished.add("g.tif", counts(2))
    before = ask(port, "/data/state").data
    assert before["problems"] == 2
    for one in (job, rejected):
        assert post(port, f"/act/acknowledge/{one.id}", **own(port)) == (200, "{}")
    after = ask(port, "/data/state").data
    assert after["problems"] == 0 and after["counts"] == before["counts"] and after["changed"] != before["changed"]
    assert ask(port, f"/data/micrograph/{job.id}").data["acknowledged"] > 0
    rows = ask(port, "/data/table").data["rows"]
    assert {row["path"]: row["acknowledged"] for row in rows} == {"a.tif": True, "r.tif": True, "g.tif": False}
    lines = ask(port, "/data/table.csv").body.decode().splitlines()
    assert lines[0].endswith(",acknowledged") and sum(line.endswith(",yes") for line in lines) == 2
    for number in (job.id, good.id, 99):
        status, text = post(port, f"/act/acknowledge/{number}", **own(port))
        assert status == 404 and "no open problem" in text


def test_nobody_else_can(finished: Finished, port: int) -> None:
    job = finished.quarantine("a.tif", "broken")
    good = own(port)
    refused: list[tuple[int, dict[str, str]]] = [
        (403, {"Origin": good["Origin"]}),
        (403, good | {"X_Emdenoised_Token": "guess"}),
        (403, good | {"X_Emdenoised_Token": "\xe9"}),
        (403, {"X_Emdenoised_Token": good["X_Emdenoised_Token"]}),  # no browser's page: no origin
        (403, good | {"Origin": "http://evil.example"}),
        (403, good | {"Origin": "null"}),
        (403, good | {"Origin": f"http://127.0.0.1:{port + 1}"}),
        (403, good | {"Origin": "http://evil.example", "Host": "evil.example"}),
        (403, good | {"Sec_Fetch_Site": "cross-site"}),
        (413, good | {"Content_Length": "5"}),
        (413, good | {"Transfer_Encoding": "chunked"}),
    ]
    for status, headers in refused:
        for action in ("retry", "acknowledge"):
            assert post(port, f"/act/{action}/{job.id}", **headers)[0] == status, headers
    for path in ("/act/retry/", "/act/retry/-1", "/act/retry/1e3", "/act/purge/1", f"/act/retry/{job.id}/../1"):
        assert post(port, path, **good)[0] == 404, path
    assert ask(port, f"/act/retry/{job.id}", **good).status == 404
    assert finished.ledger.get(job.id).state == "quarantined" and finished.ledger.problems() == 1


@pytest.mark.parametrize("finished", [False], indirect=True)
def test_it_is_off_unless_the_settings_allow_it(finished: Finished, port: int) -> None:
    job = finished.quarantine("a.tif", "broken")
    assert token(port) is None and not Config.model_fields["monitor"].default.actions
    for action in ("retry", "acknowledge"):
        status, text = post(port, f"/act/{action}/{job.id}", **own(port))
        assert status == 403 and "monitor.actions is false" in text
    assert finished.ledger.get(job.id).state == "quarantined" and finished.ledger.problems() == 1
