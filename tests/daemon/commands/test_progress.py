"""A bar where somebody watches, plain lines where a file does."""

import io

import pytest

from daemon.commands.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(progress: Progress, now: list[float]) -> None:
    with progress:
        for name in ("a.tif", "b\n.tif"):
            progress.next(name)
            now[0] += 50
            progress.beat()
            progress.say(f"done at {now[0]:g}")


def test_plain_lines_have_no_bar_and_no_forged_ones() -> None:
    stream, now = io.StringIO(), [0.0]
    work(Progress(2, stream, lambda: now[0]), now)
    first, second = stream.getvalue().splitlines()
    assert first == "[1/2] a.tif ... done at 50"
    assert second.startswith("[2/2] b") and second.endswith(".tif ... done at 100")


def test_a_bar_tells_how_far_it_is_and_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    stream, now = Terminal(), [0.0]
    work(Progress(2, stream, lambda: now[0]), now)
    drawn = stream.getvalue().split("\r\x1b[K")
    assert any("2 of 2, 0:50, 0:50 left" in one and one.startswith("█" * 12 + "·" * 12) for one in drawn)
    assert drawn[-1] == "", "the bar is gone at the end"
    assert "[1/2] a.tif ... done at 50\n" in drawn


def test_a_narrow_terminal_cuts_the_bar_instead_of_wrapping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    progress = Progress(1, stream, lambda: 0.0)
    progress.next("a" * 100)
    assert max(map(len, stream.getvalue().split("\r\x1b[K"))) < 20


@pytest.mark.parametrize(("error", "word"), [(ValueError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_an_error_ends_the_line_of_the_file_that_it_concerns(error: type[BaseException], word: str) -> None:
    stream = io.StringIO()
    with pytest.raises(error), Progress(2, stream) as progress:
        progress.next("a.tif")
        progress.say("done")
        progress.next("b.tif")
        raise error
    assert stream.getvalue() == f"[1/2] a.tif ... done\n[2/2] b.tif ... {word}\n"


def test_an_error_before_the_first_file_is_not_that_of_a_file() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError, match="later"), Progress(1, stream):
        raise ValueError("later")
    assert not stream.getvalue()
