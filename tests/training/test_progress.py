"""Progress where there is no terminal: lines at intervals, with the time left."""

import logging
from collections.abc import Iterator

import pytest

from training.progress import Bar, left


def test_a_line_once_a_minute(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    times: Iterator[float] = iter([0.0, 10.0, 60.0, 70.0, 119.0, 120.0])
    bar = Bar("files read", lambda: next(times))
    with caplog.at_level(logging.INFO):
        for done in (1, 2, 3, 4, 5):
            bar.show(done, 10)
    assert caplog.messages == ["2 of 10 files read, about 4 min left", "5 of 10 files read, about 2 min left"]
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bar = Bar("pairs", iter([0.0, 30.0, 60.0]).__next__)
    bar.show(1, 2)
    bar.show(2, 2)
    shown = capsys.readouterr().err
    assert "#" * 15 + "." * 15 in shown and "#" * 30 in shown
    assert shown.endswith("2 of 2 pairs, less than a minute left   \n")


@pytest.mark.parametrize(("seconds", "words"), [(0, "less than a minute left"), (90, "about 2 min left")])
def test_the_time_left(seconds: float, words: str) -> None:
    assert left(seconds) == words
