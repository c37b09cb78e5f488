"""Colours and line breaks on a terminal, and neither in a file."""

import io

import pytest

from daemon.commands.terminal import coloured, wrapped


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "50")


def test_colours_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert coloured("good", stream=Terminal()) == "\x1b[32mgood\x1b[0m"
    assert coloured("fault", "FAULT ", Terminal()) == "\x1b[31mFAULT \x1b[0m"
    assert coloured("purple", stream=Terminal()) == "purple"
    assert coloured("good", stream=io.StringIO()) == "good"
    monkeypatch.setenv("TERM", "dumb")
    assert coloured("good", stream=Terminal()) == "good"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("good", stream=Terminal()) == "good"


def test_long_lines_are_broken_between_words_on_a_terminal_only() -> None:
    text = "one\n    warning: " + "word " * 20 + "'two  spaces.tif' /a/very/long/path/" + "x" * 60
    assert wrapped(text, stream=io.StringIO()) == text
    lines = wrapped(text, 4, Terminal()).split("\n")
    assert lines[0] == "one" and lines[1].startswith("    warning: word")
    assert all(line.startswith("        ") for line in lines[2:]), "below its beginning"
    assert all(len(line) <= 50 for line in lines if "xxx" not in line)
    assert "/a/very/long/path/" + "x" * 60 in lines[-1], "a path is not broken"
    assert "'two  spaces.tif'" in "".join(lines)
