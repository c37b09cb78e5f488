"""Exit statuses, help, and pipes whose reader goes away."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from site_of_daemon import ROOT

from daemon import __version__
from daemon.commands import command_line
from daemon.commands.main import main

COMMANDS = (
    "run", "once", "check", "doctor", "status", "retry", "acknowledge", "prune", "purge", "denoise", "assess", "batch",
    "report", "replay", "star", "calibrate", "demo",
)  # fmt: skip
BUFFERED = {**os.environ, "PYTHONUNBUFFERED": ""}


def ended(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The status with which argparse ends the process, stdout and stderr."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


@pytest.mark.parametrize("arguments", [("denoise", "a.tif"), ("status", "--yaml"), ("dance",), ()])
def test_wrong_arguments_are_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = ended(*arguments, capsys=capsys)
    assert status == 2 and "usage: emdenoised" in err and not out


def test_a_settings_file_that_is_missing_is_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", str(tmp_path / "none.yaml")]) == 78
    assert "none.yaml" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--version", capsys=capsys) == (0, f"emdenoised {__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_an_example_that_works(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    status, out, _ = ended(command, "--help", capsys=capsys)
    assert status == 0 and max(map(len, out.splitlines())) <= 120
    examples = [line for line in out.partition("example")[2].splitlines() if f"emdenoised {command}" in line]
    assert examples
    for example in examples:
        words = example.partition(f"emdenoised {command}")[2].replace("'", "").split()
        if command in ("retry", "acknowledge", "report"):  # a name with a space in it
            words = [word for word in words if word not in ("2", "2/*")]
        assert command_line.parser().parse_args([command, *words]).run


def test_every_command_is_tested_here() -> None:
    usage = command_line.parser().format_help()
    listed = [line.split()[0] for line in usage.splitlines() if line.startswith("    ") and line[4] != " "]
    assert [one for one in listed if one[0].isalpha() and one != "COMMAND"] == list(COMMANDS)


@pytest.mark.parametrize("arguments", [("--help",), ("check",)])
def test_a_reader_that_goes_away_is_no_fault(arguments: tuple[str, ...]) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "emdenoised", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=BUFFERED,
    )  # fmt: skip
    assert program.stdout is not None and program.stderr is not None
    program.stdout.close()
    assert program.stderr.read() == b""
    program.stderr.close()
    assert program.wait() == 141


def test_an_output_that_cannot_be_written_is_named() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "emdenoised", "check"],
            stdout=full, stderr=subprocess.PIPE, cwd=ROOT, env=BUFFERED, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == b"emdenoised: the output cannot be written: No space left on device\n"


def test_a_path_that_is_none_is_named_with_its_cause_and_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.tif").write_bytes(b"no image")
    missing = "No such file or directory; check the path, and that its disk or share is connected"
    for words, said in (
        (("denoise", "none.tif", "-o", "out"), f"[1/1] none.tif ... failed\n    {missing}\n"),
        (("denoise", "file.tif", "-o", "file.tif"), "file.tif: File exists; a file has this name: choose another"),
        (("denoise", "file.tif", "-o", "file.tif/out"), "Not a directory; check the path: a part of it is a file"),
        (("assess", "none.tif"), f"[1/1] none.tif ... failed: {missing}\n"),
        (("calibrate", "none.tif", "-o", "my.yaml"), f"[1/1] none.tif ... failed\nemdenoised: none.tif: {missing}\n"),
    ):
        assert main(words) == 1
        found = capsys.readouterr()
        assert said in found.out + found.err and "Errno" not in found.out + found.err


def test_a_path_in_an_error_forges_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(("calibrate", "a\n\x1b[2Jemdenoised: all done", "-o", "my.yaml")) == 1
    assert r"emdenoised: a\x0a\x1b[2Jemdenoised: all done: No such file" in capsys.readouterr().err


def test_the_tab_key_completes_commands_and_options(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    for typed, expected in (("emdenoised stat", "status"), ("emdenoised denoise a.tif --pas", "--passes")):
        answer = tmp_path / "answer"
        asked = {
            "_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n",
            "COMP_LINE": typed, "COMP_POINT": str(len(typed)), "COMP_TYPE": "9",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "emdenoised"],
            env={**os.environ, **asked}, cwd=ROOT, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert answer.read_text().split() == [expected]


def test_the_whole_command_line_is_given_to_argcomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[argparse.ArgumentParser] = []
    monkeypatch.setitem(sys.modules, "argcomplete", SimpleNamespace(autocomplete=given.append))
    with pytest.raises(SystemExit):
        main(["--version"])
    assert not given, "argcomplete is not loaded unless a shell asks"
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    with pytest.raises(SystemExit):
        main(["--version"])
    assert "denoise" in given[0].format_help()
    monkeypatch.setitem(sys.modules, "argcomplete", None)  # not installed
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
