"""A batch as an array job of SLURM: the script, and its submission by sbatch."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from daemon.batch.manifest import FOLDER
from daemon.errors import TransientError, UsageError

SCRIPT = "slurm.sh"
_UNFIT = re.compile(r'[\x00-\x1f"\\]')
_SECONDS = 60
_WORDS = ("ARRAY", "TASKS", "COMMAND", "LOG")


def script(out: Path, command: Sequence[str], tasks: int, template: Path | None = None) -> str:
    """The script of an array of so many tasks, from a template (None: the shipped one).

    `command`: without --shard. Raises UsageError for a template that cannot be used and an `out` that a line of
    #SBATCH cannot hold.
    """
    if _UNFIT.search(str(out)):
        raise UsageError(f"{str(out)!r}: SLURM takes no quotes, backslashes or line breaks in the path of its log")
    log = str(out / FOLDER / "slurm-").replace("%", "%%") + "%A_%a.log"
    values = {"ARRAY": f"0-{tasks - 1}", "TASKS": str(tasks), "COMMAND": shlex.join(command), "LOG": f'"{log}"'}
    text = _template(template)
    missing = [f"@{word}@" for word in ("COMMAND", "TASKS") if f"@{word}@" not in text]
    if missing:
        raise UsageError(f"{template}: lacks {' and '.join(missing)}; begin with a copy of {shipped()}")
    return re.sub(f"@({'|'.join(_WORDS)})@", lambda found: values[found[1]], text)


def shipped() -> Path:
    """The template that came with the program."""
    return Path(str(resources.files("daemon.batch"))) / SCRIPT


def program() -> list[str]:
    """The words that start this program again, from any folder."""
    installed = Path(sys.executable).with_name("emdenoised")
    return [str(installed)] if installed.is_file() else [sys.executable, "-m", "emdenoised"]


def submit(file: Path) -> str:
    """Submit a script; returns sbatch's answer. Raises UsageError if it is missing or refuses, TransientError."""
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise UsageError(f"sbatch is not installed here; submit {file} on a computer of the cluster")
    try:
        done = subprocess.run(
            [sbatch, str(file)], capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TransientError(f"sbatch {file}: does not answer ({error}); try again later") from error
    if done.returncode:
        cause = done.stderr.strip() or f"status {done.returncode}"
        raise UsageError(
            f"sbatch {file}: {cause}; check that the cluster answers (sinfo), or give a template that fits (--template)"
        )
    return done.stdout.strip()


def _template(file: Path | None) -> str:
    file = file or shipped()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read as a template ({error})") from error
