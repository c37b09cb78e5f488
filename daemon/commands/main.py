"""The `emdenoised` command: runs what the command line asks for and turns errors into an exit status."""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence

from daemon import logs
from daemon.commands.command_line import parser
from daemon.commands.terminal import in_words, wrapped
from daemon.errors import ConfigError, EmdenoisedError, UsageError, WeightsError
from daemon.ledger.database import LedgerDamagedError, LedgerLockedError
from daemon.settings.config import EX_CONFIG

EX_USAGE = 2
"""Wrong arguments, as argparse has it."""
_EX_PIPE = 141
"""The reader of the output has gone, as a shell reports SIGPIPE."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Expected failures end in one readable message, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:  # such as `emdenoised status | head`
        _silence()
        return _EX_PIPE
    except OSError as error:
        print(f"emdenoised: the output cannot be written: {error.strerror}", file=sys.stderr)
        _silence()
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    command_line = parser()
    if "_ARGCOMPLETE" in os.environ:
        _complete(command_line)
    options = command_line.parse_args(arguments)
    logs.set_up()
    try:
        status: int = options.run(options)
        return status
    except BrokenPipeError:
        raise
    except UsageError as error:
        _complain(error)
        return EX_USAGE
    except (ConfigError, WeightsError, LedgerDamagedError, LedgerLockedError) as error:  # a person is needed
        _complain(error)
        return EX_CONFIG
    except EmdenoisedError as error:
        _complain(error)
        return 1
    except OSError as error:
        # A number is a descriptor, by which Python's functions for folders are called, too.
        nameless = error.filename is None or isinstance(error.filename, int)
        named = "" if nameless else f"{logs.one_line(os.fsdecode(error.filename))}: "
        _complain(f"{named}{in_words(error)}")
        return 1
    except MemoryError:
        print("emdenoised: not enough memory; close other programs, or lower backend.queue", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _complete(command_line: argparse.ArgumentParser) -> None:
    """Answer the shell, which asks for what may come next, and end; return where argcomplete is not installed."""
    with contextlib.suppress(ImportError):
        import argcomplete

        argcomplete.autocomplete(command_line)


def _complain(error: Exception | str) -> None:
    text = "\n".join(map(logs.one_line, f"emdenoised: {error}".split("\n")))
    print(wrapped(text, stream=sys.stderr), file=sys.stderr)


def _silence() -> None:
    """What is still in the buffer of standard output goes nowhere, or Python would complain about it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
